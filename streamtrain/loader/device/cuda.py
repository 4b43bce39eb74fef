"""CUDA through torch: streams, events, page-locked memory, and torch's caching allocator.

Every call that may reach the runtime is made with the accelerator's device as the current one. A thread begins on
device 0, and the runtime makes a context there, of about half a gigabyte, for the first call that finds it current.

Memory that one loader frees is for the next: the allocator reuses it only for the stream that it was taken for, so a
process has one set of streams a device.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, StreamtrainWarning, first_line
from streamtrain.loader.device.accelerator import Bytes, QueueMark, QueueWait
from streamtrain.loader.device.failures import is_capture_conflict
from streamtrain.loader.device.memory_terms import AllocatorTraits
from streamtrain.store.layout import PAGE_BYTES
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.units import format_bytes

_Given = TypeVar("_Given")
_PORTABLE: Final = 1  # cudaHostRegisterPortable: page-locked for every device of the process
_CAPTURE_SECONDS: Final = 60.0
_GIVE_BACK_SECONDS: Final = 2.0
_LEAST_SLEEP, _MOST_SLEEP, _SLEEP_SHARE = 20e-6, 1e-3, 0.125
_SETTINGS: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

_UNIFIED: Final = ("is_integrated", "integrated")
"""Torch's names for the property of a GPU whose memory is the host's, in newer and older versions."""


class CudaAccelerator:
    """A CUDA device, by default the current one: side streams, events, and memory of torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._process = _process()
        self.copies, self.indexes, self.gathers = self._process.queues(self.device)
        self._process.locking.prepare(self.device)

    @property
    def copies_run_ahead(self) -> bool:
        # The runtime may copy pageable memory before or after it comes back, by what the machine is.
        return self._process.locking.way != "pageable"

    @property
    def traits(self) -> AllocatorTraits:
        return AllocatorTraits(
            locks_powers_of_two=self._process.locking.way == "allocated",
            is_unified=_is_unified(self.device),
            **_allocator_settings(),
        )

    @property
    def registered_bytes(self) -> int:
        return self._process.locking.registered_bytes

    def page_locked(self, n_bytes: int, /) -> Bytes:
        return self._process.locking.lock(self.device, n_bytes)

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def admit(self, memory: Tensor, marks: Sequence[QueueMark], /) -> QueueWait:
        stream = self.current()
        late = [event for event in map(_event, marks) if not event.query()]  # type: ignore[no-untyped-call]
        wait = _CudaWait(stream) if late else _NO_WAIT
        for event in late:
            stream.wait_event(event)
        wait.end(stream)
        memory.record_stream(stream)
        return wait

    def mark(self) -> QueueMark:
        return _CudaMark(self.current())

    def free_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        fraction, unused = 1.0, 0
        # Allocators other than torch's own tell neither.
        with suppress(RuntimeError, AttributeError):
            fraction = torch.cuda.get_per_process_memory_fraction(self.device)
        with suppress(RuntimeError):
            unused = self._whole_segments()
        limit = int(fraction * total) - torch.cuda.memory_reserved(self.device)
        return max(0, min(int(free), limit) + unused)

    def _whole_segments(self) -> int:
        """Count bytes of torch's segments that are all free: free parts of others belong to their streams."""
        segments = (each for each in _snapshot() if each["device"] == self.device.index)
        shared = (each for each in segments if each.get("segment_pool_id", (0, 0)) == (0, 0))
        return sum(each["total_size"] for each in shared if not each["allocated_size"] and not each["active_size"])

    def drain(self, timeout: float, /) -> bool:
        ends = time.monotonic() + timeout
        marks = [queue.run(lambda: None) for queue in (self.copies, self.indexes, self.gathers)]
        return all(mark.wait(max(0.0, ends - time.monotonic())) for mark in marks)

    def give_back(self) -> None:
        # The allocator waits without end for queues that used its memory: also for the caller's, which may hang.
        if not torch.cuda.is_current_stream_capturing() and self.mark().wait(_GIVE_BACK_SECONDS):
            with torch.cuda.device(self.device):
                torch.cuda.empty_cache()


