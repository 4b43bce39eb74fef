"""The memory that batches are gathered into, lent to the caller and taken back when nothing refers to it.

A span is a few whole batches in one piece of memory per field. Its arrays belong to whoever holds them: the memory is
used again only after the last reference to them, or to anything made from them, is gone. Fresh memory costs a page
fault per 4 KiB, about as long as copying the page, so using it again matters.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.store.layout import Field
from streamtrain.system.buffers import aligned_bytes

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Consecutive positions of an epoch and the arrays that hold their samples.

    Attributes
    ----------
    epoch, start, stop : int
        The epoch, and the half-open range of positions.
    arrays : tuple of (stop - start, *field.shape) arrays
        One per field.
    """

    epoch: int
    start: int
    stop: int
    arrays: tuple[npt.NDArray[Any], ...]


class SpanMemory:
    """Lends memory for spans of one size.

    Parameters
    ----------
    fields : tuple of Field
        What a sample consists of.
    n_samples : int
        Samples of a full span.
    spans : int
        How many spans' memory is kept for use; more is made when the caller holds on to more.
    """

    def __init__(self, fields: tuple[Field, ...], n_samples: int, spans: int) -> None:
        self._fields = fields
        self._n_samples = n_samples
        self._spans = spans
        # Memory comes back from whichever thread drops the last reference, perhaps amid a locked section:
        # appending to a deque takes no lock.
        self._free: list[deque[Bytes]] = [deque() for _ in fields]
        self._closed = False

    def lend(self, epoch: int, start: int, stop: int) -> Span:
        """A span over positions [start, stop); its arrays' contents are undefined."""
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
