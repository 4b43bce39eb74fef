"""Durable file writing, all or nothing: a file appears whole under its name, or not at all.

Every file is written under a hidden temporary name beside its target, flushed to the disk and renamed, and the
directory is flushed; so a crash at any instant leaves the old file or the new one. Writers take a `Files`; a test
passes one with another `Syscalls` to make any call fail or stop. A failed flush is never retried.

What the system refuses is told apart: some errors say something of the file (it is missing, or not to be read by this
user), all others that the machine failed (a limit, the disk, the network). The latter are never taken for damage.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

from streamtrain.errors import Argument, Fix, ResourceError, StreamtrainError, UsageError, remedy
from streamtrain.system.syscalls import SYSTEM
from streamtrain.system.syscalls import Syscalls as Syscalls
from streamtrain.system.units import format_bytes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_OF_THE_FILE: Final = _ABSENT | {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM})
_OF_THE_NETWORK: Final = frozenset(
    getattr(errno, name)
    for name in ("ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOTCONN")
    if hasattr(errno, name)
)
_MOST_BUFFERS: Final = 1024  # Linux takes no more in one call
_NOT_SUPPORTED: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})
_NO_EXCHANGE: Final = _NOT_SUPPORTED | {errno.EINVAL}
_NO_LINKS: Final = _NOT_SUPPORTED | {errno.EMLINK, errno.EXDEV}
_COPIED_BYTES: Final = 2**22
_USUAL_OPEN_FILES: Final = 1024
_URL: Final = re.compile(r"((?:[A-Za-z][\w+.-]+::)*[A-Za-z][\w+.-]+):(//?)(.*)", re.DOTALL)
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path of this machine; refuse a URL, which would become a folder of that name in the current one."""
    _check_path(path)
    url = _URL.fullmatch(os.fspath(path))
    # A Path keeps only one of the two slashes.
    if url is None or (isinstance(path, str) and url[2] != "//"):
        return Path(path)
    scheme, _, rest = url.groups()
    rest = rest.lstrip("/") if scheme != "file" else rest
    is_file = scheme == "file" and rest.lstrip("/")
    fix = f"give the path itself, /{rest.lstrip('/')}" if is_file else "copy it here or mount it, and give that path"
    raise UsageError("a URL, and no file or folder of this machine", where=f"{scheme}://{rest}", fix=fix)


