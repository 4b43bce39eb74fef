"""The pool's memory: slots of one block each, and which block is where.

Memory is one page-aligned anonymous mapping per field, in huge pages where the system has them: reads run several times
faster into aligned memory. Slots lie end to end as whole rows, so one row index reaches through the whole pool.
Only the pool's lock holder calls the methods that change anything.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.layout import Layout
from streamtrain.order import I64

_HUGE_BYTES: Final = 8 << 20


def aligned_bytes(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Page-aligned memory, given back to the system when nothing refers to it."""
    # Python's default is shared memory, which takes no huge pages and counts as a file's.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    mapping = mmap.mmap(-1, max(1, n_bytes), **private)
    if n_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8, n_bytes)


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

    Attributes
    ----------
    rows : list of (n_slots * block_rows,) arrays
        Each field's rows, one element per row whatever its shape.
    """

    def __init__(self, layout: Layout, n_slots: int) -> None:
        self.n_slots = n_slots
        self._block_bytes = [layout.block_rows * field.row_bytes for field in layout.fields]
        memory = [aligned_bytes(n_slots * n_bytes) for n_bytes in self._block_bytes]
        self.rows = [m.view(row_dtype(f.row_bytes)) for m, f in zip(memory, layout.fields, strict=True)]
        self._views = [m.data for m in memory]
        self._slot_of = np.full(layout.n_blocks, -1, np.int64)
        self._block_in = np.full(n_slots, -1, np.int64)
        self._until = np.full(n_slots, -1, np.int64)

    def buffers(self, slot: int) -> list[memoryview]:
        """A slot's memory, one writable buffer per field."""
        return [view[slot * n : (slot + 1) * n] for view, n in zip(self._views, self._block_bytes, strict=True)]

    def n_free(self, now: int) -> int:
        """How many slots hold nothing that is needed at sweep ``now`` or later."""
        return int(np.count_nonzero(self._until <= now))

    def assign(self, blocks: I64, until: I64, now: int) -> tuple[I64, npt.NDArray[np.bool_]]:
        """Give each of these distinct blocks a slot until a sweep; those already here keep theirs.

        Takes as many from the front as there are slots that hold nothing needed at sweep ``now`` or later.

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
        slots, here, until = slots[:n], here[:n], until[:n]
        self._until[slots[here]] = np.maximum(self._until[slots[here]], until[here])
        missing = ~here
        slots[missing] = self._evict(int(np.count_nonzero(missing)), now)
        self._slot_of[blocks[:n][missing]] = slots[missing]
        self._block_in[slots[missing]] = blocks[:n][missing]
        self._until[slots[missing]] = until[missing]
        return slots, missing

    def _evict(self, n: int, now: int) -> I64:
        """Empty n free slots, taking the empty ones first."""
        free = np.flatnonzero(self._until <= now)
        chosen = free[np.argsort(self._block_in[free] >= 0, kind="stable")[:n]]
        old = self._block_in[chosen]
        self._slot_of[old[old >= 0]] = -1
        return chosen

    def release(self, *, keep: bool) -> None:
        """Free every slot, keeping the blocks for whoever asks for them next, or not."""
        self._until[:] = -1
        if not keep:
            self._slot_of[:] = -1
            self._block_in[:] = -1
