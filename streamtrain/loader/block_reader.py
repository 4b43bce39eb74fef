"""The reader of blocks, the hot path from shard file to slot: each block is checked as it is read.

An uncompressed block is read by ``preadv`` straight into its slot; a compressed one into a scratch buffer and decoded
into the slot. Both release the GIL. Every block is compared with the dataset's checksum table before a sample of it can
be used, so a changed, truncated or swapped block is an error that names it. Where the system has no ``preadv`` the
store's general read serves, with the same result.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from crc32c import crc32c
from numcodecs import blosc

from streamtrain.errors import DamagedBlock, DatasetError
from streamtrain.store.codec import HEADER_BYTES, header_mismatch
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import CHECKSUM_BYTES, Layout
from streamtrain.store.shard import index_of, open_regular

_MOST_OPEN_FILES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRead:
    """A read that has not come back yet.

    Parameters
    ----------
    field : str
        Of this field.
    block : int
        Its number.
    samples : tuple of int
        The half-open range of samples in it.
    file : pathlib.Path
        Where it is stored.
    since : float
        When it began, on the monotonic clock.
    """

    field: str
    block: int
    samples: tuple[int, int]
    file: Path
    since: float


class _ShardHandle:
    """An open shard file and, where chunks vary in size, its index; closed when nothing refers to it any more."""

    __slots__ = ("__weakref__", "fd", "index")

    def __init__(self, path: Path, layout: Layout, shard: int) -> None:
        self.index: memoryview | None = None
        self.fd = open_regular(path)
        weakref.finalize(self, os.close, self.fd).atexit = False
        if layout.codec != "none":
            first, end = layout.shard_blocks_range(shard)
            with open(self.fd, "rb", closefd=False) as file:
                index = index_of(file, path, shard_blocks=layout.shard_blocks, n_present=end - first)
            self.index = index.ravel().data
        if hasattr(os, "posix_fadvise"):
            # Blocks are announced; what the system would read ahead of one belongs to another time.
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)


class BlockReader:
    """Reads blocks of a dataset into slots; one reader serves any number of threads.

    Parameters
    ----------
    dataset : Dataset
        The open dataset.
    direct : bool, optional
        Whether to read shard files directly; by default where the system can. False takes the store's general read.
    keep_cached : bool
        False lets go of what was read from the page cache, where it would only push out what others need: for data
        that does not fit there.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> dataset = st.ingest({"x": np.arange(6)}, tempfile.mkdtemp() + "/d.zarr", block="24B", codec="none")
    >>> reader, slot = BlockReader(dataset), np.zeros(3, np.int64)
    >>> seconds = reader.read(1, [memoryview(slot.view(np.uint8))])
    >>> slot.tolist()
    [3, 4, 5]
    """

    def __init__(self, dataset: Dataset, *, direct: bool | None = None, keep_cached: bool = True) -> None:
        layout = dataset.layout
        self._dataset = dataset
        self._layout = layout
        self._direct = hasattr(os, "preadv") if direct is None else direct
        self._announces = self._direct and hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")
        self._drops = not keep_cached and hasattr(os, "posix_fadvise")
        self._compressed = layout.codec != "none"
        self._fields = [(i, field.name, layout.block_rows * field.row_bytes) for i, field in enumerate(layout.fields)]
        self._checksums = np.ascontiguousarray(dataset.block_checksums, np.uint32).ravel().data
        self._shards: dict[tuple[int, int], _ShardHandle] = {}
        self._under_way: dict[int, tuple[int, int, float]] = {}
        self._opening = threading.Lock()
        self._scratch = threading.local()

    def read(self, block: int, slots: Sequence[memoryview]) -> float:
        """Read a block into one buffer of ``block_rows * row_bytes`` bytes per field.

        Rows past the dataset's end, in its last block, are left undefined.

        Returns
        -------
        float
            The seconds that reading took, without checking and decoding; the general read does not tell them apart.

        Raises
        ------
        DamagedBlock
            The stored bytes do not match the checksum table, or cannot be read.
        """
        try:
            if not self._direct:
                return self._read_generally(block, slots)
            return self._read_and_decode(block, slots) if self._compressed else self._read_in_place(block, slots)
        finally:
            self._under_way.pop(threading.get_ident(), None)

    @property
    def path(self) -> Path:
        """Of the dataset."""
        return self._dataset.path

    def oldest(self) -> float | None:
        """When the longest of the reads that are under way began, on the monotonic clock; None where there is none."""
        # Copied in one step: threads come and go meanwhile.
        return min((since for _, _, since in self._under_way.copy().values()), default=None)

    def under_way(self) -> list[PendingRead]:
        """What is being read now, a field of a block by each thread, the longest first."""
        found = sorted(self._under_way.copy().values(), key=lambda place: place[2])
        return [
            PendingRead(
                field=self._fields[field][1],
                block=block,
                samples=self._layout.block_range(block),
                file=self._dataset.shard_path(self._fields[field][1], block // self._layout.shard_blocks),
                since=since,
            )
            for block, field, since in found
        ]

    def announce(self, blocks: Sequence[int]) -> None:
        """Have the disk fetch blocks that are about to be read, all at once, unless the first of them is in memory.

        A disk serves many requests at once faster than one after another; the page cache needs no such help.
        """
        if not self._announces or not blocks:
            return
        try:
            spans = [self._stored(field, block) for block in blocks for field, _, _ in self._fields]
            opened, offset, length = spans[0]
            # Its middle: a neighbour's read may have brought its ends.
            if length > 0 and not _is_cached(opened.fd, offset + length // 2):
                for opened, offset, length in spans:
                    os.posix_fadvise(opened.fd, offset, max(0, length), os.POSIX_FADV_WILLNEED)
        except DamagedBlock:
            return  # which the read itself will tell
        finally:
            self._under_way.pop(threading.get_ident(), None)

    def _stored(self, field: int, block: int) -> tuple[_ShardHandle, int, int]:
        """The open shard of a block, and the offset and length of its stored bytes there, checksum left out.

        From here on the thread is known to read it: opening the shard and reading its index may hang as well.
        """
        self._under_way[threading.get_ident()] = block, field, time.monotonic()
        place = block % self._layout.shard_blocks
        opened = self._shard(field, block)
        if opened.index is None:
            n_bytes = self._fields[field][2]
            return opened, place * (n_bytes + CHECKSUM_BYTES), n_bytes
        return opened, opened.index[2 * place], opened.index[2 * place + 1] - CHECKSUM_BYTES

    def close(self) -> None:
        """Close all files."""
        self._shards.clear()

    def _read_in_place(self, block: int, slots: Sequence[memoryview]) -> float:
        seconds = 0.0
        for field, _, _ in self._fields:
            opened, offset, _ = self._stored(field, block)
            seconds += self._fill(slots[field], opened.fd, offset, field, block)
            self._check(crc32c(slots[field]), field, block)
        return seconds

    def _read_and_decode(self, block: int, slots: Sequence[memoryview]) -> float:
        seconds = 0.0
        for field, _, n_bytes in self._fields:
            opened, offset, encoded_bytes = self._stored(field, block)
            if not 0 < encoded_bytes <= n_bytes + HEADER_BYTES:
                raise self._damaged(field, block, f"The index gives it {encoded_bytes + CHECKSUM_BYTES} bytes")
            encoded = self._buffer()[:encoded_bytes]
            seconds += self._fill(encoded, opened.fd, offset, field, block)
            self._check(crc32c(encoded), field, block)
            self._decode(encoded, slots[field], field, block)
        return seconds

    def _decode(self, encoded: memoryview, slot: memoryview, field: int, block: int) -> None:
        # The checksum says that these are the bytes that were written, not that they are a block.
        why = header_mismatch(encoded, encoded_bytes=len(encoded), n_bytes=self._fields[field][2])
        if why:
            raise self._damaged(field, block, why)
        try:
            blosc.decompress(encoded, slot)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(field, block, f"It does not decode: {error}") from error

    def _read_generally(self, block: int, slots: Sequence[memoryview]) -> float:
        started = time.perf_counter()
        for field, name, _ in self._fields:
            self._under_way[threading.get_ident()] = block, field, time.monotonic()
            rows = self._dataset.read_block(name, block)
            slots[field][: rows.nbytes] = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        return time.perf_counter() - started

    def _fill(self, buffer: memoryview, fd: int, offset: int, field: int, block: int) -> float:
        """Fill a buffer from a place of a file; return the seconds that took."""
        started = time.perf_counter()
        try:
            n_read = os.preadv(fd, [buffer], offset)
            while n_read < len(buffer):
                more = os.preadv(fd, [buffer[n_read:]], offset + n_read)
                if more == 0:
                    raise self._damaged(field, block, f"The file ends {len(buffer) - n_read} bytes early")
                n_read += more
        except DatasetError:
            raise
        except OSError as error:
            raise self._damaged(field, block, f"The disk says: {error.strerror}") from error
        if self._drops:
            os.posix_fadvise(fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        return time.perf_counter() - started

    def _check(self, checksum: int, field: int, block: int) -> None:
        expected = self._checksums[block * len(self._fields) + field]
        if checksum != expected:
            raise self._damaged(field, block, f"crc32c is {checksum:08x}, the dataset's table says {expected:08x}")

    def _shard(self, field: int, block: int) -> _ShardHandle:
        shard = block // self._layout.shard_blocks
        opened = self._shards.get((field, shard))
        return opened if opened is not None else self._open(field, shard, block)

    def _open(self, field: int, shard: int, block: int) -> _ShardHandle:
        path = self._dataset.shard_path(self._fields[field][1], shard)
        with self._opening:
            if (field, shard) in self._shards:
                return self._shards[field, shard]
            try:
                opened = _ShardHandle(path, self._layout, shard)
            except DatasetError as error:
                raise self._damaged(field, block, error.what) from error
            except OSError as error:
                raise self._damaged(field, block, f"The file cannot be opened: {error.strerror}") from error
            # 1. Thread A looks a shard up and is about to read it. 2. Thread B opens one more and evicts that shard.
            # 3. The system gives its descriptor to the next file opened. 4. A would read that file: so a reading
            # thread holds the shard itself, whose descriptor closes only when nothing refers to it.
            while len(self._shards) >= _MOST_OPEN_FILES:
                self._shards.pop(next(iter(self._shards)), None)
            self._shards[field, shard] = opened
        return opened

    def _buffer(self) -> memoryview:
        """Scratch memory of this thread, large enough for any encoded chunk."""
        buffer: memoryview | None = getattr(self._scratch, "buffer", None)
        if buffer is None:
            largest = max(n_bytes for _, _, n_bytes in self._fields) + HEADER_BYTES
            buffer = self._scratch.buffer = memoryview(bytearray(largest))
        return buffer

    def _damaged(self, field: int, block: int, why: str) -> DamagedBlock:
        return self._dataset.damaged(self._layout.fields[field].name, block, why)


def _is_cached(fd: int, offset: int) -> bool:
    """Whether a byte of a file can be read without waiting for the disk; True where the system does not tell."""
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        # Not every file system knows the question.
        return True
    return True
