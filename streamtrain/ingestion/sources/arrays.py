"""NumPy arrays, memmaps and dask arrays as sources.

Whatever has a shape, a dtype and slices is read where it lies. Of dask arrays every chunk is computed once, in order,
on the calling thread. Chunks of several fields may be cut differently, and one chunk of each field is held at a time;
so a dask source is read in order only: a range would compute the chunks at its edges twice, and hold them whole.

A data frame or a table in place of an array is one whose columns have names; where it is appended, they are put in the
order that the dataset has.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, first_line
from streamtrain.ingestion.sources.base import (
    Rows,
    Source,
    as_field,
    check_range,
    field_of,
    n_rows_of,
    pieces,
    rows_within,
    unmasked,
)
from streamtrain.ingestion.sources.column_names import OrderedColumns, column_order, names_provenance, without_index
from streamtrain.ingestion.sources.sparse import compressed_rows, dense_size, is_sparse
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, Names
from streamtrain.system.arguments import a_kind


@runtime_checkable
class ArrayLike(Protocol):
    """What an array needs to be read: a memmap, a Zarr array or an HDF5 dataset has it too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return a run of rows, as an array or something that becomes one."""


def is_nested(value: object) -> bool:
    """Recognize a nested tensor, which refuses even to tell its shape."""
    return getattr(value, "is_nested", False) is True


def is_array(value: object) -> TypeGuard[ArrayLike]:
    """Say whether a value can be read by slices without conversion."""
    # A slice of pandas' objects goes by their labels, not by rows.
    return (
        not is_nested(value)
        and isinstance(value, ArrayLike)
        and isinstance(value.dtype, np.dtype)
        and not hasattr(value, "iloc")
    )


def open_array(value: object, where: str) -> Any:
    """Return a value that is read by slices: itself where it can be, else as `to_array` makes it."""
    if is_nested(value):
        raise InputError(
            f"a nested {type(value).__name__} has rows of different lengths",
            where=where,
            fix="pad it, x.to_padded_tensor(0.0)",
        )
    if is_sparse(value):
        return compressed_rows(value, where)
    is_read_by_slices = is_dask(value) or is_array(value)
    return to_array(value, where) if isinstance(value, np.ma.MaskedArray) or not is_read_by_slices else value


def to_array(value: object, where: str, first_row: int = 0) -> npt.NDArray[Any]:
    """Make a value an array of what it means: a list, a tensor with gradients, a table's column."""
    try:
        found = np.asanyarray(_as_meant(value, where))
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise _no_array(value, where, first_line(error)) from error
    if not found.ndim and found.dtype.kind == "O":
        raise _no_array(value, where, "NumPy makes a single object of it")
    return np.asarray(unmasked(found, lambda row: f"{where} row {first_row + row}"))


def _as_meant(value: object, where: str) -> object:
    """Convert a value that NumPy would refuse or misread, also inside a list."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | memoryview):
        plain = all(isinstance(item, int | float | str | np.generic) for item in value)
        return value if plain else [_item(item, f"{where} row {row}") for row, item in enumerate(value)]
    value = _dense(without_index(value), where)
    if callable(getattr(value, "get_mask", None)) and hasattr(value, "get_data"):
        tensor: Any = value
        data, mask = tensor.get_data().numpy(force=True), tensor.get_mask().numpy(force=True)
        return np.ma.masked_array(data, ~mask)
    if callable(getattr(value, "detach", None)) and hasattr(value, "numpy"):
        # A tensor's values are meant, wherever they lie and whatever is computed from them.
        tensor = value
        return tensor.numpy(force=True)
    return value


def _item(item: object, where: str) -> object:
    # In a list NumPy forgets masks.
    found = _as_meant(item, where)
    return unmasked(found, lambda _: where) if isinstance(found, np.ma.MaskedArray) else found


def _dense(value: object, where: str) -> object:
    if not is_sparse(value):
        return value
    rows = compressed_rows(value, where)
    return rows[0 : rows.shape[0]]


def _no_array(value: object, where: str, why: str) -> InputError:
    what = f"{a_kind(value)} cannot become an array"
    fix = "x.float(), say" if "ScalarType" in why else "give a NumPy array"
    return InputError(what, where=where, why=why, fix=fix)


class NamedArrays(Source):
    """Arrays of one length, by field name; a subclass says how they are read."""

    kind: ClassVar[str]
    name: ClassVar[str]
    n_samples: int

    def __init__(self, arrays: Mapping[str, Any], columns: Mapping[str, Names] = MappingProxyType({})) -> None:
        self.arrays, self.columns = arrays, columns
        self.fields = tuple(_field(name, array) for name, array in arrays.items())
        self.n_samples = _common_length(arrays)
        named = tuple({"format": self.kind, **names} for names in names_provenance(columns))
        self.provenance = named or ({"format": self.kind},)
        self.told = tuple(
            text for field in self.fields if (text := dense_size(arrays[field.name], field, self.n_samples))
        )

    def in_order(self, names: Names, of: str) -> Self:
        """Put the columns of field ``x`` in this order, where they have names."""
        own = self.columns.get(INPUT)
        if own is None or own == names:
            return self
        order = column_order(names, own, of=of, where=f"array {INPUT!r}")
        ordered = OrderedColumns(values=self.arrays[INPUT], order=tuple(order))
        return type(self)({**self.arrays, INPUT: ordered}, {**self.columns, INPUT: names})

    def where(self, row: int) -> str:
        return f"row {row} of the {self.name}"


class ArraySource(NamedArrays):
    """Arrays that any range of rows can be read from."""

    kind, name, seekable = "array", "arrays", True

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop): views of the caller's memory where nothing has to be converted."""
        check_range(start, stop, self.n_samples)
        return {field.name: _rows_of(self.arrays[field.name][start:stop], field, start, stop) for field in self.fields}


