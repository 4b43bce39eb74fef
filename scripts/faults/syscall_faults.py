"""Stand-ins for the system calls that read and change the disk: they count, end the process, or fail."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from streamtrain.system.syscalls import Syscalls

GROWING: Final = frozenset({"open", "writev", "mkdir", "link", "rename"})
"""Calls that a full disk refuses."""


class Watched(Syscalls):
    """Every call goes by `before`, one at a time, with its number from 1 on."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.lock = threading.RLock()

    def before(self, name: str, number: int, *arguments: Any) -> None:
        """Called in front of a call; what it raises is what the call raises."""

    def after(self, name: str, result: Any, *arguments: Any) -> None:
        """Called when a call has succeeded."""

    def step(self) -> None:
        """Count a step inside a call, as one of its own."""
        with self.lock:
            self.n_calls += 1
            self.before("step", self.n_calls)

    def _pass(self, name: str, *arguments: Any) -> Any:
        with self.lock:
            self.n_calls += 1
            self.before(name, self.n_calls, *arguments)
            result = getattr(Syscalls, name)(self, *arguments)
            self.after(name, result, *arguments)
            return result

    def open(self, path: Path) -> int:
        return int(self._pass("open", path))

    def append(self, path: Path) -> int:
        return int(self._pass("append", path))

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        return int(self._pass("writev", fd, buffers))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return int(self._pass("pwrite", fd, data, offset))

    def fsync(self, fd: int) -> None:
        self._pass("fsync", fd)

    def fsync_dir(self, path: Path) -> None:
        self._pass("fsync_dir", path)

    def rename(self, old: Path, new: Path) -> None:
        self._pass("rename", old, new)

    def exchange(self, one: Path, other: Path) -> None:
        self._pass("exchange", one, other)

    def link(self, old: Path, new: Path) -> None:
        self._pass("link", old, new)

    def unlink(self, path: Path) -> None:
        self._pass("unlink", path)

    def mkdir(self, path: Path) -> None:
        self._pass("mkdir", path)

    def rmdir(self, path: Path) -> None:
        self._pass("rmdir", path)


