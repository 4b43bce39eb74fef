"""Shard files (Zarr v3 ``sharding_indexed``): written, indexed, read back and checked.

A shard holds encoded blocks end to end, then an index with an (offset, size) pair of little-endian uint64 for every
block it has room for, and a crc32c of the index. A block past the array's end, in the last shard, is absent: both
numbers are 2⁶⁴ - 1. The size includes the block's own checksum. A block inside the array is always present, whatever it
holds: a missing one must never read as zeros.

A shard is read back once, front to back, and compared with what is known of its file. Nothing of it may be used before
the last part has been read: only then is the whole file known to be right.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError, remedy
from streamtrain.store import zarr_metadata
from streamtrain.store.codec import BytesLike, checksum, checksum_bytes, combine_crc32c, decode, header_mismatch
from streamtrain.store.layout import CHECKSUM_BYTES, Field, Layout
from streamtrain.system.files import FileWriter

RESTORE: Final = "restore it from a copy, or ingest again"
_CAREFULLY: Final = ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """What the manifest knows of a file: its length and the crc32c of its bytes."""

    n_bytes: int
    crc32c: int


def file_of(data: bytes) -> StoredFile:
    """Describe the file that holds these bytes.

    Examples
    --------
    >>> file_of(b"123456789")
    StoredFile(n_bytes=9, crc32c=3808858755)
    """
    return StoredFile(n_bytes=len(data), crc32c=checksum(data))


def check_length(path: str, file: StoredFile) -> None:
    """Hold a file's presence and length against the manifest, without reading it.

    Raises
    ------
    DatasetError
        It is missing, not a regular file (a link could lead anywhere), or of another length.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError("a stored file is missing", where=path, fix=RESTORE) from None
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError("a link or something else where a stored file must be", where=path, fix=RESTORE)
    if status.st_size != file.n_bytes:
        what = f"the file has {status.st_size:,} bytes; {file.n_bytes:,} were written"
        raise DatasetError(what, where=path, fix=RESTORE)


def unreadable(path: str | os.PathLike[str], error: OSError) -> DatasetError:
    """The error for what is there, as far as anyone can tell, and cannot be looked at."""
    what = f"cannot be read: {error.strerror or error}"
    return DatasetError(what, where=os.fspath(path), fix=remedy(error, RESTORE))


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a file for reading, by a path that must not end in a link; a pipe there does not wait for its writer.

    Raises
    ------
    OSError
        It cannot be opened, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in _CAREFULLY))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "a link, a pipe or something else where a stored file must be")
    return fd


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a small file whole.

    Raises
    ------
    DatasetError
        It cannot be read, is no regular file, or is larger than it may be.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            # Python sets aside as much as is asked for, whatever the file has.
            data = file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            what = "cannot be read: a link where a stored file must be"
            raise DatasetError(what, where=str(path), fix=RESTORE) from error
        raise unreadable(path, error) from error
    if len(data) > most_bytes:
        raise DatasetError(f"larger than the {most_bytes:,} bytes it may have", where=str(path), fix=RESTORE)
    return data


def read_stored(folder: Path, key: str, file: StoredFile) -> bytes:
    """Read a small stored file whole, and check it.

    Raises
    ------
    DatasetError
        Its bytes are not those that were written.
    """
    data = read_bounded(folder / key, file.n_bytes)
    if file_of(data) != file:
        raise DatasetError("the file is not the one that was written", where=str(folder / key), fix=RESTORE)
    return data


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

    def append(self, *encoded: BytesLike) -> None:
        """Write the next blocks: their encoded bytes, without the checksums."""
        buffers: list[BytesLike] = []
        n_bytes = self._out.n_bytes
        for data in encoded:
            view = memoryview(data)
            crc = checksum(view)
            stored_bytes = view.nbytes + CHECKSUM_BYTES
            self._index[len(self.checksums)] = n_bytes, stored_bytes
            self.checksums.append(crc)
            self._crc = combine_crc32c(self._crc, _WITH_CHECKSUM, stored_bytes)
            buffers += view, checksum_bytes(crc)
            n_bytes += stored_bytes
        self._out.write(*buffers)

    def finish(self) -> None:
        """Write the index."""
        index = self._index.tobytes()
        self._crc = combine_crc32c(self._crc, _WITH_CHECKSUM, len(index) + CHECKSUM_BYTES)
        self._out.write(index, checksum_bytes(checksum(index)))


def index_bytes(shard_blocks: int) -> int:
    """The length of a shard's index, which ends the file.

    Examples
    --------
    >>> index_bytes(64)
    1028
    """
    return _ENTRY_BYTES * shard_blocks + CHECKSUM_BYTES


