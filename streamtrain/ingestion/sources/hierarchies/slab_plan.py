"""The slabs of chunked arrays: how many whole rows of chunks are decoded at once, by how many threads, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from streamtrain.ingestion.sources.base import ReadingMemory
from streamtrain.ingestion.sources.hierarchies.cf import PIECE_BYTES, Decoding
from streamtrain.ingestion.sources.hierarchies.stored_array import StoredArray
from streamtrain.store.layout import Field

DEFAULT_MEMORY: Final = 10**9
_COPIES: Final = 3  # of a chunk, while it is decoded
_SHARE: Final = 8  # of the memory: for slabs that could be smaller, and for chunks at work
_SMALL: Final = 32 * 10**6  # of memory, where nothing is larger than it has to be
_MOST_SLAB_BYTES: Final = 2**25
_LEAST_SPARE: Final = 2 * 10**6  # for groups of chunks and for buckets of rows
_SHARE_OF_SLABS: Final = 4  # of the memory: rows of chunks that take more go over disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A field, the array that it is made of, and how its values are decoded."""

    field: Field
    array: StoredArray
    decoding: Decoding

    @property
    def least_bytes(self) -> int:
        """Bytes of one row of chunks, as the field has them."""
        return self.array.grid.n_rows * self.field.row_bytes

    @property
    def bytes_at_work(self) -> int:
        """Bytes that a thread holds while it decodes a chunk."""
        return _COPIES * self.array.chunk_bytes + PIECE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class OverDisk:
    """How a row of chunks goes over disk: groups of chunks are decoded, and written as buckets of rows."""

    group_chunks: int
    bucket_rows: int
    n_bytes: int  # of the file: one row of chunks, as stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabPlan:
    """How one column is read."""

    column: Column
    n_rows: int  # of a slab: whole rows of chunks
    n_workers: int
    over_disk: OverDisk | None = None

    @property
    def slab_bytes(self) -> int:
        """Bytes of a slab, or of the larger of a group of chunks and a bucket of rows."""
        array, field = self.column.array, self.column.field
        if self.over_disk is None:
            return self.n_rows * field.row_bytes
        group = self.over_disk.group_chunks * array.chunk_bytes
        return max(group, self.over_disk.bucket_rows * (array.row_bytes + field.row_bytes))


def plan_slabs(columns: Sequence[Column], memory: int, n_workers: int, *, has_disk: bool) -> list[SlabPlan]:
    """Size the slabs of each column: one row of chunks is the least, and what takes too much goes over disk."""
    spare = memory // _SHARE if memory > _SMALL else 0
    most = min(spare // len(columns), _MOST_SLAB_BYTES)
    plans = {column.field.name: _in_memory(column, most, spare, n_workers) for column in columns}
    held = 0
    for column in sorted(columns, key=lambda column: plans[column.field.name].slab_bytes):
        plan = plans[column.field.name]
        held += plan.slab_bytes
        is_chunked = column.array.offset is None and column.array.grid.n_across > 1
        if has_disk and is_chunked and held > memory // _SHARE_OF_SLABS:
            plans[column.field.name] = _on_disk(column, max(spare, _LEAST_SPARE), n_workers)
    return list(plans.values())


def _in_memory(column: Column, slab_bytes: int, spare: int, n_workers: int) -> SlabPlan:
    grid = column.array.grid
    n_rows = grid.n_rows
    if column.array.offset is not None:
        n_rows = max(1, slab_bytes // column.field.row_bytes)
    else:
        n_rows *= max(1, slab_bytes // column.least_bytes)
    n_chunks = -(-n_rows // grid.chunks[0]) * grid.n_across
    at_work = max(1, min(n_workers, n_chunks, spare // column.bytes_at_work))
    return SlabPlan(column=column, n_rows=min(n_rows, grid.shape[0]), n_workers=at_work)


def _on_disk(column: Column, spare: int, n_workers: int) -> SlabPlan:
    array, field = column.array, column.field
    group = max(1, min(array.grid.n_across, spare // array.chunk_bytes))
    bucket = max(1, min(array.grid.n_rows, spare // (array.row_bytes + field.row_bytes)))
    over_disk = OverDisk(group_chunks=group, bucket_rows=bucket, n_bytes=array.grid.n_rows * array.row_bytes)
    at_work = max(1, min(n_workers, group, spare // column.bytes_at_work))
    return SlabPlan(column=column, n_rows=array.grid.n_rows, n_workers=at_work, over_disk=over_disk)


def reading_memory(plans: Sequence[SlabPlan]) -> ReadingMemory:
    """Sum up what reading takes: the slabs of all columns, the chunks of the one that is being decoded, tables."""
    slabs = sum(plan.slab_bytes for plan in plans)
    at_work = max(plan.n_workers * plan.column.bytes_at_work for plan in plans)
    tables = sum(plan.column.array.table_bytes for plan in plans)
    return ReadingMemory(lasting_bytes=tables, working_bytes=slabs + at_work, group_bytes=max(1, slabs))