class _CudaMark:
    __slots__ = ("device", "event")

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.device = stream.device
        # A thread that waits for a blocking event sleeps; for any other it spins, on a core that others need.
        self.event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self, timeout: float | None = None, /) -> bool:
        with torch.cuda.device(self.device):
            return self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        if timeout is None:
            _outside_captures(self.event.synchronize)
            return True
        began = time.monotonic()
        while not _outside_captures(self.event.query):
            waited = time.monotonic() - began
            if waited >= timeout:
                return False
            # No blocking call returns from a device that hangs, so it is polled; late by an eighth at most.
            time.sleep(min(_MOST_SLEEP, max(_LEAST_SLEEP, _SLEEP_SHARE * waited)))
        return True


class _CudaWait:
    __slots__ = ("began", "ended")

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self.began = self.ended = None if stream is None else _timed(stream)

    def end(self, stream: torch.cuda.Stream) -> None:
        if self.began is not None:
            self.ended = _timed(stream)

    def seconds(self) -> float | None:
        if self.began is None or self.ended is None:
            return 0.0
        is_past = self.ended.query()  # type: ignore[no-untyped-call]
        return self.began.elapsed_time(self.ended) / 1000 if is_past else None


_NO_WAIT: Final = _CudaWait(None)


def _snapshot() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return found


