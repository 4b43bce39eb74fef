"""The pool: reader threads fill slots along the read list and gather spans of samples.

The threads share one list of jobs, in this order of preference: gather samples whose blocks are all here, compute the
places of samples ahead, set up the next epoch, read blocks into free slots. The work itself is done in NumPy and system
calls that release the GIL. The reads continue into the next epoch's list, so nothing stops where an epoch ends.

Order never depends on the threads: a span's positions fix its samples, and threads only decide when.

Sweeps and positions of a `PoolEpoch` count from the epoch's own start; ``sweeps_before`` puts the sweeps of all epochs
on one line, so that a slot's time of need reaches across the boundary. Only the pool's lock holder changes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from streamtrain.errors import UsageError
from streamtrain.loader.budget import LoaderSizes
from streamtrain.loader.decode.delivery import Gather
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.loader.reading.pool_memory import HostMemory, PoolMemory, Span
from streamtrain.loader.reading.workers import Deadline, Job, Seconds, Workers
from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import SamplePositions, iter_positions
from streamtrain.shuffle.read_list import NEVER, ReadList, n_to_place, place, read_list
from streamtrain.store.layout import Layout
from streamtrain.system.events import ThreadSeconds

Placed = tuple[ReadList, I64]  # the next reads in the order of their first positions, and these


@dataclass(slots=True, kw_only=True, eq=False)
class PoolEpoch:
    """An epoch on its way through the pool. Sweeps and positions count from the epoch's own start."""

    number: int
    order: EpochOrder
    reads: ReadList
    start: int
    stop: int
    sweeps_before: int
    base: I64  # for each visit, the pool row of its run's first row
    places: Iterator[SamplePositions]
    indexed: int  # positions before this one have been worked out
    index_samples: int  # samples whose positions are worked out at once
    needed_at: I64  # for each read that is placed, the position that needs it first
    pieces: deque[SamplePositions] = field(default_factory=deque)
    n_placed: int = 0  # reads in their exact order, from the front of the list
    n_asked: int = 0  # reads handed out, from the front of the list
    reading: dict[int, None] = field(default_factory=dict)  # the first of the reads of each job under way, in order

    @property
    def n_loaded(self) -> int:
        """Reads done, from the front of the list."""
        return next(iter(self.reading), self.n_asked)

    @property
    def loaded(self) -> int:
        """Positions before this one have all their blocks in the pool."""
        n_loaded = self.n_loaded
        if n_loaded == len(self.reads):
            return self.stop
        if n_loaded < self.n_placed:
            return int(self.needed_at[n_loaded])
        return int(self.reads.first[n_loaded]) * self.order.lanes

    def to_place(self) -> Placed:
        """Work out the order of the next reads; takes no lock, and changes nothing."""
        n = n_to_place(self.order, self.reads, self.n_placed, index_samples=self.index_samples)
        return place(self.order, self.reads, self.n_placed, n)

    def note_placed(self, placed: Placed) -> None:
        """Put the result of ``to_place`` into the list."""
        reads, needed_at = placed
        self.reads.put(self.n_placed, reads)
        self.needed_at[self.n_placed : self.n_placed + len(reads)] = needed_at
        self.n_placed += len(reads)

    def next_reads(self, most: int) -> slice:
        """Select the next reads to hand out, at most ``most``, of blocks that are all different."""
        first = self.n_asked
        blocks = self.reads.block[first : min(first + most, self.n_placed)]
        order = np.argsort(blocks, kind="stable")
        again = order[1:][blocks[order[1:]] == blocks[order[:-1]]]
        return slice(first, first + (int(again.min()) if len(again) else len(blocks)))

    def note_slots(self, slots: I64) -> None:
        """Note the slots of the next reads, which are thereby handed out."""
        order, reads = self.order, self.reads
        some = slice(self.n_asked, self.n_asked + len(slots))
        visit = reads.visit[some]
        self.base[visit] = order.run_first[visit] + (slots - reads.block[some]) * order.block_rows
        self.n_asked = some.stop


def enter_epoch(
    order: EpochOrder, *, number: int, start: int, stop: int, sweeps_before: int, index_samples: int
) -> PoolEpoch:
    """Set up the passage of positions [start, stop) of an epoch."""
    reads = read_list(order, start, stop)
    epoch = PoolEpoch(
        number=number,
        order=order,
        reads=reads,
        start=start,
        stop=stop,
        sweeps_before=sweeps_before,
        base=np.zeros(len(order.run_first), np.int64),
        places=iter_positions(order, start, index_samples=index_samples),
        indexed=start,
        index_samples=index_samples,
        needed_at=np.empty(len(reads), np.int64),
    )
    if len(reads):
        epoch.note_placed(epoch.to_place())
    return epoch


_DECODED_AT_ONCE: Final = 16
"""Images of one job, so that several threads decode for one batch."""


