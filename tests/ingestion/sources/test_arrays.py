"""Arrays in memory, memmaps, and what looks like them."""

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
from streamtrain.ingestion.sources.registry import open_source


@given(n_rows=st.integers(1, 60), n_parts=st.integers(1, 4), max_bytes=st.integers(1, 2000))
def test_blocks_equal_the_arrays(
    read_all: Callable[..., Any], check_ranges: Callable[..., None], n_rows: int, n_parts: int, max_bytes: int
) -> None:
    x = np.random.default_rng(n_rows).normal(size=(n_rows, n_parts, 2))
    source = open_source({"x": x.astype(">f8"), "y": np.arange(n_rows, dtype="i2"), "mask": x > 0})
    expected = {"x": x, "y": np.arange(n_rows), "mask": x > 0}
    for name, values in read_all(source, max_bytes).items():
        np.testing.assert_array_equal(values, expected[name], strict=True)
    check_ranges(source, expected, [(0, n_rows), (n_rows // 2, n_rows)])


def test_one_array_is_x_and_a_view() -> None:
    x = np.arange(12, dtype="f4").reshape(4, 3)
    source = open_source(x)
    assert source.seekable
    assert np.shares_memory(source.read(1, 3)["x"], x)
    assert source.where(2) == "row 2 of the arrays"
    assert source.provenance == ({"format": "array"},)


@pytest.mark.parametrize(("start", "stop"), [(2, 9), (-1, 2), (3, 2)])
def test_rows_that_are_not_there(start: int, stop: int) -> None:
    with pytest.raises(UsageError, match=rf"rows \[{start}, {stop}\) are not among the source's 5"):
        open_source(np.zeros(5)).read(start, stop)


def test_a_memmap(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    x = np.memmap(tmp_path / "x", "u1", "w+", shape=(100, 7))
    x[:] = np.arange(100)[:, None]
    rows = read_all(open_source({"x": x}), 64)["x"]
    assert type(rows) is np.ndarray
    np.testing.assert_array_equal(rows, x)


def test_a_fortran_array(read_all: Callable[..., Any]) -> None:
    x = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(read_all(open_source(x), 24)["x"], x)


class Exporting:
    """Something that becomes an array, as tensors of other libraries do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.arange(6, dtype="f4").reshape(3, 2)


def test_whatever_becomes_an_array(read_all: Callable[..., Any]) -> None:
    source = open_source({"x": Exporting(), "y": [0, 1, 0]})
    np.testing.assert_array_equal(read_all(source)["y"], np.array([0, 1, 0]))
    assert open_source(Exporting()).n_samples == 3


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", ">i4", "u8", "i8"])
def test_class_labels_are_int64(read_all: Callable[..., Any], dtype: str) -> None:
    rows = read_all(open_source({"x": np.zeros((3, 1)), "y": np.array([0, 1, 1], dtype)}))
    np.testing.assert_array_equal(rows["y"], np.array([0, 1, 1]), strict=True)


def test_other_labels_are_kept() -> None:
    fields = open_source({"x": np.zeros(3), "y": np.zeros((3, 2), "u1")}).fields
    assert fields[1].dtype == np.uint8
    assert open_source({"x": np.zeros(3), "y": np.zeros(3, "f4")}).fields[1].dtype == np.float32


def test_a_label_beyond_int64() -> None:
    source = open_source({"x": np.zeros(4), "y": np.array([1, 2, 2**63, 0], "u8")})
    with pytest.raises(InputError, match=r"array 'y' row 2: label 9223372036854775808 is beyond"):
        list(source.iter_blocks(1000))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(5), "y": np.zeros(4)}, "differ in rows: x 5, y 4"),
        ({"x": np.zeros((0, 3))}, "no samples"),
        ({"x": np.float64(3)}, "0-d"),
        ({"x": np.array([None])}, "Python objects"),
        ({"x": np.zeros(3, "c16")}, "complex"),
        ({"count": np.zeros(3)}, "'count' is not usable"),
        ({"a b": np.zeros(3)}, "'a b' is not usable"),
        ({"x": [[1, 2], "three"]}, "a list cannot become an array"),
    ],
)
def test_bad_arrays(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_source(arrays)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "at least one"),
        ({1: np.zeros(3)}, "names of fields are text"),
        (7, "an int is not a source"),
        (None, "a NoneType is not a source"),
        ([np.zeros(3), np.zeros(3)], "a list is not a source"),
        (b"x.npy", "a bytes is not a source"),
    ],
)
def test_what_is_no_source(source: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(source)
    assert caught.value.exit_code == 2


def test_options_are_for_files() -> None:
    with pytest.raises(UsageError, match="label_column applies to files only"):
        open_source(np.zeros(3), options=SourceOptions(label_column="y"))
