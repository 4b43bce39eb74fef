"""Files appear whole and durable, or not at all."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import ResourceError
from streamtrain.system.files import Files, is_temporary, numbered_folder
from streamtrain.system.syscalls import Syscalls


class Recorded(Syscalls):
    """Notes every call; fails at the one that is named."""

    def __init__(self, fail: str | None = None, code: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self._fail = fail
        self._code = code

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fail:
            raise OSError(self._code, os.strerror(self._code))

    def open(self, path: Path) -> int:
        self._note("open")
        return super().open(path)

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        self._note("writev")
        return super().writev(fd, buffers)

    def fsync(self, fd: int) -> None:
        self._note("fsync")
        super().fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        self._note("fsync_dir")
        super().fsync_dir(path)

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename")
        super().rename(old, new)


class Trickling(Syscalls):
    """Writes three bytes at a time."""

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        return os.write(fd, memoryview(buffers[0]).cast("B")[:3])


def test_calls_come_in_the_durable_order(tmp_path: Path) -> None:
    system = Recorded()
    Files(system=system).write_bytes(tmp_path / "a", b"1", b"", b"2")
    assert system.calls == ["open", "writev", "fsync", "rename", "fsync_dir"]
    assert (tmp_path / "a").read_bytes() == b"12"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_short_writes_are_continued(tmp_path: Path) -> None:
    values = np.arange(10, dtype=np.int64)
    with Files(system=Trickling()).create(tmp_path / "a") as out:
        out.write(b"12345", values.data)
        assert out.n_bytes == 85
    assert (tmp_path / "a").read_bytes() == b"12345" + values.tobytes()


def test_temporary_is_hidden_and_beside_the_target(tmp_path: Path) -> None:
    with Files().create(tmp_path / "a") as out:
        out.write(b"x")
        (name,) = (entry.name for entry in tmp_path.iterdir())
    assert name.startswith(".a.")
    assert name.endswith(".tmp")
    assert is_temporary(name)
    assert not is_temporary("zarr.json")


@pytest.mark.parametrize("call", ["open", "writev", "fsync", "rename"])
def test_a_failed_call_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    (tmp_path / "a").write_bytes(b"old")
    system = Recorded(call)
    with pytest.raises(ResourceError) as caught:
        Files(system=system).write_bytes(tmp_path / "a", b"new")
    assert caught.value.exit_code == 5
    assert str(tmp_path / "a") in str(caught.value)
    assert system.calls.count(call) == 1  # an fsync above all is not retried
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do(tmp_path: Path, code: int) -> None:
    with pytest.raises(ResourceError, match="free some space"):
        Files(system=Recorded("writev", code)).write_bytes(tmp_path / "a", b"new")


def test_an_error_inside_removes_the_temporary(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Files().create(tmp_path / "a"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_directories(tmp_path: Path) -> None:
    files = Files()
    files.make_dir(tmp_path / "a" / "b")
    files.ensure_dir(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        files.make_dir(tmp_path / "a")
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (tmp_path / "a" / "link").symlink_to(outside)
    files.remove_tree(tmp_path / "a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["outside"]


def test_directories_are_numbered_by_the_highest(tmp_path: Path) -> None:
    parent = tmp_path / "a" / "runs"
    assert Files().make_numbered_dir(parent) == parent / "1"
    for name in ("12", "notes", "²"):
        (parent / name).mkdir()
    assert Files().make_numbered_dir(parent) == parent / "13"


def test_of_many_at_once_each_gets_a_number_of_its_own(tmp_path: Path) -> None:
    start, got = threading.Barrier(8), []

    def take() -> None:
        start.wait()
        got.extend(Files().make_numbered_dir(tmp_path / "runs") for _ in range(5))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(path.name) for path in got) == list(range(1, 41))


def test_a_numbered_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    with numbered_folder(parent) as path:
        assert path == parent / "1"
    assert not parent.exists()
    with numbered_folder(parent) as path:
        (path / "kept").touch()
    with numbered_folder(parent) as path:
        assert path == parent / "2"
    assert sorted(parent.rglob("*")) == [parent / "1", parent / "1" / "kept"]


def test_a_parent_that_goes_meanwhile_is_made_anew(tmp_path: Path) -> None:
    class Beaten(Syscalls):
        """Another process, that ends, removes the parent that it found empty."""

        def mkdir(self, path: Path) -> None:
            if path.name == "1" and not removed:
                removed.append(path.parent.rmdir())
            super().mkdir(path)

    removed: list[None] = []
    assert Files(system=Beaten()).make_numbered_dir(tmp_path / "runs") == tmp_path / "runs" / "1"
    assert removed


def test_a_number_that_cannot_be_taken_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(ResourceError, match="something else is in its place"):
        Files().make_numbered_dir(tmp_path / "runs")

    class Full(Syscalls):
        def mkdir(self, path: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError, match=r"cannot create directory: No space left.*free some space"):
        Files(system=Full()).make_numbered_dir(tmp_path)
