"""Shard files (Zarr v3 ``sharding_indexed``): written, indexed, read back and checked.

A shard holds encoded blocks end to end, then an index with an (offset, size) pair of little-endian uint64 for every
block it has room for, and a crc32c of the index. A block past the array's end, in the last shard, is absent: both
numbers are 2⁶⁴ - 1. The size includes the block's own checksum. A block inside the array is always present, whatever it
holds: a missing one must never read as zeros.

`ShardReader` is the only reader of blocks, over any `ByteRanges`; what it checks are the bytes that it then decodes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamtrain.errors import DamagedBlock, DatasetError, StreamtrainError
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE, ByteRanges, LocalFile, open_regular, unreadable
from streamtrain.store.codec import (
    HEADER_BYTES,
    BytesLike,
    checksum,
    checksum_bytes,
    combine_crc32c,
    decode,
    header_mismatch,
)
from streamtrain.store.layout import CHECKSUM_BYTES, Field, Layout
from streamtrain.store.media.encoded import unpacked
from streamtrain.system.files import FileWriter
from streamtrain.system.refusals import refusal_behind
from streamtrain.system.syscalls import SYSTEM

_NO_LINKS: Final = "put the file itself there (DVC: cache.type copy; git-annex: unlock), or restore it from a copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """What the manifest knows of a file: its length and the crc32c of its bytes."""

    n_bytes: int
    crc32c: int


def file_of(data: bytes) -> StoredFile:
    """Describe the file that holds these bytes."""
    return StoredFile(n_bytes=len(data), crc32c=checksum(data))


def check_length(path: str, file: StoredFile) -> None:
    """Refuse a file that is missing, a link (which could lead anywhere), or of another length, without reading it."""
    try:
        status = SYSTEM.stat(path, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError("a stored file is missing", where=path, fix=RESTORE) from None
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError("a link or something else where a stored file must be", where=path, fix=_NO_LINKS)
    if status.st_size != file.n_bytes:
        what = f"the file has {status.st_size:,} bytes; {file.n_bytes:,} were written"
        raise DatasetError(what, where=path, fix=RESTORE)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a small file whole; refuse one that is larger than it may be."""
    try:
        with SYSTEM.stream(open_regular(path), -1) as file:
            # Python sets aside as much as is asked for, whatever the file has.
            data = file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            what = "cannot be read: a link where a stored file must be"
            raise DatasetError(what, where=str(path), fix=_NO_LINKS) from error
        raise unreadable(path, error) from error
    if len(data) > most_bytes:
        raise DatasetError(f"larger than the {most_bytes:,} bytes it may have", where=str(path), fix=RESTORE)
    return data


def read_stored(folder: Path, key: str, file: StoredFile) -> bytes:
    """Read a small stored file whole, and check it."""
    data = read_bounded(folder / key, file.n_bytes)
    if file_of(data) != file:
        raise DatasetError("the file is not the one that was written", where=str(folder / key), fix=RESTORE)
    return data


ABSENT: Final = 2**64 - 1
_ENTRY_BYTES: Final = 16
_WITH_CHECKSUM: Final = checksum(checksum_bytes(0))
"""The crc32c of any bytes followed by their own crc32c."""


class ShardWriter:
    """A shard file being written, block by block, then its index; the file is its owner's to finish or abandon."""

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
    """Return the length of a shard's index, which ends the file."""
    return _ENTRY_BYTES * shard_blocks + CHECKSUM_BYTES


def parse_index(data: BytesLike, *, n_bytes: int, n_present: int, where: str) -> npt.NDArray[np.uint64]:
    """Check the index of a file of so many bytes; return offset and size (checksum included) of each block present."""
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


Array = npt.NDArray[Any]


