"""Sources of HDF5, NetCDF4 and Zarr: named arrays, in slabs of whole chunks, each chunk decoded once."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.arrays import align_streams
from streamtrain.ingestion.sources.base import (
    ReadingMemory,
    Rows,
    Source,
    SourceOptions,
    as_field,
    check_range,
    field_of,
    pieces,
    rows_within,
)
from streamtrain.ingestion.sources.hierarchies import hdf5, zarr_arrays
from streamtrain.ingestion.sources.hierarchies.cf import PIECE_BYTES, decoding_of
from streamtrain.ingestion.sources.hierarchies.field_choice import (
    FieldChoice,
    Find,
    longest_arrays,
    named_arrays,
    refuse_columns,
)
from streamtrain.ingestion.sources.hierarchies.over_disk import RowsOverDisk, check_room
from streamtrain.ingestion.sources.hierarchies.slab_plan import (
    DEFAULT_MEMORY,
    Column,
    SlabPlan,
    plan_slabs,
    reading_memory,
)
from streamtrain.ingestion.sources.hierarchies.stored_array import Index, StoredArray
from streamtrain.ingestion.sources.input_files import folders_status, provenance_of, refuse_options
from streamtrain.system.memory import n_cores
from streamtrain.system.units import format_bytes, format_value

_RUN_BYTES: Final = 1 << 18


class HierarchySource(Source):
    """Arrays of a hierarchy as fields; any range of rows can be read where none of them is chunked."""

    n_samples: int

    def __init__(self, path: Path, choice: FieldChoice, options: SourceOptions, provenance: Mapping[str, Any]) -> None:
        self.path = path
        self._columns = [_column(field, array, options) for field, array in choice.arrays.items()]
        self._keeps_nan = options.table.nan == "keep"
        self.fields = tuple(column.field for column in self._columns)
        self.n_samples = self._columns[0].array.grid.shape[0]
        self.seekable = all(column.array.offset is not None for column in self._columns)
        n_workers = options.n_workers or n_cores()
        self._folder = options.scratch
        has_disk = options.scratch is not None
        self._plans = plan_slabs(self._columns, options.memory or DEFAULT_MEMORY, n_workers, has_disk=has_disk)
        self.reading = _of_ranges(self._columns, n_workers) if self.seekable else reading_memory(self._plans)
        missing = {column.array.name: column.array.n_missing for column in self._columns if column.array.n_missing}
        self.told = (
            *map(self._found, self._columns),
            *map(self._absent, self._columns),
            *_left_out(path, choice),
            *map(self._over_disk, self._plans),
        )
        self.told = tuple(text for text in self.told if text)
        arrays = {column.field.name: column.array.name for column in self._columns}
        chunks = {one.array.name: one.array.grid.chunks for one in self._columns if one.array.is_chunked}
        found = {"chunks": chunks, "missing_chunks": missing}
        self.provenance = ({**provenance, "arrays": arrays, **{name: value for name, value in found.items() if value}},)

    def where(self, row: int) -> str:
        return f"{self.path} row {row}"

    def _found(self, column: Column) -> str:
        array, field = column.array, column.field
        stored = "" if array.dtype.newbyteorder("=") == field.dtype else f", stored as {array.dtype.name}"
        chunks = f" in chunks {array.grid.chunks}" if array.is_chunked else ""
        return f"{self.path}: {field.name} is {array.name}, {field.dtype.name} {array.grid.shape}{chunks}{stored}"

    def _absent(self, column: Column) -> str:
        array = column.array
        if not array.n_missing:
            return ""
        value = np.empty((1,), column.field.dtype)
        is_missing = column.decoding.decode(np.full((1,), array.fill, array.dtype), value) is not None
        is_nan = is_missing or value[0] != value[0]
        verb, of_all = "is" if array.n_missing == 1 else "are", f"of {array.grid.n_chunks:,} chunks"
        if is_nan and not (self._keeps_nan and column.field.dtype.kind == "f"):
            what = f"{array.n_missing:,} {of_all} {verb} absent, for missing values"
            fix = Fix("write them", "; or keep missing values as NaN: ", Argument("nan", "keep"))
            raise InputError(what, where=array.where, fix=fix)
        read_as = "NaN" if is_nan else format_value(value[0].item())
        return f"{self.path}: {array.n_missing:,} {of_all} of {array.name} {verb} absent and read as {read_as}"

    def _over_disk(self, plan: SlabPlan) -> str:
        if plan.over_disk is None:
            return ""
        folder = None if self._folder is None else self._folder.resolve()
        name, size = plan.column.array.name, format_bytes(plan.column.least_bytes)
        return (
            f"{self.path}: one row of chunks of {name} takes {size} decoded, more than the memory allows: it goes over "
            f"disk, which needs {format_bytes(plan.over_disk.n_bytes)} in {folder} until the ingest ends"
        )

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        return {column.field.name: self._range(column, start, stop) for column in self._columns}

    def _range(self, column: Column, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows that are not chunked, in pieces where they are decoded."""
        if column.decoding.is_plain and column.array.dtype.isnative:
            return self._checked(column, column.array.rows(start, stop), start)
        out = np.empty((stop - start, *column.field.shape), column.field.dtype)
        step = max(1, _RUN_BYTES // column.array.row_bytes)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            self._decode(column, column.array.rows(first, last), out[first - start : last - start], first)
        return self._checked(column, out, start)

    def _checked(self, column: Column, values: npt.NDArray[Any], first_row: int) -> npt.NDArray[Any]:
        return as_field(values, column.field, lambda row: self.where(first_row + row))

    def _decode(self, column: Column, values: npt.NDArray[Any], out: npt.NDArray[Any], first_row: int) -> None:
        missing = column.decoding.decode(values, out)
        if missing is None or (self._keeps_nan and column.field.dtype.kind == "f"):
            return
        what, where = f"a value of {column.array.name} is missing, by its attributes", self.where(first_row + missing)
        if column.field.dtype.kind != "f":
            raise InputError(what, where=where, fix=f"leave such rows out: {self._without_missing(column.array)}")
        without = f"leave such rows out: {self._without_missing(column.array)}"
        raise InputError(what, where=where, fix=Fix(without, "; or keep them as NaN: ", Argument("nan", "keep")))

    def _without_missing(self, array: StoredArray) -> str:
        """Return the line of xarray that writes the file again without rows in which an array has no value."""
        name, dimension = array.name.strip("/"), array.dimension()
        if dimension is None or "/" in name:
            return "write the file again without them"
        read, write = "open_dataset", "to_netcdf('whole.nc')"
        if self.provenance[0]["format"] == "zarr":
            # Codecs of the one version are none of the other's.
            version = 3 if (array.path / "zarr.json").exists() else 2
            read, write = "open_zarr", f"to_zarr('whole.zarr', zarr_format={version})"
        return f"xarray.{read}({str(self.path)!r}).dropna({dimension!r}, subset=[{name!r}]).{write}"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield views of slabs, cut where they are longer than ``max_bytes``."""
        n_rows = rows_within(max_bytes, self.fields)
        if self.seekable:
            yield from super().iter_blocks(max_bytes)
            return
        if self._folder is not None:
            check_room(self._folder, self._plans)
        most = max(plan.n_workers for plan in self._plans)
        with ExitStack() as stack:
            for plan in self._plans:
                stack.enter_context(plan.column.array.held_open())
            pool = stack.enter_context(ThreadPoolExecutor(most, thread_name_prefix="streamtrain-ingest"))
            runs = [stack.enter_context(closing(self._slabs(plan, pool))) for plan in self._plans]
            for rows in align_streams(runs):
                yield from pieces(rows, n_rows)
                # A slab goes before the next one is decoded.
                del rows

    def _slabs(self, plan: SlabPlan, pool: Executor) -> Generator[Rows, None, None]:
        column = plan.column
        if plan.over_disk is not None:
            yield from self._rows_over_disk(plan, pool)
            return
        for start in range(0, self.n_samples, plan.n_rows):
            stop = min(start + plan.n_rows, self.n_samples)
            if column.array.offset is not None:
                yield {column.field.name: self._range(column, start, stop)}
            else:
                yield {column.field.name: self._slab(plan, start, stop, pool)}

    def _rows_over_disk(self, plan: SlabPlan, pool: Executor) -> Generator[Rows, None, None]:
        assert self._folder is not None, "which the plan took into account"
        column, row = plan.column, 0
        with closing(RowsOverDisk(plan, self._folder).runs(partial(self._decode, column), pool)) as runs:
            for run in runs:
                yield {column.field.name: self._checked(column, run, row)}
                row += len(run)
                del run

    def _slab(self, plan: SlabPlan, start: int, stop: int, pool: Executor) -> npt.NDArray[Any]:
        """Decode the chunks of whole rows of chunks, several at once."""
        column, grid = plan.column, plan.column.array.grid
        out = np.empty((stop - start, *column.field.shape), column.field.dtype)
        first, last = start // grid.chunks[0] * grid.n_across, -(-stop // grid.chunks[0]) * grid.n_across
        n_tasks = min(last - first, plan.n_workers)
        edges = [first + (last - first) * task // n_tasks for task in range(n_tasks + 1)]
        task = partial(self._decode_chunks, column, out, start)
        for _ in pool.map(task, map(range, edges, edges[1:])):
            pass
        return self._checked(column, out, start)

    def _decode_chunks(self, column: Column, out: npt.NDArray[Any], first_row: int, numbers: range) -> None:
        for number in numbers:
            self._decode_chunk(column, out, first_row, column.array.grid.index(number))

    def _decode_chunk(self, column: Column, out: npt.NDArray[Any], first_row: int, index: Index) -> None:
        array = column.array
        box = array.grid.box(index)
        inside = (slice(box[0].start - first_row, box[0].stop - first_row), *box[1:])
        shape = tuple(part.stop - part.start for part in box)
        values = array.chunk(index)
        if values is None:
            values = np.broadcast_to(np.asarray(array.fill, array.dtype), shape)
        self._decode(column, values[tuple(slice(0, length) for length in shape)], out[inside], box[0].start)


def _column(field: str, array: StoredArray, options: SourceOptions) -> Column:
    decoding = decoding_of(array, field, options)
    made = field_of(field, decoding.dtype, array.grid.shape[1:], where=array.where)
    return Column(field=made, array=array, decoding=decoding)


def _of_ranges(columns: Sequence[Column], n_workers: int) -> ReadingMemory:
    """Return what threads hold that decode rows of arrays which are not chunked."""
    decoded = [column for column in columns if not (column.decoding.is_plain and column.array.dtype.isnative)]
    piece = max((max(_RUN_BYTES, column.array.row_bytes) + PIECE_BYTES for column in decoded), default=0)
    return ReadingMemory(lasting_bytes=n_workers * piece)


def _left_out(path: Path, choice: FieldChoice) -> tuple[str, ...]:
    if not choice.left_out:
        return ()
    told = [f"{name} ({why})" for name, why in choice.left_out.items()]
    told += [f"{choice.n_more:,} more"] if choice.n_more else []
    return (f"{path}: left out {', '.join(told)}",)


def probe_hdf5(path: Path, options: SourceOptions) -> HierarchySource:
    """Open an HDF5 or NetCDF4 file: its structure, and where the chunks of its fields lie."""
    _check_options(path, "HDF5", options)
    provenance = provenance_of(path, "hdf5")[0]
    arrays = hdf5.arrays_of(path)
    refuse_columns(arrays, "HDF5", options, where=str(path))
    choice = _chosen(path, arrays, partial(hdf5.array_at, path), options)
    return _located(path, choice, options, provenance, stored_bytes=provenance["bytes"])


def probe_zarr(path: Path, options: SourceOptions) -> HierarchySource:
    """Open a Zarr directory of another program: its metadata, and which chunks there are."""
    _check_options(path, "Zarr", options)
    arrays = zarr_arrays.arrays_of(path)
    refuse_columns(arrays, "Zarr", options, where=str(path))
    choice = _chosen(path, arrays, lambda name: None, options)
    folders = tuple(sorted({array.name.strip("/") for array in choice.arrays.values()}))
    n_bytes, mtime_ns = folders_status(path, folders)
    provenance = {"format": "zarr", "path": str(path), "bytes": n_bytes, "mtime_ns": mtime_ns, "folders": folders}
    return _located(path, choice, options, provenance, stored_bytes=n_bytes)


def present_arrays(path: Path, names: Collection[str], *, is_zarr: bool) -> set[str]:
    """Return which of some arrays a file or directory has."""
    listed = {array.name for array in (zarr_arrays.arrays_of(path) if is_zarr else hdf5.arrays_of(path))}
    return {name for name in names if name in listed or (not is_zarr and _is_linked(path, name))}


def _is_linked(path: Path, name: str) -> bool:
    try:
        return hdf5.array_at(path, name) is not None
    except InputError:
        return False


def _check_options(path: Path, kind: str, options: SourceOptions) -> None:
    refuse_options(path, kind, options, "dtype", "shape")
    if options.sample_axis:
        raise InputError(
            f"samples along axis {options.sample_axis} are not read",
            where=str(path),
            why="A sample would be cut out of every chunk",
            fix="transpose it first, so that the samples are its first axis: xarray's Dataset.transpose, say",
        )


def _chosen(path: Path, arrays: Sequence[StoredArray], find: Find, options: SourceOptions) -> FieldChoice:
    if options.fields is None:
        return longest_arrays(arrays, options, where=str(path))
    return named_arrays(arrays, options.fields, find, where=str(path))


def _located(
    path: Path, choice: FieldChoice, options: SourceOptions, provenance: Mapping[str, Any], *, stored_bytes: int
) -> HierarchySource:
    _check_dates(choice, options)
    memory = options.memory or DEFAULT_MEMORY
    for array in choice.arrays.values():
        array.check_claim(stored_bytes, memory)
    for array in choice.arrays.values():
        array.locate()
    return HierarchySource(path, choice, options, provenance)


def _check_dates(choice: FieldChoice, options: SourceOptions) -> None:
    unknown = [name for name in options.table.dates if name not in choice.arrays]
    if unknown:
        what = f"dates names {unknown[0]!r}, which is no field"
        fix = Fix("take it as a field too: ", Argument("fields", {unknown[0]: f"/{unknown[0]}"}), ", and the others")
        raise UsageError(what, why=f"The fields are {', '.join(choice.arrays)}", fix=fix)
