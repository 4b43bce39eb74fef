"""Stand-ins for other machines: file systems and kernels as this process meets them, by what their calls answer.

`on` puts the whole process on one: it changes the class `Syscalls` and the few calls that are made without it. What a
stand-in does not name, the real system does. A call that another system makes in several steps calls `between` after
each, so that a process can be ended there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from streamtrain.system import syscalls
from streamtrain.system.syscalls import Syscalls

Call = Callable[..., Any]

MACOS_ENOTSUP, MACOS_EOPNOTSUPP = 45, 102
MACOS_ERRNOS: Final = f"import errno; errno.ENOTSUP, errno.EOPNOTSUPP = {MACOS_ENOTSUP}, {MACOS_EOPNOTSUPP}"
"""Must run before streamtrain is imported, which asks for these numbers then."""

_CHANGING: Final = ("rename", "link", "unlink", "mkdir", "rmdir")
_REAL_FLOCK: Final = fcntl.flock
_OFD_SETLK: Final = 37  # linux/fcntl.h: F_OFD_SETLK


def _refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Machine:
    """One like any other; a subclass has a method for each call that it answers otherwise, with the real one first."""

    def __init__(self) -> None:
        self.between: Callable[[], None] = lambda: None
        self._read: set[tuple[int, int]] = set()

    def begin(self, folder: Path) -> None:
        """Take note of what is in a folder from the start."""

    def read_by_others(self, folder: Path) -> None:
        """Have somebody on this machine read all files that are in a folder now."""
        self._read |= {_identity(path) for path in folder.rglob("*") if path.is_file()}

    def release(self, folder: Path) -> None:
        """Have them end, in this folder and below."""
        self._read.clear()
        for left in [*folder.rglob(".nfs*"), *folder.rglob(".fuse_hidden*")]:
            left.unlink()

    def outside(self) -> Mapping[tuple[Any, str], Any]:
        """List what is changed outside `Syscalls`: of an object and an attribute, the value; None removes it."""
        return {}

    def _hide(self, path: Path, prefix: str) -> None:
        """Rename what is to go while somebody reads it."""
        os.rename(path, path.with_name(f"{prefix}{path.stat().st_ino:016x}"))  # noqa: PTH104 - the real call


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


class NoExchange(Machine):
    """Two names cannot be exchanged."""

    def exchange(self, real: Call, one: Path, other: Path) -> None:
        raise _refuse(errno.EINVAL)


class Nfs(NoExchange):
    """NFS: locks are byte ranges on the server, and what somebody reads goes on under another name."""

    prefix = ".nfs"

    def unlink(self, real: Call, path: Path) -> None:
        if _identity(path) in self._read:
            self._hide(path, self.prefix)
        else:
            real(path)

    def rename(self, real: Call, old: Path, new: Path) -> None:
        if new.is_file() and _identity(new) in self._read:
            self._hide(new, self.prefix)
            self.between()
        real(old, new)

    def outside(self) -> Mapping[tuple[Any, str], Any]:
        return {(fcntl, "flock"): lock_by_range, (os, "preadv"): _preadv_without_flags}


def lock_by_range(fd: int, operation: int) -> None:
    """Lock as NFS does for flock(2): a range of bytes, owned by the open file; one's own needs it open for writing."""
    kind = fcntl.F_RDLCK if operation & fcntl.LOCK_SH else fcntl.F_WRLCK
    fcntl.fcntl(fd, _OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


_REAL_PREADV: Final = os.preadv


def _preadv_without_flags(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
    if flags:
        raise _refuse(errno.EOPNOTSUPP)
    return _REAL_PREADV(fd, buffers, offset)


class LostAnswers(Nfs):
    """NFS with a bad network: every other call that changes a name is done, and answered as if it could not be."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count()

    def lose(self, name: str) -> None:
        """Answer a call that was done, or lose the answer and refuse to do it again."""
        if next(self._numbers) % 2:
            self.between()
            raise _refuse(errno.EEXIST if name in ("link", "mkdir") else errno.ENOENT)


def _lost(name: str) -> Call:
    def call(self: LostAnswers, real: Call, *paths: Path) -> None:
        if name in vars(Nfs):
            getattr(Nfs, name)(self, real, *paths)
        else:
            real(*paths)
        self.lose(name)

    return call


for _name in _CHANGING:
    setattr(LostAnswers, _name, _lost(_name))


class Overlay(Machine):
    """A container: the folders that were there from the start are the image's, and cannot be renamed."""

    def __init__(self) -> None:
        super().__init__()
        self._lower: set[tuple[int, int]] = set()

    def begin(self, folder: Path) -> None:
        self._lower |= {_identity(path) for path in folder.rglob("*") if path.is_dir()}

    def rename(self, real: Call, old: Path, new: Path) -> None:
        self._check(old)
        real(old, new)

    def exchange(self, real: Call, one: Path, other: Path) -> None:
        self._check(one)
        self._check(other)
        real(one, other)

    def _check(self, path: Path) -> None:
        if _identity(path) in self._lower:
            raise _refuse(errno.EXDEV)


class CaseInsensitive(Machine):
    """A disk on which names differ by more than their case: APFS, NTFS, exFAT, SMB."""


def _fold(path: str | os.PathLike[str]) -> Path:
    """Find what a path means: at each step the entry that is there under any case."""
    found = Path(Path(path).anchor or ".")
    for part in Path(path).parts[1 if Path(path).is_absolute() else 0 :]:
        there = found / part
        if not os.path.lexists(there) and found.is_dir():
            there = next((each for each in found.iterdir() if each.name.casefold() == part.casefold()), there)
        found = there
    return found


def _folding() -> Call:
    def call(self: CaseInsensitive, real: Call, *arguments: Any, **options: Any) -> Any:
        return real(*(_fold(each) if isinstance(each, str | Path) else each for each in arguments), **options)

    return call


for _name in (*_CHANGING, "open_file", "stat", "names", "open", "append", "truncate", "fsync_dir", "exchange", "free"):
    setattr(CaseInsensitive, _name, _folding())


class WithoutLinks(NoExchange):
    """FAT, exFAT: a file has one name."""

    def link(self, real: Call, old: Path, new: Path) -> None:
        raise _refuse(errno.EPERM)


class Smb(NoExchange):
    """SMB: no links, a folder cannot be opened, and one in which somebody reads a file cannot be renamed."""

    def link(self, real: Call, old: Path, new: Path) -> None:
        raise _refuse(errno.EOPNOTSUPP)

    def rename(self, real: Call, old: Path, new: Path) -> None:
        self._check(old)
        real(old, new)

    def unlink(self, real: Call, path: Path) -> None:
        self._check(path)
        real(path)

    def _check(self, path: Path) -> None:
        if any(_identity(each) in self._read for each in (path, *path.rglob("*"))):
            raise _refuse(errno.EACCES)

    def outside(self) -> Mapping[tuple[Any, str], Any]:
        return {(os, "open"): _open_no_folder, (os, "preadv"): _preadv_without_flags}


_REAL_OPEN: Final = os.open


def _open_no_folder(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if flags == os.O_RDONLY and dir_fd is None and Path(path).is_dir():
        raise _refuse(errno.EACCES)
    return _REAL_OPEN(path, flags, mode, dir_fd=dir_fd)


class Fuse(Nfs):
    """A file system in user space that can do little: no links, no flush of folders, no figures of its size."""

    prefix = ".fuse_hidden"

    def link(self, real: Call, old: Path, new: Path) -> None:
        raise _refuse(errno.ENOSYS)

    def outside(self) -> Mapping[tuple[Any, str], Any]:
        return {
            (os, "fsync"): _fsync_no_folder,
            (os, "statvfs"): _statvfs_of_zeros,
            (os, "preadv"): _preadv_without_flags,
        }


_REAL_FSYNC: Final = os.fsync


def _fsync_no_folder(fd: int) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise _refuse(errno.ENOSYS)
    _REAL_FSYNC(fd)


def _statvfs_of_zeros(path: Any) -> SimpleNamespace:
    Path(path).stat()
    return SimpleNamespace(f_bavail=0, f_frsize=0, f_blocks=0, f_files=0, f_favail=0)


class WithoutHugePages(Machine):
    """A kernel that is built without transparent huge pages."""

    def outside(self) -> Mapping[tuple[Any, str], Any]:
        class Plain(mmap.mmap):
            def madvise(self, option: int, *rest: int) -> None:
                if option == mmap.MADV_HUGEPAGE:
                    raise _refuse(errno.EINVAL)
                super().madvise(option, *rest)

        return {(mmap, "mmap"): Plain}


class MacOs(NoExchange):
    """macOS over SMB, by its own error numbers; see `MACOS_ERRNOS`."""

    def __init__(self) -> None:
        super().__init__()
        assert errno.EOPNOTSUPP == MACOS_EOPNOTSUPP, "the process began with Linux's numbers"

    def link(self, real: Call, old: Path, new: Path) -> None:
        raise _refuse(MACOS_ENOTSUP)

    def exchange(self, real: Call, one: Path, other: Path) -> None:
        raise _refuse(errno.ENOSYS)

    def outside(self) -> Mapping[tuple[Any, str], Any]:
        def full_flush(fd: int, command: int) -> None:
            raise _refuse(MACOS_ENOTSUP)

        def fsync(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise _refuse(MACOS_EOPNOTSUPP)
            _REAL_FSYNC(fd)

        absent = [(os, "posix_fadvise"), (os, "RWF_NOWAIT"), (os, "sched_getaffinity")]
        absent += [(mmap, "MADV_HUGEPAGE"), (mmap, "MADV_DONTFORK")]
        return {
            (syscalls, "sys"): SimpleNamespace(platform="darwin"),
            (syscalls, "fcntl"): SimpleNamespace(F_FULLFSYNC=51, fcntl=full_flush),
            (os, "fsync"): fsync,
            **dict.fromkeys(absent),
        }


MACHINES: Final[Mapping[str, type[Machine]]] = {
    "NFS": Nfs,
    "NFS, lost answers": LostAnswers,
    "SMB": Smb,
    "FUSE": Fuse,
    "overlay": Overlay,
    "case-insensitive": CaseInsensitive,
    "no links": WithoutLinks,
    "no huge pages": WithoutHugePages,
    "macOS": MacOs,
}
"""Name -> stand-in; a process that is to be on macOS begins with `MACOS_ERRNOS`."""


@contextmanager
def on(machine: Machine) -> Iterator[Machine]:
    """Put this process on a machine while the ``with`` block runs."""
    with ExitStack() as stack:
        for name, original in list(vars(Syscalls).items()):
            if not name.startswith("_") and hasattr(machine, name):
                stack.enter_context(mock.patch.object(Syscalls, name, _instead(original, machine, name)))
        for (holder, name), value in machine.outside().items():
            if value is None and hasattr(holder, name):
                kept = getattr(holder, name)
                delattr(holder, name)
                stack.callback(setattr, holder, name, kept)
            elif value is not None:
                stack.enter_context(mock.patch.object(holder, name, value))
        yield machine


def _instead(original: Call, machine: Machine, name: str) -> Call:
    def call(self: Syscalls, *arguments: Any, **options: Any) -> Any:
        def real(*arguments: Any, **options: Any) -> Any:
            return original(self, *arguments, **options)

        return getattr(machine, name)(real, *arguments, **options)

    return call


_CLONE: Final = {"uts": 0x04000000, "pid": 0x20000000, "mount": 0x00020000}


def leave_namespace(*kinds: str) -> None:
    """Give this process namespaces of its own (unshare(2)); that of pids begins with its next child. Root may."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or library.unshare(sum(_CLONE[kind] for kind in kinds)):
        raise OSError(ctypes.get_errno(), f"cannot leave the namespaces of {', '.join(kinds)}")
