"""A CUDA device simulated under torch's own calls, as late and as unforgiving as a real one may be.

It stands in for ``torch.cuda`` in the modules that talk to it; everything above them is the product's. What it does as
CUDA and torch do:

- A stream does nothing before it has to; then all that stands before, in order. An event is reached with its stream.
- Streams compare as torch's: beside anything that is no stream both ``==`` and ``!=`` are False.
- Every thread begins with device 0 as the current one. A call of the runtime makes a context on the current device.
- A failed call leaves its error behind in the thread, for the next kernel that is launched there.
- The allocator keeps memory by stream, splits its segments, and gives back whole ones only; memory that another stream
  was recorded for is free once that stream is through. What is asked for is filled with 0xEE.
- A copy out of page-locked memory reads it when its turn comes; out of plain memory it is staged at once. After a fork
  the device goes on with the pages of before, except where these are not for children.
- A device may be lost, which every call says from then on, or hang, so that no call that waits comes back.
"""

from __future__ import annotations

import ctypes
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

import streamtrain.loader.device.cuda
import streamtrain.loader.device.resolve
import streamtrain.loader.device.transfer
from tests.support.simulated_allocator import Allocator

WAITS_FOR_NOTHING = "waits for nothing"
OUT_OF_ORDER = "out of order"


class Stream:
    """Work in order, done when somebody waits for it."""

    def __init__(self, simulated: SimulatedCuda, device: torch.device, name: str) -> None:
        self.simulated, self.device, self.name = simulated, device, name
        self.ops: deque[Callable[[], None]] = deque()
        self.n_queued = self.n_done = 0
        self.seconds = 0.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other is self

    def __ne__(self, other: object) -> bool:
        return isinstance(other, Stream) and other is not self

    __hash__ = object.__hash__

    def queue(self, op: Callable[[], None], seconds: float = 0.0) -> None:
        with self.simulated.lock:
            self.simulated.check()

            def timed() -> None:
                # Whoever waits for it may be about to queue something, and this is not queued again.
                with torch._C.DisableTorchFunction():
                    op()
                self.seconds += seconds

            self.ops.append(timed)
            self.n_queued += 1
            if self.simulated.prompt in (self.name, "all"):
                self.reach(self.n_queued)
            self.simulated.progress()

    def reach(self, number: int) -> None:
        self.simulated.wait_while_hung()
        with self.simulated.lock:
            self.simulated.check()
            while self.n_done < number:
                op = self.ops.popleft()
                try:
                    op()
                finally:
                    # A thread that is held up here keeps nothing alive.
                    del op
                    self.n_done += 1

    def wait_event(self, event: Event) -> None:
        if self.simulated.broken == WAITS_FOR_NOTHING and self.name != "caller":
            return
        self.queue(lambda: event.let_through(self))

    def synchronize(self) -> None:
        self.reach(self.n_queued)


class Event:
    """A place in a stream."""

    simulated: SimulatedCuda

    def __init__(self, *, blocking: bool = False, enable_timing: bool = False) -> None:
        assert blocking or enable_timing, "a thread that spins takes a core from the readers"
        self.stream: Stream | None = None
        self.number, self.at = 0, 0.0

    def record(self, stream: Stream) -> None:
        self.stream = stream

        def pass_it() -> None:
            self.at = stream.seconds

        stream.queue(pass_it)
        self.number = stream.n_queued

    def let_through(self, waiting: Stream) -> None:
        assert self.stream is not None
        self.stream.reach(self.number)
        waiting.seconds = max(waiting.seconds, self.at)

    def query(self) -> bool:
        assert self.stream is not None
        self.simulated.touch()
        self.simulated.check()
        is_done = self.stream.n_done >= self.number
        if not is_done and not self.simulated.is_hung:
            # It goes on while one asks, and is there the next time.
            self.stream.reach(self.number)
        return is_done

    def synchronize(self) -> None:
        assert self.stream is not None
        self.simulated.touch()
        self.stream.reach(self.number)

    def elapsed_time(self, end: Event) -> float:
        assert self.query(), "not reached yet"
        assert end.query(), "not reached yet"
        return 1000 * (end.at - self.at)


