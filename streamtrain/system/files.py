"""Durable file writing, all or nothing: a file appears whole under its name, or not at all.

Every file is written under a hidden temporary name beside its target, flushed to the disk and renamed, and the
directory is flushed; so a crash at any instant leaves the old file or the new one. Writers take a `Files`; a test
passes one with another `Syscalls` to make any call fail or stop. A failed flush is never retried.

Over NFS a call that changes names may be answered as if it had failed though it was done:

1. The server renames a file, and its answer is lost.
2. The client asks again, and the server finds nothing under the old name: ENOENT. After mkdir or link it is EEXIST.
3. So such an answer is held against what is there (rename(2), link(2) and mkdir(2) name this fault).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from streamtrain.errors import ResourceError, UsageError
from streamtrain.system.refusals import is_of_machine, translate_os_errors
from streamtrain.system.syscalls import SYSTEM, with_room
from streamtrain.system.syscalls import Syscalls as Syscalls

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_MOST_BUFFERS: Final = 1024  # Linux takes no more in one call
_NOT_SUPPORTED: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})
_NO_EXCHANGE: Final = _NOT_SUPPORTED | {errno.EINVAL}
_NO_LINKS: Final = _NOT_SUPPORTED | {errno.EMLINK, errno.EXDEV}
_COPIED_BYTES: Final = 2**22
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
    url_text = f"{scheme}://{rest}"
    fix = f"give the path itself, /{rest.lstrip('/')}" if is_file else _download(scheme, url_text)
    raise UsageError("a URL, not a file or folder on this machine", where=url_text, fix=fix)


_DOWNLOADS: Final = {
    **dict.fromkeys(("http", "https", "ftp"), ("curl -LO {url}", "wget -r {url}")),
    "s3": ("aws s3 cp {url} {name}", "aws s3 sync {url} {name}"),
    **dict.fromkeys(("gs", "gcs"), ("gcloud storage cp {url} {name}", "gcloud storage cp -r {url} {name}")),
}
"""The commands that fetch a file, and all in a folder."""


def _download(scheme: str, url: str) -> str:
    """Return what to do about a URL, with the command that fetches it; of a folder, all in it."""
    mounted = "copy it here or mount it, and give that path"
    commands = _DOWNLOADS.get(scheme.lower())
    if commands is None:
        return mounted
    name = url.rstrip("/").rpartition("/")[2]
    is_folder = name.endswith(".zarr") or "." not in name
    command = commands[is_folder].format(url=shlex.quote(url), name=shlex.quote(name))
    return f"{mounted}; download it first: {command}"


def _check_path(path: object) -> None:
    """Refuse what no file of this machine can be called."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        fix = "os.fsdecode(path)" if isinstance(text, bytes) else 'a text or a Path, "d.zarr" say'
        raise UsageError(f"a path is {path!r:.80}, of type {type(path).__name__}", fix=fix)
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a path is {text!r}, which cannot be the name of a file: {error.reason}", fix="check it"
        ) from error
    if b"\0" in encoded:
        raise UsageError(f"a path is {text!r}, with a zero byte in it, which no file name can have", fix="check it")


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

    def write_again(self, head: bytes) -> None:
        """Write over the first bytes, once what belongs there is known."""
        assert self._fd is not None, "the file is finished, or was abandoned"
        assert len(head) <= self.n_bytes
        n_done = 0
        while n_done < len(head):
            with translate_os_errors("write", self._path):
                n_done += self._system.pwrite(self._fd, head[n_done:], n_done)

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
            status = os.fstat(self._fd)
            self._close()
            with translate_os_errors("rename", self._path):
                _rename(self._system, self._temporary, self._path, status)
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
            self.mkdir(path)
            try:
                if flush_folder:
                    with_room(lambda: self.system.fsync_dir(path.parent))
            except BaseException:
                with suppress(OSError):
                    self.system.rmdir(path)
                raise

    def mkdir(self, path: Path) -> None:
        """Create a directory that must not exist yet; an empty one is taken for ours, whose answer was lost."""
        with _answered(FileExistsError, lambda: is_folder(path) and not SYSTEM.names(path)):
            self.system.mkdir(path)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory, if it is there."""
        with suppress(FileNotFoundError):
            self.system.rmdir(path)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self.system.unlink(path)

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
            _rename(self.system, old, new, SYSTEM.stat(old, follow=False))
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
                with _answered(FileExistsError, lambda: os.path.samestat(SYSTEM.stat(old), SYSTEM.stat(new))):
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
            self.unlink(path)
            with_room(lambda: self.system.fsync_dir(path.parent))

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and everything in it; links are removed, never followed."""
        for entry in sorted(path / name for name in with_room(lambda: SYSTEM.names(path))):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.unlink(entry)
        self.rmdir(path)


@contextmanager
def _answered(refusal: type[OSError], is_done: Callable[[], bool]) -> Iterator[None]:
    """Make a call that changes names; where its first answer was lost, the second refuses what is done already."""
    try:
        yield
    except refusal:
        if not is_done():
            raise


def _rename(system: Syscalls, old: Path, new: Path, status: os.stat_result) -> None:
    """Rename what has this status."""

    def is_done() -> bool:
        found = status_of(new)
        return found is not None and os.path.samestat(found, status)

    with _answered(FileNotFoundError, is_done):
        system.rename(old, new)


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above a path, or the path itself, that is there."""
    with translate_os_errors("look at", path):
        path = path.absolute()
        return next(folder for folder in (path, *path.parents) if folder.exists() or folder.is_symlink())


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
    if not path.name:
        raise UsageError("a folder, and no file in it", where=str(path), fix="the path of a file")
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Say whether a killed writer may have left a file of this name."""
    return _TEMPORARY.fullmatch(name) is not None


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


_OF_WINDOWS: Final = {"thumbs.db", "desktop.ini"}


def shown_names_in(path: Path) -> list[str]:
    """List the names in a directory, sorted, but those that start with a dot or underscore, and what Windows leaves."""
    return [name for name in names_in(path) if not name.startswith((".", "_")) and name.lower() not in _OF_WINDOWS]


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a directory as `os.walk` does, but do not pass over what the machine fails to list."""

    def refuse(error: OSError) -> None:
        if is_of_machine(error):
            raise error

    return os.walk(folder, onerror=refuse)


def _without_first(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """Return what is left to write after a write that may have been cut short."""
    for done, view in enumerate(views):
        if n_bytes < view.nbytes:
            return [view[n_bytes:], *views[done + 1 :]]
        n_bytes -= view.nbytes
    return []
