"""The lock of a destination: one writer at a time, by ``flock``, which the kernel releases when its process ends.

The lock file names its writer, and goes with the lock. Why nobody can hold a file that has lost its name:

1. A and B both open the file of a dead writer.
2. A locks and removes it, makes a file of its own under the name, and locks that.
3. B gets the lock on the old file, sees that the name now stands for another one, and looks again: A lives.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import LockedError, ResourceError
from streamtrain.store.manifest import dump_json
from streamtrain.system.files import Files, translate_os_errors

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_MOST_BYTES: Final = 4096
_POLLS: Final = 3
_POLL_SECONDS: Final = 0.01


def lock_path(path: Path) -> Path:
    """Return the lock file of a dataset."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def writer_lock(path: Path, files: Files) -> Iterator[None]:
    """Be the only writer of a dataset while the ``with`` block runs; refuse where another process or thread is."""
    files.ensure_dir(path.parent)
    lock = lock_path(path)
    while (fd := _take(lock, files)) is None:
        pass
    try:
        yield
    finally:
        _release(lock, fd, files)


def check_unlocked(path: Path) -> None:
    """Refuse a dataset that somebody is writing, without locking it."""
    found = _open(lock_path(path), os.O_RDONLY)
    if found is not None:
        try:
            _check_dead(lock_path(path), found, shared=True)
        finally:
            os.close(found)


def _take(lock: Path, files: Files) -> int | None:
    """Make and lock the lock file; None where somebody else changed it meanwhile."""
    try:
        with translate_os_errors("create", lock):
            fd = files.system.open(lock)
    except FileExistsError:
        _remove_dead(lock, files)
        return None
    try:
        # Until it is locked, others take it for a dead writer's.
        if _flock(lock, fd) and _is_same(lock, fd):
            with translate_os_errors("write", lock):
                files.system.writev(fd, [dump_json({"pid": os.getpid(), "host": platform.node()})])
            return fd
    except BaseException:
        _release(lock, fd, files)
        raise
    os.close(fd)
    return None


def _remove_dead(lock: Path, files: Files) -> None:
    """Remove the file of a dead writer, or refuse a living one."""
    found = _open(lock, os.O_RDWR)
    if found is None:
        return
    try:
        _check_dead(lock, found)
        if _is_same(lock, found):
            with translate_os_errors("remove", lock):
                files.system.unlink(lock)
    finally:
        os.close(found)


def _release(lock: Path, fd: int, files: Files) -> None:
    """Remove our file, then the lock; a file that cannot be removed is a dead writer's as soon as it is closed."""
    with suppress(OSError):
        if _is_same(lock, fd):
            files.system.unlink(lock)
    os.close(fd)


def _check_dead(lock: Path, fd: int, *, shared: bool = False) -> None:
    """Refuse a lock that somebody holds; afterwards we hold it."""
    for _ in range(_POLLS):
        if _flock(lock, fd, shared=shared):
            return
        time.sleep(_POLL_SECONDS)  # whoever only looks needs no longer, nor does a writer to give its name
    try:
        owner: Any = json.loads(os.pread(fd, _MOST_BYTES, 0))
        pid, host = owner["pid"], owner["host"]
    except (ValueError, TypeError, KeyError):
        pid = host = "?"
    what = f"another process is writing it: pid {pid} on host {host}"
    raise LockedError(what, where=str(lock), fix="wait for it to end, or end it")


def _open(lock: Path, flags: int) -> int | None:
    """Open the lock file as it is; None where there is none."""
    safely = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        try:
            return os.open(lock, flags | safely)
        except PermissionError:
            # Another user's: only NFS needs more than reading for a lock.
            return os.open(lock, os.O_RDONLY | safely)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        what = f"the lock file cannot be opened: {error.strerror}"
        raise LockedError(what, where=str(lock), fix="delete it if nobody writes the dataset") from error


def _flock(lock: Path, fd: int, *, shared: bool = False) -> bool:
    """Get the kernel's lock on an open file; False where somebody else has it."""
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        what = f"cannot lock: {error.strerror or error}; without locks two processes could write at once"
        fix = "write to a disk with file locks (flock), such as a local one, and copy the dataset from there"
        raise ResourceError(what, where=str(lock), fix=fix) from error
    return True


def _is_same(lock: Path, fd: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
