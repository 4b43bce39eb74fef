"""Files of one table that do not have the same columns: refused with all that each lacks, however they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import streamtrain as st
from streamtrain.errors import InputError

A = pd.DataFrame({"day": ["2024-01-02", "2024-01-03"], "shop": ["A", "B"], "price": [1.5, 2.5], "y": [1, 2]})
B = A.drop(columns=["shop", "price"]).assign(store=["A", "B"])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("options", [{"auto": True}, {}, {"categorical": ["shop"], "dates": ["day"]}])
def test_all_columns_that_a_file_lacks_are_named(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    paths = [tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"]
    for frame, path in zip((A, B), paths, strict=True):
        if suffix == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    with pytest.raises(InputError) as caught:
        st.ingest(paths, tmp_path / "d.zarr", label_column="y", **options)
    assert {"it has no columns", "'shop'", "'price'", "a." + suffix, "'store' instead"} <= _parts(str(caught.value))
    assert caught.value.where == str(paths[1])
    assert not (tmp_path / "d.zarr").exists()


def _parts(message: str) -> set[str]:
    known = ("it has no columns", "'shop'", "'price'", "a.csv", "a.tsv", "a.parquet", "'store' instead")
    return {part for part in known if part in message}


def test_rows_to_append_name_all_columns_they_lack(tmp_path: Path) -> None:
    dest = st.ingest(A, tmp_path / "d.zarr", label_column="y", categorical=["shop"], dates=["day"]).path
    with pytest.raises(InputError, match="no columns 'shop', 'price'"):
        st.ingest(B, dest, append=True)
