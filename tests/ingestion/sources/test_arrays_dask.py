"""Dask arrays: every chunk computed once, within the bytes allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.registry import open_source

from_array: Any = da.from_array  # which has no types


@settings(max_examples=25)
@given(
    n_rows=st.integers(1, 60), x_rows=st.integers(1, 20), y_rows=st.integers(1, 20), max_bytes=st.integers(800, 2000)
)
def test_blocks_equal_the_arrays(
    read_all: Callable[..., Any], n_rows: int, x_rows: int, y_rows: int, max_bytes: int
) -> None:
    x = np.random.default_rng(n_rows).normal(size=(n_rows, 4))
    y, weight = np.arange(n_rows, dtype="u1"), np.ones(n_rows, "f2")
    source = open_source({"x": from_array(x, chunks=(x_rows, 2)), "y": from_array(y, chunks=y_rows), "weight": weight})
    assert source.n_samples == n_rows
    assert not source.seekable
    rows = read_all(source, max_bytes)
    np.testing.assert_array_equal(rows["x"], x)
    np.testing.assert_array_equal(rows["y"], y.astype(np.int64), strict=True)
    np.testing.assert_array_equal(rows["weight"], weight, strict=True)


def test_every_chunk_is_computed_once(read_all: Callable[..., Any]) -> None:
    computed = []

    def block(values: Any, block_info: Any = None) -> Any:
        if block_info is not None and None in block_info:
            computed.append(block_info[None]["chunk-location"])
        return values + 1

    x = da.zeros((30, 2), chunks=(7, 2)).map_blocks(block, dtype="f8")
    computed.clear()
    np.testing.assert_array_equal(read_all(open_source(x), 112)["x"], np.ones((30, 2)))
    assert computed == [(number, 0) for number in range(5)]


def test_a_chunk_is_computed_whole_and_said_to_be_before(read_all: Callable[..., Any]) -> None:
    source = open_source({"x": da.zeros((1000, 10), chunks=(500, 10)), "y": np.zeros(1000)})
    assert source.chunk_bytes == 500 * 80 + 8, "a plain array is read as asked"
    assert [len(rows["x"]) for rows in source.iter_blocks(8800)] == [100] * 10, "views of the chunk are cut"
    assert open_source({"x": np.zeros((1000, 10))}).chunk_bytes == 0


def test_unknown_shapes_are_refused() -> None:
    x = from_array(np.arange(10.0), chunks=5)
    with pytest.raises(InputError, match=r"x\.compute_chunk_sizes\(\)"):
        open_source(x[x > 3])


def test_a_graph_that_lies_about_its_shape() -> None:
    x = from_array(np.zeros((10, 3)), chunks=5).map_blocks(lambda values: values[:, :2], dtype="f8")
    with pytest.raises(InputError, match=r"the rows have shape \(5, 2\)"):
        list(open_source(x).iter_blocks(1000))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": da.zeros((5, 2)), "y": da.zeros(4)}, "differ in rows: x 5, y 4"),
        ({"x": da.zeros((0, 2))}, "no samples"),
        ({"x": da.zeros(())}, "0-d"),
        ({"x": da.zeros(4, dtype="c8")}, "complex"),
    ],
)
def test_bad_arrays(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(arrays)
