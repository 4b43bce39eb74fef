"""Where the pool's blocks lie and its samples are gathered: what the pool asks of a memory, and the host's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from streamtrain.budget import Sizes
from streamtrain.shuffle.order import I64
from streamtrain.slots import Slots, row_dtype
from streamtrain.spans import Span, SpanMemory
from streamtrain.store.layout import Layout
from streamtrain.workers import Seconds

ReadBlock = Callable[[int, Sequence[memoryview]], float]
"""Reads a block into one buffer per field; gives the seconds that the disk took of it."""


class PoolMemory(Protocol):
    """Memory for blocks and spans. All but ``lend`` is called by many threads at once, without the pool's lock."""

    @property
    def slots(self) -> Slots:
        """Which block is where."""

    def lend(self, epoch: int, start: int, stop: int, /) -> Span:
        """A span over positions [start, stop), to be gathered into."""

    def read(self, read: ReadBlock, blocks: I64, slots: I64, /) -> Seconds:
        """Read blocks into their slots."""

    def gather(self, rows: I64, span: Span, start: int, /) -> Seconds:
        """Put rows of the pool into a span, from a position on."""

    def close(self) -> None:
        """Give everything back but the spans that are lent, once no thread works here any more."""


class HostMemory:
    """Blocks and spans in the memory of the host.

    Parameters
    ----------
    layout : Layout
        The dataset's.
    sizes : Sizes
        How large everything is.
    """

    def __init__(self, layout: Layout, sizes: Sizes) -> None:
        self.slots = Slots(layout, sizes.slots, sizes.working_slots)
        self._spans = SpanMemory(layout.fields, sizes.span_samples(layout.n_samples), sizes.spans)
        self._row_dtypes = [row_dtype(field.row_bytes) for field in layout.fields]
        self.lend = self._spans.lend

    def read(self, read: ReadBlock, blocks: I64, slots: I64, /) -> Seconds:
        pairs = zip(blocks.tolist(), slots.tolist(), strict=True)
        return {"disk": sum(read(block, self.slots.buffers(slot)) for block, slot in pairs)}

    def gather(self, rows: I64, span: Span, start: int, /) -> Seconds:
        some = slice(start - span.start, start - span.start + len(rows))
        for source, array, dtype in zip(self.slots.rows, span.arrays, self._row_dtypes, strict=True):
            target = array.reshape(len(array), -1).view(dtype)[some, 0]
            np.take(source, rows, axis=0, out=target, mode="clip")
        return {}

    def close(self) -> None:
        # The pool and its threads refer to each other: only Python's collector would find them, some time.
        self.slots.let_go()
        self._spans.close()
