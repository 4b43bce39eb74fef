"""The pool's memory: slots for blocks, and spans for batches.

A slot whose block is no longer needed in the present epoch keeps it: the order of the coming epoch is known, so the
block that is needed furthest in the future is evicted first (L. A. Belady, IBM Systems Journal 5(2), 1966). Only as
many slots as the lanes and the reading ahead need are ever taken for them; the rest is this cache.

Blocks lie in one page-aligned anonymous mapping per field, in huge pages where the system has them. Slots lie end to
end as whole rows, so one row index reaches through the whole pool. Only the pool's lock holder calls the methods that
change anything.

A span is a few whole batches in one piece of memory per field. Its arrays belong to whoever holds them: the memory is
used again only after the last reference to them, or to anything made from them, is gone. Fresh memory costs a page
fault per 4 KiB, about as long as copying the page, so reuse matters.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamtrain.loader.budget import LoaderSizes
from streamtrain.loader.decode.delivery import Drawn, Gather, plain_gathers, row_dtype
from streamtrain.loader.reading.workers import Seconds
from streamtrain.shuffle.order import I64
from streamtrain.shuffle.read_list import NEVER
from streamtrain.store.layout import Field, Layout
from streamtrain.system.buffers import aligned_bytes


class Slots:
    """The slots of a pool; ``rows`` has each field's rows, one element per row whatever its shape.

    At most ``n_working`` slots, all by default, hold blocks in use or read ahead. Without ``on_host`` the memory is
    elsewhere, and there are neither ``rows`` nor ``buffers``.
    """

    def __init__(self, layout: Layout, n_slots: int, n_working: int | None = None, *, on_host: bool = True) -> None:
        self.n_slots = n_slots
        self._n_working = n_slots if n_working is None else min(n_working, n_slots)
        self._block_bytes = [layout.block_rows * field.row_bytes for field in layout.fields]
        memory = [aligned_bytes(n_slots * n_bytes) for n_bytes in self._block_bytes] if on_host else []
        self.rows = [m.view(row_dtype(f.row_bytes)) for m, f in zip(memory, layout.fields, strict=on_host)]
        self._views = [m.data for m in memory]
        self._slot_of = np.full(layout.n_blocks, -1, np.int64)
        self._block_in = np.full(n_slots, -1, np.int64)
        self._until = np.full(n_slots, -1, np.int64)
        self._next = np.full(layout.n_blocks, NEVER)
        self._after_next = np.full(layout.n_blocks, NEVER)

    def buffers(self, slot: int) -> list[memoryview]:
        """Give a slot's memory, one writable buffer per field."""
        return [view[slot * n : (slot + 1) * n] for view, n in zip(self._views, self._block_bytes, strict=True)]

    def let_go(self) -> None:
        """Release the memory; no block can be read or taken any more."""
        self.rows, self._views = [], []

    def n_free(self, now: int) -> int:
        """Count the blocks that may still be read, given the first sweep that is still needed."""
        return max(0, self._n_working - int(np.count_nonzero(self._until > now)))

    def foresee(self, blocks: I64, sweeps: I64) -> None:
        """Note the sweeps in which a coming epoch needs blocks; once for every epoch, in order."""
        # Reversed, so that the first visit of a block counts.
        self._after_next[blocks[::-1]] = sweeps[::-1]
        idle = self._next == NEVER
        self._next[idle] = self._after_next[idle]
        self._after_next[idle] = NEVER

    def assign(self, blocks: I64, until: I64, following: I64, now: int) -> tuple[I64, npt.NDArray[np.bool_]]:
        """Give each of these distinct blocks a slot until a sweep; those already here keep theirs.

        ``following`` is the sweep of each block's next visit in its epoch, ``now`` the first sweep that is still
        needed. Takes as many blocks from the front as there are slots; returns these, and which blocks must be read.
        """
        slots = self._slot_of[blocks]
        here = slots >= 0
        costs = ~(here & (self._until[slots] > now))
        n = int(np.searchsorted(np.cumsum(costs), self.n_free(now), side="right"))
        blocks, slots, here, until, following = blocks[:n], slots[:n], here[:n], until[:n], following[:n]
        self._foresee_next(blocks, following)
        self._until[slots[here]] = np.maximum(self._until[slots[here]], until[here])
        missing = ~here
        slots[missing] = self._evict(int(np.count_nonzero(missing)), now)
        self._slot_of[blocks[missing]] = slots[missing]
        self._block_in[slots[missing]] = blocks[missing]
        self._until[slots[missing]] = until[missing]
        return slots, missing

    def _foresee_next(self, blocks: I64, following: I64) -> None:
        """Note the next visits of blocks that are visited now: later in their epoch, else in the coming one."""
        last = following == NEVER
        self._next[blocks] = np.where(last, self._after_next[blocks], following)
        self._after_next[blocks[last]] = NEVER

    def _evict(self, n: int, now: int) -> I64:
        """Empty n idle slots: the empty ones first, then those whose blocks are needed last."""
        if not n:
            return np.empty(0, np.int64)
        idle = np.flatnonzero(self._until <= now)
        held = self._block_in[idle]
        keep_until = np.where(held < 0, NEVER, np.minimum(self._next[held], NEVER - 1))
        chosen = idle[np.argpartition(keep_until, len(idle) - n)[len(idle) - n :]]
        old = self._block_in[chosen]
        self._slot_of[old[old >= 0]] = -1
        return chosen

    def release(self, *, keep: bool) -> None:
        """Free every slot and forget what was foreseen; ``keep`` leaves the blocks for whoever needs them next."""
        self._until[:] = -1
        self._next[:] = self._after_next[:] = NEVER
        if not keep:
            self._slot_of[:] = -1
            self._block_in[:] = -1


Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Consecutive positions [start, stop) of an epoch, and one array per field that holds their samples."""

    epoch: int
    start: int
    stop: int
    arrays: tuple[npt.NDArray[Any], ...]


class SpanMemory:
    """Lends memory for spans of ``n_samples`` samples; keeps that of up to ``spans`` returned spans."""

    def __init__(self, fields: tuple[Field, ...], n_samples: int, spans: int) -> None:
        self._fields = fields
        self._n_samples = n_samples
        self._spans = spans
        # Memory comes back from whichever thread drops the last reference, perhaps amid a locked section:
        # appending to a deque takes no lock.
        self._free: list[deque[Bytes]] = [deque() for _ in fields]
        self._closed = False

    def lend(self, epoch: int, start: int, stop: int, /, *, may_wait: bool = False) -> Span:
        """Lend a span over positions [start, stop); its arrays' contents are undefined."""
        lent = zip(self._fields, self._free, strict=True)
        arrays = tuple(self._lend(field, free, stop - start) for field, free in lent)
        return Span(epoch=epoch, start=start, stop=stop, arrays=arrays)

    def _lend(self, field: Field, free: deque[Bytes], n_samples: int) -> npt.NDArray[Any]:
        while len(free) > self._spans:
            free.popleft()
        try:
            memory = free.pop()
        except IndexError:
            memory = aligned_bytes(self._n_samples * field.row_bytes)
        array = memory[: n_samples * field.row_bytes].view(field.dtype).reshape(n_samples, *field.shape)
        weakref.finalize(array, self._take_back, free, memory).atexit = False
        return array

    def _take_back(self, free: deque[Bytes], memory: Bytes) -> None:
        if not self._closed:
            free.append(memory)

    def close(self) -> None:
        """Keep no memory any more: what is lent goes with its last reference."""
        self._closed = True
        for free in self._free:
            free.clear()


