"""The lock of a destination: one writer at a time.

The lock file appears whole, by a link to a file that is already written, and its writer holds an advisory lock (flock)
on it while it lives. A lock may be taken over only if its writer is dead: of this host, and either of an earlier boot
or of a process that is gone. Two processes that take over the same lock:

1. A and B both find the file of a dead writer, and open it.
2. A gets the advisory lock on it, renames a file of its own over it, and lets go.
3. B gets the advisory lock, sees that the name now stands for another file, and looks again: A lives.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import LockedError, ResourceError
from streamtrain.store.manifest import Json, dump_json
from streamtrain.system.files import Files, is_temporary, temporary_beside, translate_os_errors

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES: Final = Path("/proc")
_STARTED_FIELD: Final = 19  # of /proc/PID/stat (proc(5): 22), counted from 0 behind the name in parentheses
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})
_MOST_BYTES: Final = 4096


def lock_path(path: Path) -> Path:
    """The lock file of a dataset.

    Examples
    --------
    >>> lock_path(Path("data/d.zarr")).name
    '.d.zarr.lock'
    """
    return path.with_name(f".{path.name}.lock")


@contextmanager
def writer_lock(path: Path, files: Files) -> Iterator[None]:
    """Be the only writer of a dataset while the ``with`` block runs.

    Raises
    ------
    LockedError
        Another process, or another thread of this one, is writing it.
    ResourceError
        The lock file cannot be written.
    """
    files.ensure_dir(path.parent)
    fd = _acquire(lock_path(path), files)
    try:
        yield
    finally:
        # A lock that cannot be removed is a dead writer's as soon as it is closed.
        with suppress(OSError):
            if _is_same(lock_path(path), fd):
                files.system.unlink(lock_path(path))
        os.close(fd)


def check_unlocked(path: Path) -> None:
    """Refuse a dataset that somebody is writing, without locking it.

    Raises
    ------
    LockedError
        Another process, or another thread of this one, is writing it.
    """
    found = _open(lock_path(path))
    if found is not None:
        with _closing(found):
            _check_dead(lock_path(path), found)


def is_stale(path: Path) -> bool:
    """Whether a dataset has a lock whose writer is dead."""
    try:
        check_unlocked(path)
    except LockedError:
        return False
    return lock_path(path).exists()


def dead_temporaries(path: Path) -> Iterator[Path]:
    """What writers that were killed while they took the lock left of it, beside a dataset."""
    prefix = f".{lock_path(path).name}."
    names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []  # noqa: PTH208 - names are enough
    for entry in (path.with_name(name) for name in names if name.startswith(prefix) and is_temporary(name)):
        fd = _open(entry)
        if fd is not None:
            with _closing(fd):
                # One that lives makes its file anew, should this be its own.
                is_dead = _flock(fd) is not False
            if is_dead:
                yield entry


def _acquire(lock: Path, files: Files) -> int:
    while True:
        try:
            return _try(lock, files)
        except FileNotFoundError:
            # Somebody tidied up our temporary file, between its making and its own lock.
            pass


def _try(lock: Path, files: Files) -> int:
    temporary = temporary_beside(lock)
    with translate_os_errors("create", lock):
        fd = files.system.open(temporary)
    try:
        _flock(fd)
        with translate_os_errors("write", lock):
            files.system.writev(fd, [dump_json(_us())])
        while not _take(lock, temporary, files):
            pass
    except BaseException:
        os.close(fd)
        raise
    finally:
        with suppress(OSError):
            files.system.unlink(temporary)
    return fd


def _take(lock: Path, temporary: Path, files: Files) -> bool:
    """Put our file under the lock's name; False where somebody else changed it meanwhile."""
    try:
        _link(temporary, lock, files)
        return True
    except FileExistsError:
        pass
    found = _open(lock)
    if found is None:
        return False
    with _closing(found):
        _check_dead(lock, found)
        if not _is_same(lock, found):
            return False
        with translate_os_errors("lock", lock):
            files.system.rename(temporary, lock)
    return True


def _link(temporary: Path, lock: Path, files: Files) -> None:
    try:
        return files.system.link(temporary, lock)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise ResourceError(f"cannot lock: {error.strerror}", where=str(lock)) from error
    # An empty file of the lock's name is a dead writer's, unless somebody holds it: we hold it until ours is there.
    with translate_os_errors("lock", lock):
        claim = files.system.open(lock)
    with _closing(claim), translate_os_errors("lock", lock):
        if _flock(claim) is False or not _is_same(lock, claim):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(lock))
        files.system.rename(temporary, lock)


def _check_dead(lock: Path, fd: int) -> None:
    """Refuse a lock whose writer lives, or may; afterwards we hold the advisory lock on it, where there are such."""
    is_ours_now = _flock(fd)
    owner = _read(fd)
    if is_ours_now is not False and _is_dead(owner, is_let_go=is_ours_now is True):
        return
    pid, host = owner.get("pid", "?"), owner.get("host", "?")
    raise LockedError(
        f"another process is writing it: pid {pid} on host {host}",
        where=str(lock),
        fix=f"wait for it to end; if no process {pid} runs on {host}, delete this file",
    )


def _is_dead(owner: Json, *, is_let_go: bool) -> bool:
    """Whether the writer of a lock is; ``is_let_go`` says that nobody holds the advisory lock on it."""
    # A lock is written before it gets its name: one that says nothing is what a crash of the machine left of it.
    if not owner:
        return True
    us = _us()
    if owner.get("host") != us["host"]:
        return False
    if owner.get("boot") != us["boot"]:
        return True
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return True
    if pid == us["pid"]:
        # Where nothing tells whether it is held, it may be another thread's.
        return is_let_go
    return not _lives(pid) or _started(pid) != owner.get("started")


def _us() -> Json:
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "boot": boot_id(), "started": _started(pid)}


def boot_id() -> str:
    """What tells one boot of the machine from the next; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's own count: a number may be given to another process later."""
    try:
        return (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()[_STARTED_FIELD]
    except (OSError, IndexError):
        return None


def _lives(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def _open(lock: Path) -> int | None:
    try:
        return os.open(lock, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        what = f"the lock file cannot be opened: {error.strerror}"
        raise LockedError(what, where=str(lock), fix="delete it if nobody writes the dataset") from error


def _read(fd: int) -> Json:
    try:
        found: Any = json.loads(os.pread(fd, _MOST_BYTES, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _flock(fd: int) -> bool | None:
    """Get the advisory lock on a file; False where somebody else has it, None where system or disk have no such."""
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:
            pass
    return None


def _is_same(lock: Path, fd: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)
