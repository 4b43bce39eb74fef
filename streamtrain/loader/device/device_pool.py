"""The pool where batches end on a device: blocks on the host with rows copied, or blocks on the device.

Everything that crosses the bus goes through a ring of page-locked buffers in large copies, beside the caller and beside
the threads: a thread fills a buffer, queues the work on it, and continues. A buffer is filled again only once its last
mark is reached.

In a forked process all of it is the parent's, and is kept as it is; so is memory that a hanging device may still write.
"""

from __future__ import annotations

import ctypes
import queue
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from streamtrain.errors import StreamtrainWarning
from streamtrain.loader.budget import LoaderSizes
from streamtrain.loader.decode.delivery import Drawn, Gather, plain_gathers
from streamtrain.loader.device.accelerator import Accelerator, Bytes, DeviceQueue, QueueMark
from streamtrain.loader.device.failures import is_device_failure, is_out_of_memory
from streamtrain.loader.device.memory_terms import (
    Section,
    buffer_bytes,
    gather_index_bytes,
    n_buffers,
    pool_bytes,
    pool_sections,
    read_sections,
    span_sections,
)
from streamtrain.loader.reading.pool_memory import ReadBlock, Slots, Span
from streamtrain.loader.reading.workers import Seconds
from streamtrain.shuffle.order import I64
from streamtrain.store.layout import Layout

_DRAIN_SECONDS: Final = 5.0
_kept: list[object] = []  # objects that must stay as they are until the process ends


def keep(*things: object) -> None:
    """Keep objects from being released before the process ends."""
    _kept.extend(things)
    for thing in things:
        # Not even when the interpreter takes its modules apart.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceSpan(Span):
    """A span whose samples are on their way to the device; ``tensors``, one per field, are views of ``memory``."""

    memory: Tensor  # (n_bytes,) uint8 on the device
    tensors: tuple[Tensor, ...]
    marks: list[QueueMark] = field(default_factory=list)  # once reached, what was gathered so far is there


class DeviceSpans:
    """Lends memory of the device for spans; torch's allocator tracks when it may be used again."""

    def __init__(self, queue: DeviceQueue, layout: Layout, sizes: LoaderSizes) -> None:
        self._queue = queue
        self._fields = [(f.shape, torch.from_numpy(np.empty(0, f.dtype)).dtype) for f in layout.batch_fields]
        self.sections = span_sections(layout, sizes)

    def lend(self, epoch: int, start: int, stop: int, /, *, may_wait: bool = False) -> DeviceSpan | None:
        try:
            # Full size even where a span is short: allocations of one size fit each other's places.
            memory = self._queue.empty(self.sections[-1].stop)
        except RuntimeError as error:
            if may_wait and is_out_of_memory(error):
                return None
            raise
        n = stop - start
        tensors = tuple(
            memory[section.rows(0, n)].view(dtype).view(n, *shape)
            for section, (shape, dtype) in zip(self.sections, self._fields, strict=True)
        )
        return DeviceSpan(epoch=epoch, start=start, stop=stop, arrays=(), memory=memory, tensors=tensors)


@dataclass(slots=True, kw_only=True, eq=False)
class PinnedBuffer:
    """A page-locked buffer, the same memory as a tensor, its twin on the device, and the mark to wait for."""

    host: Bytes
    tensor: Tensor
    device: Tensor
    mark: QueueMark | None = None
    waited_seconds: float = 0.0


class PinnedRing:
    """Page-locked buffers, each used again once the work queued with it is done.

    There must be more of them than threads that use them, or these wait for each other. ``twins`` is memory of the
    device, (n_buffers * n_bytes,) uint8, to whose parts the buffers are copied first.
    """

    def __init__(self, accelerator: Accelerator, n_buffers: int, n_bytes: int, *, twins: Tensor | None = None) -> None:
        self._free: queue.SimpleQueue[PinnedBuffer] = queue.SimpleQueue()
        for i in range(n_buffers):
            host = accelerator.page_locked(n_bytes)
            tensor = torch.from_numpy(host)
            device = tensor[:0] if twins is None else twins[i * n_bytes : (i + 1) * n_bytes]
            self._free.put(PinnedBuffer(host=host, tensor=tensor, device=device))

    @contextmanager
    def buffer(self) -> Iterator[PinnedBuffer]:
        """Lend a buffer; its ``mark`` is to be set to the end of the work that needs it."""
        buffer = self._free.get()
        try:
            started = time.perf_counter()
            if buffer.mark is not None:
                buffer.mark.wait()
            buffer.mark = None
            buffer.waited_seconds = time.perf_counter() - started
            yield buffer
        finally:
            self._free.put(buffer)

    def close(self) -> None:
        """Release all buffers; none may be in use."""
        while not self._free.empty():
            self._free.get()


