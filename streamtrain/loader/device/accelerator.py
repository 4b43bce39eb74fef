"""Accelerators behind one protocol: queues, marks, page-locked memory, and a device from its name.

Work is given to queues that run beside the caller, each in order; others wait for a mark in a queue. This is the seam
where tests put a slow device that shows every race.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import DeviceError, UsageError
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.units import format_bytes

Bytes = npt.NDArray[np.uint8]

_PORTABLE: Final = 1  # cudaHostRegisterPortable: page-locked for every device of the process


class QueueMark(Protocol):
    """A place in a queue."""

    def wait(self) -> None:
        """Hold the calling thread until all that was queued before the mark is done."""


class DeviceQueue(Protocol):
    """Work that a device does in order, beside the caller."""

    def empty(self, n_bytes: int, /) -> Tensor:
        """Memory of the device, (n_bytes,) uint8, to be written first by this queue."""

    def run(self, act: Callable[[], object], /, *, after: Sequence[QueueMark] = ()) -> QueueMark:
        """Queue what ``act`` does, behind marks of other queues; it may be called from any thread."""


class Accelerator(Protocol):
    """A device, two queues of ours on it, and the queue that the caller computes in."""

    @property
    def device(self) -> torch.device: ...
    @property
    def copies(self) -> DeviceQueue: ...
    @property
    def gathers(self) -> DeviceQueue: ...

    def page_locked(self, n_bytes: int, /) -> Bytes:
        """Host memory that the device copies from on its own."""

    def current(self) -> object:
        """The queue that the calling thread computes in."""

    def admit(self, memory: Tensor, marks: Sequence[QueueMark], /) -> None:
        """Let the current queue use memory: behind the marks; and it is used again only once that queue is done."""

    def mark(self) -> QueueMark:
        """A mark in the current queue."""

    def free_bytes(self) -> int | None:
        """Memory of the device that this process could have beyond what it uses; None where nobody tells."""

    def close(self) -> None:
        """Wait until both queues are empty."""


class CudaAccelerator:
    """A CUDA device, through torch: side streams, events, and memory of torch's caching allocator.

    Parameters
    ----------
    device : torch.device
        One that is there; without an index, the current one.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.copies = _CudaQueue(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        # Of higher priority: a gather takes microseconds, and must not stand behind a model's long kernels.
        self.gathers = _CudaQueue(torch.cuda.Stream(self.device, priority=-1))  # type: ignore[no-untyped-call]

    def page_locked(self, n_bytes: int, /) -> Bytes:
        memory = aligned_bytes(n_bytes)
        address = memory.ctypes.data
        code = int(_runtime().cudaHostRegister(address, memory.nbytes, _PORTABLE))
        if code:
            raise DeviceError(
                f"{format_bytes(n_bytes)} of host memory could not be page-locked",
                where=str(self.device),
                why=f"cudaHostRegister gave error {code}",
                fix="a smaller memory=, or device=None and copies of your own",
            )
        weakref.finalize(memory, _unlock, address).atexit = False
        return memory

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def admit(self, memory: Tensor, marks: Sequence[QueueMark], /) -> None:
        stream = self.current()
        for mark in marks:
            stream.wait_event(_event(mark))
        memory.record_stream(stream)

    def mark(self) -> QueueMark:
        return _CudaMark(self.current())

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free) + unused

    def close(self) -> None:
        self.copies.stream.synchronize()
        self.gathers.stream.synchronize()


class _CudaMark:
    __slots__ = ("event",)

    def __init__(self, stream: torch.cuda.Stream) -> None:
        # A thread that waits for a blocking event sleeps; for any other it spins, on a core that others need.
        self.event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()


class _CudaQueue:
    __slots__ = ("stream",)

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def empty(self, n_bytes: int, /) -> Tensor:
        with torch.cuda.stream(self.stream):
            return torch.empty(n_bytes, dtype=torch.uint8, device=self.stream.device)

    def run(self, act: Callable[[], object], /, *, after: Sequence[QueueMark] = ()) -> QueueMark:
        # Two threads may queue at once: each one's mark stands behind its own work, and that is all it promises.
        with torch.cuda.stream(self.stream):
            for mark in after:
                self.stream.wait_event(_event(mark))
            act()
            return _CudaMark(self.stream)


def _event(mark: QueueMark) -> torch.cuda.Event:
    assert isinstance(mark, _CudaMark)
    return mark.event


def _unlock(address: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class SynchronousAccelerator:
    """Any device of torch, with nothing beside the caller: each act is done when it is queued.

    Examples
    --------
    >>> accelerator = SynchronousAccelerator(torch.device("cpu"))
    >>> memory = accelerator.copies.empty(4)
    >>> accelerator.copies.run(lambda: memory.fill_(7)).wait()
    >>> memory.tolist()
    [7, 7, 7, 7]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies = self.gathers = _ImmediateQueue(device)

    def page_locked(self, n_bytes: int, /) -> Bytes:
        return aligned_bytes(n_bytes)

    def current(self) -> object:
        return self.copies

    def admit(self, memory: Tensor, marks: Sequence[QueueMark], /) -> None:
        pass

    def mark(self) -> QueueMark:
        return self.copies

    def free_bytes(self) -> None:
        return None

    def close(self) -> None:
        pass


class _ImmediateQueue:
    __slots__ = ("device",)

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        pass

    def empty(self, n_bytes: int, /) -> Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device=self.device)

    def run(self, act: Callable[[], object], /, *, after: Sequence[QueueMark] = ()) -> QueueMark:
        act()
        return self


def make_accelerator(device: torch.device) -> Accelerator:
    """Who does the work on a device."""
    return CudaAccelerator(device) if device.type == "cuda" else SynchronousAccelerator(device)


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn a name into a device that is there.

    Raises
    ------
    UsageError
        The text names no kind of device, or one that holds no data.
    DeviceError
        The machine has no such device.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {device!r} is none that torch knows", fix="auto, cpu, cuda or cuda:0") from error
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resolved.type == "cuda" and (resolved.index or 0) >= n_cuda:
        found = ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(n_cuda))])
        raise DeviceError(f"there is no device {str(device)!r}", why=f"Found: {found}", fix="device='auto'")
    if resolved.type == "meta":
        raise UsageError("device 'meta' holds no data, so nothing can be trained there", fix="device='auto'")
    if resolved.type not in ("cpu", "cuda"):
        _probe(resolved)
    return resolved


def _probe(device: torch.device) -> None:
    """Ask a device for a little memory: torch knows names of devices that are not there, or not built in."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"there is no device {str(device)!r}", why=why[:200], fix="device='auto'") from error
