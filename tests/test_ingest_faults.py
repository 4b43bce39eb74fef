"""Ingest on a disk that fails, and in a process that ends: nothing readable is left, at whatever call."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import DatasetError, ResourceError
from streamtrain.files import Files, System
from streamtrain.ingest.job import run
from streamtrain.ingest.request import Request
from streamtrain.sources import SourceOptions, open_source

X = np.random.default_rng(0).integers(0, 50, (5000, 24), np.uint8)
Y = np.repeat(np.arange(10), 500)


def _items(step: int = 333) -> Iterator[dict[str, Any]]:
    for start in range(0, len(X), step):
        yield {"x": X[start : start + step], "y": Y[start : start + step]}


class Failing(System):
    """Lets so many calls pass, and fails every one after."""

    def __init__(self, n_calls: int) -> None:
        self.n_left = n_calls
        self._lock = threading.Lock()

    def _count(self) -> None:
        with self._lock:
            self.n_left -= 1
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        self._count()
        return super().writev(fd, buffers)

    def fsync(self, fd: int) -> None:
        self._count()
        super().fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        self._count()
        super().fsync_dir(path)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)


def _request(n_workers: int) -> Request:
    options = SourceOptions()
    return Request(
        memory=10**9, block_bytes=4096, shard_bytes=65536, codec="none", n_workers=n_workers, progress=False,
        options=options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["arrays", "items"])
def test_a_full_disk_at_any_call_leaves_nothing(tmp_path: Path, kind: str) -> None:
    def make() -> Any:
        return open_source({"x": X, "y": Y} if kind == "arrays" else _items())

    counted = Failing(10**9)
    run(make(), tmp_path / "whole.zarr", _request(2), files=Files(system=counted))
    n_calls = 10**9 - counted.n_left
    # The last call flushes the root's directory: the dataset is there, but not yet durable, so it goes too.
    for n_passed in [*range(0, n_calls - 1, 7), n_calls - 3, n_calls - 2, n_calls - 1]:
        with pytest.raises(ResourceError, match="free some space"):
            run(make(), tmp_path / "d.zarr", _request(2), files=Files(system=Failing(n_passed)))
        assert not (tmp_path / "d.zarr").exists(), n_passed


class Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up after it."""


class Dying(System):
    """Ends at the n-th rename, and does nothing from then on."""

    def __init__(self, n_renames: int) -> None:
        self.n_left = n_renames

    def rename(self, old: Path, new: Path) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            raise Killed
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        if self.n_left >= 0:
            super().unlink(path)

    def rmdir(self, path: Path) -> None:
        if self.n_left >= 0:
            super().rmdir(path)


def test_killed_at_any_rename_it_is_refused_as_incomplete(tmp_path: Path) -> None:
    counted = Dying(10**9)
    run(open_source({"x": X, "y": Y}), tmp_path / "whole.zarr", _request(1), files=Files(system=counted))
    n_renames = 10**9 - counted.n_left
    for n_passed in range(n_renames):
        path = tmp_path / f"{n_passed}.zarr"
        with pytest.raises(Killed):
            run(open_source({"x": X, "y": Y}), path, _request(1), files=Files(system=Dying(n_passed)))
        with pytest.raises(DatasetError, match="incomplete"):
            streamtrain.open(path)