def parse_index(data: BytesLike, *, n_bytes: int, n_present: int, where: str) -> npt.NDArray[np.uint64]:
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


Array = npt.NDArray[Any]


class DamagedShard(DatasetError):
    """A shard's file is not the one that was written."""


def shard_exists(folder: Path, layout: Layout, shard: int, stored: Sequence[StoredFile]) -> bool:
    """Whether a shard has a file of the right length in each field."""
    try:
        for field, file in zip(layout.fields, stored, strict=True):
            check_length(f"{folder}/{zarr_metadata.shard_key(field, shard)}", file)
    except (DatasetError, ValueError):
        return False
    return True


def reread(
    folder: Path, layout: Layout, shard: int, stored: Sequence[StoredFile], ranges: Sequence[tuple[int, int]]
) -> Generator[tuple[dict[str, Array], npt.NDArray[np.uint32]], None, None]:
    """Read a shard back, in parts.

    Parameters
    ----------
    folder : Path
        Where its files are.
    layout : Layout
        The dataset's.
    shard : int
        Which one.
    stored : sequence of StoredFile
        What is known of its file of each field.
    ranges : sequence of tuple of int
        The rows of each part: whole blocks, one part after the other.

    Yields
    ------
    dict of str to ndarray, ndarray of uint32
        The rows of each field, and the crc32c of their blocks, shape (n_blocks, n_fields).

    Raises
    ------
    DamagedShard
        A file is not the one that was written; it may take until its end to see that.
    """
    with ExitStack() as stack:
        runs = [
            _ShardReadBack(folder / zarr_metadata.shard_key(field, shard), field, layout, shard, file, stack)
            for field, file in zip(layout.fields, stored, strict=True)
        ]
        for number, (start, stop) in enumerate(ranges, 1):
            rows = {run.field.name: run.read(stop - start) for run in runs}
            checksums = np.array([run.taken() for run in runs], np.uint32).T
            if number == len(ranges):
                for run in runs:
                    run.finish()
            yield rows, checksums


class _ShardReadBack:
    """The shard file of one field, read in order."""

    def __init__(
        self, path: Path, field: Field, layout: Layout, shard: int, stored: StoredFile, stack: ExitStack
    ) -> None:
        self.field = field
        self._path, self._layout, self._stored = path, layout, stored
        self._crc = 0
        self._taken: list[int] = []
        first, end = layout.shard_blocks_range(shard)
        try:
            self._file: BinaryIO = stack.enter_context(os.fdopen(open_regular(path), "rb"))
            index = index_of(self._file, path, shard_blocks=layout.shard_blocks, n_present=end - first)
            self._file.seek(0)
        except OSError as error:  # ours for a damaged index among them
            why = error.what if isinstance(error, DatasetError) else error.strerror or str(error)
            raise self._damaged(why) from error
        self._sizes = iter(index[:, 1].tolist())

    def read(self, n_rows: int) -> Array:
        """The next rows, of whole blocks; the last block may be cut."""
        block_rows = self._layout.block_rows
        n_blocks = -(-n_rows // block_rows)
        rows = np.empty((n_blocks * block_rows, *self.field.shape), self.field.dtype)
        for start in range(0, len(rows), block_rows):
            self._read_block(rows[start : start + block_rows])
        return rows[:n_rows]

    def _read_block(self, out: Array) -> None:
        data = self._next(next(self._sizes))
        encoded = memoryview(data)[:-CHECKSUM_BYTES]
        crc = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
        self._taken.append(crc)
        plain = self._layout.codec == "none"
        why = None if plain else header_mismatch(encoded, encoded_bytes=len(encoded), n_bytes=out.nbytes)
        if crc != checksum(encoded) or why or (plain and len(encoded) != out.nbytes):
            raise self._damaged(why or "a block does not match its checksum")
        decode(encoded, out, self._layout.codec)

    def taken(self) -> list[int]:
        """The checksums of the blocks read since the last call."""
        found, self._taken = self._taken, []
        return found

    def finish(self) -> None:
        """Read the index too, and hold the file's checksum against what was written."""
        self._next(self._stored.n_bytes - self._file.tell())
        if self._crc != self._stored.crc32c or self._file.read(1):
            raise self._damaged("the file does not match its checksum")

    def _next(self, n_bytes: int) -> bytes:
        try:
            data = self._file.read(max(0, n_bytes))
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error
        if len(data) < max(n_bytes, CHECKSUM_BYTES):
            raise self._damaged("the file is too short")
        self._crc = checksum(data, self._crc)
        return data

    def _damaged(self, why: str) -> DamagedShard:
        what = f"a shard of field {self.field.name} is not what was written: {why}"
        return DamagedShard(what, where=str(self._path), fix=RESTORE)
