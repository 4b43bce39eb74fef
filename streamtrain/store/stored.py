"""A stored file as the manifest knows it, and reading one against it."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streamtrain.errors import DatasetError, remedy
from streamtrain.store.codec import checksum

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