class _DeviceMemory:
    """A device's queues and page-locked buffers, and their release; the base of both pools."""

    slots: Slots
    _ring: PinnedRing

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def _copy(self, target: Tensor, source: Tensor) -> Tensor:
        """Copy from page-locked memory to the device, in the queue that is now the current one."""
        return target.copy_(source, non_blocking=self._accelerator.copies_run_ahead)

    def close(self) -> None:
        """Release everything once the device is done with it, or has failed."""
        is_done = False
        try:
            is_done = self._accelerator.drain(_DRAIN_SECONDS)
        except RuntimeError as error:
            # Nothing is under way on a device that has failed.
            is_done = is_device_failure(error)
            raise
        finally:
            if is_done:
                self._let_go()
            else:
                keep(self)
        if is_done:
            self._accelerator.give_back()
            return
        warnings.warn(
            f"{self._accelerator.device} did not finish the work of a loader in {_DRAIN_SECONDS:g} seconds: "
            "the loader's memory is kept until the process ends",
            StreamtrainWarning,
            stacklevel=2,
        )

    def abandon(self) -> None:
        """Leave everything as it is: a thread that does not come back may still queue copies from it."""
        keep(self)

    def _let_go(self) -> None:
        self._ring.close()
        self.slots.let_go()


class PoolOnHost(_DeviceMemory):
    """Blocks on the host; their rows are gathered into page-locked memory and copied to the device from there."""

    def __init__(
        self, accelerator: Accelerator, layout: Layout, sizes: LoaderSizes, gathers: Sequence[Gather] = ()
    ) -> None:
        super().__init__(accelerator)
        self.slots = Slots(layout, sizes.slots, sizes.working_slots)
        self._shapes = [(field.dtype, field.shape) for field in layout.batch_fields]
        self._gathers = gathers or plain_gathers(layout)
        self._spans = DeviceSpans(accelerator.copies, layout, sizes)
        self._ring = PinnedRing(accelerator, n_buffers(sizes), buffer_bytes(layout, sizes, pool_on_device=False))
        self.lend = self._spans.lend

    def read(self, read: ReadBlock, blocks: I64, slots: I64, /) -> Seconds:
        pairs = zip(blocks.tolist(), slots.tolist(), strict=True)
        return {"disk": sum(read(block, self.slots.buffers(slot)) for block, slot in pairs)}

    def gather(self, rows: I64, span: Span, start: int, samples: I64, /) -> Seconds:
        assert isinstance(span, DeviceSpan)
        memory, some = span.memory, (start - span.start, len(rows))
        drawn = Drawn(span.epoch, samples)
        with self._ring.buffer() as buffer:
            parts = zip(self._gathers, self._spans.sections, self._shapes, strict=True)
            for gather, section, (dtype, shape) in parts:
                target = buffer.host[section.rows(*some)].view(dtype).reshape(len(rows), *shape)
                gather(self.slots.rows, rows, target, drawn)
            pieces, gathered = self._pieces(*some), buffer.tensor
            buffer.mark = self._accelerator.copies.run(
                lambda: [self._copy(memory[piece], gathered[piece]) for piece in pieces]
            )
            span.marks.append(buffer.mark)
            return {"transfer": buffer.waited_seconds}

    def _pieces(self, first: int, n: int) -> list[slice]:
        """List what to copy: all at once where the rows are those of a full span."""
        sections = self._spans.sections
        if n == sections[0].n_rows:
            return [slice(0, sections[-1].stop)]
        return [section.rows(first, n) for section in sections]


