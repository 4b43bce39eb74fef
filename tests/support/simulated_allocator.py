"""torch's caching allocator simulated: memory by stream, in segments that are split and given back whole."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from tests.support.simulated_cuda import SimulatedCuda, Stream

MIB = 1 << 20


class Segment:
    """Memory that the allocator has from the device, for one stream, cut into blocks: [start, stop, is free]."""

    def __init__(self, stream: Stream, n_bytes: int, *, is_small: bool) -> None:
        self.stream, self.is_small = stream, is_small
        self.memory = np.full(n_bytes, 0xEE, np.uint8)
        self.blocks: list[list[Any]] = [[0, n_bytes, True]]

    @property
    def is_free(self) -> bool:
        return len(self.blocks) == 1 and self.blocks[0][2]

    def smallest(self, n_bytes: int) -> int | None:
        """The size of the smallest free block that is large enough."""
        return min(
            (stop - start for start, stop, free in self.blocks if free and stop - start >= n_bytes), default=None
        )

    def take(self, n_bytes: int) -> np.ndarray:
        size = self.smallest(n_bytes)
        block = next(block for block in self.blocks if block[2] and block[1] - block[0] == size)
        if size != n_bytes:
            self.blocks.insert(self.blocks.index(block) + 1, [block[0] + n_bytes, block[1], True])
            block[1] = block[0] + n_bytes
        block[2] = False
        return self.memory[block[0] : block[1]]

    def free(self, start: int) -> None:
        next(block for block in self.blocks if block[0] == start)[2] = True
        merged = [self.blocks[0]]
        for block in self.blocks[1:]:
            if block[2] and merged[-1][2]:
                merged[-1][1] = block[1]
            else:
                merged.append(block)
        self.blocks = merged


class Piece:
    """An allocation: where it lies, and the streams beside its own that use it."""

    def __init__(self, segment: Segment, memory: np.ndarray) -> None:
        self.segment, self.memory = segment, memory
        self.start = memory.ctypes.data - segment.memory.ctypes.data
        self.users: set[Stream] = set()
        self.pending: list[tuple[Stream, int]] = []


class Allocator:
    """torch's caching allocator, in so far as it decides who gets which memory."""

    def __init__(self, simulated: SimulatedCuda) -> None:
        self.simulated = simulated
        self.segments: list[Segment] = []
        self.pieces: dict[int, Piece] = {}
        self.let_go: deque[Piece] = deque()
        self.peak_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        return sum(len(segment.memory) for segment in self.segments)

    def empty(self, stream: Stream, n_bytes: int) -> torch.Tensor:
        with self.simulated.lock:
            self.simulated.check()
            self._take_back()
            rounded = -(-max(1, n_bytes) // 512) * 512
            piece = self._find(stream, rounded) or self._from_device(stream, rounded)
            seen = piece.memory[:n_bytes].view()
            self.pieces[piece.memory.ctypes.data] = piece
            weakref.finalize(seen, self._freed, piece).atexit = False
            return torch.from_numpy(seen)

    def _find(self, stream: Stream, n_bytes: int) -> Piece | None:
        """The smallest free block of the stream's that is large enough."""
        mine = [each for each in self.segments if each.stream is stream and each.is_small == (n_bytes <= MIB)]
        found = [(size, i) for i, segment in enumerate(mine) if (size := segment.smallest(n_bytes)) is not None]
        if not found:
            return None
        segment = mine[min(found)[1]]
        return Piece(segment, segment.take(n_bytes))

    def _from_device(self, stream: Stream, n_bytes: int) -> Piece:
        size = 2 * MIB if n_bytes <= MIB else 20 * MIB if n_bytes < 10 * MIB else -(-n_bytes // (2 * MIB)) * 2 * MIB
        if self.reserved_bytes + size > self.simulated.room:
            self.empty_cache()
        if self.reserved_bytes + size > self.simulated.room:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {n_bytes} bytes")
        segment = Segment(stream, size, is_small=n_bytes <= MIB)
        self.segments.append(segment)
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
        return Piece(segment, segment.take(n_bytes))

    def _freed(self, piece: Piece) -> None:
        # From whichever thread, perhaps amid a locked section: appending to a deque takes no lock.
        piece.pending = [(user, user.n_queued) for user in piece.users]
        self.let_go.append(piece)

    def _take_back(self) -> None:
        for _ in range(len(self.let_go)):
            piece = self.let_go.popleft()
            if all(user.n_done >= number for user, number in piece.pending):
                piece.segment.free(piece.start)
            else:
                self.let_go.append(piece)

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        with self.simulated.lock:
            self.piece_of(tensor.data_ptr())[1].users.add(stream)

    def piece_of(self, address: int) -> tuple[int, Piece]:
        """The piece that an address lies in, and where in it."""
        start, piece = max((at, piece) for at, piece in self.pieces.copy().items() if at <= address)
        return address - start, piece

    def empty_cache(self) -> None:
        with self.simulated.lock:
            for piece in self.let_go:
                for user, number in piece.pending:
                    user.reach(number)
            self._take_back()
            self.segments = [segment for segment in self.segments if not segment.is_free]

    def snapshot(self) -> list[dict[str, Any]]:
        with self.simulated.lock:
            self._take_back()
            return [
                {
                    "device": segment.stream.device.index,
                    "total_size": len(segment.memory),
                    "allocated_size": sum(stop - start for start, stop, free in segment.blocks if not free),
                    "active_size": sum(stop - start for start, stop, free in segment.blocks if not free),
                }
                for segment in self.segments
            ]
