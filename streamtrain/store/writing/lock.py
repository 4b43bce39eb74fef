"""The lock of a dataset or a folder: one writer at a time, by ``flock``, which ends with its process.

A dataset's lock file stands beside it, as its folder is replaced; that of a run's folder inside it, where whoever sees
the folder sees the lock, under whatever path. It names its writer, and goes with the lock.
Why nobody can hold a file that has lost its name:

1. A and B both open the file of a dead writer.
2. A locks and removes it, makes a file of its own under the name, and locks that.
3. B gets the lock on the old file, sees that the name now stands for another one, and looks again: A lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from streamtrain.errors import LockedError, ResourceError
from streamtrain.store.manifest import dump_json
from streamtrain.system.files import Files
from streamtrain.system.refusals import is_of_machine, os_failure, translate_os_errors
from streamtrain.system.syscalls import SYSTEM, with_room

FOLDER_LOCK: Final = ".lock"
"""The lock file inside a folder that is written as a whole, such as a run's."""

_MOST_BYTES: Final = 4096
_POLLS: Final = 3
_POLL_SECONDS: Final = 0.01
_held: Final[set[int]] = set()


def _let_go_in_child() -> None:
    # A lock ends with the last copy of its descriptor: a forked child must not keep its parent's alive.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def lock_path(path: Path) -> Path:
    """Return the lock file of a dataset."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def writer_lock(path: Path, files: Files) -> Iterator[None]:
    """Be the only writer of a dataset while the ``with`` block runs; refuse where another process or thread is."""
    with _hold(lock_path(path), files):
        yield


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder while the ``with`` block runs; one made for it goes again if it stays empty."""
    is_made = not folder.exists()
    try:
        with _hold(folder / FOLDER_LOCK, Files()):
            yield
    finally:
        if is_made:
            with suppress(OSError):
                folder.rmdir()


def check_unlocked(path: Path) -> None:
    """Refuse a dataset that somebody is writing, without locking it."""
    with _of_dead_writer(lock_path(path), fcntl.LOCK_SH):
        pass


def check_folder_unlocked(folder: Path) -> None:
    """Refuse a folder that somebody is writing, without locking it."""
    with _of_dead_writer(folder / FOLDER_LOCK, fcntl.LOCK_SH):
        pass


def is_folder_locked(folder: Path) -> bool:
    """Say whether somebody is writing a folder."""
    try:
        check_folder_unlocked(folder)
    except LockedError:
        return True
    except ResourceError:
        pass  # without locks nobody holds one
    return False


@contextmanager
def _hold(lock: Path, files: Files) -> Iterator[None]:
    files.ensure_dir(lock.parent)
    with translate_os_errors("lock", lock):
        while (fd := _take(lock, files)) is None:
            pass
    owner = os.getpid()
    _held.add(fd)
    try:
        yield
    finally:
        # In a forked child it is closed already, and the file stays its parent's.
        if os.getpid() == owner:
            _held.discard(fd)
            _release(lock, fd, files)


def _take(lock: Path, files: Files) -> int | None:
    """Make and lock the lock file; None where somebody else changed it meanwhile."""
    try:
        fd = with_room(lambda: files.system.open(lock))
    except FileNotFoundError:
        # Its folder was another writer's, who ended without a file in it.
        files.ensure_dir(lock.parent)
        return None
    except FileExistsError:
        with _of_dead_writer(lock, fcntl.LOCK_EX) as found:
            if found is not None and _is_same(lock, found):
                files.unlink(lock)
        return None
    try:
        # Until it is locked, others take it for a dead writer's; from then on they can read whose it is.
        files.system.writev(fd, [dump_json({"pid": os.getpid(), "host": platform.node()})])
        if _flock(lock, fd) and _is_same(lock, fd):
            return fd
    except BaseException:
        _give_up(lock, fd, files)
        raise
    os.close(fd)
    return None


def _give_up(lock: Path, fd: int, files: Files) -> None:
    """Remove our file, which may not be locked yet; where somebody else has it locked, it is theirs to remove."""
    try:
        is_free = _flock(lock, fd)
    except ResourceError:
        is_free = True  # there are no locks
    if is_free:
        _release(lock, fd, files)
    else:
        os.close(fd)


def _release(lock: Path, fd: int, files: Files) -> None:
    """Remove our file, then the lock; a file that cannot be removed is a dead writer's as soon as it is closed."""
    try:
        with suppress(OSError):
            if _is_same(lock, fd):
                files.system.unlink(lock)
    finally:
        os.close(fd)


@contextmanager
def _of_dead_writer(lock: Path, kind: int) -> Iterator[int | None]:
    """Hold the lock file that a dead writer left, None where there is none; refuse a living writer's.

    Who only looks shares the lock, for which any file system asks no more than reading.
    """
    try:
        # NFS needs writing for a lock of one's own; another user's file can be locked without, elsewhere.
        flags = os.O_RDWR if os.access(lock, os.W_OK) else os.O_RDONLY
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        fd = with_room(lambda: SYSTEM.open_file(lock, flags))
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    except OSError as error:
        if is_of_machine(error):
            raise os_failure(error, "open", lock) from error
        what = f"the lock file cannot be opened: {error.strerror}"
        raise LockedError(what, where=str(lock), fix="delete it if nobody writes there") from error
    try:
        # Whoever only looks needs no longer, nor does a writer to give its name.
        for _ in range(_POLLS):
            if _flock(lock, fd, kind):
                break
            time.sleep(_POLL_SECONDS)
        else:
            what = f"another process is writing it: {_owner(fd)}"
            raise LockedError(what, where=str(lock), fix="wait for it to end, or end it")
        yield fd
    finally:
        os.close(fd)


def _owner(fd: int) -> str:
    try:
        owner = json.loads(os.pread(fd, _MOST_BYTES, 0))
        return f"pid {owner['pid']} on host {owner['host']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "pid ? on host ?"


def _flock(lock: Path, fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Get the kernel's lock on an open file; False where somebody else has it."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EBADF:
            what = "the lock file belongs to another user, and this file system locks only files that you may write"
            raise LockedError(what, where=str(lock), fix="delete it if nobody writes there") from error
        what = f"cannot lock: {error.strerror}; without locks two processes could write at once"
        fix = "write to a disk with file locks (flock), such as a local one, and copy what was written from there"
        raise ResourceError(what, where=str(lock), fix=fix) from error
    return True


def _is_same(lock: Path, fd: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