class Pool:
    """Turns orders into spans of gathered samples, with threads.

    ``n_positions`` are the positions of an epoch in use: fewer than the samples where the last batch is dropped.
    """

    def __init__(
        self,
        reader: BlockReader,
        layout: Layout,
        sizes: LoaderSizes,
        order_of: Callable[[int], EpochOrder],
        *,
        n_positions: int,
        threads: int,
        memory: PoolMemory | None = None,
        gathers: Sequence[Gather] = (),
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._sizes = sizes
        self._most_gathered = _DECODED_AT_ONCE if layout.decoder_bytes else layout.n_samples
        self._order_of = order_of
        self._n_positions = n_positions
        self._memory: PoolMemory = HostMemory(layout, sizes, gathers) if memory is None else memory
        self._slots = self._memory.slots
        self._epochs: deque[PoolEpoch] = deque()
        self._spans: deque[Span] = deque()
        self._open: Span | None = None
        self._assigned = 0
        self._gathering: dict[int, None] = {}
        self._setting_up = False
        self._indexing = self._placing = False
        self._n_read = 0
        self._n_taken = 0
        self._no_room_after: int | None = None
        self._memory_closed = False
        self._workers = Workers(self._next_job, threads)
        self._lock, self._changed = self._workers.lock, self._workers.changed

    # What the consumer calls.

    def seek(self, epoch: int, position: int, timeout: float | None = None) -> None:
        """Resume at a position of an epoch, dropping what was under way; waits ``timeout`` seconds for its end."""
        self._workers.check_process()
        with self._lock:
            self._workers.pause(Deadline(self._reader, self._workers, timeout, "the work under way did not end").left)
            self._slots.release(keep=self._workers.error is None)
            self._setting_up = self._indexing = self._placing = False
            self._epochs.clear()
            self._spans.clear()
            self._open = None
            self._gathering.clear()
        first = self._set_up(epoch, position, sweeps_before=0)
        with self._lock:
            self._enter(first)
            self._assigned = position
            self._workers.resume()

    def next_span(self, timeout: float | None = None) -> Span:
        """Wait for the next span, in order; a thread's error is raised here, with its traceback."""
        self._workers.check_process()
        with self._lock:
            deadline = Deadline(self._reader, self._workers, timeout, "no batch came")
            while not self._is_ready() or deadline.hangs():
                if self._workers.error is not None:
                    raise self._workers.error
                if self._workers.closed:
                    raise UsageError("the loader was closed meanwhile", fix="close it when no one iterates it")
                self._workers.wait(deadline.left())
            span = self._spans.popleft()
            self._n_taken += 1
            self._changed.notify_all()
            return span

    def work(self) -> ThreadSeconds:
        """Report the work of the threads so far."""
        return self._workers.work()

    @property
    def n_read(self) -> int:
        """Blocks read so far; those that were still in memory do not count."""
        return self._n_read

    def _is_ready(self) -> bool:
        """Whether all samples of the first span are in it."""
        return bool(self._spans) and self._spans[0].stop <= self._gathered(self._spans[0].epoch)

    def close(self) -> None:
        """Stop the threads and close all files."""
        ended = self._workers.close()
        self._spans.clear()
        self._open = None
        self._reader.close()
        # A thread that does not come back may still write there.
        if not self._memory_closed:
            # Not closed again, even if it fails.
            self._memory_closed = True
            (self._memory.close if ended else self._memory.abandon)()

    # What the threads do.

    def _next_job(self, plans: bool) -> Job | None:
        # One thread alone plans: what numpy takes and frees meanwhile stays in the memory arena of the thread.
        return (
            self._gather_job(short=False)
            or (self._place_job() if plans else None)
            or (self._index_job() if plans else None)
            or (self._set_up_job() if plans else None)
            or self._read_job(short=False)
            or self._gather_job(short=True)
            or self._read_job(short=True)
        )

    def _gathered(self, epoch: int) -> int:
        """Find the position of an epoch before which all have been gathered."""
        if self._epochs[0].number != epoch:
            return self._n_positions
        return next(iter(self._gathering), self._assigned)

    def _now(self) -> int:
        """The first sweep that is still needed."""
        present = self._epochs[0]
        return present.sweeps_before + self._gathered(present.number) // present.order.lanes

    def _gather_job(self, *, short: bool) -> Job | None:
        self._pass_epoch()
        epoch = self._epochs[0]
        start = self._assigned
        while epoch.pieces and epoch.pieces[0].stop <= start:
            epoch.pieces.popleft()
        if not epoch.pieces or start >= epoch.stop:
            return None
        span = self._open or self._lend(epoch, start)
        if span is None:
            return None
        wanted = min(span.stop, epoch.pieces[0].stop, start + self._most_gathered)
        stop = min(wanted, epoch.loaded)
        if stop < wanted:
            stop = self._whole(epoch, stop) if short else start
        if stop <= start:
            return None
        self._open = None if stop == span.stop else span
        self._assigned = stop
        self._gathering[start] = None
        piece = epoch.pieces[0]

        def note(others: Seconds) -> Seconds:
            self._gathering.pop(start)
            return others

        return "gather", lambda: self._gather(epoch, piece, span, start, stop), note

    def _whole(self, epoch: PoolEpoch, stop: int) -> int:
        """Find the last position up to ``stop`` at which a batch or a sweep ends.

        A consumer may wait for a batch, and the end of a sweep sets slots free: with as many slots as lanes the next
        block finds one once all before its sweep is gathered. Anything less is not worth a job.
        """
        return max(stop // size * size for size in (self._sizes.batch_size, epoch.order.lanes))

    def _pass_epoch(self) -> None:
        """Advance to the next epoch once all of this one has been gathered."""
        if len(self._epochs) > 1 and not self._gathering and self._assigned >= self._epochs[0].stop:
            self._epochs.popleft()
            self._assigned = self._epochs[0].start

    def _lend(self, epoch: PoolEpoch, start: int) -> Span | None:
        # While the consumer takes one span, it still holds the one before.
        if len(self._spans) >= self._sizes.spans - 2:
            return None
        if self._spans and self._n_taken == self._no_room_after:
            return None
        stop = min(epoch.stop, start + self._sizes.span_batches * self._sizes.batch_size)
        self._open = self._memory.lend(epoch.number, start, stop, may_wait=bool(self._spans))
        if self._open is None:
            # Tried again only when the next one has been taken: it takes long to find no room.
            self._no_room_after = self._n_taken
            return None
        self._spans.append(self._open)
        return self._open

    def _gather(self, epoch: PoolEpoch, piece: SamplePositions, span: Span, start: int, stop: int) -> Seconds:
        some = slice(start - piece.start, stop - piece.start)
        visits, within = piece.visits[some], piece.rows[some]
        rows = epoch.base.take(visits)
        rows += within
        # Only what is drawn for a sample depends on which it is.
        samples = epoch.order.run_first.take(visits) + within if self._layout.decoder_bytes else within
        return self._memory.gather(rows, span, start, samples)

    def _index_job(self) -> Job | None:
        epoch = next((epoch for epoch in self._epochs if epoch.indexed < epoch.stop), None)
        if epoch is None or self._indexing:
            return None
        reached = max(self._assigned, epoch.start) if epoch is self._epochs[0] else epoch.start
        if epoch.indexed > reached and epoch.indexed - reached > self._sizes.index_samples:
            return None
        self._indexing = True

        def note(piece: SamplePositions) -> None:
            self._indexing = False
            epoch.pieces.append(piece)
            epoch.indexed = piece.stop
            if epoch.indexed >= epoch.stop:
                # The next epoch makes tables of its own.
                epoch.places = iter(())

        return "index", lambda: next(epoch.places), note

    def _place_job(self) -> Job | None:
        """Work out the exact order of reads ahead, before they are handed out."""
        epoch = next((epoch for epoch in self._epochs if epoch.n_placed < len(epoch.reads)), None)
        if epoch is None or self._placing or epoch.n_placed - epoch.n_asked > self._sizes.working_slots:
            return None
        self._placing = True

        def note(placed: Placed) -> None:
            self._placing = False
            epoch.note_placed(placed)

        return "index", epoch.to_place, note

    def _read_job(self, *, short: bool) -> Job | None:
        epoch = next((epoch for epoch in self._epochs if epoch.n_asked < len(epoch.reads)), None)
        if epoch is None or epoch.n_asked == epoch.n_placed:
            return None
        reads, some = epoch.reads, epoch.next_reads(self._sizes.read_blocks)
        now = self._now()
        if not short and self._slots.n_free(now) < some.stop - some.start:
            return None
        following = reads.next[some].copy()
        following[following < NEVER] += epoch.sweeps_before
        slots, missing = self._slots.assign(reads.block[some], reads.end[some] + epoch.sweeps_before, following, now)
        if not len(slots):
            return None
        epoch.note_slots(slots)
        epoch.reading[some.start] = None
        blocks = reads.block[some][: len(slots)][missing]

        def note(others: Seconds) -> Seconds:
            epoch.reading.pop(some.start)
            self._n_read += len(blocks)
            return others

        return "decode", lambda: self._read(blocks, slots[missing]), note

    def _read(self, blocks: I64, slots: I64) -> Seconds:
        self._reader.announce(blocks.tolist())
        return self._memory.read(self._reader.read, blocks, slots)

    def _set_up_job(self) -> Job | None:
        """Set up the next epoch once this one is under way: the cache needs its reads."""
        last = self._epochs[-1]
        if self._setting_up or len(self._epochs) > 1 or last.n_asked < min(last.order.lanes, len(last.reads)):
            return None
        self._setting_up = True
        sweeps_before = last.sweeps_before + last.order.n_sweeps

        def note(epoch: PoolEpoch) -> None:
            self._setting_up = False
            self._enter(epoch)

        return "index", lambda: self._set_up(last.number + 1, 0, sweeps_before=sweeps_before), note

    def _enter(self, epoch: PoolEpoch) -> None:
        self._epochs.append(epoch)
        self._slots.foresee(epoch.reads.block, epoch.reads.first + epoch.sweeps_before)

    def _set_up(self, number: int, start: int, *, sweeps_before: int) -> PoolEpoch:
        return enter_epoch(
            self._order_of(number),
            number=number,
            start=start,
            stop=self._n_positions,
            sweeps_before=sweeps_before,
            index_samples=self._sizes.index_samples,
        )
