"""The reader of blocks, the hot path from shard file to slot: each block is checked as it is read.

An uncompressed block is read straight into its slot; a compressed one into a scratch buffer and decoded into the slot.
Both release the GIL. Every block is compared with the dataset's checksum table before a sample of it can be used.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from streamtrain.errors import DamagedBlock, DatasetError
from streamtrain.store.codec import HEADER_BYTES
from streamtrain.store.dataset import Dataset
from streamtrain.store.shard import ShardReader

_MOST_OPEN_FILES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRead:
    """A read under way, since a time on the monotonic clock; the range of samples is half-open."""

    field: str
    block: int
    samples: tuple[int, int]
    file: Path
    since: float


class BlockReader:
    """Reads blocks into slots, in any number of threads; ``keep_cached=False`` spares the page cache what it reads."""

    def __init__(self, dataset: Dataset, *, keep_cached: bool = True) -> None:
        layout = dataset.layout
        self._dataset = dataset
        self._layout = layout
        self._drops = not keep_cached
        self._compressed = layout.codec != "none"
        self._decodes = self._compressed or sys.byteorder == "big"
        self._checksums = np.ascontiguousarray(dataset.block_checksums, np.uint32).ravel().data
        self._shards: dict[tuple[int, int], ShardReader] = {}
        self._under_way: dict[int, tuple[int, int, float]] = {}
        self._opening = threading.Lock()
        self._scratch = threading.local()

    def read(self, block: int, slots: Sequence[memoryview]) -> float:
        """Read a block into one buffer of ``block_rows * row_bytes`` bytes per field; return the seconds of reading.

        Checking and decoding are not counted. Rows past the dataset's end, in its last block, are left undefined.
        """
        seconds = 0.0
        try:
            for field, slot in enumerate(slots):
                shard = self._shard(field, block)
                started = time.perf_counter()
                encoded = shard.fetch(block, self._buffer() if self._compressed else slot)
                if self._drops:
                    shard.drop(block)
                seconds += time.perf_counter() - started
                shard.check(block, encoded, self._checksums[block * len(slots) + field])
                if self._decodes:
                    shard.decode(block, encoded, np.frombuffer(slot, shard.field.dtype))
        except DamagedBlock:
            self._dataset.check_not_replaced()
            raise
        finally:
            self._under_way.pop(threading.get_ident(), None)
        return seconds

    @property
    def path(self) -> Path:
        """The dataset's path."""
        return self._dataset.path

    def oldest(self) -> float | None:
        """Return when the longest read under way began, on the monotonic clock; None if there is none."""
        # Copied in one step: threads come and go meanwhile.
        return min((since for _, _, since in self._under_way.copy().values()), default=None)

    def under_way(self) -> list[PendingRead]:
        """List what is being read now, a field of a block by each thread, the longest first."""
        found = sorted(self._under_way.copy().values(), key=lambda place: place[2])
        return [
            PendingRead(
                field=self._layout.fields[field].name,
                block=block,
                samples=self._layout.block_range(block),
                file=self._dataset.shard_path(self._layout.fields[field].name, block // self._layout.shard_blocks),
                since=since,
            )
            for block, field, since in found
        ]

    def announce(self, blocks: Sequence[int]) -> None:
        """Have the disk fetch blocks that are about to be read, all at once, unless the first of them is in memory.

        A disk serves many requests at once faster than one after another; the page cache needs no such help.
        """
        if not blocks:
            return
        try:
            if not self._shard(0, blocks[0]).is_near(blocks[0]):
                for block in blocks:
                    for field in range(len(self._layout.fields)):
                        self._shard(field, block).announce(block)
        except DatasetError:
            return  # the read itself will report it
        finally:
            self._under_way.pop(threading.get_ident(), None)

    def close(self) -> None:
        """Close all files."""
        self._shards.clear()

    def _shard(self, field: int, block: int) -> ShardReader:
        # From here on the read counts as under way: opening its shard may hang as well.
        self._under_way[threading.get_ident()] = block, field, time.monotonic()
        shard = block // self._layout.shard_blocks
        opened = self._shards.get((field, shard))
        return opened if opened is not None else self._open(field, shard, block)

    def _open(self, field: int, shard: int, block: int) -> ShardReader:
        with self._opening:
            if (field, shard) in self._shards:
                return self._shards[field, shard]
            opened = self._dataset.open_shard(self._layout.fields[field].name, block, indexed=self._compressed)
            opened.stored.expect_random()
            # 1. Thread A looks a shard up and is about to read it. 2. Thread B opens one more and evicts that shard.
            # 3. The system gives its descriptor to the next file opened. 4. A would read that file: so a reading
            # thread holds the shard itself, whose descriptor closes only when nothing refers to it.
            while len(self._shards) >= _MOST_OPEN_FILES:
                self._shards.pop(next(iter(self._shards)), None)
            self._shards[field, shard] = opened
        return opened

    def _buffer(self) -> memoryview:
        """Give this thread's scratch memory, large enough for any encoded chunk."""
        buffer: memoryview | None = getattr(self._scratch, "buffer", None)
        if buffer is None:
            largest = max(field.row_bytes for field in self._layout.fields) * self._layout.block_rows + HEADER_BYTES
            buffer = self._scratch.buffer = memoryview(bytearray(largest))
        return buffer
