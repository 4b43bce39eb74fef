"""A removal that is cut short at any call leaves what is known for what it is, and the next ingest tidies up."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ingest_cases import SIZES, F, X, interrupt, tree, write_files

import streamtrain
from streamtrain.errors import DatasetError
from streamtrain.store.verify import find_leftovers, remove_leftovers
from streamtrain.store.writing.staging import destination_state, remove_dataset
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls


class Killed(BaseException):
    """In place of a process that is killed."""


class Mortal(Syscalls):
    """The calls that take away, until one is the last; a renaming may be refused."""

    def __init__(self, left: int, *, renames: bool = True) -> None:
        self.left, self.renames = left, renames

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self._count()
        super().rmdir(path)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        if not self.renames:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().rename(old, new)


def make(folder: Path, kind: str) -> Path:
    path = folder / "d.zarr"
    if kind == "interrupted":
        write_files(folder)
        interrupt(str(folder / "x.npy"), path, 12)
    else:
        streamtrain.ingest({"x": X}, path, **SIZES)
    return path


def removals(tmp_path: Path, kind: str, *, renames: bool, step: int = 1) -> Iterator[tuple[Path, bool]]:
    """A removal killed at every call in turn, or at some, and at last one that is not."""
    made = tmp_path / "made"
    made.mkdir()
    name = make(made, kind).name
    for left in itertools.count(step=step):
        path = Path(shutil.copytree(made, tmp_path / str(left), symlinks=True)) / name
        try:
            remove_dataset(path, Files(system=Mortal(left, renames=renames)))
        except Killed:
            yield path, False
            continue
        yield path, True
        return


@pytest.mark.parametrize("renames", [True, False])
@pytest.mark.parametrize("kind", ["committed", "interrupted"])
def test_what_is_left_of_a_removal_is_known_for_what_it_is(tmp_path: Path, kind: str, renames: bool) -> None:
    whole = streamtrain.ingest({"z": F}, tmp_path / "whole.zarr", **SIZES)
    for path, is_done in removals(tmp_path, kind, renames=renames):
        state = destination_state(path)
        if is_done:
            assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith("zarr")] == []
            return
        if not renames and path.exists() and not list(path.iterdir()):
            continue  # An empty folder is nobody's.
        assert state in ("absent", "incomplete", "committed")
        if state == "incomplete":
            with pytest.raises(DatasetError, match="an incomplete dataset"):
                streamtrain.open(path)
        if state != "committed":
            how: dict[str, Any] = {} if state == "absent" else {"overwrite": True}
            assert streamtrain.ingest({"z": F}, path, **how, **SIZES).id == whole.id
            assert tree(path) == tree(whole.path)
        assert not [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".d.zarr")]


@pytest.mark.parametrize("kind", ["committed", "interrupted"])
def test_repair_removes_what_is_left_of_one(tmp_path: Path, kind: str) -> None:
    for path, _ in removals(tmp_path, kind, renames=True, step=3):
        if destination_state(path) != "committed":
            remove_leftovers(path, Files())
            assert find_leftovers(path) == ()
            assert not [entry.name for entry in path.parent.iterdir() if "d.zarr" in entry.name]


def test_nobody_resumes_from_shards_that_are_going(tmp_path: Path) -> None:
    for path, is_done in removals(tmp_path, "interrupted", renames=False, step=3):
        if is_done or destination_state(path) != "incomplete" or (path / "_streamtrain" / "journal").exists():
            continue
        with pytest.raises(DatasetError, match="It has no journal"):
            streamtrain.ingest(path.parent / "x.npy", path, resume=True, **SIZES)