class Kernels(TorchFunctionMode):
    """Queues what is computed on the device; views are made at once, as they are of a real one's tensors."""

    def __init__(self, simulated: SimulatedCuda, stream: Stream) -> None:
        self.simulated, self.stream = simulated, stream

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_:
            target, source = args
            return self._copy(target, source, non_blocking=kwargs.get("non_blocking", False))
        if func in (torch.index_select, torch.Tensor.index_copy_):
            self.simulated.launch()
            if self.simulated.broken == OUT_OF_ORDER and func is torch.Tensor.index_copy_:
                for stream in self.simulated.streams[:2]:
                    stream.synchronize()
                return func(*args, **kwargs)
            self.stream.queue(lambda: func(*args, **kwargs), self.simulated.seconds_of(self.stream))
            return args[0]
        return func(*args, **kwargs)

    def _copy(self, target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool) -> torch.Tensor:
        self.simulated.launch()
        locked = self.simulated.locked_pages(source)
        staged = None if locked is not None else source.clone()

        def arrive() -> None:
            target.copy_(staged if staged is not None else locked(source) if locked is not None else source)

        self.simulated.n_copies += 1
        self.stream.queue(arrive, self.simulated.seconds_of(self.stream))
        if not non_blocking:
            self.simulated.n_blocking_copies += 1
            self.stream.synchronize()
        return target


class Code(int):
    """An error code of the runtime."""


class Runtime:
    """``torch.cuda.cudart()``: page-locking, which ``refuses`` may forbid, and the last error of each thread."""

    def __init__(self, simulated: SimulatedCuda) -> None:
        self.simulated = simulated

    def cudaHostRegister(self, address: int, n_bytes: int, flags: int) -> Code:  # noqa: N802
        self.simulated.touch()
        code = self.simulated.refuses(n_bytes) if not self.simulated.lost else 719
        if address in self.simulated.registered:
            code = 712
        if code:
            self.simulated.thread.error = code
        else:
            self.simulated.registered[address] = n_bytes
        return Code(code)

    def cudaHostUnregister(self, address: int) -> Code:  # noqa: N802
        self.simulated.touch()
        if self.simulated.lost:
            self.simulated.thread.error = 719
            return Code(719)
        self.simulated.wait_while_hung()
        if self.simulated.registered.pop(address, None) is None:
            self.simulated.thread.error = 713
            return Code(713)
        return Code(0)

    def cudaGetLastError(self) -> Code:  # noqa: N802
        error, self.simulated.thread.error = self.simulated.thread.error, 0
        return Code(error)

    def cudaGetErrorString(self, code: Code) -> str:  # noqa: N802
        if type(code) is not Code:
            raise TypeError("cudaGetErrorString(): incompatible function arguments")
        return {1: "invalid argument", 2: "out of memory", 801: "operation not supported"}.get(
            int(code), "unknown error"
        )


