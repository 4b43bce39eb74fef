"""A device that is as late as it may be: what is not waited for is not there yet, or is written over."""

import threading
import weakref
from collections import deque

import numpy as np
import pytest
import torch

from streamtrain.system.buffers import aligned_bytes


class LateMark:
    def __init__(self, queue, number):
        self.queue, self.number = queue, number

    def wait(self):
        broken = self.queue.device_.broken
        if broken != "wait" and not (broken == "record" and self.queue.name == "caller"):
            self.queue.reach(self.number)


class LateQueue:
    """A queue that does nothing before it has to; then all that stands before it, in its order."""

    def __init__(self, device, name="caller"):
        self.device_, self.name, self.ops, self.n_queued, self.n_done = device, name, deque(), 0, 0

    def run(self, act, /, *, after=()):
        with self.device_.lock:
            if self.device_.broken == "order" and "PoolOnDevice.read" in act.__qualname__ and after:
                after[0].wait()
                act()
                act, after = (lambda: None), ()
            self.ops.append((act, () if self.device_.broken == "after" else tuple(after)))
            self.n_queued += 1
            self.device_.progress()
            if self.name == self.device_.prompt:
                self.reach(self.n_queued)
            return LateMark(self, self.n_queued)

    def reach(self, number):
        with self.device_.lock:
            while self.n_done < number:
                act, after = self.ops.popleft()
                for mark in after:
                    mark.queue.reach(mark.number)
                try:
                    act()
                finally:
                    # A thread that is held up here keeps nothing alive.
                    del act, after
                    self.n_done += 1

    def empty(self, n_bytes, /):
        return self.device_.allocate(self, n_bytes)


class Piece:
    """Memory of the device, and the queues beside its own that have used it."""

    def __init__(self, n_bytes):
        self.memory, self.users, self.pending = np.full(n_bytes, 0xEE, np.uint8), set(), []


class LateDevice:
    """Lets queues run late, and gives memory that was let go of to the next who asks, as torch's allocator does.

    ``broken`` names what it does not do, ``prompt`` a queue that is never late; ``luck``, a generator, lets queues go
    on by themselves now and then.
    """

    def __init__(self, broken="", prompt="", luck=None, free_bytes=None, room=10**9):
        self.prompt = prompt
        self.device, self.broken, self.luck, self.free, self.room = torch.device("cpu"), broken, luck, free_bytes, room
        self.lock = threading.RLock()
        self.copies, self.gathers, self.caller = (LateQueue(self, name) for name in ("copies", "gathers", "caller"))
        self.pieces, self.let_go, self.locked, self.peak_bytes, self.n_closed = {}, deque(), [], 0, 0

    def allocate(self, queue, n_bytes):
        with self.lock:
            for _ in range(len(self.let_go)):
                owner, piece = self.let_go.popleft()
                if (
                    owner is queue
                    and len(piece.memory) == n_bytes
                    and all(m.queue.n_done >= m.number for m in piece.pending)
                ):
                    break
                self.let_go.append((owner, piece))
            else:
                piece = Piece(n_bytes)
                self.pieces[piece.memory.ctypes.data] = piece
                self.peak_bytes = sum(len(piece.memory) for piece in self.pieces.values())
                if self.peak_bytes > self.room:
                    raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {n_bytes} bytes")
            piece.users = set()
            seen = piece.memory.view()
            weakref.finalize(seen, self.freed, queue, piece).atexit = False
            return torch.from_numpy(seen)

    def freed(self, queue, piece):
        piece.pending = [LateMark(user, user.n_queued) for user in piece.users]
        self.let_go.append((queue, piece))

    def page_locked(self, n_bytes, /):
        memory = aligned_bytes(n_bytes)
        memory[:] = 0xDD
        self.locked.append(weakref.ref(memory))
        return memory

    def current(self):
        return self.caller

    def admit(self, memory, marks, /):
        with self.lock:
            if self.broken != "admit":
                self.caller.run(lambda: None, after=marks)
            if self.broken != "record":
                self.pieces[memory.data_ptr()].users.add(self.caller)

    def mark(self):
        return LateMark(self.caller, self.caller.n_queued)

    def free_bytes(self):
        return self.free

    def close(self):
        self.n_closed += 1
        for queue in (self.copies, self.gathers):
            queue.reach(queue.n_queued)

    def progress(self):
        if self.luck is not None:
            queue = (self.copies, self.gathers, self.caller)[self.luck.integers(3)]
            queue.reach(queue.n_done + self.luck.integers(queue.n_queued - queue.n_done + 1))

    def compute(self, tensor, into):
        """Queue a kernel that reads a tensor; as a real one it keeps nothing alive."""
        # Copied in one step: the loader's thread adds pieces meanwhile.
        start, piece = max((at, piece) for at, piece in self.pieces.copy().items() if at <= tensor.data_ptr())
        at, n_bytes, dtype, shape = tensor.data_ptr() - start, tensor.nbytes, tensor.numpy().dtype, tensor.shape
        read = lambda: into.append(piece.memory[at : at + n_bytes].view(dtype).reshape(shape).copy())  # noqa: E731
        self.caller.run(read)

    def another_queue(self):
        return LateQueue(self)

    def finish(self):
        self.caller.reach(self.caller.n_queued)


@pytest.fixture(scope="session")
def late():
    """The kind of device."""
    return LateDevice
