"""Rows of chunks that are larger than memory, brought into order over a file: buckets of rows.

::

    bucket of rows 0 to q    | group of chunks 0 | group 1 | ...     each its rows by its chunks, contiguous
    bucket of rows q to 2q   | group of chunks 0 | group 1 | ...

Each chunk is decoded once. A group of them is written with one call for each bucket, and a bucket is read with one.
The file has no name, so nothing of it is left whatever ends the process; each part is compared with its checksum.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, ResourceError
from streamtrain.ingestion.sources.hierarchies.slab_plan import SlabPlan
from streamtrain.ingestion.sources.hierarchies.stored_array import Index, StoredArray
from streamtrain.store.codec import checksum
from streamtrain.system.refusals import translate_os_errors
from streamtrain.system.syscalls import SYSTEM
from streamtrain.system.units import format_bytes

Array = npt.NDArray[Any]
Decode = Callable[[Array, Array, int], None]
"""Decodes stored values into a field's, for rows from a number on."""


def check_room(folder: Path, plans: Sequence[SlabPlan]) -> None:
    """Refuse to begin where the disk has no room for the files of all columns that go over it."""
    n_bytes = sum(plan.over_disk.n_bytes for plan in plans if plan.over_disk is not None)
    free_bytes, _ = SYSTEM.free(folder)
    if free_bytes is not None and n_bytes > free_bytes:
        what = f"{format_bytes(n_bytes)} are needed, and {format_bytes(free_bytes)} are free"
        why = "One row of chunks is larger than the memory allows, and goes over disk"
        fix = Fix("free some space, another disk, or a larger ", Argument("memory"))
        raise ResourceError(what, where=str(folder), why=why, fix=fix)


