"""The system calls that read and change the disk, one method each: the seam for fault injection.

All that streamtrain writes goes through a `Syscalls` object, all that it reads through `SYSTEM`, whose class a test can
change. A stand-in can make any call fail, end the process before it, or record what was flushed and what was not.
Other libraries open some files themselves: pyarrow its tables, safetensors the weights.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})
_NO_SUCH_CALL: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY})
_NOT_FLUSHED: Final = _NO_SUCH_CALL | {errno.EBADF}
_NOT_OPENED: Final = frozenset({errno.EACCES, errno.EISDIR, errno.ENOSYS})
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

T = TypeVar("T")
_closers: list[Callable[[], int]] = []


def close_when_needed(closer: Callable[[], int]) -> None:
    """Have a function called that closes some files of a cache, and returns how many, when too many are open."""
    _closers.append(closer)


def with_room(opening: Callable[[], T]) -> T:
    """Make a call that opens a file; where too many are open, close some that are only cached, and try again."""
    while True:
        try:
            return opening()
        except OSError as error:
            if error.errno not in TOO_MANY_OPEN or not sum([closer() for closer in _closers]):
                raise


class Syscalls:
    """The system calls themselves."""

    def open_file(self, path: str | os.PathLike[str], flags: int = 0) -> int:
        """Open a file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)

    def stream(self, fd: int, buffering: int) -> BinaryIO:
        """Make an open file one that is read in order, and closed with it."""
        return open(fd, "rb", buffering)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Read bytes from a place into buffers; return how many there were."""
        return os.preadv(fd, buffers, offset)

    def stat(self, path: str | os.PathLike[str], *, follow: bool = True) -> os.stat_result:
        """Look a file or a directory up; the link itself without ``follow``."""
        return os.stat(path, follow_symlinks=follow)  # noqa: PTH116

    def names(self, path: Path) -> list[str]:
        """List what is in a directory, in no order."""
        return os.listdir(path)  # noqa: PTH208

    def open(self, path: Path) -> int:
        """Create a file that must not exist yet, for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def append(self, path: Path) -> int:
        """Open a file that exists, for writing at its end."""
        return os.open(path, os.O_WRONLY | os.O_APPEND)

    def truncate(self, path: Path, n_bytes: int) -> None:
        """Cut a file to a length."""
        os.truncate(path, n_bytes)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Write some of the buffers' bytes, in order; return how many."""
        return os.writev(fd, buffers)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write some bytes at a place of a file; return how many."""
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """Flush a file to the disk, through the drive's own cache."""
        if sys.platform == "darwin":
            # There fsync(2) hands the data to the drive, which may keep it and write in another order.
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
            except OSError as error:
                if error.errno not in _NO_SUCH_CALL:
                    raise
        os.fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        """Flush a directory's entries to the disk, where the platform and the file system can."""
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            # One may write in a folder that one may not read, and SMB opens no folder at all.
            if error.errno not in _NOT_OPENED:
                raise
            return
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network and user-space file systems have no such call; a failing disk has other error numbers.
            if error.errno not in _NOT_FLUSHED:
                raise
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file over another one or over nothing."""
        os.replace(old, new)  # noqa: PTH105 - the system call itself, as every method here

    def exchange(self, one: Path, other: Path) -> None:
        """Exchange what two names stand for, in one step; ``ENOSYS`` or ``EINVAL`` where there is no such call."""
        call = _renameat2()
        if call is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
        if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(one))

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name, which must not exist yet."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)  # noqa: PTH108

    def mkdir(self, path: Path) -> None:
        """Create a directory that must not exist yet."""
        os.mkdir(path)  # noqa: PTH102

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)  # noqa: PTH106

    def free(self, path: Path) -> tuple[int | None, int | None]:
        """Return the bytes and files that may still be written below a directory; None for what is not known."""
        found = os.statvfs(path)
        # Some user-space file systems answer with zeros; the first write tells whether a disk is full.
        n_bytes = found.f_bavail * found.f_frsize if found.f_blocks else None
        return n_bytes, found.f_favail if found.f_files and found.f_favail else None


SYSTEM: Final = Syscalls()
"""The calls by which files are read."""


@cache
def _renameat2() -> Any:
    """Find the C library's renameat2(2) (Linux); None where there is none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call
