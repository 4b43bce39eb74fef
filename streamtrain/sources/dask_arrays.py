"""Dask arrays: every chunk is computed once, in order, on the calling thread.

Chunks of several fields may be cut differently; at any time one chunk of each field is held. So a dask source
streams rather than reads any range: a range would compute the chunks at its edges twice, and hold them whole.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.sources.arrays import NamedArrays, common_length, fields_of
from streamtrain.sources.protocol import Rows
from streamtrain.sources.rows import as_field, pieces, rows_within
from streamtrain.sources.steps import in_step
from streamtrain.store.layout import Field


def is_dask(value: object) -> bool:
    """Whether a value is a dask array; dask itself is not imported to tell."""
    return hasattr(type(value), "__dask_graph__") and hasattr(value, "chunks") and hasattr(value, "dtype")


class DaskSource(NamedArrays):
    """Arrays of which at least one is a dask array."""

    __slots__ = ()
    KIND = "dask"
    NAME = "dask arrays"

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk of each field together: that much is computed at once, however little is asked."""
        return sum(field.row_bytes * _largest(self.arrays[field.name]) for field in self.fields)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order: views of the chunks, cut where these are longer than ``max_bytes``."""
        n_rows = rows_within(max_bytes, self.fields)
        with ExitStack() as stack:
            runs = [stack.enter_context(closing(self._chunks(field, n_rows))) for field in self.fields]
            for rows in in_step(runs):
                yield from pieces(rows, n_rows)
                # The chunk goes before the next one is computed.
                del rows

    def _chunks(self, field: Field, n_rows: int) -> Generator[Rows, None, None]:
        array = self.arrays[field.name]
        start = 0
        for length in _lengths(array, n_rows):
            yield {field.name: _computed(array, field, start, start + length)}
            start += length


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
        if any(math.isnan(length) for length in array.shape):
            fix = f"call {name}.compute_chunk_sizes() first"
            raise InputError("the dask array does not know its shape", where=f"array {name!r}", fix=fix)
    return DaskSource(arrays=arrays, fields=fields_of(arrays), n_samples=common_length(arrays))