ReadBlock = Callable[[int, Sequence[memoryview]], float]
"""Reads a block into one buffer per field; returns the seconds of reading."""


class PoolMemory(Protocol):
    """Memory for blocks and spans; all but ``lend`` is called by many threads at once, without the pool's lock."""

    @property
    def slots(self) -> Slots:
        """The slots, with the block in each."""

    def lend(self, epoch: int, start: int, stop: int, /, *, may_wait: bool = False) -> Span | None:
        """Lend a span over positions [start, stop); with ``may_wait``, None where there is no room now.

        The caller may wait while there are spans that are not taken yet: its work on them gives room back.
        """

    def read(self, read: ReadBlock, blocks: I64, slots: I64, /) -> Seconds:
        """Read blocks into their slots."""

    def gather(self, rows: I64, span: Span, start: int, samples: I64, /) -> Seconds:
        """Put rows of the pool, those of some samples, into a span, from a position on."""

    def close(self) -> None:
        """Release everything but the spans that are lent, once no thread works here any more."""

    def abandon(self) -> None:
        """Leave everything as it is: a thread that does not come back may still use it."""


class HostMemory:
    """Blocks and spans in the memory of the host."""

    def __init__(self, layout: Layout, sizes: LoaderSizes, gathers: Sequence[Gather] = ()) -> None:
        self.slots = Slots(layout, sizes.slots, sizes.working_slots)
        self._spans = SpanMemory(layout.batch_fields, sizes.span_samples(layout.n_samples), sizes.spans)
        self._gathers = gathers or plain_gathers(layout)
        self._decodes = layout.decoder_bytes > 0
        self.lend = self._spans.lend

    def read(self, read: ReadBlock, blocks: I64, slots: I64, /) -> Seconds:
        pairs = zip(blocks.tolist(), slots.tolist(), strict=True)
        return {"disk": sum(read(block, self.slots.buffers(slot)) for block, slot in pairs)}

    def gather(self, rows: I64, span: Span, start: int, samples: I64, /) -> Seconds:
        began = time.perf_counter()
        some, drawn = slice(start - span.start, start - span.start + len(rows)), Drawn(span.epoch, samples)
        for gather, array in zip(self._gathers, span.arrays, strict=True):
            gather(self.slots.rows, rows, array[some], drawn)
        # Beside decoding an image, copying rows is nothing.
        return {"decode": time.perf_counter() - began} if self._decodes else {}

    def abandon(self) -> None:
        """Do nothing: who still refers to the memory keeps it."""

    def close(self) -> None:
        # The pool and its threads refer to each other: only Python's cycle collector would free them, at some time.
        self.slots.let_go()
        self._spans.close()