class Killing(Watched):
    """Ends the process with SIGKILL in front of the n-th call; a write among the torn has got half of its bytes out.

    Parameters
    ----------
    at : int
        The call's number; 0 never.
    is_torn : bool
        Whether a write is made by half before the end.
    """

    def __init__(self, at: int, *, is_torn: bool = False) -> None:
        super().__init__()
        self._at, self._is_torn = at, is_torn

    def before(self, name: str, number: int, *arguments: Any) -> None:
        if number != self._at:
            return
        if self._is_torn and name == "writev":
            fd, buffers = arguments
            data = b"".join(bytes(memoryview(buffer)) for buffer in buffers)
            os.write(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(Watched):
    """Fails the n-th call; with a full disk, also every later one that needs room.

    Parameters
    ----------
    at : int
        The call's number.
    code : int
        The error.
    """

    def __init__(self, at: int, code: int) -> None:
        super().__init__()
        self._at, self._code = at, code

    def before(self, name: str, number: int, *arguments: Any) -> None:
        full = self._code == errno.ENOSPC and number > self._at and name in GROWING
        if number == self._at or full:
            raise OSError(self._code, os.strerror(self._code))


class WithoutExchange(Watched):
    """A system that cannot exchange two names, in front of another one."""

    def __init__(self, inner: Watched) -> None:
        super().__init__()
        self._inner = inner

    def _pass(self, name: str, *arguments: Any) -> Any:
        if name == "exchange":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return getattr(self._inner, name)(*arguments)

    @property
    def inner(self) -> Watched:
        """The one behind."""
        return self._inner


@dataclass(slots=True)
class File:
    """A file of the model: what it holds, and what of that is on the disk."""

    now: bytes = b""
    durable: bytes = b""


@dataclass(slots=True)
class Folder:
    """A directory of the model: its entries after each change since it was last flushed, the durable ones first."""

    states: list[dict[str, File | Folder]] = field(default_factory=lambda: [{}])

    @property
    def now(self) -> dict[str, File | Folder]:
        """The entries as they are."""
        return self.states[-1]

    def change(self) -> dict[str, File | Folder]:
        """A new state to be changed, like the last."""
        self.states.append(dict(self.now))
        return self.now


class Recording(Watched):
    """Notes every call, so that the disk after any number of them can be made up; see `Disk`."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[Any, ...]] = []

    def after(self, name: str, result: Any, *arguments: Any) -> None:
        if name == "writev":
            fd, buffers = arguments
            data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers)
            self.log.append((name, fd, data[:result]))
        else:
            self.log.append((name, *arguments, result))


class Disk:
    """What is on a disk, and what of it survives a loss of power, from a recorded run.

    A directory's changes reach the disk in their order, and all of them when it is flushed; of a file's bytes any part
    may be there until it is flushed. Different directories and files are independent.

    Parameters
    ----------
    root : Path
        The directory that everything happens in; what it holds at first is durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _model(root)
        self._open: dict[int, File] = {}

    def apply(self, call: tuple[Any, ...]) -> None:
        """Make one recorded call."""
        name, *arguments = call
        {"open": self._open_}.get(name, getattr(self, f"_{name}"))(*arguments)

    def survivor(self, path: Path, kind: str, seed: int) -> None:
        """Write what a loss of power now leaves into a directory that does not exist.

        Parameters
        ----------
        kind : {"least", "names", "garbage", "mixed"}
            Only what was flushed; all names, and of the bytes what was flushed; the same with rubbish in place of the
            others; anything between.
        """
        _write(self._top, path, kind, random.Random(seed))

    def _entry(self, path: Path) -> File | Folder:
        found: File | Folder = self._top
        for name in path.relative_to(self._root).parts:
            assert isinstance(found, Folder)
            found = found.now[name]
        return found

    def _parent(self, path: Path) -> Folder:
        found = self._entry(path.parent)
        assert isinstance(found, Folder)
        return found

    def _mkdir(self, path: Path, _: Any) -> None:
        self._parent(path).change()[path.name] = Folder()

    def _open_(self, path: Path, fd: int) -> None:
        self._open[fd] = File()
        self._parent(path).change()[path.name] = self._open[fd]

    def _append(self, path: Path, fd: int) -> None:
        found = self._entry(path)
        assert isinstance(found, File)
        self._open[fd] = found

    def _writev(self, fd: int, data: bytes) -> None:
        self._open[fd].now += data

    def _pwrite(self, fd: int, data: Any, offset: int, _: Any) -> None:
        """Forget it: rows that go over disk lie in a file without a name, and nothing of it survives."""

    def _fsync(self, fd: int, _: Any) -> None:
        self._open[fd].durable = self._open[fd].now

    def _fsync_dir(self, path: Path, _: Any) -> None:
        found = self._entry(path)
        assert isinstance(found, Folder)
        del found.states[:-1]

    def _rename(self, old: Path, new: Path, _: Any) -> None:
        assert old.parent == new.parent, "what is renamed stays in its directory"
        entries = self._parent(old).change()
        entries[new.name] = entries.pop(old.name)

    def _exchange(self, one: Path, other: Path, _: Any) -> None:
        entries = self._parent(one).change()
        entries[one.name], entries[other.name] = entries[other.name], entries[one.name]

    def _link(self, old: Path, new: Path, _: Any) -> None:
        self._parent(new).change()[new.name] = self._entry(old)

    def _unlink(self, path: Path, _: Any) -> None:
        del self._parent(path).change()[path.name]

    def _rmdir(self, path: Path, _: Any) -> None:
        del self._parent(path).change()[path.name]


def _model(path: Path) -> Folder:
    entries: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        if entry.is_dir():
            entries[entry.name] = _model(entry)
        else:
            data = entry.read_bytes()
            entries[entry.name] = File(now=data, durable=data)
    return Folder(states=[entries])


def _write(folder: Folder, path: Path, kind: str, chance: random.Random) -> None:
    path.mkdir()
    state = {"least": 0, "mixed": chance.randrange(len(folder.states))}.get(kind, -1)
    for name, entry in folder.states[state].items():
        if isinstance(entry, Folder):
            _write(entry, path / name, kind, chance)
        else:
            (path / name).write_bytes(_bytes(entry, kind, chance))


def _bytes(file: File, kind: str, chance: random.Random) -> bytes:
    if file.now == file.durable or kind in ("least", "names"):
        return file.durable
    n_lost = len(file.now) - len(file.durable)
    n_there = n_lost if kind == "garbage" else chance.randint(0, n_lost)
    if kind == "mixed" and chance.random() < 0.5:
        return file.now[: len(file.durable) + n_there]
    return file.durable + chance.randbytes(n_there)


OF_OPEN_FILES: Final = ("stream", "preadv", "writev", "fsync")
"""Calls that name a file by its number."""


class _Unreadable(io.RawIOBase):
    """An open file whose reading fails."""

    def __init__(self, raw: Any, error: OSError) -> None:
        self._raw, self._error = raw, error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._raw.seek(offset, whence))

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def readinto(self, _: Any) -> int:
        raise self._error

    def close(self) -> None:
        self._raw.close()
        super().close()


def unreadable(raw: Any, error: OSError, buffering: int) -> Any:
    """Make an open file one whose reading fails."""
    found = _Unreadable(raw, error)
    return found if buffering == 0 else io.BufferedReader(found)


@contextmanager
def failing(call: str, pattern: str, code: int) -> Iterator[list[str]]:
    """Fail a call of the whole process on every path that matches; the list holds the paths on which it did."""
    original = getattr(Syscalls, call)
    met: list[str] = []

    def stand_in(self: Syscalls, first: Any, *rest: Any, **options: Any) -> Any:
        path = str(Path(f"/proc/self/fd/{first}").readlink()) if call in OF_OPEN_FILES else os.fspath(first)
        if not re.search(pattern, path):
            return original(self, first, *rest, **options)
        met.append(path)
        error = OSError(code, os.strerror(code), path)
        if call != "stream":
            raise error
        return unreadable(original(self, first, 0), error, rest[0])

    setattr(Syscalls, call, stand_in)
    try:
        yield met
    finally:
        setattr(Syscalls, call, original)
