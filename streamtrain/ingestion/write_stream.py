"""Shards written from in-order sources: the calling thread reads, workers encode, one thread writes.

Rows are copied into one of two stages, each a wave of parts. While one wave is encoded and written in the background,
the next is read into the other stage:

1. The reader fills stage A and hands wave A over.
2. It fills stage B. Wave A's blocks may be views of stage A that are not written yet.
3. It waits for wave A before it hands wave B over, and only then fills stage A again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import cycle
from types import TracebackType

from streamtrain.ingestion.request import IngestSizes
from streamtrain.ingestion.row_stream import RowStream, Stage, part_ranges, part_rows
from streamtrain.ingestion.sources.base import n_rows_of
from streamtrain.ingestion.write_shards import Tallies, check_kept, compute, merge, shard_rows, tally_kept
from streamtrain.store.layout import Layout
from streamtrain.store.shard import DamagedShard
from streamtrain.store.statistics import FieldTally
from streamtrain.store.writing.writer import DatasetWriter, EncodedPart, OpenShard, encode_part
from streamtrain.system.display.progress_bar import ByteProgress


def write_stream(
    stream: RowStream,
    writer: DatasetWriter,
    sizes: IngestSizes,
    *,
    pool: Executor,
    progress: ByteProgress,
    compare: bool = False,
) -> tuple[Tallies, int]:
    """Write all rows but those of kept shards; return each field's tally, in row order, and the count."""
    layout = writer.layout
    if compare:
        # All of them before the first is written: no shard of another source may come among them.
        with closing(stream.again()) as rows:
            _compare_kept(rows, writer)
    totals = tuple(FieldTally(field) for field in layout.fields)
    for shard in range(writer.n_linked):
        merge(totals, tally_kept(writer, shard, progress) or ())
    n_rows = stream.first_row
    for start, stop, kept in _spans(writer, n_rows):
        tallies = None if kept is None else tally_kept(writer, kept, progress)
        if kept is not None and tallies is not None:
            n_rows = _pass_over(stream, layout, stop)
            merge(totals, tallies)
        else:
            # A shard at a time into the same totals: sums of sums would be others in their last bits.
            sequence = _ShardSequence(writer, totals)
            n_rows = _write_span(stream, sequence, sizes, start, stop, pool=pool, progress=progress)
    return totals, n_rows + stream.skip_rest()


def _spans(writer: DatasetWriter, start: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the rows from ``start`` on: runs to be written, and between them shards that are kept."""
    layout = writer.layout
    for shard in sorted(shard for shard in writer.kept if shard >= writer.n_linked):
        first, end = shard_rows(layout, shard)
        if start < first:
            yield start, first, None
        yield first, end, shard
        start = end
    if start < layout.n_samples:
        yield start, layout.n_samples, None


def _compare_kept(stream: RowStream, writer: DatasetWriter) -> None:
    for shard in sorted(shard for shard in writer.kept if shard >= writer.n_linked):
        _pass_over(stream, writer.layout, shard_rows(writer.layout, shard)[0])
        with suppress(DamagedShard):  # it is made again
            check_kept(writer, shard, lambda first, end: stream.take(end - first))


def _pass_over(stream: RowStream, layout: Layout, stop: int) -> int:
    """Read on to a row, or to the end; return the number of the row after the last that was read."""
    while stream.row < stop and n_rows_of(stream.take(min(part_rows(layout), stop - stream.row))):
        pass
    return stream.row


def _write_span(
    stream: RowStream,
    sequence: _ShardSequence,
    sizes: IngestSizes,
    start: int,
    stop: int,
    *,
    pool: Executor,
    progress: ByteProgress,
) -> int:
    n_rows = start
    with (
        # Whatever happens, the background ends before its open shard is closed under it.
        sequence,
        ThreadPoolExecutor(1, thread_name_prefix="streamtrain-ingest-writer") as background,
    ):
        pending = None
        for stage, first, end in _waves(stream, sequence.layout, sizes.n_wave, start, stop):
            if pending is not None:
                pending.result()
            pending = background.submit(_write_wave, stage, first, end, sequence, pool, progress)
            n_rows = end
        if pending is not None:
            pending.result()
        sequence.close()
    return n_rows


def _waves(stream: RowStream, layout: Layout, n_wave: int, start: int, stop: int) -> Iterator[tuple[Stage, int, int]]:
    """Read rows [start, stop) in waves of parts, each into the stage that the wave before it does not use."""
    capacity = min(n_wave * part_rows(layout), stop - start)
    stages = [{field.name: field.empty(capacity) for field in layout.fields} for _ in range(2)]
    for stage in cycle(stages):
        ends = [end for _, (_, end) in zip(range(n_wave), part_ranges(layout, start, stop), strict=False)]
        n_filled = stream.fill(stage, min(ends[-1] - start, capacity)) if ends else 0
        if not n_filled:
            return
        yield stage, start, start + n_filled
        start += n_filled


def _write_wave(
    stage: Stage, start: int, stop: int, sequence: _ShardSequence, pool: Executor, progress: ByteProgress
) -> None:
    ranges = list(part_ranges(sequence.layout, start, stop))
    views = [{name: values[a - start : b - start] for name, values in stage.items()} for a, b in ranges]
    tasks = [partial(encode_part, rows, sequence.layout, a) for rows, (a, _) in zip(views, ranges, strict=True)]
    for part, (first_row, _) in zip(compute(tasks, pool), ranges, strict=True):
        sequence.append(part, first_row)
        progress.advance(part.n_bytes)


class _ShardSequence:
    """Shards filled one after another in row order; each is counted into the totals when it is full."""

    def __init__(self, writer: DatasetWriter, totals: Tallies) -> None:
        self.layout = writer.layout
        self._totals = totals
        self._writer = writer
        self._shard = -1
        self._stack = ExitStack()
        self._out: OpenShard | None = None
        self._tallies = self._new_tallies()

    def append(self, part: EncodedPart, first_row: int) -> None:
        shard = first_row // (self.layout.block_rows * self.layout.shard_blocks)
        if self._out is None or shard != self._shard:
            self.close()
            self._out, self._shard = self._stack.enter_context(self._writer.shard(shard)), shard
        self._out.append(part)
        part.count_into(self._tallies, self.layout.block_rows)

    def close(self) -> None:
        """Finish the shard that is open."""
        self._stack.close()
        self._out = None
        merge(self._totals, self._tallies)
        self._tallies = self._new_tallies()

    def _new_tallies(self) -> Tallies:
        return tuple(FieldTally(field) for field in self.layout.fields)

    def __enter__(self) -> _ShardSequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