class RowsOverDisk:
    """One row of chunks after another, in order, through a file that is as large as one of them."""

    def __init__(self, plan: SlabPlan, folder: Path) -> None:
        assert plan.over_disk is not None
        self._plan, self._disk, self._folder = plan, plan.over_disk, folder
        self._array = plan.column.array
        grid = self._array.grid
        sizes: npt.NDArray[np.int64] = np.ones(1, np.int64)
        for length, chunk, count in zip(grid.shape[1:], grid.chunks[1:], grid.counts[1:], strict=True):
            own = np.minimum(chunk, length - chunk * np.arange(count))
            sizes = np.multiply.outer(sizes, own).reshape(-1)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])  # values of a row before each chunk
        self._groups = [
            range(start, min(start + self._disk.group_chunks, len(sizes)))
            for start in range(0, len(sizes), self._disk.group_chunks)
        ]

    def runs(self, decode: Decode, pool: Executor) -> Generator[Array, None, None]:
        """Yield the rows of all rows of chunks, a bucket at a time."""
        field, grid = self._plan.column.field, self._array.grid
        with _nameless_file(self._folder) as fd:
            for number, start in enumerate(range(0, grid.shape[0], grid.chunks[0])):
                n_rows = min(grid.chunks[0], grid.shape[0] - start)
                sums = [self._write(fd, number, group, n_rows, pool) for group in range(len(self._groups))]
                for bucket, (first, n_own) in enumerate(self._buckets(n_rows)):
                    out = np.empty((n_own, *field.shape), field.dtype)
                    self._read(fd, first, out, [own[bucket] for own in sums], decode, start + first)
                    yield out
                    # It goes before the next one is read.
                    del out

    def _buckets(self, n_rows: int) -> Iterator[tuple[int, int]]:
        for first in range(0, n_rows, self._disk.bucket_rows):
            yield first, min(self._disk.bucket_rows, n_rows - first)

    def _values(self, group: int) -> tuple[int, int]:
        """Return where the values of a group of chunks begin and end in a row."""
        chunks = self._groups[group]
        return int(self._before[chunks.start]), int(self._before[chunks.stop])

    def _write(self, fd: int, number: int, group: int, n_rows: int, pool: Executor) -> list[int]:
        """Decode a group of chunks and write its part of every bucket; return their checksums."""
        begin, end = self._values(group)
        held = np.empty((n_rows, end - begin), self._array.dtype)
        chunks = self._groups[group]
        n_tasks = min(len(chunks), self._plan.n_workers)
        edges = [chunks.start + len(chunks) * task // n_tasks for task in range(n_tasks + 1)]

        def decode(own: range) -> None:
            for chunk in own:
                place = slice(int(self._before[chunk]) - begin, int(self._before[chunk + 1]) - begin)
                held[:, place] = self._chunk(number, chunk, n_rows)

        for _ in pool.map(decode, map(range, edges, edges[1:])):
            pass
        sums = []
        for first, n_own in self._buckets(n_rows):
            data = held[first : first + n_own].reshape(-1).view(np.uint8).data
            sums.append(checksum(data))
            self._put(fd, data, self._place(first, n_own, begin))
        return sums

    def _place(self, first_row: int, n_rows: int, before: int) -> int:
        """Return where a bucket's part of a group lies in the file."""
        return first_row * self._array.row_bytes + n_rows * before * self._array.dtype.itemsize

    def _chunk(self, number: int, chunk: int, n_rows: int) -> Array:
        """Decode a chunk, cut at the array's edges, its rows flat."""
        index = self._index(number, chunk)
        values = self._array.chunk(index)
        if values is None:
            return np.broadcast_to(np.asarray(self._array.fill, self._array.dtype), (n_rows, 1))
        box = self._array.grid.box(index)
        return values[tuple(slice(0, part.stop - part.start) for part in box)].reshape(n_rows, -1)

    def _index(self, number: int, chunk: int) -> Index:
        grid = self._array.grid
        return grid.index(number * grid.n_across + chunk)

    def _put(self, fd: int, data: memoryview, offset: int) -> None:
        with translate_os_errors("write", self._folder):
            while data:
                n_bytes = SYSTEM.pwrite(fd, data, offset)
                data, offset = data[n_bytes:], offset + n_bytes

    def _read(self, fd: int, first: int, out: Array, sums: list[int], decode: Decode, row: int) -> None:
        """Read a bucket and decode it, group by group, chunk by chunk, into rows."""
        n_rows, width = len(out), self._array.row_bytes // self._array.dtype.itemsize
        held = np.empty(n_rows * width, self._array.dtype)
        data = held.view(np.uint8).data
        with translate_os_errors("read", self._folder):
            n_read = 0
            while n_read < len(data):
                found = SYSTEM.preadv(fd, [data[n_read:]], first * self._array.row_bytes + n_read)
                n_read += found
                if not found:
                    break
        flat = out.reshape(n_rows, -1)
        for group, chunks in enumerate(self._groups):
            begin, end = self._values(group)
            part = held[n_rows * begin : n_rows * end].reshape(n_rows, end - begin)
            if checksum(part.reshape(-1).view(np.uint8).data) != sums[group]:
                what = "what was written to disk is not what is read back"
                raise InputError(what, where=str(self._folder), fix="check the disk, and ingest again")
            if self._is_flat:
                decode(part, flat[:, begin:end], row)
                continue
            for chunk in chunks:
                own = part[:, self._before[chunk] - begin : self._before[chunk + 1] - begin]
                box = self._array.grid.box(self._index(0, chunk))[1:]
                shape = tuple(side.stop - side.start for side in box)
                decode(own.reshape(n_rows, *shape), out[(slice(None), *box)], row)

    @property
    def _is_flat(self) -> bool:
        """Whether a row's values lie in the file as they do in the row: chunk after chunk, in its order."""
        return _is_in_order(self._array)


def _is_in_order(array: StoredArray) -> bool:
    shape, chunks = array.grid.shape[1:], array.grid.chunks[1:]
    cut = next((axis for axis, (length, chunk) in enumerate(zip(shape, chunks, strict=True)) if chunk > 1), len(shape))
    return all(chunk >= length for length, chunk in zip(shape[cut + 1 :], chunks[cut + 1 :], strict=True))


@contextmanager
def _nameless_file(folder: Path) -> Iterator[int]:
    with translate_os_errors("create a file in", folder):
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
    with file:
        yield file.fileno()
