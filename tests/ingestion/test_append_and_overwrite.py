"""Overwrite and append: what they make, what they refuse, and what stays as it was."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_cases import SIZES, F, X, Y, interrupt, tree, write_files

import streamtrain
from streamtrain.errors import DatasetError, InputError, LockedError, ResourceError, StreamtrainError, UsageError
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store.verify import verify
from streamtrain.store.writing.lock import writer_lock
from streamtrain.store.zarr_metadata import shard_key
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same rows in every kind of file."""
    return write_files(tmp_path)


@pytest.mark.parametrize("exchanges", [True, False])
def test_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    def refuse(system: Syscalls, one: Path, other: Path) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if not exchanges:
        monkeypatch.setattr(Syscalls, "exchange", refuse)
    path = streamtrain.ingest({"x": X, "y": Y}, tmp_path / "d.zarr", **SIZES).path
    new = streamtrain.ingest({"z": F}, path, overwrite=True, **SIZES)
    whole = streamtrain.ingest({"z": F}, tmp_path / "whole.zarr", **SIZES)
    assert new.id == whole.id
    assert tree(path) == tree(whole.path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.zarr", "whole.zarr"]


def test_overwrite_of_nothing_and_of_an_interrupted_ingest(files: Path) -> None:
    path = files / "d.zarr"
    interrupt(str(files / "x.npy"), path, 12)
    streamtrain.ingest({"z": F}, path, overwrite=True, **SIZES)
    streamtrain.ingest({"z": F}, files / "e.zarr", overwrite=True, **SIZES)
    assert tree(path) == tree(files / "e.zarr")


def test_overwrite_refuses_what_is_not_ours(tmp_path: Path) -> None:
    home, ours = tmp_path / "home", tmp_path / "ours"
    (home / "_streamtrain").mkdir(parents=True)
    (home / "zarr.json").write_text("{}")
    (home / "letters").write_text("dear")
    streamtrain.ingest({"x": X}, ours, **SIZES)
    (ours / "notes.txt").write_text("mine")
    (tmp_path / "plain").mkdir()
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    for name, match in (
        ("home", "letters"),
        ("ours", r"notes\.txt"),
        ("plain", "not a dataset"),
        ("file", "not a dat"),
    ):
        with pytest.raises(UsageError, match=match) as caught:
            streamtrain.ingest({"x": X}, tmp_path / name, overwrite=True)
        assert caught.value.exit_code == 2
    assert tree(tmp_path) == before


def test_an_overwrite_that_fails_leaves_the_old_dataset_and_can_be_resumed(files: Path) -> None:
    path = streamtrain.ingest({"z": F}, files / "d.zarr", **SIZES).path
    before = tree(path)
    interrupt(str(files / "x.npy"), path, 12, mode="overwrite")
    assert tree(path) == before
    assert len(streamtrain.open(path)) == 2000
    streamtrain.ingest(str(files / "x.npy"), path, resume=True, **SIZES)
    whole = streamtrain.ingest(str(files / "x.npy"), files / "whole.zarr", **SIZES)
    assert tree(path) == tree(whole.path)
    assert not [entry.name for entry in files.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("n_before", [60, 700, 1000, 1024, 1999])
@pytest.mark.parametrize("seekable", [True, False])
def test_append_makes_what_one_ingest_of_all_rows_makes(tmp_path: Path, n_before: int, seekable: bool) -> None:
    def rows(start: int, stop: int) -> Any:
        part = {"x": F[start:stop], "y": Y[start:stop]}
        return part if seekable else iter([part])

    path = streamtrain.ingest(rows(0, n_before), tmp_path / "d.zarr", **SIZES).path
    old = streamtrain.open(path)
    n_full = n_before // (old.layout.block_rows * old.layout.shard_blocks)
    kept = {key: (path / key).stat().st_ino for key in (shard_key(old.fields[0], shard) for shard in range(n_full))}
    new = streamtrain.ingest(rows(n_before, 2000), path, append=True)
    assert {key: (path / key).stat().st_ino for key in kept} == kept
    for name, values in (("x", F), ("y", Y)):
        np.testing.assert_array_equal(new[:][name], values)
    assert (new.layout.block_rows, new.layout.shard_blocks) == (old.layout.block_rows, old.layout.shard_blocks)
    if n_before >= 700:  # where the layout is that of all rows
        whole = streamtrain.ingest(rows(0, 2000), tmp_path / "whole.zarr", **SIZES)
        assert new.id == whole.id
        same = {
            key: data for key, data in tree(whole.path).items() if key.startswith(("x/", "y/", "_streamtrain/stats"))
        }
        assert {key: data for key, data in tree(path).items() if key in same} == same
        assert new.manifest.statistics["y"].rho == whole.manifest.statistics["y"].rho
        assert new.label_histogram is not None
        assert new.label_histogram.counts.tolist() == [200] * 10
    assert len(new.manifest.sources) == 2
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("last", ["a row", "a block", "a block and a row", "all but a row"])
def test_append_to_a_last_shard_of_little(tmp_path: Path, last: str, seekable: bool, codec: str) -> None:
    def rows(start: int, stop: int) -> Any:
        part = {"x": F[start:stop], "y": Y[start:stop]}
        return part if seekable else iter([part])

    sizes = SIZES | {"codec": codec}
    whole = streamtrain.ingest(rows(0, 2000), tmp_path / "whole.zarr", **sizes)
    block_rows = whole.layout.block_rows
    full = block_rows * whole.layout.shard_blocks
    n_last = {"a row": 1, "a block": block_rows, "a block and a row": block_rows + 1, "all but a row": full - 1}[last]
    n_before = (2000 // full - 2) * full + n_last
    old = streamtrain.ingest(rows(0, n_before), tmp_path / "d.zarr", **sizes)
    assert old.layout.block_rows == block_rows
    assert len(old) % full == n_last
    new = streamtrain.ingest(rows(n_before, 2000), old.path, append=True)
    assert (new.id, new.manifest.files) == (whole.id, whole.manifest.files)
    told = {"zarr.json", "_streamtrain/manifest.json"}  # these tell of two sources
    ours, theirs = tree(new.path), tree(whole.path)
    assert {key: ours[key] for key in ours.keys() - told} == {key: theirs[key] for key in theirs.keys() - told}
    assert verify(new.path, full=True).damage == ()


def test_append_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = streamtrain.ingest({"x": F, "y": Y}, tmp_path / "d.zarr", **SIZES).path
    before = tree(tmp_path)
    for source, match in (
        ({"x": F.astype(float), "y": Y}, r"the source has x float64 \(5,\), y int64.*the dataset has x float32"),
        ({"x": F[:, :4], "y": Y}, r"x float32 \(4,\)"),
        ({"x": F}, "the source has x float32"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            streamtrain.ingest(source, path, append=True)
        assert caught.value.exit_code == 3
    assert tree(tmp_path) == before
    with pytest.raises(DatasetError, match="no such dataset to append to"):
        streamtrain.ingest({"x": F}, tmp_path / "none.zarr", append=True)
    with pytest.raises(UsageError, match="exclude each other"):
        streamtrain.ingest({"x": F}, path, append=True, overwrite=True)


def test_append_of_named_classes(tmp_path: Path) -> None:
    for name, labels in (("a", "cat ant cat"), ("b", "cat cat"), ("c", "dog cat")):
        lines = ["v,kind", *(f"{number},{label}" for number, label in enumerate(labels.split()))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    path = streamtrain.ingest(str(tmp_path / "a.csv"), tmp_path / "d.zarr", label_column="kind").path
    new = streamtrain.ingest(str(tmp_path / "b.csv"), path, append=True, label_column="kind")
    assert new.classes == ("ant", "cat")
    assert new[:]["y"].tolist() == [1, 0, 1, 1, 1]
    with pytest.raises(InputError, match="other classes than the dataset: 'dog'"):
        streamtrain.ingest(str(tmp_path / "c.csv"), path, append=True, label_column="kind")


def test_append_never_carries_damage_over(tmp_path: Path) -> None:
    path = streamtrain.ingest({"x": F}, tmp_path / "d.zarr", **SIZES).path
    shard = path / "x/c/1/0"
    data = bytearray(shard.read_bytes())
    data[50] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="a shard of field x is not what was written") as caught:
        streamtrain.ingest({"x": F}, path, append=True)
    assert str(Path("x/c/1/0")) in str(caught.value)
    assert len(streamtrain.open(path)) == 2000
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.zarr"]


def test_an_append_that_was_resumed_twice_is_not_made_twice(files: Path) -> None:
    path = streamtrain.ingest(str(files / "d.npz"), files / "d.zarr", **SIZES).path
    interrupt(str(files / "x.npy"), path, 25, labels=str(files / "y.npy"), mode="append")
    with pytest.raises(DatasetError, match="another one: append there, overwrite here"):
        streamtrain.ingest(
            str(files / "x.npy"), path, labels=str(files / "y.npy"), overwrite=True, resume=True, **SIZES
        )
    for _ in range(2):
        again: dict[str, Any] = {"labels": str(files / "y.npy"), "append": True, "resume": True}
        assert len(streamtrain.ingest(str(files / "x.npy"), path, **again, **SIZES)) == 4000


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = streamtrain.ingest({"x": X}, tmp_path / "d.zarr", **SIZES).path
    acts: tuple[Callable[[], object], ...] = (
        lambda: streamtrain.ingest({"x": X}, path, overwrite=True),
        lambda: streamtrain.ingest({"x": X}, tmp_path / "e.zarr"),
    )
    with writer_lock(path, Files()), writer_lock(tmp_path / "e.zarr", Files()):
        for act in acts:
            with pytest.raises(LockedError, match=f"pid {os.getpid()} on host") as caught:
                act()
            assert caught.value.exit_code == 9
        assert len(streamtrain.open(path)) == 2000


def test_the_gap_between_two_renames_is_closed_at_the_next_open(tmp_path: Path) -> None:
    path = streamtrain.ingest({"x": X}, tmp_path / "d.zarr", **SIZES).path
    path.rename(tmp_path / ".d.zarr.old")
    assert len(streamtrain.open(path)) == 2000
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.zarr"]


class Small(Syscalls):
    """A disk with little room."""

    def __init__(self, n_bytes: int, n_files: int | None) -> None:
        self._free = n_bytes, n_files

    def free(self, path: Path) -> tuple[int, int | None]:
        return self._free


@pytest.mark.parametrize(
    ("room", "match"),
    [
        ((47_999, 10**6), "needed, and 48.0 KB are free"),
        ((10**9, 11), r"\d+ files are needed, and .* room for 11"),
    ],
)
def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, room: tuple[int, int], match: str
) -> None:
    request = IngestRequest(
        memory=10**8, block_bytes=1000, shard_bytes=4000, codec="none", n_workers=1, progress=False,
        options=SourceOptions(),
    )  # fmt: skip
    with pytest.raises(ResourceError, match=match) as caught:
        run_ingest(open_source({"x": X}), tmp_path / "d.zarr", request, files=Files(system=Small(*room)))
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_a_source_inside_the_destination_is_refused(tmp_path: Path) -> None:
    path = streamtrain.ingest({"x": X}, tmp_path / "d.zarr", **SIZES).path
    np.save(path / "x" / "more.npy", X)
    with pytest.raises(InputError, match="a source lies inside the destination"):
        streamtrain.ingest(str(path / "x" / "more.npy"), path, append=True)


def test_a_link_stands_for_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    streamtrain.ingest({"x": X}, tmp_path / "far" / "d.zarr", **SIZES)
    (tmp_path / "near.zarr").symlink_to(tmp_path / "far" / "d.zarr")
    assert len(streamtrain.ingest({"x": X}, tmp_path / "near.zarr", append=True)) == 4000
    assert (tmp_path / "near.zarr").is_symlink()
    assert len(streamtrain.open(tmp_path / "far" / "d.zarr")) == 4000


def test_errors_of_every_kind_release_the_lock(tmp_path: Path) -> None:
    def items() -> Iterator[dict[str, Any]]:
        yield from itertools.repeat({"x": X}, 2)
        raise KeyError("the user's own")

    for act in (
        lambda: streamtrain.ingest(items(), tmp_path / "d.zarr"),
        lambda: interrupt({"x": X}, tmp_path / "e", 12),
    ):
        with contextlib.suppress(KeyError, StreamtrainError):
            act()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
