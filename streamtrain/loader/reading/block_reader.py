"""The reader of blocks, the hot path from shard file to slot: each block is checked as it is read.

An uncompressed block is read straight into its slot; a compressed one into a scratch buffer and decoded into the slot.
Both release the GIL. Every block is compared with the dataset's checksum table before a sample of it can be used.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final

import numpy as np

from streamtrain.errors import DamagedBlock, DatasetError, ResourceError
from streamtrain.store.codec import HEADER_BYTES
from streamtrain.store.dataset import Dataset
from streamtrain.store.shard import ShardReader
from streamtrain.system.refusals import most_open_files
from streamtrain.system.syscalls import close_when_needed

_MOST_OPEN_FILES: Final = 1024
_SHARE: Final = 2
_LET_GO: Final = 8


class _OpenShard:
    """A shard held open, and when it was last used."""

    __slots__ = ("reader", "used")

    def __init__(self, reader: ShardReader, used: float) -> None:
        self.reader, self.used = reader, used


class _OpenShards:
    """The shards that all readers of the process hold open: the least used are closed where one would be too many."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin with none, as in a forked process, where another thread's copy of the lock may never be free."""
        self._changing = threading.Lock()
        self._readers: weakref.WeakSet[BlockReader] = weakref.WeakSet()
        self._n_uncounted = 0  # that may still be opened before they need be counted again

    def add(self, reader: BlockReader) -> None:
        """Count the shards of one more reader."""
        with self._changing:
            self._readers.add(reader)
            self._n_uncounted = 0

    def make_room(self) -> None:
        """Let some go where one more would be too many: what else the process opens needs room, too."""
        with self._changing:
            self._n_uncounted -= 1
            if self._n_uncounted <= 0:
                limit = most_open_files()
                most = _MOST_OPEN_FILES if limit is None else max(1, min(_MOST_OPEN_FILES, limit // _SHARE))
                if self._n_held() >= most:
                    self._let_go()
                self._n_uncounted = most - self._n_held()

    def _n_held(self) -> int:
        return sum(len(reader._shards) for reader in self._readers)

    def let_go(self) -> int:
        """Close an eighth of them, the least used ones; return how many."""
        with self._changing:
            return self._let_go()

    def _let_go(self) -> int:
        # Copied in one step: threads open more meanwhile.
        found = [
            (opened.used, key, reader._shards)
            for reader in self._readers
            for key, opened in reader._shards.copy().items()
        ]
        # 1. Thread A looks a shard up and is about to read it. 2. Thread B opens one more and lets that shard go.
        # 3. The system gives its descriptor to the next file opened. 4. A would read that file: so a reading
        # thread holds the shard itself, whose descriptor closes only when nothing refers to it.
        oldest = heapq.nsmallest(-(-len(found) // _LET_GO), found, key=itemgetter(0))
        return sum(shards.pop(key, None) is not None for _, key, shards in oldest)


_OPEN: Final = _OpenShards()
close_when_needed(_OPEN.let_go)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OPEN.begin)


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
        self._compressed = [layout.codec_of(field) != "none" for field in layout.fields]
        self._decodes = [compressed or sys.byteorder == "big" for compressed in self._compressed]
        self._checksums = np.ascontiguousarray(dataset.block_checksums, np.uint32).ravel().data
        self._shards: dict[tuple[int, int], _OpenShard] = {}
        _OPEN.add(self)
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
                encoded = shard.fetch(block, self._buffer() if self._compressed[field] else slot)
                if self._drops:
                    shard.drop(block)
                seconds += time.perf_counter() - started
                shard.check(block, encoded, self._checksums[block * len(slots) + field])
                if self._decodes[field]:
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
        except (DatasetError, ResourceError):
            return  # the read itself will report it
        finally:
            self._under_way.pop(threading.get_ident(), None)

    def close(self) -> None:
        """Close all files."""
        self._shards.clear()

    def _shard(self, field: int, block: int) -> ShardReader:
        now = time.monotonic()
        # From here on the read counts as under way: opening its shard may hang as well.
        self._under_way[threading.get_ident()] = block, field, now
        shard = block // self._layout.shard_blocks
        found = self._shards.get((field, shard))
        if found is None:
            return self._open(field, shard, block, now)
        found.used = now
        return found.reader

    def _open(self, field: int, shard: int, block: int, now: float) -> ShardReader:
        with self._opening:
            if (field, shard) in self._shards:
                return self._shards[field, shard].reader
            _OPEN.make_room()
            opened = self._dataset.open_shard(self._layout.fields[field].name, block, indexed=self._compressed[field])
            opened.stored.expect_random()
            self._shards[field, shard] = _OpenShard(opened, now)
        return opened

    def _buffer(self) -> memoryview:
        """Give this thread's scratch memory, large enough for any encoded chunk."""
        buffer: memoryview | None = getattr(self._scratch, "buffer", None)
        if buffer is None:
            largest = max(field.row_bytes for field in self._layout.fields) * self._layout.block_rows + HEADER_BYTES
            buffer = self._scratch.buffer = memoryview(bytearray(largest))
        return buffer
