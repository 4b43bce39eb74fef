"""Refusals of the system: told apart, and made errors of ours.

Some errors say something of the file (it is missing, or not to be read by this user), all others that the machine
failed (a limit, the disk, the network). The latter are never taken for damage.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from streamtrain.errors import Argument, Fix, ResourceError, StreamtrainError, remedy
from streamtrain.system.syscalls import SYSTEM
from streamtrain.system.units import format_bytes

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_OF_THE_FILE: Final = _ABSENT | {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM})
_OF_THE_NETWORK: Final = frozenset(
    getattr(errno, name)
    for name in ("ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOTCONN")
    if hasattr(errno, name)
)
_USUAL_OPEN_FILES: Final = 1024
_SHORTER: Final = "a shorter path"


def most_open_files() -> int | None:
    """Return how many files this process may have open; None where that is not limited, or not known."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


@contextmanager
def translate_os_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn the system's error into one that names the file; FileExistsError is the caller's to handle."""
    try:
        yield
    except (FileExistsError, BrokenPipeError, StreamtrainError):
        raise
    except OSError as error:
        raise os_failure(error, doing, path) from error


def is_of_machine(error: OSError) -> bool:
    """Say whether an error is the machine's (a limit, the disk, the network), and tells nothing of the file."""
    # Libraries raise an OSError without a number for content that they do not like.
    return error.errno is not None and error.errno not in _OF_THE_FILE | _NOT_ALLOWED


def refusal_behind(error: BaseException) -> OSError | None:
    """Return the system's error, or that behind one of ours, where it tells nothing of what the file holds."""
    found = error.__cause__ if isinstance(error, StreamtrainError) else error
    if isinstance(found, OSError) and not isinstance(found, StreamtrainError):
        return found if is_of_machine(found) or found.errno in _NOT_ALLOWED else None
    return None


def os_failure(error: OSError, doing: str, path: str | os.PathLike[str]) -> ResourceError:
    """Make the error for a call that the system refused: what ran out, its figure, and the remedy."""
    why, fix = _explained(error, path)
    return ResourceError(f"cannot {doing}: {_reason(error)}", where=os.fspath(path), why=why, fix=fix)


def read_failure(
    error: OSError,
    path: str | os.PathLike[str],
    kind: type[StreamtrainError],
    fix: str,
    *,
    what: str = "cannot be read",
) -> StreamtrainError:
    """Make the error for a file that cannot be read: of its kind, or a ResourceError where the machine is to blame."""
    if is_of_machine(error):
        failure = os_failure(error, "read", path)
        failure.what = f"{what}: {_reason(error)}"
        return failure
    fix = _SHORTER if error.errno == errno.ENAMETOOLONG else remedy(error, fix)
    return kind(f"{what}: {error.strerror or error}", where=os.fspath(path), fix=fix)


@contextmanager
def translate_read_errors(path: Path, kind: type[StreamtrainError], fix: str) -> Iterator[None]:
    """Turn what the system says to the reading of a file into an error that names it; see `read_failure`."""
    try:
        yield
    except StreamtrainError:
        raise
    except OSError as error:
        # What a library finds wrong in the content is not of the system; a seek to before the start is EINVAL.
        if error.errno in (None, errno.EINVAL):
            raise
        raise read_failure(error, path, kind, fix) from error


def _reason(error: OSError) -> str:
    # Of other libraries' errors only the number is the system's.
    return os.strerror(error.errno) if error.errno else str(error)


def _explained(error: OSError, path: str | os.PathLike[str]) -> tuple[str | None, str]:
    """Give the figure behind an error, where there is one, and the remedy."""
    match error.errno:
        case errno.EMFILE:
            return _open_files_explained()
        case errno.ENFILE:
            return "All processes together have as many open as the machine allows (fs.file-max)", (
                "end processes that hold files open, or raise fs.file-max"
            )
        case errno.ENOSPC | errno.EDQUOT:
            return _room_at(Path(path)), "free some space"
        case errno.ENOMEM:
            from streamtrain.system.memory import memory_limit  # which loads psutil

            why = f"{format_bytes(memory_limit().free_bytes)} of memory are free"
            return why, Fix("end other processes, or a smaller ", Argument("memory"))
        case errno.EFBIG:
            return _file_size_explained()
        case errno.ENAMETOOLONG:
            return None, _SHORTER
        case number if number in _OF_THE_NETWORK:
            return None, "check the network disk, such as its mount"
    return None, remedy(error, "check the disk, or choose another")


def _open_files_explained() -> tuple[str | None, str]:
    soft = most_open_files()
    if soft is None:
        return None, "close some of the process's files"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_USUAL_OPEN_FILES, 2 * soft)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    why = f"This process may have {soft:,} files open (RLIMIT_NOFILE)"
    if allowed > soft:
        return why, f"raise the limit: ulimit -n {allowed}"
    return why, f"raise the limit to {wanted:,} where it is set (such as limits.conf)"


def _file_size_explained() -> tuple[str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY:
        return "The file system takes no file of that size", "choose another disk"
    why = f"This process may write files of {format_bytes(soft)} (RLIMIT_FSIZE)"
    if hard != soft:
        return why, "raise the limit: ulimit -f $(ulimit -H -f)"
    return why, "raise the limit where it is set (such as limits.conf)"


def _room_at(path: Path) -> str | None:
    """Tell the room left on the disk of a path; None where it is not known."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    try:
        n_bytes, n_files = SYSTEM.free(there) if there is not None else (None, None)
    except OSError:
        return None
    if n_bytes is None:
        return None
    return f"{format_bytes(n_bytes)} are free there" + ("" if n_files is None else f", and room for {n_files:,} files")
