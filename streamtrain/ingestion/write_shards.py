"""Shards written from sources that read any range: each task reads, encodes and writes one whole shard.

Shards that exist already, of an interrupted ingest or of the dataset that is appended to, are read back once. That
gives their statistics and checksums, and shows whether they are what was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.ingestion.request import IngestSizes
from streamtrain.ingestion.row_stream import check_rows, part_ranges
from streamtrain.ingestion.sources.base import Rows, Source
from streamtrain.store.layout import Layout
from streamtrain.store.shard import DamagedShard, StoredFile, reread
from streamtrain.store.statistics import FieldTally
from streamtrain.store.writing.writer import DatasetWriter, OpenShard, encode_part
from streamtrain.system.display.progress_bar import ByteProgress

ReadRows = Callable[[int, int], Rows]
Tallies = tuple[FieldTally, ...]


def shard_rows(layout: Layout, shard: int) -> tuple[int, int]:
    """Return the rows of a shard, as a half-open range."""
    first, end = layout.shard_blocks_range(shard)
    return layout.block_range(first)[0], layout.block_range(end - 1)[1]


def tally_kept(writer: DatasetWriter, shard: int, progress: ByteProgress) -> tuple[FieldTally, ...] | None:
    """Read a shard back and take it over; None where it is not what was written and is made again."""
    try:
        return _tally(writer, shard, progress)
    except DamagedShard:
        if shard < writer.n_linked:
            raise
        writer.drop(shard)
        return None


def _tally(writer: DatasetWriter, shard: int, progress: ByteProgress) -> tuple[FieldTally, ...]:
    totals, checksums = read_back(writer.path, writer.layout, shard, writer.kept[shard], progress.advance)
    writer.adopt(shard, checksums)
    return totals


def read_back(
    folder: Path, layout: Layout, shard: int, stored: Sequence[StoredFile], advance: Callable[[int], object]
) -> tuple[Tallies, npt.NDArray[np.uint32]]:
    """Read a shard back; return its tallies and the checksums of its blocks."""
    ranges = list(part_ranges(layout, *shard_rows(layout, shard)))
    totals = tuple(FieldTally(field) for field in layout.fields)
    checksums: list[npt.NDArray[np.uint32]] = []
    for (start, stop), (rows, found) in zip(ranges, reread(folder, layout, shard, stored, ranges), strict=True):
        for total in totals:
            values = rows[total.field.name]
            total.add_part(values, first_row=start, block_rows=layout.block_rows)
        checksums.append(found)
        advance((stop - start) * layout.row_bytes)
    return totals, np.concatenate(checksums)


def check_kept(writer: DatasetWriter, shard: int, source: ReadRows) -> None:
    """Compare a kept shard with the source's rows, where nothing else says it is the same source."""
    layout = writer.layout
    ranges = list(part_ranges(layout, *shard_rows(layout, shard)))
    with closing(reread(writer.path, layout, shard, writer.kept[shard], ranges)) as parts:
        for (start, stop), (rows, _) in zip(ranges, parts, strict=True):
            given = source(start, stop)
            for field in layout.fields:
                if not np.array_equal(_bytes(rows[field.name]), _bytes(given[field.name])):
                    raise DatasetError(
                        f"the source is not the one that was being ingested: field {field.name} differs in its samples "
                        f"{start:,} to {stop - 1:,}",
                        where=str(writer.path),
                        fix="give the same source; or ingest with overwrite, from the start",
                    )


def check_all_kept(writer: DatasetWriter, source: ReadRows) -> None:
    """Compare all kept shards but those of the dataset that is appended to."""
    for shard in sorted(writer.kept):
        if shard >= writer.n_linked:
            with suppress(DamagedShard):  # it is made again
                check_kept(writer, shard, source)


def _bytes(values: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
    if values.dtype == object:
        return values
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def write_shards(
    source: Source,
    writer: DatasetWriter,
    sizes: IngestSizes,
    *,
    pool: Executor,
    progress: ByteProgress,
    compare: bool = False,
) -> Tallies:
    """Write the shards that are not kept, in waves; return each field's tally, merged in row order."""
    layout = writer.layout
    if compare:
        # All of them before the first is written: no shard of another source may come among them.
        check_all_kept(writer, source.read)
    stop = threading.Event()
    task = partial(_keep_or_write, source, writer, stop, progress)
    totals = tuple(FieldTally(field) for field in layout.fields)
    try:
        for first in range(0, layout.n_shards, sizes.n_wave):
            shards = range(first, min(first + sizes.n_wave, layout.n_shards))
            for tallies in compute((partial(task, shard) for shard in shards), pool):
                merge(totals, tallies)
                del tallies  # or they would be held while those of the next wave are made
    except BaseException:
        stop.set()
        raise
    return totals


def compute(tasks: Iterable[partial[Any]], pool: Executor) -> tuple[Any, ...]:
    """Run tasks on a pool through dask; return their results in order, or raise the first error."""
    graph = [dask.delayed(task, pure=False, traverse=False)() for task in tasks]  # type: ignore[attr-defined]
    results: tuple[Any, ...] = dask.compute(*graph, scheduler="threads", pool=pool)  # type: ignore[attr-defined, no-untyped-call]
    return results


def merge(totals: Tallies, tallies: Tallies) -> None:
    """Add each field's tally of later rows to its total."""
    for total, tally in zip(totals, tallies, strict=True):
        total.merge(tally)


def _keep_or_write(
    source: Source,
    writer: DatasetWriter,
    stop: threading.Event,
    progress: ByteProgress,
    shard: int,
) -> Tallies:
    if shard in writer.kept:
        tallies = tally_kept(writer, shard, progress)
        if tallies is not None:
            return tallies
    return _write_shard(source, writer, stop, progress, shard)


def _write_shard(
    source: Source, writer: DatasetWriter, stop: threading.Event, progress: ByteProgress, shard: int
) -> Tallies:
    with writer.shard(shard) as out:
        return fill_shard(source, writer.layout, shard, out, stop.is_set, progress.advance)


def fill_shard(
    source: Source,
    layout: Layout,
    shard: int,
    out: OpenShard,
    is_stopped: Callable[[], bool],
    advance: Callable[[int], object],
    *,
    read: ReadRows | None = None,
) -> Tallies:
    """Read, encode and write the rows of one shard, part by part; ``read`` takes the place of the source's."""
    totals = tuple(FieldTally(field) for field in layout.fields)
    for first_row, end_row in part_ranges(layout, *shard_rows(layout, shard)):
        if is_stopped():
            raise CancelledError
        rows = (read or source.read)(first_row, end_row)
        check_rows(rows, source, first_row, end_row - first_row)
        part = encode_part(rows, layout, first_row)
        out.append(part)
        part.count_into(totals, layout.block_rows)
        advance(part.n_bytes)
    return totals