def _check_path(path: object) -> None:
    """Refuse what no file of this machine can be called."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        fix = "os.fsdecode(path)" if isinstance(text, bytes) else 'a text or a Path, "d.zarr" say'
        raise UsageError(f"a path is {path!r:.80}, of type {type(path).__name__}", fix=fix)
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"a path is {text!r}, which no file can be called: {error.reason}", fix="check it") from error
    if b"\0" in encoded:
        raise UsageError(f"a path is {text!r}, with a zero byte in it, which no file can be called", fix="check it")


class FileWriter:
    """A file being written, front to back, under a hidden name beside its path; made by `Files.begin`."""

    def __init__(self, path: Path, system: Syscalls) -> None:
        self._path = path
        self._system = system
        self._temporary = temporary_beside(path)
        self.n_bytes = 0
        with translate_os_errors("create", path):
            self._fd: int | None = with_room(lambda: system.open(self._temporary))

    def write(self, *buffers: Buffer) -> None:
        """Append buffers (of any contiguous kind) without copying them."""
        assert self._fd is not None, "the file is finished, or was abandoned"
        views = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if view.nbytes]
        while views:
            with translate_os_errors("write", self._path):
                n_written = self._system.writev(self._fd, views[:_MOST_BUFFERS])
            self.n_bytes += n_written
            views = _without_first(views, n_written)

    @property
    def folder(self) -> Path:
        """The directory of the file."""
        return self._path.parent

    def finish(self, *, flush_folder: bool = True) -> None:
        """Make the file durable and give it its name; if that fails, no partial file is left.

        Where only the directory could not be flushed, the whole file may stay under its name. Without ``flush_folder``
        the name is not durable yet: the caller flushes the directory after many files.
        """
        assert self._fd is not None, "the file is finished, or was abandoned"
        try:
            # Never retried: after a failed fsync the kernel may drop the pages and report success next time.
            with translate_os_errors("flush", self._path):
                self._system.fsync(self._fd)
            self._close()
            with translate_os_errors("rename", self._path):
                self._system.rename(self._temporary, self._path)
                if flush_folder:
                    with_room(lambda: self._system.fsync_dir(self._path.parent))
        except BaseException:
            self._close()
            with suppress(OSError):
                self._system.unlink(self._temporary)
            raise

    def abandon(self) -> None:
        """Close and remove an unfinished file; leave a finished one alone."""
        if self._fd is not None:
            self._close()
            with suppress(OSError):
                self._system.unlink(self._temporary)

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """File writing, all or nothing, over system calls that a test can make fail."""

    system: Syscalls

    def __init__(self, *, system: Syscalls | None = None) -> None:
        object.__setattr__(self, "system", system or Syscalls())

    def begin(self, path: Path) -> FileWriter:
        """Begin a file that is finished or abandoned later, maybe on another thread; see `create`."""
        return FileWriter(path, self.system)

    @contextmanager
    def create(self, path: Path) -> Iterator[FileWriter]:
        """Write a file in pieces; it appears under its name when the ``with`` block ends without an error."""
        out = self.begin(path)
        try:
            yield out
        except BaseException:
            out.abandon()
            raise
        out.finish()

    def flush_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        with translate_os_errors("flush", path):
            with_room(lambda: self.system.fsync_dir(path))

    def write_bytes(self, path: Path, *buffers: Buffer) -> None:
        """Write a whole file at once."""
        with self.create(path) as out:
            out.write(*buffers)

    def make_dir(self, path: Path, *, flush_folder: bool = True) -> None:
        """Create a directory that must not exist yet, and missing parents; ``flush_folder`` as in `finish`."""
        self.ensure_dir(path.parent, flush_folder=flush_folder)
        with translate_os_errors("create directory", path):
            self.system.mkdir(path)
            try:
                if flush_folder:
                    with_room(lambda: self.system.fsync_dir(path.parent))
            except BaseException:
                with suppress(OSError):
                    self.system.rmdir(path)
                raise

    def ensure_dir(self, path: Path, *, flush_folder: bool = True) -> None:
        """Create a directory and its missing parents, unless it exists already; see `make_dir`."""
        with translate_os_errors("look at", path):
            if is_folder(path):
                return
        try:
            self.make_dir(path, flush_folder=flush_folder)
        except FileExistsError:
            # Another thread or process may have just made it.
            if not path.is_dir():
                what = "cannot create directory: something else is in its place"
                raise ResourceError(what, where=str(path), fix="choose another path") from None

    def make_numbered_dir(self, parent: Path) -> Path:
        """Create the directory of the next number, one more than the highest; of many at once, each gets its own."""
        while True:
            self.ensure_dir(parent)
            # Another process may take the number, or remove the empty parent, just now.
            with translate_os_errors("create directory", parent), suppress(FileExistsError, FileNotFoundError):
                numbers = [int(entry.name) for entry in parent.iterdir() if entry.name.isdecimal()]
                path = parent / str(1 + max(numbers, default=0))
                self.system.mkdir(path)
                self.system.fsync_dir(parent)
                return path

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or a directory inside its directory, durably."""
        with translate_os_errors("rename", new):
            self.system.rename(old, new)
            with_room(lambda: self.system.fsync_dir(new.parent))

    def exchange(self, one: Path, other: Path) -> bool:
        """Exchange two names of one directory in one step, durably; return False where that is impossible."""
        with translate_os_errors("exchange", other):
            try:
                self.system.exchange(one, other)
            except OSError as error:
                if error.errno in _NO_EXCHANGE:
                    return False
                raise
            with_room(lambda: self.system.fsync_dir(other.parent))
        return True

    def link(self, old: Path, new: Path) -> bool:
        """Give a file that never changes a second name; return False where that is impossible, and it has to be copied.

        The name is durable when its directory has been flushed.
        """
        with translate_os_errors("link", new):
            try:
                self.system.link(old, new)
            except OSError as error:
                if error.errno in _NO_LINKS:
                    return False
                raise
        return True

    def copy(self, old: Path, new: Path) -> None:
        """Copy a file, durably."""
        with translate_os_errors("copy", old), open_to_read(old) as file, self.create(new) as out:
            while data := file.read(_COPIED_BYTES):
                out.write(data)

    def remove(self, path: Path) -> None:
        """Remove a file, durably."""
        with translate_os_errors("remove", path):
            self.system.unlink(path)
            with_room(lambda: self.system.fsync_dir(path.parent))

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and everything in it; links are removed, never followed."""
        for entry in sorted(path / name for name in with_room(lambda: SYSTEM.names(path))):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.system.unlink(entry)
        self.system.rmdir(path)


@contextmanager
def numbered_folder(parent: Path) -> Iterator[Path]:
    """Take the next number in a directory while the ``with`` block runs; what stays empty goes again."""
    path = Files().make_numbered_dir(parent)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()
            parent.rmdir()


def temporary_beside(path: Path) -> Path:
    """Make up a hidden, unused name in the same directory."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Say whether a killed writer may have left a file of this name."""
    return _TEMPORARY.fullmatch(name) is not None


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
            if error.errno not in _TOO_MANY_OPEN or not sum([closer() for closer in _closers]):
                raise


