"""Dask arrays: every chunk is computed once, in order, on the calling thread.

Chunks of several fields may be cut differently; at any time one chunk of each field is held. So a dask source
streams rather than reads any range: a range would compute the chunks at its edges twice, and hold them whole.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import BudgetError, InputError
from streamtrain.layout import Field
from streamtrain.sources.arrays import common_length
from streamtrain.sources.protocol import Rows
from streamtrain.sources.rows import as_field, field_of, pieces, rows_within
from streamtrain.sources.steps import in_step
from streamtrain.units import format_bytes


def is_dask(value: object) -> bool:
    """Whether a value is a dask array; dask itself is not imported to tell."""
    return hasattr(type(value), "__dask_graph__") and hasattr(value, "chunks") and hasattr(value, "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskSource:
    """Arrays of one length, at least one of them a dask array, by field name."""

    arrays: Mapping[str, Any]
    fields: tuple[Field, ...]
    n_samples: int

    @property
    def classes(self) -> None:
        """None: labels in arrays are numbers."""

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """That these were dask arrays; they have no path."""
        return ({"format": "dask"},)

    def where(self, row: int) -> str:
        """The row."""
        return f"row {row} of the dask arrays"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order.

        Raises
        ------
        BudgetError
            A chunk of each field together take more than ``max_bytes``.
        """
        self._check_chunks(max_bytes)
        n_rows = rows_within(max_bytes, self.fields)
        with ExitStack() as stack:
            runs = [stack.enter_context(closing(self._chunks(field, n_rows))) for field in self.fields]
            for rows in in_step(runs):
                yield from pieces(rows, n_rows)

    def _chunks(self, field: Field, n_rows: int) -> Generator[Rows, None, None]:
        array = self.arrays[field.name]
        start = 0
        for length in _lengths(array, n_rows):
            yield {field.name: _computed(array, field, start, start + length)}
            start += length

    def _check_chunks(self, max_bytes: int) -> None:
        largest = {field: _largest(self.arrays[field.name]) for field in self.fields}
        n_bytes = sum(field.row_bytes * length for field, length in largest.items())
        if n_bytes > max_bytes and max(largest.values()) > 1:
            n_rows = rows_within(max_bytes, self.fields)
            calls = [
                f"{field.name}.rechunk({{0: {n_rows}}})"
                for field, length in largest.items()
                if length > n_rows and is_dask(self.arrays[field.name])
            ]
            raise BudgetError(
                f"a dask chunk takes {format_bytes(n_bytes)}; {format_bytes(max_bytes)} are there for it",
                where=", ".join(f"{field.name} {length:,} rows" for field, length in largest.items()),
                why="A chunk is computed whole",
                fix=" and ".join(calls),
            )


def _lengths(array: Any, n_rows: int) -> Iterable[int]:
    """Rows of each run that can be had without computing any other; of a plain array, as many as asked."""
    if is_dask(array):
        return (length for length in array.chunks[0] if length)
    return (min(n_rows, array.shape[0] - start) for start in range(0, array.shape[0], n_rows))


def _largest(array: Any) -> int:
    return max(array.chunks[0]) if is_dask(array) else 1


def _computed(array: Any, field: Field, start: int, stop: int) -> npt.NDArray[Any]:
    rows = array[start:stop]
    values = np.asarray(rows.compute(scheduler="synchronous") if is_dask(array) else rows)
    if values.shape != (stop - start, *field.shape):
        what = f"a chunk computed to shape {values.shape}, its array promised {(stop - start, *field.shape)}"
        raise InputError(what, where=f"array {field.name!r} row {start}", fix="correct the graph's shapes")
    return as_field(values, field, lambda row: f"array {field.name!r} row {start + row}")


def from_dask(arrays: Mapping[str, Any]) -> DaskSource:
    """Open dask arrays, and plain ones beside them, as fields of their names.

    Raises
    ------
    InputError
        A shape is not known, or what `from_arrays` refuses.
    """
    for name, array in arrays.items():
        if not array.shape:
            raise InputError("a 0-d array has no axis of samples", where=f"array {name!r}", fix="give it an axis")
        if any(math.isnan(length) for length in array.shape):
            fix = f"call {name}.compute_chunk_sizes() first"
            raise InputError("the dask array does not know its shape", where=f"array {name!r}", fix=fix)
    fields = tuple(field_of(name, a.dtype, a.shape[1:], where=f"array {name!r}") for name, a in arrays.items())
    return DaskSource(arrays=arrays, fields=fields, n_samples=common_length(arrays))
