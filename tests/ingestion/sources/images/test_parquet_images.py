"""Parquet with images: bytes in a column, by themselves or beside a path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamtrain as st
from streamtrain.errors import InputError, UsageError
from tests.support.images import encoded, pixels_of

FILES = [encoded(pixels_of(i)) for i in range(10)]
LABELS = [("cat", "dog")[i % 2] for i in range(10)]


def _ingest(path: Path, table: dict[str, Any], **options: Any) -> st.Dataset:
    pq.write_table(pa.table(table), path / "a.parquet", row_group_size=4)
    return st.ingest(path / "a.parquet", path / "d.zarr", progress=False, **options)


def test_a_column_of_bytes(tmp_path: Path) -> None:
    dataset = _ingest(tmp_path, {"image": FILES, "label": LABELS, "size": list(range(10))}, label_column="label")
    assert dataset[:]["image"] == FILES
    assert dataset.classes == ("cat", "dog")
    assert dataset[:]["y"].tolist() == [0, 1] * 5
    assert not st.verify(dataset.path, full=True).damage


def test_structs_of_bytes_and_a_path(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(FILES)]
    dataset = _ingest(
        tmp_path, {"pic": images, "label": [i % 3 for i in range(10)]}, label_column="label", memory="64MB"
    )
    assert dataset[:]["pic"] == FILES
    assert dataset[:]["y"].tolist() == [i % 3 for i in range(10)]


def test_chosen_columns_appends_and_pixels(tmp_path: Path) -> None:
    columns = {"left": FILES, "right": FILES[::-1]}
    dataset = _ingest(tmp_path, columns, columns=("right",))
    assert dataset[:] == {"right": FILES[::-1]}
    more_rows = shutil.copy(tmp_path / "a.parquet", tmp_path / "more.parquet")
    more = st.ingest(more_rows, dataset.path, append=True, columns=("right",))
    assert more[:]["right"] == 2 * FILES[::-1]
    (tmp_path / "b").mkdir()
    assert _ingest(tmp_path / "b", columns, store="decoded", size=8)[:]["left"].shape == (10, 8, 8, 3)


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({"image": [*FILES[:5], None]}, {}, "an image is missing"),
        ({"image": [*FILES[:5], FILES[5][:-1]]}, {}, "its end is missing"),
        ({"image": [b"no image"]}, {}, "not an image"),
        ({"image": FILES, "y": [*LABELS[:9], None]}, {"label_column": "y"}, "a label is missing"),
        ({"image": FILES}, {"label_column": "kind"}, "no column 'kind'"),
    ],
)
def test_bad_rows_are_named(columns: dict[str, Any], options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told) as caught:
        _ingest(tmp_path, columns, **options)
    assert "a.parquet" in str(caught.value.where)
    assert caught.value.fix


def test_what_is_not_taken_beside_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="columns of images together with 'size'"):
        _ingest(tmp_path, {"image": FILES, "size": list(range(10))}, columns=("image", "size"))
    with pytest.raises(UsageError, match="max_side applies to images only"):
        _ingest(tmp_path, {"x": [1.0, 2.0]}, max_side=10)
    numbers = _ingest(tmp_path, {"x": [1.0, 2.0], "y": [0, 1]}, label_column="y")
    assert [field.name for field in numbers.fields] == ["x", "y"]