def most_open_files() -> int | None:
    """Return how many files this process may have open; None where that is not limited, or not known."""
    try:
        import resource  # which Windows lacks
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def open_to_read(path: Path, *, buffering: int = -1) -> BinaryIO:
    """Open a file for reading in order."""
    fd = with_room(lambda: SYSTEM.open_file(path))
    try:
        return SYSTEM.stream(fd, buffering)
    except BaseException:
        os.close(fd)
        raise


def read_whole(path: Path) -> bytes:
    """Read a file at once."""
    with open_to_read(path) as file:
        return file.read()


def status_of(path: Path) -> os.stat_result | None:
    """Look a path up; None only where nothing is there, while pathlib says that of what it cannot look at, too."""
    try:
        return SYSTEM.stat(path)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None


def is_regular(path: Path) -> bool:
    """Say whether there is a regular file; see `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """Say whether there is a directory; see `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_there(path: Path) -> bool:
    """Say whether there is anything, if only a link that leads nowhere; see `status_of`."""
    try:
        SYSTEM.stat(path, follow=False)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return False
    return True


def names_in(path: Path) -> list[str]:
    """List the names in a directory, sorted."""
    return sorted(with_room(lambda: SYSTEM.names(path)))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a directory as `os.walk` does, but do not pass over what the machine fails to list."""

    def refuse(error: OSError) -> None:
        if is_of_machine(error):
            raise error

    return os.walk(folder, onerror=refuse)


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
    return kind(f"{what}: {error.strerror or error}", where=os.fspath(path), fix=remedy(error, fix))


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
        case number if number in _OF_THE_NETWORK:
            return None, "see to the network disk (mount it again, say)"
    return None, remedy(error, "see to the disk, or choose another")


def _open_files_explained() -> tuple[str | None, str]:
    soft = most_open_files()
    if soft is None:
        return None, "close some of the process's files"
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_USUAL_OPEN_FILES, 2 * soft)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    why = f"This process may have {soft:,} files open (RLIMIT_NOFILE)"
    if allowed > soft:
        return why, f"raise the limit: ulimit -n {allowed}"
    return why, f"have the limit raised by who set it (limits.conf, say), to {wanted:,}"


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


def _without_first(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """Return what is left to write after a write that may have been cut short."""
    for done, view in enumerate(views):
        if n_bytes < view.nbytes:
            return [view[n_bytes:], *views[done + 1 :]]
        n_bytes -= view.nbytes
    return []
