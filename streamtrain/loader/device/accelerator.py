"""Accelerators behind one protocol: queues, marks and page-locked memory of a device.

Work is given to queues that run beside the caller, each in order; others wait for a mark in a queue. This is the seam
where tests put a slow device that shows every race.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.loader.device.memory_terms import AllocatorTraits
from streamtrain.system.buffers import aligned_bytes

Bytes = npt.NDArray[np.uint8]


class QueueMark(Protocol):
    """A place in a queue."""

    def wait(self, timeout: float | None = None, /) -> bool:
        """Hold the calling thread until all that was queued before is done; False after ``timeout``."""


class QueueWait(Protocol):
    """A stretch in which a queue of the caller's stood still."""

    def seconds(self) -> float | None:
        """Return the length of the stretch; None while the queue has not come through it."""


class DeviceQueue(Protocol):
    """Work that a device does in order, beside the caller."""

    def empty(self, n_bytes: int, /) -> Tensor:
        """Allocate memory of the device, (n_bytes,) uint8, to be written first by this queue."""

    def run(self, act: Callable[[], object], /, *, after: Sequence[QueueMark] = ()) -> QueueMark:
        """Queue what ``act`` does, behind marks of other queues; it may be called from any thread."""


class Accelerator(Protocol):
    """A device, queues of ours on it, and the queue that the caller computes in.

    ``copies`` is for blocks and batches, ``indexes`` for data so small that it should not stand behind these, and
    ``gathers`` for work on the device itself.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def copies(self) -> DeviceQueue: ...
    @property
    def indexes(self) -> DeviceQueue: ...
    @property
    def gathers(self) -> DeviceQueue: ...

    @property
    def copies_run_ahead(self) -> bool:
        """Whether a queued copy out of page-locked memory proceeds by itself."""

    @property
    def traits(self) -> AllocatorTraits:
        """The traits of its allocators, which decide the memory taken besides the bytes requested."""

    @property
    def registered_bytes(self) -> int:
        """Page-locked memory of this process that the process's own figures count as plain memory."""

    def page_locked(self, n_bytes: int, /) -> Bytes:
        """Allocate host memory that the device copies from on its own."""

    def current(self) -> object:
        """Find the queue that the calling thread computes in."""

    def admit(self, memory: Tensor, marks: Sequence[QueueMark], /) -> QueueWait:
        """Let the current queue use memory behind the marks; it is used again only once that queue is done."""

    def mark(self) -> QueueMark:
        """Put a mark into the current queue."""

    def free_bytes(self) -> int | None:
        """Count memory of the device that this process could still get; None where it is unknown."""

    def drain(self, timeout: float, /) -> bool:
        """Wait until the queues are empty; False after ``timeout``."""

    def give_back(self) -> None:
        """Return memory that nothing refers to any more to the device."""


class SynchronousAccelerator:
    """Any device of torch, with nothing beside the caller: each act is done when it is queued.

    On a device that itself defers work, such as MPS or XPU, copies hold the caller until they are done.
    """

    copies_run_ahead: Final = False
    registered_bytes: Final = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies = self.indexes = self.gathers = _ImmediateQueue(device)
        self.traits = AllocatorTraits(is_unified=device.type in ("cpu", "mps"))

    def page_locked(self, n_bytes: int, /) -> Bytes:
        return aligned_bytes(n_bytes)

    def current(self) -> object:
        return self.copies

    def admit(self, memory: Tensor, marks: Sequence[QueueMark], /) -> QueueWait:
        return self.copies

    def mark(self) -> QueueMark:
        return self.copies

    def free_bytes(self) -> None:
        return None

    def drain(self, timeout: float, /) -> bool:
        return True

    def give_back(self) -> None:
        pass


class _ImmediateQueue:
    __slots__ = ("device",)

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self, timeout: float | None = None, /) -> bool:
        return True

    def seconds(self) -> float:
        return 0.0

    def empty(self, n_bytes: int, /) -> Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device=self.device)

    def run(self, act: Callable[[], object], /, *, after: Sequence[QueueMark] = ()) -> QueueMark:
        act()
        return self
