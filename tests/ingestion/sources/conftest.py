"""Helpers of every family's tests: all rows of a source, and the peak of memory while it is read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamtrain.ingestion.sources.base import Rows, Source

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@pytest.fixture(scope="session")
def read_all() -> Callable[..., Arrays]:
    """All rows of a source, every block held against the contract on the way."""

    def collect(source: Source, max_bytes: int = 1000) -> Arrays:
        row_bytes = sum(field.row_bytes for field in source.fields)
        blocks = []
        for rows in source.iter_blocks(max_bytes):
            check_block(source, rows, max(row_bytes, max_bytes))
            blocks.append(rows)
        joined = {field.name: np.concatenate([rows[field.name] for rows in blocks]) for field in source.fields}
        n_rows = {len(values) for values in joined.values()}
        assert source.n_samples is None or n_rows == {source.n_samples}
        return joined

    return collect


def check_block(source: Source, rows: Rows, max_bytes: int) -> None:
    assert {name: (values.dtype, values.shape[1:]) for name, values in rows.items()} == {
        field.name: (field.dtype, field.shape) for field in source.fields
    }
    assert len({len(values) for values in rows.values()}) == 1
    assert sum(values.nbytes for values in rows.values()) <= max_bytes
    assert all(values.dtype.isnative for values in rows.values())


@pytest.fixture(scope="session")
def peak_of_reading() -> Callable[..., int]:
    """The most bytes that Python and NumPy held while a source was read and its rows dropped."""

    def measure(source: Source, max_bytes: int) -> int:
        tracemalloc.start()
        try:
            n_rows = sum(len(next(iter(rows.values()))) for rows in source.iter_blocks(max_bytes))
            assert n_rows == source.n_samples
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture(scope="session")
def check_ranges() -> Callable[..., None]:
    """Any range of a seekable source equals the slice."""

    def check(source: Source, expected: Arrays, ranges: list[tuple[int, int]]) -> None:
        assert source.seekable
        for start, stop in ranges:
            rows = source.read(start, stop)
            for name, values in expected.items():
                np.testing.assert_array_equal(rows[name], values[start:stop], strict=True)

    return check