def _timed(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


class _CudaQueue:
    __slots__ = ("stream",)

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def empty(self, n_bytes: int, /) -> Tensor:
        with _current(self.stream):
            return _outside_captures(lambda: torch.empty(n_bytes, dtype=torch.uint8, device=self.stream.device))

    def run(self, act: Callable[[], object], /, *, after: Sequence[QueueMark] = ()) -> QueueMark:
        # Two threads may queue at once: each one's mark only promises to stand behind its own work.
        def queue() -> QueueMark:
            for mark in after:
                self.stream.wait_event(_event(mark))
            act()
            return _CudaMark(self.stream)

        with _current(self.stream):
            return _outside_captures(queue)


@contextmanager
def _current(stream: torch.cuda.Stream) -> Iterator[None]:
    """Make the stream, and its device, the current ones: the device first, or leaving would set that of before."""
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield


def _outside_captures(act: Callable[[], _Given]) -> _Given:
    """Retry what is refused while a graph is captured, until it is done."""
    ends = time.monotonic() + _CAPTURE_SECONDS
    while True:
        try:
            return act()
        except RuntimeError as error:
            own = torch.cuda.is_current_stream_capturing()
            if own or not is_capture_conflict(error) or time.monotonic() > ends:
                raise
            time.sleep(10 * _MOST_SLEEP)


def _event(mark: QueueMark) -> torch.cuda.Event:
    assert isinstance(mark, _CudaMark)
    return mark.event


class _HostLocking:
    """Page-locking of this process's host memory, by the first way that the machine permits.

    ``way`` is "registered": memory of our own; "allocated": by torch, in powers of two; or "pageable": plain memory,
    which is slower to copy and holds the thread. Virtual GPUs, WSL2 and some container runtimes refuse the first.
    """

    def __init__(self) -> None:
        self.way: Literal["registered", "allocated", "pageable"] = "registered"
        self.registered_bytes = 0
        self._is_prepared = False
        self._lock = threading.Lock()

    def prepare(self, device: torch.device) -> None:
        """Find the way with one page, before a budget is divided."""
        if self._is_prepared:
            return
        self._is_prepared = True
        try:
            self._register(device, PAGE_BYTES)
        except _RefusedError as error:
            self._allocate_instead(device, error)

    def _allocate_instead(self, device: torch.device, refused: _RefusedError) -> None:
        try:
            _allocated(PAGE_BYTES)
        except RuntimeError as error:
            _forget_error(device)
            self._lock_no_more(device, f"{refused}; {first_line(error)}")
        else:
            self.way = "allocated"
            warnings.warn(
                f"{device}: host memory cannot be registered ({refused}), so torch allocates buffers for copies, in "
                "powers of two: some of the memory budget is lost to that",
                StreamtrainWarning,
                stacklevel=2,
            )

    def _lock_no_more(self, device: torch.device, why: str) -> None:
        if self.way != "pageable":
            self.way = "pageable"
            warnings.warn(
                StreamtrainWarning(
                    f"{device}: host memory cannot be page-locked ({why}): batches are copied from plain memory, at a "
                    "third of the speed or less, and the loader's threads wait for it",
                    fix=Fix(Argument("pool", "device"), ", which copies least"),
                ),
                stacklevel=2,
            )

    def lock(self, device: torch.device, n_bytes: int) -> Bytes:
        """Allocate memory that is page-locked where it can be; plain memory where that is refused."""
        if self.way == "registered":
            try:
                return self._register(device, n_bytes)
            except _RefusedError as error:
                # Torch would allocate more than the budget has for it.
                self._lock_no_more(device, f"{format_bytes(n_bytes)}: {error}")
        if self.way == "allocated":
            try:
                return _allocated(n_bytes)
            except RuntimeError as error:
                _forget_error(device)
                self._lock_no_more(device, f"{format_bytes(n_bytes)}: {first_line(error)}")
        return aligned_bytes(n_bytes)

    def _register(self, device: torch.device, n_bytes: int) -> Bytes:
        # With copy-on-write, a write after a fork would leave the device with the old page.
        memory = aligned_bytes(n_bytes, in_children=False)
        with torch.cuda.device(device):
            code = _runtime().cudaHostRegister(memory.ctypes.data, memory.nbytes, _PORTABLE)
        if int(code):
            _forget_error(device)
            raise _RefusedError(f"cudaHostRegister gave error {int(code)}{_named(code)}")
        self._count(memory.nbytes)
        forget = (device, memory.ctypes.data, memory.nbytes, os.getpid())
        weakref.finalize(memory, self._unlock, *forget).atexit = False
        return memory

    def _unlock(self, device: torch.device, address: int, n_bytes: int, process: int) -> None:
        if os.getpid() != process:
            return
        self._count(-n_bytes)
        # A device that has failed is reported elsewhere.
        with suppress(RuntimeError), torch.cuda.device(device):
            if int(_runtime().cudaHostUnregister(address)):
                _forget_error(device)

    def _count(self, n_bytes: int) -> None:
        with self._lock:
            self.registered_bytes += n_bytes


class _RefusedError(Exception):
    """Memory could not be registered."""


def _allocated(n_bytes: int) -> Bytes:
    memory: Bytes = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


def _forget_error(device: torch.device) -> None:
    """Read out the error that a failed call leaves: the thread's next kernel would be blamed for it."""
    read = getattr(_runtime(), "cudaGetLastError", None)
    with suppress(RuntimeError), torch.cuda.device(device):
        # Older versions of torch cannot read it out; there, whatever is launched next gets it.
        torch.zeros(1, device=device) if read is None else read()


def _named(code: Any) -> str:
    with suppress(AttributeError, TypeError, ValueError):
        return f", {_runtime().cudaGetErrorString(code)}"
    return ""


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class _Process:
    """The state that all loaders of a process share."""

    def __init__(self) -> None:
        self.locking = _HostLocking()
        self._queues: dict[torch.device, tuple[_CudaQueue, _CudaQueue, _CudaQueue]] = {}
        self._lock = threading.Lock()

    def queues(self, device: torch.device) -> tuple[_CudaQueue, _CudaQueue, _CudaQueue]:
        """Give the three queues of a device."""
        with self._lock:
            if device not in self._queues:
                # Of higher priority: a gather takes microseconds, and must not stand behind a model's long kernels.
                streams = [torch.cuda.Stream(device, priority=i) for i in (0, 0, -1)]  # type: ignore[no-untyped-call]
                copies, indexes, gathers = map(_CudaQueue, streams)
                self._queues[device] = copies, indexes, gathers
            return self._queues[device]


_processes: dict[int, _Process] = {}


def _process() -> _Process:
    return _processes.setdefault(os.getpid(), _Process())


def _is_unified(device: torch.device) -> bool:
    properties = torch.cuda.get_device_properties(device)
    return any(bool(getattr(properties, name, False)) for name in _UNIFIED)


def _allocator_settings() -> dict[str, Any]:
    """Read the settings of torch's allocator that change how much it takes."""
    told = "".join(os.environ.get(name, "") for name in _SETTINGS).replace(" ", "")
    return {
        "is_expandable": "expandable_segments:True" in told,
        "rounds_up": "roundup_power2_divisions:" in told,
        "is_deterministic": torch.are_deterministic_algorithms_enabled(),
    }