def _rows_of(values: object, field: Field, start: int, stop: int) -> npt.NDArray[Any]:
    """Bring rows [start, stop) of an array, of whatever kind its slices are, to a field's dtype."""
    where = f"array {field.name!r}"
    rows = to_array(values, where, start)
    if rows.shape != (stop - start, *field.shape):
        what = f"the rows have shape {rows.shape}, where their array promised {(stop - start, *field.shape)}"
        raise InputError(what, where=f"{where} row {start}", fix="correct the shape that the array claims")
    return as_field(rows, field, lambda row: f"{where} row {start + row}")


def _common_length(arrays: Mapping[str, ArrayLike]) -> int:
    """Return the number of rows that all arrays have; refuse fewer than one."""
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(
            f"the arrays differ in rows: {listed}",
            why="Every field has one row per sample",
            fix="give arrays of one length",
        )
    n_samples = next(iter(lengths.values()))
    if n_samples == 0:
        raise InputError("the arrays hold no samples", where=", ".join(lengths), fix="give at least one row")
    return n_samples


def _field(name: str, array: ArrayLike) -> Field:
    where = f"array {name!r}"
    if not array.shape:
        raise InputError("a 0-d array has no axis of samples", where=where, fix="give an array of at least one axis")
    return field_of(name, array.dtype, array.shape[1:], where=where)


def align_streams(streams: Sequence[Iterator[Rows]]) -> Iterator[Rows]:
    """Merge the fields of several streams, run by run, until one ends; views, one run of each held."""
    held: list[Rows | None] = [None] * len(streams)
    while True:
        runs = [run if run is not None else _next_run(stream) for run, stream in zip(held, streams, strict=True)]
        present = [run for run in runs if run is not None]
        if len(present) < len(streams):
            return
        n_rows = min(map(n_rows_of, present))
        yield {name: values[:n_rows] for run in present for name, values in run.items()}
        held = [_after(run, n_rows) for run in present]
        # A run that is used up goes before the next one is made.
        del runs, present


def _next_run(stream: Iterator[Rows]) -> Rows | None:
    return next((run for run in stream if n_rows_of(run)), None)


def _after(run: Rows, n_rows: int) -> Rows | None:
    rest = {name: values[n_rows:] for name, values in run.items()}
    return rest if n_rows_of(rest) else None


def is_dask(value: object) -> bool:
    """Recognize a dask array without an import of dask."""
    return hasattr(type(value), "__dask_graph__") and hasattr(value, "chunks") and hasattr(value, "dtype")


class DaskSource(NamedArrays):
    """Arrays of which at least one is a dask array."""

    kind, name, seekable = "dask", "dask arrays", False

    def __init__(self, arrays: Mapping[str, Any], columns: Mapping[str, Names] = MappingProxyType({})) -> None:
        for name, array in arrays.items():
            if any(math.isnan(length) for length in array.shape):
                fix = f"call {name}.compute_chunk_sizes() first"
                raise InputError("the dask array does not know its shape", where=f"array {name!r}", fix=fix)
        super().__init__(arrays, columns)
        # The largest chunk of each field is computed at once.
        self.chunk_bytes = sum(field.row_bytes * _largest(arrays[field.name]) for field in self.fields)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield views of the chunks, cut where these are longer than ``max_bytes``."""
        return self.iter_range(0, self.n_samples, max_bytes)

    @property
    def has_ranges(self) -> bool:
        return True

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        n_rows = rows_within(max_bytes, self.fields)
        with ExitStack() as stack:
            runs = [stack.enter_context(closing(self._chunks(field, n_rows, start, stop))) for field in self.fields]
            for rows in align_streams(runs):
                yield from pieces(rows, n_rows)
                # The chunk goes before the next one is computed.
                del rows

    def _chunks(self, field: Field, n_rows: int, start: int, stop: int) -> Generator[Rows, None, None]:
        array = self.arrays[field.name]
        for length in _lengths(array[start:stop], n_rows):
            yield {field.name: _computed(array, field, start, start + length)}
            start += length


def _lengths(array: Any, n_rows: int) -> Iterable[int]:
    """Cut rows into runs that can be computed alone: chunks of a dask array, else as many as asked."""
    if is_dask(array):
        return (length for length in array.chunks[0] if length)
    return (min(n_rows, array.shape[0] - start) for start in range(0, array.shape[0], n_rows))


def _largest(array: Any) -> int:
    return max(array.chunks[0]) if is_dask(array) else 1


def _computed(array: Any, field: Field, start: int, stop: int) -> npt.NDArray[Any]:
    rows = array[start:stop]
    return _rows_of(rows.compute(scheduler="synchronous") if is_dask(array) else rows, field, start, stop)
