"""Stored bytes by range: those of a local file."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from streamtrain.errors import DatasetError, StreamtrainError
from streamtrain.system.refusals import read_failure
from streamtrain.system.syscalls import SYSTEM, with_room

RESTORE: Final = "restore it from a copy, or ingest again"
_NOT_TOLD: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
_CAREFULLY: Final = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK"))


def unreadable(path: str | os.PathLike[str], error: OSError, *, what: str = "cannot be read") -> StreamtrainError:
    """Make the error for a file that cannot be read: a DatasetError, or a ResourceError where the machine failed."""
    return read_failure(error, path, DatasetError, RESTORE, what=what)


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading: never through a link, and without waiting for a pipe's writer."""
    fd = with_room(lambda: SYSTEM.open_file(path, _CAREFULLY))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "a link, a pipe or something else where a stored file must be")
    return fd


class ByteRanges(Protocol):
    """Stored bytes, read by range: of a local file today; an object of a store can take its place."""

    where: str
    n_bytes: int

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from a place, on any thread; return how many bytes there were before the end."""

    def expect_random(self) -> None:
        """Expect ranges in any order: read nothing ahead of what is announced."""

    def is_near(self, offset: int) -> bool:
        """Say whether a byte can be read without waiting; True where that is unknown."""

    def announce(self, offset: int, n_bytes: int) -> None:
        """Have a range fetched that is about to be read."""

    def drop(self, offset: int, n_bytes: int) -> None:
        """Let the cache forget a range that has been read."""

    def close(self) -> None:
        """Give back what it holds open."""


class LocalFile:
    """A local file: read by ``preadv``, else by seek and read in turn; closed when nothing refers to it any more."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = os.fspath(path)
        try:
            self._fd = open_regular(self.where)
        except OSError as error:
            raise unreadable(path, error, what="the file cannot be read") from error
        self._finalizer = weakref.finalize(self, os.close, self._fd)
        self._finalizer.atexit = False
        self.n_bytes = os.fstat(self._fd).st_size
        self._seeking = threading.Lock()
        self._preadv: Callable[[int, list[memoryview], int], int] = (
            SYSTEM.preadv if hasattr(os, "preadv") else self._seek_and_read
        )
        self._has_advice = hasattr(os, "posix_fadvise")

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from a place, in as many pieces as the system gives."""
        n_read = self._preadv(self._fd, [buffer], offset)
        while n_read < len(buffer) and (more := self._preadv(self._fd, [buffer[n_read:]], offset + n_read)):
            n_read += more
        return n_read

    def _seek_and_read(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        with self._seeking, open(fd, "rb", buffering=0, closefd=False) as file:
            file.seek(offset)
            return file.readinto(buffers[0]) or 0

    def expect_random(self) -> None:
        """Switch the system's read-ahead off."""
        if self._has_advice:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def is_near(self, offset: int) -> bool:
        """Say whether a byte is in the page cache."""
        try:
            os.preadv(self._fd, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except AttributeError:
            return True  # nor has such a system a way to announce
        except OSError as error:
            # File servers do not know the question, and there it helps most to announce.
            return error.errno not in _NOT_TOLD
        return True

    def announce(self, offset: int, n_bytes: int) -> None:
        """Have the disk fetch a range."""
        if self._has_advice:
            os.posix_fadvise(self._fd, offset, n_bytes, os.POSIX_FADV_WILLNEED)

    def drop(self, offset: int, n_bytes: int) -> None:
        """Drop a range from the page cache."""
        if self._has_advice:
            os.posix_fadvise(self._fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file."""
        self._finalizer()
