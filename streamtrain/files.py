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
    """A file being written, front to back; made by `Files.create`."""

    def __init__(self, fd: int, path: Path, system: System) -> None:
        self._fd = fd
        self._path = path
        self._system = system
        self.n_bytes = 0

    def write(self, *buffers: Buffer) -> None:
        """Append buffers (of any contiguous kind) without copying them.

        Raises
        ------
        ResourceError
            The disk or the quota is full.
        """
        views = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if view.nbytes]
        while views:
            with _explained("write", self._path):
                n_written = self._system.writev(self._fd, views)
            self.n_bytes += n_written
            views = _without_first(views, n_written)


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

    @contextmanager
    def create(self, path: Path) -> Iterator[FileWriter]:
        """Write a file in pieces; it appears under its name when the ``with`` block ends without an error.

        Raises
        ------
        ResourceError
            The disk or the quota is full, or the target cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with _explained("create", path):
            fd = self.system.open(temporary)
        try:
            try:
                yield FileWriter(fd, path, self.system)
                # Never retried: after a failed fsync the kernel may drop the pages and report success next time.
                with _explained("flush", path):
                    self.system.fsync(fd)
            finally:
                os.close(fd)
            with _explained("rename", path):
                self.system.rename(temporary, path)
                self.system.fsync_dir(path.parent)
        except BaseException:
            with suppress(OSError):
                self.system.unlink(temporary)
            raise

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