class PerThread(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.device, self.error = 0, 0
        self.runtimes_device = 0
        """What the runtime has as the current device: it is set back where there is a context alone."""
        self.streams: dict[int, Stream] = {}


class SimulatedCuda:
    """CUDA devices.

    Parameters
    ----------
    index : int
        The device that is used.
    prompt : str
        A stream, "copies", "indexes", "gathers" or "caller", that is never late; "all" of them.
    luck : numpy.random.Generator, optional
        Lets streams go on by themselves now and then.
    room : int
        Bytes of device memory.
    broken : str
        `WAITS_FOR_NOTHING`: streams of the loader do not wait for each other; `OUT_OF_ORDER`: blocks are put into slots
        as soon as they have arrived, past what stands before.
    refuses : callable
        From the size of what is to be registered to an error code.
    has_last_error : bool
        Whether torch can read the last error out, as newer versions can.
    """

    def __init__(
        self,
        *,
        index: int = 0,
        prompt: str = "",
        luck: np.random.Generator | None = None,
        room: int = 10**9,
        broken: str = "",
        refuses: Callable[[int], int] = lambda _: 0,
        has_last_error: bool = True,
    ) -> None:
        self.index, self.device = index, torch.device("cuda", index)
        self.prompt, self.luck, self.room, self.broken, self.refuses = prompt, luck, room, broken, refuses
        self.lock, self.made_by = threading.RLock(), threading.get_ident()
        self.thread = PerThread()
        self.contexts: set[int] = set()
        self.registered: dict[int, int] = {}
        self.stale: dict[int, np.ndarray] = {}
        self.lost = self.is_hung = self.is_capturing = False
        self.capture_is_whole = True
        self.recovered = threading.Event()
        self.n_copies = self.n_blocking_copies = self.n_synchronizations = 0
        self.seconds: dict[str, float] = {}
        self.defaults = {i: Stream(self, torch.device("cuda", i), "caller") for i in range(8)}
        self.streams: list[Stream] = []
        self.allocator = Allocator(self)
        self.runtime = Runtime(self)
        if not has_last_error:
            self.runtime.cudaGetLastError = None  # type: ignore[method-assign, assignment]
        self.event_class = type("Event", (Event,), {"simulated": self})

    # What a test does with it.

    @property
    def caller(self) -> Stream:
        """The stream that this thread computes in."""
        return self.thread.streams.get(self.index, self.defaults[self.index])

    @caller.setter
    def caller(self, stream: Stream) -> None:
        self.thread.streams[self.index] = stream

    def another_stream(self) -> Stream:
        return Stream(self, self.device, "caller")

    def compute(self, tensor: torch.Tensor, into: list[np.ndarray]) -> None:
        """Queue a kernel that reads a tensor; as a real one it keeps nothing alive."""
        at, piece = self.allocator.piece_of(tensor.data_ptr())
        n_bytes, dtype, shape = tensor.nbytes, tensor.numpy().dtype, tensor.shape
        memory = piece.memory
        self.launch()
        self.caller.queue(lambda: into.append(memory[at : at + n_bytes].view(dtype).reshape(shape).copy()))

    def finish(self) -> None:
        for stream in [*self.streams, *self.defaults.values(), *self.thread.streams.values()]:
            stream.reach(stream.n_queued)

    def lose(self) -> None:
        self.lost = True

    def hang(self) -> None:
        self.is_hung = True

    def recover(self) -> None:
        self.lost = self.is_hung = False
        self.recovered.set()

    def fork(self) -> None:
        """Leave the device with the pages of now wherever a child would share them."""
        for address, n_bytes in self.registered.items():
            if "dc" not in _flags_of(address):
                pages = (ctypes.c_char * n_bytes).from_address(address)
                self.stale[address] = np.frombuffer(pages, np.uint8).copy()

    # What the stand-ins for torch's calls use.

    def check(self) -> None:
        if self.lost:
            raise _error("CUDA error: unspecified launch failure")
        if self.is_capturing:
            self.capture_is_whole = False
            raise _error("CUDA error: operation not permitted when stream is capturing")

    def launch(self) -> None:
        self.check()
        if self.thread.error:
            code, self.thread.error = self.thread.error, 0
            raise _error(f"CUDA error: {self.runtime.cudaGetErrorString(Code(code))}")

    def touch(self) -> None:
        self.contexts.add(self.thread.runtimes_device)

    def wait_while_hung(self) -> None:
        if self.is_hung:
            self.recovered.wait(60)

    def progress(self) -> None:
        if self.luck is not None and not self.is_hung:
            stream = self.luck.choice([*self.streams, self.caller])
            stream.reach(stream.n_done + self.luck.integers(stream.n_queued - stream.n_done + 1))

    def seconds_of(self, stream: Stream) -> float:
        return self.seconds.get(stream.name, 0.0)

    def locked_pages(self, tensor: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What reads page-locked memory as the device sees it; None where the tensor is not page-locked."""
        address = tensor.data_ptr()
        for start, n_bytes in self.registered.items():
            if start <= address < start + n_bytes:
                return lambda source: self._as_seen(start, source)
        return None

    def _as_seen(self, start: int, source: torch.Tensor) -> torch.Tensor:
        if start not in self.stale:
            return source
        at = source.data_ptr() - start
        return torch.from_numpy(self.stale[start][at : at + source.nbytes]).view(source.dtype).view(source.shape)

    def set_device(self, index: int) -> None:
        self.thread.device = self.thread.runtimes_device = index
        self.touch()

    @contextmanager
    def device_context(self, device: torch.device | int) -> Iterator[None]:
        index = device if isinstance(device, int) else device.index
        before = self.thread.device
        self.thread.device = self.thread.runtimes_device = index
        try:
            yield
        finally:
            self.thread.device = before
            if before in self.contexts:
                self.thread.runtimes_device = before

    @contextmanager
    def stream_context(self, stream: Stream) -> Iterator[None]:
        source = self.current_stream(None)
        target = self.current_stream(stream.device)
        self._set_stream(stream)
        try:
            with Kernels(self, stream):
                yield
        finally:
            if source.device != stream.device:
                self._set_stream(target)
            self._set_stream(source)

    def _set_stream(self, stream: Stream) -> None:
        if self.thread.runtimes_device != stream.device.index:
            self.set_device(stream.device.index)
        self.thread.streams[stream.device.index] = stream

    def current_stream(self, device: torch.device | None) -> Stream:
        index = self.thread.device if device is None else device.index
        return self.thread.streams.get(index, self.defaults[index])

    def make_stream(self, device: torch.device, priority: int = 0) -> Stream:
        name = "gathers" if priority else ("copies", "indexes")[len(self.streams) % 3 % 2]
        self.streams.append(Stream(self, device, name))
        return self.streams[-1]

    def empty(self, n_bytes: int, **options: Any) -> torch.Tensor:
        if options.get("pin_memory"):
            code = self.refuses(n_bytes)
            if code and code != 801:
                raise _error("CUDA error: out of memory")
            memory = torch.empty(n_bytes, dtype=torch.uint8)
            self.registered[memory.data_ptr()] = n_bytes
            return memory
        if options.get("device") == self.device:
            self.touch()
            return self.allocator.empty(self.current_stream(self.device), n_bytes)
        return torch.empty(n_bytes, **options)

    def ones(self, n: int, **options: Any) -> torch.Tensor:
        self.launch()
        return torch.ones(n)

    @contextmanager
    def installed(self) -> Iterator[SimulatedCuda]:
        """Let the product's own way to CUDA end here, and give every loader with a device this one."""
        properties = types.SimpleNamespace(is_integrated=False)
        cuda = types.SimpleNamespace(
            **{
                "Stream": self.make_stream,
                "Event": self.event_class,
                "OutOfMemoryError": torch.cuda.OutOfMemoryError,
                "stream": self.stream_context,
                "device": self.device_context,
                "set_device": self.set_device,
                "current_device": lambda: self.thread.device,
                "current_stream": self.current_stream,
                "cudart": lambda: self.runtime,
                "is_current_stream_capturing": lambda: self.is_capturing and threading.get_ident() == self.made_by,
                "empty_cache": self.allocator.empty_cache,
                "mem_get_info": lambda device: (max(0, self.room - self.allocator.reserved_bytes), self.room),
                "memory_reserved": lambda device: self.allocator.reserved_bytes,
                "memory_allocated": lambda device: sum(s["allocated_size"] for s in self.allocator.snapshot()),
                "memory_snapshot": self.allocator.snapshot,
                "get_per_process_memory_fraction": lambda device: 1.0,
                "get_device_properties": lambda device: properties,
            }
        )
        stand_in = Torch(cuda, empty=self.empty, zeros=self.ones, ones=self.ones)
        modules = streamtrain.loader.device
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(modules.cuda, "torch", stand_in))
            stack.enter_context(mock.patch.object(modules.cuda, "_processes", {}))
            stack.enter_context(mock.patch.object(modules.transfer, "resolve_device", return_value=self.device))
            stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda *a: self.allocator.record(*a)))
            try:
                yield self
            finally:
                self.recover()


class Torch(types.ModuleType):
    """torch, but for some of its names."""

    def __init__(self, cuda: Any, **names: Any) -> None:
        super().__init__("torch")
        self.cuda = cuda
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _error(text: str) -> Exception:
    return getattr(torch, "AcceleratorError", RuntimeError)(text)


def _flags_of(address: int) -> list[str]:
    """The kernel's flags of the mapping that an address lies in."""
    is_it, flags = False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)
        if "-" in head[0] and not line.startswith("VmFlags"):
            start, stop = (int(edge, 16) for edge in head[0].split("-"))
            is_it = start <= address < stop
        elif is_it and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    return flags
