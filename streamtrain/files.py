"""The only writer of files: a file appears whole and durable under its name, or not at all.

Every file is written under a hidden temporary name beside its target, flushed to the disk, renamed, and the
directory flushed; so a crash at any instant leaves the old file or the new one. Whoever writes takes a `Files`;
a test hands in one with another `System` to make any call fail or stop.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from streamtrain.errors import ResourceError, StreamtrainError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MOST_BUFFERS: Final = 1024  # what Linux takes in one call
_FLUSHES_DIRECTORIES: Final = os.name == "posix"


class System:
    """The system calls that change the disk, one method each: the seam where tests inject faults."""

    def open(self, path: Path) -> int:
        """Create a file that must not exist yet, for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Write some of the buffers' bytes, in order; return how many."""
        return os.writev(fd, buffers) if hasattr(os, "writev") else os.write(fd, buffers[0])

    def fsync(self, fd: int) -> None:
        """Flush a file to the disk."""
        os.fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        """Flush a directory's entries to the disk, where the platform can."""
        if _FLUSHES_DIRECTORIES:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file over another one or over nothing."""
        os.replace(old, new)  # noqa: PTH105 - the system call itself, as every method here

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)  # noqa: PTH108

    def mkdir(self, path: Path) -> None:
        """Create a directory that must not exist yet."""
        os.mkdir(path)  # noqa: PTH102

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)  # noqa: PTH106


class FileWriter:
    """A file being written, front to back; made by `Files.begin`, which says what must become of it.

    Parameters
    ----------
    path : Path
        The name it gets when it is finished; until then it has a hidden one beside it.
    system : System
        The system calls.
    """

    def __init__(self, path: Path, system: System) -> None:
        self._path = path
        self._system = system
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self.n_bytes = 0
        with _explained("create", path):
            self._fd: int | None = system.open(self._temporary)

    def write(self, *buffers: Buffer) -> None:
        """Append buffers (of any contiguous kind) without copying them.

        Raises
        ------
        ResourceError
            The disk or the quota is full.
        """
        assert self._fd is not None, "the file is finished, or was abandoned"
        views = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if view.nbytes]
        while views:
            with _explained("write", self._path):
                n_written = self._system.writev(self._fd, views[:_MOST_BUFFERS])
            self.n_bytes += n_written
            views = _without_first(views, n_written)

    @property
    def folder(self) -> Path:
        """The directory it is in."""
        return self._path.parent

    def finish(self, *, flush_folder: bool = True) -> None:
        """Make the file durable and give it its name; if that fails, nothing is left of it.

        Parameters
        ----------
        flush_folder : bool
            Whether the name is to be durable too; False for one who flushes the directory after many files.

        Raises
        ------
        ResourceError
            The disk or the quota is full, or the target cannot be written.
        """
        assert self._fd is not None, "the file is finished, or was abandoned"
        try:
            # Never retried: after a failed fsync the kernel may drop the pages and report success next time.
            with _explained("flush", self._path):
                self._system.fsync(self._fd)
            self._close()
            with _explained("rename", self._path):
                self._system.rename(self._temporary, self._path)
                if flush_folder:
                    self._system.fsync_dir(self._path.parent)
        except BaseException:
            self._close()
            with suppress(OSError):
                self._system.unlink(self._temporary)
            raise

    def abandon(self) -> None:
        """Close and remove what was written; nothing happens to a file that is finished."""
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
    """Writing, all or nothing.

    Parameters
    ----------
    system : System
        The system calls; a test's stand-in makes them fail.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Files().write_bytes(folder / "a", b"whole ", b"or not at all")
    >>> (folder / "a").read_text()
    'whole or not at all'
    """

    system: System

    def __init__(self, *, system: System | None = None) -> None:
        object.__setattr__(self, "system", system or System())

    def begin(self, path: Path) -> FileWriter:
        """Begin a file, for one who finishes or abandons it later, or on another thread; see `create`.

        Raises
        ------
        ResourceError
            It cannot be created.
        """
        return FileWriter(path, self.system)

    @contextmanager
    def create(self, path: Path) -> Iterator[FileWriter]:
        """Write a file in pieces; it appears under its name when the ``with`` block ends without an error.

        Raises
        ------
        ResourceError
            The disk or the quota is full, or the target cannot be written.
        """
        out = self.begin(path)
        try:
            yield out
        except BaseException:
            out.abandon()
            raise
        out.finish()

    def flush_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        with _explained("flush", path):
            self.system.fsync_dir(path)

    def write_bytes(self, path: Path, *buffers: Buffer) -> None:
        """Write a whole file at once."""
        with self.create(path) as out:
            out.write(*buffers)

    def make_dir(self, path: Path) -> None:
        """Create a directory that must not exist yet, durably; its missing parents too.

        Raises
        ------
        FileExistsError
            Something is there already.
        ResourceError
            It cannot be created.
        """
        if not path.parent.exists():
            # Another thread or process may have just made the same parent.
            with suppress(FileExistsError):
                self.make_dir(path.parent)
        with _explained("create directory", path):
            self.system.mkdir(path)
            try:
                self.system.fsync_dir(path.parent)
            except BaseException:
                with suppress(OSError):
                    self.system.rmdir(path)
                raise

    def ensure_dir(self, path: Path) -> None:
        """Create a directory and its missing parents, unless it is there already."""
        if not path.is_dir():
            with suppress(FileExistsError):
                self.make_dir(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all in it; links are removed, never followed."""
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.system.unlink(entry)
        self.system.rmdir(path)


@contextmanager
def _explained(doing: str, path: Path) -> Iterator[None]:
    """Turn what the system says into an error that names the file; what already exists stays the caller's affair."""
    try:
        yield
    except (FileExistsError, StreamtrainError):
        raise
    except OSError as error:
        fix = "free some space" if error.errno in _FULL else None
        raise ResourceError(f"cannot {doing}: {error.strerror or error}", where=str(path), fix=fix) from error


def _without_first(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """What is left to write after a write that may have been cut short."""
    for done, view in enumerate(views):
        if n_bytes < view.nbytes:
            return [view[n_bytes:], *views[done + 1 :]]
        n_bytes -= view.nbytes
    return []