class PoolOnDevice(_DeviceMemory):
    """Blocks on the device: each crosses the bus once, in the order of the reads, and rows are gathered there.

    A slot may be written again while rows of its old block are still to be gathered, in four steps:

    1. A thread queues the gather of the last rows of block A; the pool notes that they are gathered.
    2. So A's slot is free, and a read of block B is given it.
    3. B is copied to the device, past the gather, which still waits for its turn.
    4. Written into the slot at once, B would stand where A's rows are still needed.

    So copies go to a buffer's twin, in a queue of their own; and from there into the slots in the queue of the
    gathers, which does one after the other.
    """

    def __init__(
        self, accelerator: Accelerator, layout: Layout, sizes: LoaderSizes, gathers: Sequence[Gather] = ()
    ) -> None:
        super().__init__(accelerator)
        self.slots = Slots(layout, sizes.slots, sizes.working_slots, on_host=False)
        self._layout = layout
        self._index_dtype = np.dtype(f"i{gather_index_bytes(layout, sizes)}")
        self._index_tensor_dtype = torch.from_numpy(np.empty(0, self._index_dtype)).dtype
        self._spans = DeviceSpans(accelerator.gathers, layout, sizes)
        rows_bytes, all_bytes = pool_bytes(layout, sizes)
        memory = accelerator.gathers.empty(all_bytes)
        self._blocks = [memory[place.start : place.stop] for place in pool_sections(layout, sizes)]
        n_bytes = buffer_bytes(layout, sizes, pool_on_device=True)
        self._ring = PinnedRing(accelerator, n_buffers(sizes), n_bytes, twins=memory[rows_bytes:])
        # The twins are memory of the gathers' queue that the others write first.
        taken = accelerator.gathers.run(lambda: None)
        for copying in (accelerator.copies, accelerator.indexes):
            copying.run(lambda: None, after=[taken])
        self.lend = self._spans.lend

    def read(self, read: ReadBlock, blocks: I64, slots: I64, /) -> Seconds:
        if not len(blocks):
            return {}
        found = read_sections(self._layout, len(blocks))
        with self._ring.buffer() as buffer:
            view = buffer.host.data
            disk = 0.0
            for i, block in enumerate(blocks.tolist()):
                disk += read(block, [view[section.rows(i, 1)] for section in found[:-1]])
            buffer.host[found[-1].rows(0, len(slots))].view(np.int64)[:] = slots
            device = buffer.device
            buffer.mark = self._send(self._accelerator.copies, buffer, found[-1].stop)
            buffer.mark = self._accelerator.gathers.run(lambda: self._put(device, found), after=[buffer.mark])
            return {"disk": disk, "transfer": buffer.waited_seconds}

    def _put(self, arrived: Tensor, found: list[Section]) -> None:
        """Put blocks into their slots."""
        slots = arrived[found[-1].start : found[-1].stop].view(torch.int64)
        for blocks, section in zip(self._blocks, found[:-1], strict=True):
            source = _in_rows(arrived[section.start : section.stop], section.row_bytes)
            _in_rows(blocks, section.row_bytes).index_copy_(0, slots, source)

    def gather(self, rows: I64, span: Span, start: int, samples: I64, /) -> Seconds:
        assert isinstance(span, DeviceSpan)
        memory, first, n = span.memory, start - span.start, len(rows)
        n_bytes = n * self._index_dtype.itemsize
        with self._ring.buffer() as buffer:
            buffer.host[:n_bytes].view(self._index_dtype)[:] = rows
            device = buffer.device[:n_bytes]
            buffer.mark = self._send(self._accelerator.indexes, buffer, n_bytes)
            buffer.mark = self._accelerator.gathers.run(
                lambda: self._take(device.view(self._index_tensor_dtype), memory, first), after=[buffer.mark]
            )
            span.marks.append(buffer.mark)
            return {"transfer": buffer.waited_seconds}

    def _take(self, rows: Tensor, memory: Tensor, first: int) -> None:
        """Put rows of the pool into a span's memory."""
        for blocks, section in zip(self._blocks, self._spans.sections, strict=True):
            target = _in_rows(memory[section.rows(first, len(rows))], section.row_bytes)
            torch.index_select(_in_rows(blocks, section.row_bytes), 0, rows, out=target)

    def _send(self, queue: DeviceQueue, buffer: PinnedBuffer, n_bytes: int) -> QueueMark:
        """Copy the front of a buffer to its twin."""
        source, target = buffer.tensor[:n_bytes], buffer.device[:n_bytes]
        return queue.run(lambda: self._copy(target, source))

    def _let_go(self) -> None:
        super()._let_go()
        self._blocks.clear()


def _in_rows(memory: Tensor, row_bytes: int) -> Tensor:
    """View bytes as rows, in the widest elements that divide them."""
    for dtype in (torch.int64, torch.int32, torch.int16):
        if row_bytes % dtype.itemsize == 0:
            return memory.view(dtype).view(-1, row_bytes // dtype.itemsize)
    return memory.view(-1, row_bytes)
