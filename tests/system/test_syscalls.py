"""System calls as other systems answer them: folders that cannot be flushed, drives with a cache, disks of no size."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamtrain.errors import ResourceError
from streamtrain.system import buffers
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls


def failing(number: int) -> Any:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY", "EBADF"])
def test_a_folder_that_cannot_be_flushed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "fsync", failing(getattr(errno, name)))
    Files().flush_dir(tmp_path)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT", "EROFS"])
def test_a_failing_disk_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "fsync", failing(getattr(errno, name)))
    with pytest.raises(ResourceError, match="cannot flush"):
        Files().flush_dir(tmp_path)


@pytest.mark.parametrize("name", ["EACCES", "EISDIR"])
def test_a_folder_that_cannot_be_opened_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *mode: int) -> int:
        if Path(path).is_dir():
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    Files().write_bytes(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize(("number", "falls_back"), [(None, False), (errno.ENOTSUP, True), (errno.ENOTTY, True)])
def test_macos_flushes_the_drive_too(monkeypatch: pytest.MonkeyPatch, number: int | None, falls_back: bool) -> None:
    asked: list[str] = []

    def full_flush(fd: int, command: int) -> None:
        asked.append("drive")
        if number is not None:
            failing(number)()

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_flush)
    monkeypatch.setattr(os, "fsync", lambda _: asked.append("system"))
    Syscalls().fsync(0)
    assert asked == ["drive", "system"][: 1 + falls_back]


def test_macos_does_not_hide_a_failing_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        Syscalls().fsync(0)


@pytest.mark.parametrize(
    ("answer", "free"),
    [
        ({"f_blocks": 0, "f_bavail": 0, "f_files": 0, "f_favail": 0}, (None, None)),
        ({"f_blocks": 9, "f_bavail": 5, "f_files": 0, "f_favail": 0}, (5000, None)),
        ({"f_blocks": 9, "f_bavail": 5, "f_files": 7, "f_favail": 0}, (5000, None)),
        ({"f_blocks": 9, "f_bavail": 0, "f_files": 7, "f_favail": 6}, (0, 6)),
    ],
)
def test_a_disk_that_does_not_say_how_large_it_is(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, int], free: tuple[int | None, int | None]
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_frsize=1000, **answer))
    assert Syscalls().free(Path()) == free


def test_a_kernel_without_huge_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(mmap.mmap):
        def madvise(self, *_: object) -> None:
            failing(errno.EINVAL)()

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert buffers.aligned_bytes(16 << 20).nbytes == 16 << 20
