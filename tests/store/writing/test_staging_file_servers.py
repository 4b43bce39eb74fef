"""Datasets on file servers and beside file managers: files that are nobody's, and folders that cannot go yet."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import ResourceError, UsageError
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store.verify import verify
from streamtrain.store.writing.staging import set_aside
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

X = np.arange(800, dtype="f4").reshape(400, 2)
REQUEST = IngestRequest(
    memory=2**28,
    block_bytes=400,
    shard_bytes=800,
    codec="none",
    n_workers=1,
    progress=False,
    options=SourceOptions(),
)


def make(path: Path) -> Path:
    data = {"x": X, "y": np.arange(400) % 3}
    return streamtrain.ingest(data, path, block="400B", shard="800B", codec="none", progress=False).path


def more() -> dict[str, Any]:
    return {"x": X[:50], "y": np.arange(50) % 3}


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def nothing_beside(path: Path) -> bool:
    return not [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_what_file_servers_and_managers_leave_is_nobodys(tmp_path: Path, mode: str) -> None:
    path = make(tmp_path / "d.zarr")
    for name in (".DS_Store", "x/._0", "x/c/.nfs00000001a2b", ".fuse_hidden0000f00", "x/@eaDir/0", "Thumbs.db"):
        write(path / name)
    for _ in range(2):
        streamtrain.ingest(more(), path, progress=False, **{mode: True})
        assert verify(path, full=True).damage == ()
        assert nothing_beside(path)


class Reading(Syscalls):
    """A file server: what is removed while somebody reads it gets another name, and its folder stays."""

    def __init__(self) -> None:
        self.is_read = True

    def rmdir(self, path: Path) -> None:
        if self.is_read and path.name == "c":
            write(path / ".nfs00000001a2b")
        super().rmdir(path)

    def rename(self, old: Path, new: Path) -> None:
        if old.name.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        super().rename(old, new)


def test_a_dataset_that_is_read_while_it_is_replaced_stops_no_ingest(tmp_path: Path) -> None:
    path, disk, said = make(tmp_path / "d.zarr"), Reading(), []
    for n_times in (1, 2):
        run_ingest(open_source(more()), path, REQUEST, files=Files(system=disk), mode="overwrite", say=said.append)
        assert len(set_aside(path)) == n_times
        assert verify(path, full=True).damage == ()
    assert "what it replaced is still in use" in said[-1]
    assert [left.what for left in streamtrain.repair(path)] == ["what was replaced"] * 2
    disk.is_read = False
    streamtrain.repair(path, remove=True)
    assert nothing_beside(path)


class Overlay(Syscalls):
    """A dataset in a lower layer: its folder cannot get another name."""

    def __init__(self, lower: Path) -> None:
        self._lower = lower.stat().st_ino

    def rename(self, old: Path, new: Path) -> None:
        if old.stat().st_ino == self._lower:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(old, new)


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_dataset_in_a_lower_layer_is_refused_before_any_work(tmp_path: Path, mode: str) -> None:
    path = make(tmp_path / "d.zarr")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResourceError, match="cannot rename the dataset") as caught:
        run_ingest(open_source(more()), path, REQUEST, files=Files(system=Overlay(path)), mode=mode)  # type: ignore[arg-type]
    assert caught.value.fix == "copy it to a volume first, and give that path"
    assert sorted(tmp_path.rglob("*")) == before


class WithoutLinks(Syscalls):
    """A disk without links, and with so much room."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def link(self, old: Path, new: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def free(self, path: Path) -> tuple[int | None, int | None]:
        return self.n_bytes, None


class LittleRoom(WithoutLinks):
    """A disk with links."""

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)


def append(path: Path, disk: Syscalls) -> list[str]:
    said: list[str] = []
    run_ingest(open_source(more()), path, REQUEST, files=Files(system=disk), mode="append", say=said.append)
    return said


def test_an_append_needs_room_for_what_it_writes(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    append(path, LittleRoom(3000))
    assert len(streamtrain.open(path)) == 450
    with pytest.raises(ResourceError, match="are needed"):
        append(path, LittleRoom(800))


def test_without_links_the_copy_is_announced_and_its_room_asked_for(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    with pytest.raises(ResourceError, match=r"are needed, and 3\.0 KB are free"):
        append(path, WithoutLinks(3000))
    assert nothing_beside(path)
    assert "no hard links here; " in append(path, WithoutLinks(10**6))[0]
    assert verify(path, full=True).damage == ()


@pytest.mark.parametrize("n_bytes", [240, 252, 300])
def test_names_that_a_disk_cannot_hold_are_refused_with_their_limit(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / ("d" * n_bytes)
    for refused in (lambda: streamtrain.ingest(more(), path), lambda: streamtrain.repair(path)):
        with pytest.raises(UsageError, match=rf"has {n_bytes} bytes; here it may have 2\d\d"):
            refused()
    assert not list(tmp_path.iterdir())


def test_what_does_not_open_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "d.zarr")
    before = streamtrain.open(path).id

    def group(name: str, attributes: Any = None) -> dict[str, bytes]:
        return {f"{name}/zarr.json" if name else "zarr.json": b'{"zarr_format": 3, "node_type": "group"}'}

    monkeypatch.setattr("streamtrain.store.zarr_metadata.group", group)
    with pytest.raises(streamtrain.errors.DatasetError):
        streamtrain.ingest(more(), path, overwrite=True)
    assert streamtrain.open(path).id == before
    with pytest.raises(streamtrain.errors.DatasetError):
        streamtrain.ingest(more(), tmp_path / "e.zarr")
    with pytest.raises(streamtrain.errors.DatasetError, match="incomplete"):
        streamtrain.open(tmp_path / "e.zarr")
