"""Reading back the shards of a dataset that is being made: those of a journal, or of the dataset that is appended to.

A shard is read once, front to back, and held against what is known of its file, so that what is taken over is what was
written. Nothing of it may be used before the last part has been read: only then is the whole file known to be right.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.layout import CHECKSUM_BYTES, Field, Layout
from streamtrain.store import metadata
from streamtrain.store.codec import checksum, decode, misfit
from streamtrain.store.shard import index_of
from streamtrain.store.stored import RESTORE, StoredFile, check_length, open_regular

Array = npt.NDArray[Any]


class DamagedShard(DatasetError):
    """A shard's file is not the one that was written."""


def is_there(folder: Path, layout: Layout, shard: int, stored: Sequence[StoredFile]) -> bool:
    """Whether a shard has a file of the right length in each field."""
    try:
        for field, file in zip(layout.fields, stored, strict=True):
            check_length(f"{folder}/{metadata.shard_key(field, shard)}", file)
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
            _File(folder / metadata.shard_key(field, shard), field, layout, shard, file, stack)
            for field, file in zip(layout.fields, stored, strict=True)
        ]
        for number, (start, stop) in enumerate(ranges, 1):
            rows = {run.field.name: run.read(stop - start) for run in runs}
            checksums = np.array([run.taken() for run in runs], np.uint32).T
            if number == len(ranges):
                for run in runs:
                    run.finish()
            yield rows, checksums


class _File:
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
        why = None if plain else misfit(encoded, encoded_bytes=len(encoded), n_bytes=out.nbytes)
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
