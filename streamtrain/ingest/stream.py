"""Sources that read in order only: the calling thread reads, workers encode, one thread writes.

Rows are copied into one of two stages, each a wave of parts. While one wave is encoded and written in the
background, the next is read into the other stage:

1. The reader fills stage A and hands wave A over.
2. It fills stage B. Wave A's blocks may be views of stage A that are not written yet.
3. It waits for wave A before it hands wave B over, and only then fills stage A again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import cycle
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.ingest.kept import check_kept, shard_rows, tally_kept
from streamtrain.ingest.memory import IngestSizes
from streamtrain.ingest.parts import check_rows, part_ranges, part_rows
from streamtrain.ingest.shards import Tallies, compute, merge
from streamtrain.ingestion.sources.base import Rows, Source
from streamtrain.store.layout import Layout
from streamtrain.store.shard import DamagedShard
from streamtrain.store.statistics import FieldTally
from streamtrain.store.writing.writer import DatasetWriter, OpenShard, Part, encode_part
from streamtrain.system.progress_bar import ByteProgress

Stage = Mapping[str, npt.NDArray[Any]]


class RowStream:
    """The rows of a source, taken in exact amounts; its head can be looked at first.

    Parameters
    ----------
    source : Source
        Read once, from the start.
    max_bytes : int
        The most it is asked for at once.
    first_row : int
        The number of the source's first row.
    """

    def __init__(self, source: Source, max_bytes: int, *, first_row: int = 0) -> None:
        self.first_row = first_row
        self._source = source
        self._max_bytes = max_bytes
        self._runs = source.iter_blocks(max_bytes)
        self._head: deque[Rows] = deque()
        self._n_read = first_row
        self.head_bytes = 0

    def peek(self, n_bytes: int) -> bool:
        """Hold at least so many bytes of the first rows; False where the source ended before."""
        while self.head_bytes < n_bytes:
            run = self._next_run()
            if run is None:
                return False
            # The source may use its buffer again.
            self._head.append({name: np.array(values) for name, values in run.items()})
            self.head_bytes += sum(values.nbytes for values in run.values())
            del run
        return True

    def again(self) -> RowStream:
        """The same rows from their first, read a second time."""
        return RowStream(self._source, self._max_bytes, first_row=self.first_row)

    @property
    def row(self) -> int:
        """The number of the next row."""
        return self._n_read - sum(len(next(iter(run.values()))) for run in self._head)

    @property
    def n_read(self) -> int:
        """Rows up to the last that the source has given so far."""
        return self._n_read

    def first_rows(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """The first of the rows that are held, up to so many."""
        held: list[npt.NDArray[Any]] = []
        for run in self._head:
            held.append(run[name][: n_rows - sum(map(len, held))])
        return np.concatenate(held)

    def fill(self, stage: Stage, n_rows: int) -> int:
        """Fill the first rows of a stage; return how many there were, fewer than asked only at the end."""
        n_filled = 0
        while n_filled < n_rows:
            run = self._head.popleft() if self._head else self._next_run()
            if run is None:
                break
            n_taken = min(n_rows - n_filled, len(next(iter(run.values()))))
            for name, values in run.items():
                stage[name][n_filled : n_filled + n_taken] = values[:n_taken]
            rest = {name: values[n_taken:] for name, values in run.items()}
            if len(next(iter(rest.values()))):
                self._head.appendleft(rest)
            n_filled += n_taken
            # Views of the source's memory, which it may want to free before it gives the next run.
            del run, rest, values
        return n_filled

    def take(self, n_rows: int) -> Rows:
        """The next rows, in arrays of their own; fewer than asked only at the end."""
        stage = {field.name: np.empty((n_rows, *field.shape), field.dtype) for field in self._source.fields}
        n_filled = self.fill(stage, n_rows)
        return {name: values[:n_filled] for name, values in stage.items()}

    def skip_rest(self) -> int:
        """Read what is left and count its rows; a source may hold its data against a checksum only at the very end."""
        n_rows = sum(len(next(iter(run.values()))) for run in self._head)
        n_before = self._n_read
        self._head.clear()
        while self._next_run() is not None:
            pass
        return n_rows + self._n_read - n_before

    def close(self) -> None:
        """End the reading; what the source has open is closed."""
        if isinstance(self._runs, Generator):
            self._runs.close()

    def _next_run(self) -> Rows | None:
        run = next(self._runs, None)
        if run is not None:
            self._n_read += check_rows(run, self._source, self._n_read)
        return run


def write_stream(
    stream: RowStream,
    writer: DatasetWriter,
    sizes: IngestSizes,
    *,
    pool: Executor,
    progress: ByteProgress,
    compare: bool = False,
) -> tuple[Tallies, int]:
    """Write all rows but those of shards that are kept; return each field's tally, in row order, and the row count.

    Parameters
    ----------
    compare : bool
        Whether to hold kept shards against the source's rows, which are read a second time for that.
    """
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
    """The rows from ``start`` on: runs to be written, and between them shards that are kept."""
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
    while stream.row < stop and len(next(iter(stream.take(min(part_rows(layout), stop - stream.row)).values()))):
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
    stages = [
        {field.name: np.empty((capacity, *field.shape), field.dtype) for field in layout.fields} for _ in range(2)
    ]
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
    """Shards filled one after another with parts in row order; each is counted into the totals when it is full."""

    def __init__(self, writer: DatasetWriter, totals: Tallies) -> None:
        self.layout = writer.layout
        self._totals = totals
        self._writer = writer
        self._shard = -1
        self._stack = ExitStack()
        self._out: OpenShard | None = None
        self._tallies = self._new_tallies()

    def append(self, part: Part, first_row: int) -> None:
        shard = first_row // (self.layout.block_rows * self.layout.shard_blocks)
        if self._out is None or shard != self._shard:
            self.close()
            self._out, self._shard = self._stack.enter_context(self._writer.shard(shard)), shard
        self._out.append(part)
        merge(self._tallies, part.tallies)

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
