"""A run has one writer: a second one is refused before it writes anything, whoever it is."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import streamtrain as st
from streamtrain.errors import LockedError, ResourceError, UsageError
from streamtrain.store.writing import lock
from streamtrain.store.writing.lock import FOLDER_LOCK
from streamtrain.training.run import run_folder
from streamtrain.training.run.run_folder import RunFolder, read_config

fcntl = pytest.importorskip("fcntl")

OURS = rf"\.lock: another process is writing it: pid {os.getpid()} on host {platform.node()}. Fix: wait for it to end"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a line of metrics."""
    with RunFolder(tmp_path / "run", {"model": "linear"}) as folder:
        folder.log(kind="batch", loss=0.5)
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("resumes", [False, True])
def test_a_second_writer_is_refused_and_changes_nothing(run: Path, resumes: bool) -> None:
    with RunFolder(run, {}, resumes=True) as folder:
        folder.log(kind="batch", loss=0.25)
        before = contents(run)
        with pytest.raises(LockedError, match=OURS) as caught:
            RunFolder(run, {"model": "other"}, resumes=resumes)
        assert caught.value.exit_code == 9
        assert contents(run) == before
    assert FOLDER_LOCK not in contents(run)
    with RunFolder(run, {}, resumes=True):
        pass
    with pytest.raises(UsageError, match="the run folder is taken"):
        RunFolder(run, {})


def test_a_place_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="the run folder is taken"):
        RunFolder(tmp_path, {})
    tmp_path.chmod(0o755)
    assert list(contents(tmp_path)) == ["notes"]


@pytest.mark.parametrize("name", [".nfs000000000000012a00000003", ".DS_Store"])
def test_what_a_file_server_or_a_file_manager_left_takes_no_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with RunFolder(tmp_path, {"model": "ours"}) as folder:
        folder.log(kind="batch", loss=0.5)
    assert sorted(contents(tmp_path)) == sorted([name, "config.json", "metrics.jsonl"])


def test_a_folder_that_was_removed_meanwhile_gets_no_checkpoint(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}) as folder:
        folder.save(1, {}, {})
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(ResourceError, match=r"metrics\.jsonl: was removed or replaced while the run was trained"):
            folder.save(2, {}, {})
    assert not (tmp_path / "run").exists()


def test_of_two_that_find_a_place_free_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other begins, writes and ends between our look and our lock."""
    real, path = run_folder.folder_lock, tmp_path / "run"

    def late(folder: Path) -> object:
        monkeypatch.setattr(run_folder, "folder_lock", real)
        with RunFolder(folder, {"model": "the other's"}) as other:
            other.log(kind="batch", loss=0.5)
        return real(folder)

    monkeypatch.setattr(run_folder, "folder_lock", late)
    with pytest.raises(UsageError, match="the run folder is taken"):
        RunFolder(path, {"model": "ours"})
    assert read_config(path)["model"] == "the other's"
    assert sorted(contents(path)) == ["config.json", "metrics.jsonl"]


def test_what_a_killed_run_left_stops_nobody(run: Path, tmp_path: Path) -> None:
    for folder in (run, tmp_path / "new"):
        folder.mkdir(exist_ok=True)
        (folder / FOLDER_LOCK).write_text('{"pid": 1, "host": "elsewhere"}')
        with RunFolder(folder, {}, resumes=folder == run) as resumed:
            resumed.log(kind="batch", loss=0.5)
        assert sorted(contents(folder)) == ["config.json", "metrics.jsonl"]


def test_without_file_locks_no_run_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    before = contents(run)
    for path, resumes in ((run, True), (run.with_name("new"), False)):
        with pytest.raises(ResourceError, match=r"cannot lock: .*Fix: write to a disk with file locks"):
            RunFolder(path, {}, resumes=resumes)
    assert contents(run) == before
    assert not run.with_name("new").exists()
    assert lock.FOLDER_LOCK not in before


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_fit_into_a_run_that_is_trained_is_refused(tmp_path: Path, resume: str | None) -> None:
    dataset = st.ingest({"x": np.zeros((40, 4), "f4"), "y": np.arange(40) % 3}, tmp_path / "d.zarr")
    refused = []

    def train(**how: object) -> st.History:
        trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy")
        return trainer.fit(dataset, batch_size=20, checkpoint=tmp_path / "run", progress=False, **how)  # type: ignore[arg-type]

    def second(_: object) -> None:
        before = contents(tmp_path / "run" / "checkpoints" / "00000002") if refused else {}
        with pytest.raises(LockedError, match=OURS):
            train(max_epochs=9, resume=resume)
        assert before == (contents(tmp_path / "run" / "checkpoints" / "00000002") if refused else {})
        refused.append(True)

    assert train(max_epochs=2, on_epoch=second).counts.n_epochs == 2
    assert refused == [True, True]
    assert train(max_epochs=3, resume="auto").resumed_from_batch == 4
