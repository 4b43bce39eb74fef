"""One shard file (Zarr v3 ``sharding_indexed``): encoded blocks one after the other, then an index of where they are.

The index has an (offset, size) pair of little-endian uint64 for every block a shard has room for, and a crc32c.
A block past the array's end, in the last shard, is absent: both numbers are 2⁶⁴ - 1. The size counts the block's own
checksum. A block inside the array is always present, whatever it holds: a missing one must never read as zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.layout import CHECKSUM_BYTES
from streamtrain.store.codec import Data, checksum, checksum_bytes
from streamtrain.store.joined import joined
from streamtrain.store.stored import RESTORE, StoredFile
from streamtrain.system.files import FileWriter

ABSENT: Final = 2**64 - 1
_ENTRY_BYTES: Final = 16
_WITH_CHECKSUM: Final = checksum(checksum_bytes(0))
"""The crc32c of any bytes followed by their own crc32c."""


class ShardWriter:
    """A shard file being written, block by block, then its index; the file is its owner's to finish or abandon.

    Parameters
    ----------
    out : FileWriter
        The file.
    shard_blocks : int
        How many blocks the index has room for.
    """

    def __init__(self, out: FileWriter, shard_blocks: int) -> None:
        self.checksums: list[int] = []
        self._out = out
        self._crc = 0
        self._index = np.full((shard_blocks, 2), ABSENT, "<u8")

    @property
    def stored(self) -> StoredFile:
        """The file so far."""
        return StoredFile(n_bytes=self._out.n_bytes, crc32c=self._crc)

    def append(self, *encoded: Data) -> None:
        """Write the next blocks: their encoded bytes, without the checksums."""
        buffers: list[Data] = []
        n_bytes = self._out.n_bytes
        for data in encoded:
            view = memoryview(data)
            crc = checksum(view)
            stored_bytes = view.nbytes + CHECKSUM_BYTES
            self._index[len(self.checksums)] = n_bytes, stored_bytes
            self.checksums.append(crc)
            self._crc = joined(self._crc, _WITH_CHECKSUM, stored_bytes)
            buffers += view, checksum_bytes(crc)
            n_bytes += stored_bytes
        self._out.write(*buffers)

    def finish(self) -> None:
        """Write the index."""
        index = self._index.tobytes()
        self._crc = joined(self._crc, _WITH_CHECKSUM, len(index) + CHECKSUM_BYTES)
        self._out.write(index, checksum_bytes(checksum(index)))


def index_bytes(shard_blocks: int) -> int:
    """The length of a shard's index, which ends the file.

    Examples
    --------
    >>> index_bytes(64)
    1028
    """
    return _ENTRY_BYTES * shard_blocks + CHECKSUM_BYTES


def parse_index(data: Data, *, n_bytes: int, n_present: int, where: str) -> npt.NDArray[np.uint64]:
    """Check a shard's index and return it.

    Parameters
    ----------
    data : buffer
        The index with its checksum, the last `index_bytes` of the file.
    n_bytes : int
        The length of the file.
    n_present : int
        How many blocks the shard must hold.
    where : str
        The file's name in the error message.

    Returns
    -------
    ndarray of uint64, shape (n_present, 2)
        Offset and size in bytes of each block; the size counts the block's four checksum bytes.

    Raises
    ------
    DatasetError
        The checksum does not match, or an entry points outside the file.
    """
    view = memoryview(data)
    body, stored = view[:-CHECKSUM_BYTES], int.from_bytes(view[-CHECKSUM_BYTES:], "little")
    if checksum(body) != stored:
        raise DatasetError("the shard's index does not match its checksum", where=where, fix=RESTORE)
    index = np.frombuffer(body, "<u8").reshape(-1, 2)[:n_present].astype(np.uint64)
    end = np.uint64(n_bytes - view.nbytes)
    # Each of the two is checked alone first: their sum could wrap around.
    inside = (index[:, 0] <= end) & (index[:, 1] <= end) & (index[:, 1] >= CHECKSUM_BYTES)
    inside &= index[:, 0] + index[:, 1] <= end
    if len(index) < n_present or not inside.all():
        raise DatasetError("the shard's index points outside the file, or misses a block", where=where, fix=RESTORE)
    return index


def index_of(file: BinaryIO, path: Path, *, shard_blocks: int, n_present: int) -> npt.NDArray[np.uint64]:
    """Read and check the index of an open shard file; see `parse_index`.

    Raises
    ------
    DatasetError
        The file is too short, or its index is damaged.
    """
    size = index_bytes(shard_blocks)
    n_bytes = file.seek(0, 2)
    file.seek(max(0, n_bytes - size))
    data = file.read(size)
    if len(data) < size:
        raise DatasetError(
            f"the shard has {n_bytes} bytes, less than its index of {size}", where=str(path), fix=RESTORE
        )
    return parse_index(data, n_bytes=n_bytes, n_present=n_present, where=str(path))
