"""Sources that read any range: each task reads, encodes and writes one whole shard."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Executor
from contextlib import suppress
from functools import partial
from typing import Any

import dask

from streamtrain.ingest.kept import check_kept, shard_rows, tally_kept
from streamtrain.ingest.memory import IngestSizes
from streamtrain.ingest.parts import check_rows, part_ranges
from streamtrain.ingestion.sources.base import SeekableSource
from streamtrain.store.shard import DamagedShard
from streamtrain.store.statistics import FieldTally
from streamtrain.store.writing.writer import DatasetWriter, encode_part
from streamtrain.system.progress_bar import ByteProgress

Tallies = tuple[FieldTally, ...]


def write_shards(
    source: SeekableSource,
    writer: DatasetWriter,
    sizes: IngestSizes,
    *,
    pool: Executor,
    progress: ByteProgress,
    compare: bool = False,
) -> Tallies:
    """Write every shard that is not kept, a wave of them at a time; return each field's tally, merged in row order.

    Where ``compare``, kept shards are held against the source's rows. An error in one task stops the others at their
    next part.
    """
    layout = writer.layout
    if compare:
        # All of them before the first is written: no shard of another source may come among them.
        for shard in sorted(writer.kept):
            if shard >= writer.n_linked:
                with suppress(DamagedShard):  # it is made again
                    check_kept(writer, shard, source.read)
    stop = threading.Event()
    task = partial(_keep_or_write, source, writer, stop, progress)
    totals = tuple(FieldTally(field) for field in layout.fields)
    try:
        for first in range(0, layout.n_shards, sizes.n_wave):
            shards = range(first, min(first + sizes.n_wave, layout.n_shards))
            for tallies in compute((partial(task, shard) for shard in shards), pool):
                merge(totals, tallies)
    except BaseException:
        stop.set()
        raise
    return totals


def compute(tasks: Iterable[partial[Any]], pool: Executor) -> tuple[Any, ...]:
    """Run tasks on a pool through dask; their results in order, or the first error."""
    graph = [dask.delayed(task, pure=False, traverse=False)() for task in tasks]  # type: ignore[attr-defined]
    results: tuple[Any, ...] = dask.compute(*graph, scheduler="threads", pool=pool)  # type: ignore[attr-defined, no-untyped-call]
    return results


def merge(totals: Tallies, tallies: Tallies) -> None:
    """Add each field's tally of later rows to its total."""
    for total, tally in zip(totals, tallies, strict=True):
        total.merge(tally)


def _keep_or_write(
    source: SeekableSource,
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
    source: SeekableSource, writer: DatasetWriter, stop: threading.Event, progress: ByteProgress, shard: int
) -> Tallies:
    layout = writer.layout
    start, end = shard_rows(layout, shard)
    totals = tuple(FieldTally(field) for field in layout.fields)
    with writer.shard(shard) as out:
        for first_row, end_row in part_ranges(layout, start, end):
            if stop.is_set():
                raise CancelledError
            rows = source.read(first_row, end_row)
            check_rows(rows, source, first_row, end_row - first_row)
            part = encode_part(rows, layout, first_row)
            out.append(part)
            merge(totals, part.tallies)
            progress.advance(part.n_bytes)
    return totals