class ShardReader:
    """The blocks of one field in one shard; any number of threads may read them.

    Uncompressed blocks are found without the index, too; with ``indexed=False`` it is not read for them.
    """

    def __init__(self, stored: ByteRanges, layout: Layout, field: Field, shard: int, *, indexed: bool = True) -> None:
        self.stored, self.field = stored, field
        self.first, self.end = layout.shard_blocks_range(shard)
        self._layout, self._codec = layout, layout.codec_of(field)
        self._block_bytes = layout.block_rows * field.row_bytes
        self.index: npt.NDArray[np.uint64] | None = None
        self._places: memoryview | None = None
        if indexed or self._codec != "none":
            try:
                self.index = self._read_index()
            except BaseException:
                stored.close()
                raise
            self._places = self.index.ravel().data

    def _read_index(self) -> npt.NDArray[np.uint64]:
        stored, size = self.stored, index_bytes(self._layout.shard_blocks)
        if stored.n_bytes < size:
            what = f"the shard has {stored.n_bytes} bytes, less than its index of {size}"
            raise DatasetError(what, where=stored.where, fix=RESTORE)
        data = memoryview(bytearray(size))
        try:
            n_read = stored.read_into(data, stored.n_bytes - size)
        except OSError as error:
            raise unreadable(stored.where, error) from error
        n_present = self.end - self.first
        return parse_index(data[:n_read], n_bytes=stored.n_bytes, n_present=n_present, where=stored.where)

    def is_gapless(self) -> bool:
        """Say whether the blocks fill the file up to its index, in order, as the writer leaves them."""
        assert self.index is not None
        ends = np.cumsum(self.index[:, 1], dtype=np.uint64)
        in_order = bool((self.index[1:, 0] == ends[:-1]).all()) and self.index[0, 0] == 0
        return in_order and int(ends[-1]) == self.stored.n_bytes - index_bytes(self._layout.shard_blocks)

    def span(self, block: int) -> tuple[int, int]:
        """Return the offset of a block's encoded bytes, and their number without the checksum."""
        place = block - self.first
        if self._places is None:
            return place * (self._block_bytes + CHECKSUM_BYTES), self._block_bytes
        n_bytes = self._places[2 * place + 1] - CHECKSUM_BYTES
        if self._codec == "none":
            if n_bytes != self._block_bytes:
                raise self.damaged(block, f"It has {n_bytes:,} bytes, not {self._block_bytes:,}")
        elif not 0 < n_bytes <= self._block_bytes + HEADER_BYTES:
            raise self.damaged(block, f"The index gives it {n_bytes + CHECKSUM_BYTES} bytes")
        return self._places[2 * place], n_bytes

    def fetch_stored(self, block: int) -> memoryview:
        """Read a block's encoded bytes and the checksum that follows them."""
        n_after = CHECKSUM_BYTES
        return self.fetch(block, np.empty(self.span(block)[1] + n_after, np.uint8).data, n_after=n_after)

    def fetch(self, block: int, buffer: memoryview, n_after: int = 0) -> memoryview:
        """Read a block's encoded bytes, and some after them, as far as there is room; return what they fill of it."""
        offset, n_bytes = self.span(block)
        n_bytes += n_after
        part = buffer if len(buffer) <= n_bytes else buffer[:n_bytes]
        try:
            n_read = self.stored.read_into(part, offset)
        except OSError as error:
            raise unread_block(self._layout, self.field, block, self.stored.where, error) from error
        if n_read < len(part):
            raise self.damaged(block, f"The file ends {len(part) - n_read} bytes early")
        return part

    def is_near(self, block: int) -> bool:
        """Say whether a block can be read without waiting for the disk."""
        offset, n_bytes = self.span(block)
        return self.stored.is_near(offset + n_bytes // 2)  # its middle: a neighbour's read may have brought its ends

    def announce(self, block: int) -> None:
        """Have a block fetched that is about to be read."""
        self.stored.announce(*self.span(block))

    def drop(self, block: int) -> None:
        """Let the cache forget a block that has been read."""
        self.stored.drop(*self.span(block))

    def check(self, block: int, encoded: memoryview, expected: int) -> None:
        """Refuse encoded bytes that do not have the checksum in the dataset's table."""
        found = crc32c(encoded)
        if found != expected:
            raise self.damaged(block, f"crc32c is {found:08x}, the dataset's table says {expected:08x}")

    def check_stored(self, block: int, stored: memoryview, expected: int | None = None) -> memoryview:
        """Check encoded bytes, their header and the checksum after them, alone without a table; return them."""
        encoded, after = stored[:-CHECKSUM_BYTES], int.from_bytes(stored[-CHECKSUM_BYTES:], "little")
        if expected is not None:
            self.check(block, encoded, expected)
            if after != expected:
                raise self.damaged(block, f"The checksum that follows it is {after:08x}, not {expected:08x}")
        elif checksum(encoded) != after:
            raise self.damaged(block, "a block does not match its checksum")
        self.check_header(block, encoded)
        return encoded

    def check_header(self, block: int, encoded: memoryview) -> None:
        """Refuse encoded bytes that would not decode to a whole block, whatever their checksum says."""
        if self._codec != "none":
            why = header_mismatch(encoded, encoded_bytes=len(encoded), n_bytes=self._block_bytes)
            if why:
                raise self.damaged(block, why)

    def decode(self, block: int, encoded: memoryview, out: Array) -> None:
        """Decode checked bytes into a contiguous array of the block's full size."""
        self.check_header(block, encoded)
        try:
            decode(encoded, out, self._codec)
        except (RuntimeError, ValueError) as error:
            raise self.damaged(block, f"It does not decode: {error}") from error

    def damaged(self, block: int, why: str) -> DamagedBlock:
        """Make the error for a block whose stored bytes are not those that were written."""
        return damaged_block(self._layout, self.field, block, where=self.stored.where, why=why)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stored.close()


def damaged_block(layout: Layout, field: Field, block: int, *, where: str, why: str) -> DamagedBlock:
    """Make the error for a block that is not what was written, or is missing."""
    what, samples = f"{_block_name(layout, field, block)} is damaged", layout.block_range(block)
    return DamagedBlock(what, where=where, why=why, fix=RESTORE, field=field.name, block=block, samples=samples)


def unread_block(layout: Layout, field: Field, block: int, where: str, error: OSError) -> StreamtrainError:
    """Make the error for a block that the system did not read, of which nobody knows whether it is damaged."""
    return unreadable(where, error, what=f"{_block_name(layout, field, block)} cannot be read")


def _block_name(layout: Layout, field: Field, block: int) -> str:
    start, stop = layout.block_range(block)
    return f"block {block} of field {field.name} (samples {start} to {stop - 1})"


class DamagedShard(DatasetError):
    """A shard's file is not the one that was written."""


def shard_exists(folder: Path, layout: Layout, shard: int, stored: Sequence[StoredFile]) -> bool:
    """Say whether a shard has a file of the right length in each field."""
    try:
        for field, file in zip(layout.fields, stored, strict=True):
            check_length(f"{folder}/{zarr_metadata.shard_key(field, shard)}", file)
    except (DatasetError, ValueError) as error:
        if refusal_behind(error):
            raise
        return False
    return True


def reread(
    folder: Path, layout: Layout, shard: int, stored: Sequence[StoredFile], ranges: Sequence[tuple[int, int]]
) -> Generator[tuple[dict[str, Array], npt.NDArray[np.uint32]], None, None]:
    """Read a shard back in parts of whole blocks; yield each field's rows, and the checksums (n_blocks, n_fields).

    Nothing of it may be used before the last part: only then is each whole file known to be the one that was written.
    """
    with ExitStack() as stack:
        runs = [
            _ShardReadBack(folder / zarr_metadata.shard_key(field, shard), field, layout, shard, file, stack)
            for field, file in zip(layout.fields, stored, strict=True)
        ]
        for number, (start, stop) in enumerate(ranges, 1):
            parts = [run.read(stop - start) for run in runs]
            if number == len(ranges):
                for run in runs:
                    run.finish()
            rows = {field.name: part for field, (part, _) in zip(layout.fields, parts, strict=True)}
            rows = {name: values[: stop - start] for name, values in unpacked(rows, layout).items()}
            yield rows, np.array([checksums for _, checksums in parts], np.uint32).T


class _ShardReadBack:
    """The shard file of one field, read in order and compared with what is known of the whole file."""

    def __init__(
        self, path: Path, field: Field, layout: Layout, shard: int, stored: StoredFile, stack: ExitStack
    ) -> None:
        self._path, self._field, self._layout, self._stored = path, field, layout, stored
        self._crc = self._n_read = 0
        with self._named():
            self._shard = stack.enter_context(ShardReader(LocalFile(path), layout, field, shard))
        self._block = self._shard.first

    def read(self, n_rows: int) -> tuple[Array, list[int]]:
        """Read the blocks that hold the next rows, whole, and the checksum of each."""
        block_rows = self._layout.block_rows
        rows = np.empty((-(-n_rows // block_rows) * block_rows, *self._field.shape), self._field.dtype)
        checksums = []
        for start in range(0, len(rows), block_rows):
            with self._named():
                data = self._shard.fetch_stored(self._block)
                encoded = self._shard.check_stored(self._block, data)
                self._shard.decode(self._block, encoded, rows[start : start + block_rows])
            self._take(data)
            self._block += 1
            checksums.append(int.from_bytes(data[-CHECKSUM_BYTES:], "little"))
        return rows, checksums

    def finish(self) -> None:
        """Read the index too, and hold the file's checksum against what was written."""
        with self._named():
            file, known = self._shard.stored, self._stored
            rest = memoryview(bytearray(max(0, known.n_bytes - self._n_read)))
            self._take(rest[: file.read_into(rest, self._n_read)])
            if (file.n_bytes, self._n_read, self._crc) != (known.n_bytes, known.n_bytes, known.crc32c):
                raise OSError("the file does not match its checksum")

    def _take(self, data: memoryview) -> None:
        self._crc = checksum(data, self._crc)
        self._n_read += len(data)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn what fails into the error for the whole shard."""
        try:
            yield
        except OSError as error:  # ours among them
            if refusal := refusal_behind(error):
                raise unreadable(self._path, refusal) from refusal
            why = (error.why or error.what) if isinstance(error, DatasetError) else error.strerror or str(error)
            what = f"a shard of field {self._field.name} is not what was written: {why}"
            raise DamagedShard(what, where=str(self._path), fix=RESTORE) from error
