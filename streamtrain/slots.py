"""The pool's memory: slots of one block each, and which block is where.

A slot whose block is no longer needed in the present epoch keeps it: the order of the coming epoch is known, so the
block that is needed furthest in the future gives way first (L. A. Belady, IBM Systems Journal 5(2), 1966). Only so many
slots as the lanes and the reading ahead need are ever taken for them; the rest is this cache.

Memory is one page-aligned anonymous mapping per field, in huge pages where the system has them: reads run several times
faster into aligned memory. Slots lie end to end as whole rows, so one row index reaches through the whole pool.
Only the pool's lock holder calls the methods that change anything.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.shuffle.order import I64
from streamtrain.store.layout import Layout
from streamtrain.system.buffers import aligned_bytes

_NEVER: Final = np.iinfo(np.int64).max


def row_dtype(row_bytes: int) -> np.dtype[Any]:
    """The dtype in which whole rows move fastest: an integer of their size, else raw bytes."""
    return np.dtype(f"u{row_bytes}") if row_bytes in (1, 2, 4, 8) else np.dtype((np.void, row_bytes))


class Slots:
    """The slots of a pool.

    Parameters
    ----------
    layout : Layout
        The dataset's.
    n_slots : int
        How many blocks fit.
    n_working : int, optional
        How many of them may hold blocks that are in use or read ahead; all of them by default.
    on_host : bool
        Whether their memory is here; else it is another's, and there are neither ``rows`` nor ``buffers``.

    Attributes
    ----------
    rows : list of (n_slots * block_rows,) arrays
        Each field's rows, one element per row whatever its shape.
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
        self._next = np.full(layout.n_blocks, _NEVER)
        self._after_next = np.full(layout.n_blocks, _NEVER)

    def buffers(self, slot: int) -> list[memoryview]:
        """A slot's memory, one writable buffer per field."""
        return [view[slot * n : (slot + 1) * n] for view, n in zip(self._views, self._block_bytes, strict=True)]

    def let_go(self) -> None:
        """Give the memory back; no block can be read or taken any more."""
        self.rows, self._views = [], []

    def n_free(self, now: int) -> int:
        """How many more blocks may be read, given the first sweep that is still needed."""
        return max(0, self._n_working - int(np.count_nonzero(self._until > now)))

    def foresee(self, blocks: I64, sweeps: I64) -> None:
        """Say when a coming epoch first needs each of its blocks; once for every epoch, in their order."""
        # Of a block that is read twice the first time counts.
        self._after_next[blocks[::-1]] = sweeps[::-1]
        idle = self._next == _NEVER
        self._next[idle] = self._after_next[idle]
        self._after_next[idle] = _NEVER

    def assign(self, blocks: I64, until: I64, now: int) -> tuple[I64, npt.NDArray[np.bool_]]:
        """Give each of these distinct blocks a slot until a sweep; those already here keep theirs.

        Takes as many from the front as there are slots for, given the first sweep that is still needed.

        Returns
        -------
        slots : (n,) int64
            The slots, for the first n blocks.
        missing : (n,) bool
            Which of them must be read.
        """
        slots = self._slot_of[blocks]
        here = slots >= 0
        costs = ~(here & (self._until[slots] > now))
        n = int(np.searchsorted(np.cumsum(costs), self.n_free(now), side="right"))
        blocks, slots, here, until = blocks[:n], slots[:n], here[:n], until[:n]
        self._next[blocks], self._after_next[blocks] = self._after_next[blocks], _NEVER
        self._until[slots[here]] = np.maximum(self._until[slots[here]], until[here])
        missing = ~here
        slots[missing] = self._evict(int(np.count_nonzero(missing)), now)
        self._slot_of[blocks[missing]] = slots[missing]
        self._block_in[slots[missing]] = blocks[missing]
        self._until[slots[missing]] = until[missing]
        return slots, missing

    def _evict(self, n: int, now: int) -> I64:
        """Empty n idle slots: the empty ones first, then those whose blocks are needed last."""
        if not n:
            return np.empty(0, np.int64)
        idle = np.flatnonzero(self._until <= now)
        held = self._block_in[idle]
        keep_until = np.where(held < 0, _NEVER, np.minimum(self._next[held], _NEVER - 1))
        chosen = idle[np.argpartition(keep_until, len(idle) - n)[len(idle) - n :]]
        old = self._block_in[chosen]
        self._slot_of[old[old >= 0]] = -1
        return chosen

    def release(self, *, keep: bool) -> None:
        """Free every slot and forget what was foreseen, keeping the blocks for whoever asks for them next, or not."""
        self._until[:] = -1
        self._next[:] = self._after_next[:] = _NEVER
        if not keep:
            self._slot_of[:] = -1
            self._block_in[:] = -1
