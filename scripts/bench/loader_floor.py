"""The floor of ``loader.py``: two threads that read, check, decode and take, with no order to keep."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Final

import numpy as np

import streamtrain as st
from streamtrain.loader.decode.delivery import row_dtype
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.loader.reading.pool_memory import Slots
from streamtrain.system.buffers import aligned_bytes

N_THREADS: Final = 2


class Floor:
    """Two threads, each with half of the pool; they take blocks from one list, so neither waits for the other."""

    def __init__(self, dataset: Any, n_slots: int, span_samples: int) -> None:
        self.reader = BlockReader(dataset)
        self.blocks = np.random.default_rng(1).permutation(dataset.layout.n_blocks).tolist()
        self.halves = [Half(dataset.layout, max(1, n_slots // N_THREADS), span_samples) for _ in range(N_THREADS)]

    def run(self, *, gather: bool) -> float:
        """The seconds for all blocks."""
        blocks = deque(self.blocks)
        threads = [threading.Thread(target=half.run, args=(self.reader, blocks, gather)) for half in self.halves]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started


class Half:
    """What one thread of the floor owns: slots, two spans, and the random order of its rows."""

    def __init__(self, layout: st.Layout, n_slots: int, span_samples: int) -> None:
        self.slots = Slots(layout, n_slots)
        self.buffers = [self.slots.buffers(slot) for slot in range(n_slots)]
        self.block_rows = layout.block_rows
        self.rows = np.random.default_rng(2).permutation(n_slots * layout.block_rows)
        self.spans = [
            [aligned_bytes(span_samples * f.row_bytes).view(row_dtype(f.row_bytes)) for f in layout.fields]
            for _ in range(2)
        ]

    def run(self, reader: BlockReader, blocks: deque[int], gather: bool) -> None:
        """Fill the slots, take all their rows, and so on until no block is left."""
        n_read = 0
        while (block := take_one(blocks)) is not None:
            reader.read(block, self.buffers[n_read])
            n_read += 1
            if n_read == len(self.buffers):
                self.take(n_read if gather else 0)
                n_read = 0
        self.take(n_read if gather else 0)

    def take(self, n_blocks: int) -> None:
        """Take the rows of the first blocks in random order."""
        rows_read = self.rows if n_blocks == len(self.buffers) else self.rows[self.rows < n_blocks * self.block_rows]
        width = len(self.spans[0][0])
        for turn, start in enumerate(range(0, len(rows_read), width)):
            rows = rows_read[start : start + width]
            for source, target in zip(self.slots.rows, self.spans[turn % 2], strict=True):
                np.take(source, rows, axis=0, out=target[: len(rows)], mode="clip")


def take_one(blocks: deque[int]) -> int | None:
    """The next block that no thread has taken."""
    try:
        return blocks.popleft()
    except IndexError:
        return None
