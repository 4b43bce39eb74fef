"""Labels beside features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.combine import with_labels
from streamtrain.ingestion.sources.registry import open_source


@given(n_rows=st.integers(1, 40), max_bytes=st.integers(1, 300), item=st.integers(1, 9))
def test_labels_beside_features(read_all: Callable[..., Any], n_rows: int, max_bytes: int, item: int) -> None:
    x, y = np.random.default_rng(n_rows).normal(size=(n_rows, 3)), np.arange(n_rows, dtype="u1")
    streamed = iter([{"labels": y[start : start + item]} for start in range(0, n_rows, item)])
    for labels in (y, streamed):
        source = open_source(x, labels=labels)
        read = read_all(source, max_bytes)
        np.testing.assert_array_equal(read["x"], x)
        np.testing.assert_array_equal(read["y"], y.astype("i8"), strict=True)
        assert source.n_samples == n_rows
        assert source.seekable == (labels is y)


def test_labels_of_seekable_files(
    tmp_path: Path, read_all: Callable[..., Any], check_ranges: Callable[..., None]
) -> None:
    x, y = np.arange(30.0).reshape(10, 3), np.arange(10, dtype=">u2")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    source = open_source(tmp_path / "x.npy", labels=tmp_path / "y.npy")
    check_ranges(source, {"x": x, "y": y.astype("i8")}, [(0, 10), (4, 4), (9, 10)])
    assert source.where(4) == f"{tmp_path / 'x.npy'} row 4"
    assert [entry.get("field") for entry in source.provenance] == [None, "y"]


def test_labels_from_a_table(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    (tmp_path / "one.csv").write_text("kind\nb\na\nb\n")
    (tmp_path / "two.csv").write_text("id,kind\n7,b\n8,a\n9,b\n")
    for name, options in (("one", SourceOptions()), ("two", SourceOptions(label_column="kind"))):
        source = open_source(tmp_path / "x.npy", labels=tmp_path / f"{name}.csv", options=options)
        assert (source.classes, read_all(source)["y"].tolist()) == (("a", "b"), [1, 0, 1])
    with pytest.raises(UsageError, match="the label column is not named"):
        open_source(tmp_path / "x.npy", labels=tmp_path / "two.csv")


def test_counts_that_differ_are_both_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    with pytest.raises(InputError, match="features and labels differ in rows: 5 and 4") as caught:
        open_source(tmp_path / "x.npy", labels=np.zeros(4))
    assert caught.value.exit_code == 3
    for n_labels in (4, 6):
        source = open_source(tmp_path / "x.npy", labels=iter([{"y": np.zeros(n_labels)}]))
        with pytest.raises(InputError, match=f"differ in rows: 5 and {n_labels}"):
            list(source.iter_blocks(1000))


def test_labels_twice_or_of_several_fields() -> None:
    both = {"x": np.zeros(3), "y": np.zeros(3)}
    with pytest.raises(UsageError, match="bring labels of their own"):
        open_source(both, labels=np.zeros(3))
    with pytest.raises(InputError, match="hold several fields: x, y"):
        with_labels(open_source(np.zeros(3)), open_source(both))


def test_a_label_beyond_int64_names_its_own_row() -> None:
    source = open_source(np.zeros(3), labels=iter([{"y": np.array([0, 1], "u8")}]))
    assert source.fields[1].dtype == np.int64
    source = open_source(np.zeros(3), labels={"label": np.array([0, 2**63, 1], "u8")})
    with pytest.raises(InputError, match=r"row 1 of the arrays: label 9223372036854775808"):
        list(source.iter_blocks(8))
