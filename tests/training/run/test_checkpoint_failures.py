"""Training on a disk that stops writing: the checkpoints kept, the messages, and how the run resumes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from scripts.faults.stages import tree_of
from scripts.faults.syscall_faults import failing
from streamtrain.cli.main import main
from streamtrain.errors import ResourceError, UnknownName
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls
from streamtrain.training.run.checkpoint import find_checkpoint, newest_checkpoint, read_checkpoint, write_checkpoint
from streamtrain.training.run.run_folder import RunFolder

EPOCH_BATCHES = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    source = {"x": rng.normal(size=(200, 4)).astype(np.float32), "y": np.arange(200) % 3}
    return st.ingest(source, tmp_path_factory.mktemp("data") / "d.zarr")


class Disk(Syscalls):
    """One that refuses to flush files of some checkpoints."""

    def __init__(self, number: int, *full: int) -> None:
        self.number, self.full = number, full

    def open(self, path: Path) -> int:
        if any(f"{n_batches:08d}" in path.parent.name for n_batches in self.full):
            raise OSError(self.number, {28: "No space left on device", 5: "Input/output error"}[self.number])
        return super().open(path)


def fit(dataset: st.Dataset, run: Path, system: Syscalls, **how: Any) -> tuple[st.Trainer, Any]:
    torch.manual_seed(3)
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy")
    resumes = how.get("resume") is not None
    with (
        st.StreamLoader(dataset, batch_size=20, memory="16MB") as loader,
        RunFolder(run, {}, files=Files(system=system), resumes=resumes) as folder,
    ):
        options = {"max_epochs": 2, "checkpoint_every": 4, "log_every": 3, "progress": False} | how
        return trainer, trainer.fit(loader, checkpoint=folder, **options)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if "second" not in name and "stall" not in name} for line in lines
    ]


@pytest.mark.parametrize(
    ("number", "said"), [(28, "No space left on device.*Fix: free some space"), (5, "Input/output")]
)
def test_it_ends_the_run_and_names_the_one_before(dataset: st.Dataset, tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(ResourceError, match=said) as caught:
        fit(dataset, tmp_path / "a", Disk(number, 12))
    message = str(caught.value)
    assert caught.value.exit_code == 5
    kept = tmp_path / "a" / "checkpoints" / "00000010"
    assert "the checkpoint after batch 12 was not saved: cannot create" in message
    assert f"The newest whole one is {kept}" in message
    assert "resume='auto'" in message
    assert newest_checkpoint(tmp_path / "a").path == kept
    # And from there it is the run that met no full disk.
    trainer, history = fit(dataset, tmp_path / "a", Syscalls(), resume="auto")
    assert history.resumed_from_batch == 10
    whole, _ = fit(dataset, tmp_path / "b", Syscalls())
    assert torch.equal(trainer.model.weight, whole.model.weight)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_first_one_has_none_before_it(dataset: st.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"after batch 4 was not saved.*There is none before it"):
        fit(dataset, tmp_path / "a", Disk(28, 4))


def test_warned_of_it_goes_on_and_tries_the_next(dataset: st.Dataset, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the checkpoint after batch \d+ was not saved") as told:
        trainer, history = fit(dataset, tmp_path / "a", Disk(28, 8, 10, 16), on_checkpoint_failure="warn")
    assert [str(warning.message).split(" was ")[0].split()[-1] for warning in told] == ["8", "10", "16"]
    # The run goes on, so there is nothing to resume.
    assert all(str(warning.message).endswith("Fix: free some space.") for warning in told)
    assert "The newest whole one is" in str(told[2].message)
    assert (history.checkpoint_failures, history.unsaved) == (3, None)
    whole, without = fit(dataset, tmp_path / "b", Syscalls())
    assert (without.checkpoint_failures, without.unsaved) == (0, None)
    assert torch.equal(trainer.model.weight, whole.model.weight)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    run = tmp_path / "a" / "checkpoints"
    assert sorted(path.name for path in run.iterdir()) == ["00000012", "00000020"]
    assert all(read_checkpoint(path).state["counts"] for path in run.iterdir())


def test_what_is_not_saved_at_the_end_is_told(dataset: st.Dataset, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="was not saved"):
        _, history = fit(dataset, tmp_path / "a", Disk(5, 20), on_checkpoint_failure="warn")
    assert isinstance(history.unsaved, ResourceError)
    assert "after batch 20 was not saved" in str(history.unsaved)
    assert history.checkpoint_failures == 1


def test_an_unknown_policy_is_refused(dataset: st.Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'warn'"):
        fit(dataset, tmp_path / "a", Syscalls(), on_checkpoint_failure="warm")


@pytest.fixture
def full_from(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the disk full, for the command, at the checkpoints after these numbers of batches."""
    opened = Syscalls.open

    def begin(*full: int) -> None:
        def refusing(self: Syscalls, path: Path) -> int:
            if any(f"{n_batches:08d}" in path.parent.name for n_batches in full):
                raise OSError(28, "No space left on device")
            return opened(self, path)

        monkeypatch.setattr(Syscalls, "open", refusing)

    return begin


def test_on_the_command_line(
    dataset: st.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], full_from: Any
) -> None:
    words = ["train", str(dataset.path), "--model", "linear", "--batch-size", "20", "--memory", "16MB", "--epochs", "2"]
    words += ["--checkpoint-every", "6", "--json"]
    full_from(6)
    assert main([*words, "--out", str(tmp_path / "a")]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err
    assert "the checkpoint after batch 6 was not saved: cannot create: No space left on device" in err
    words += ["--on-checkpoint-failure", "warn"]
    with pytest.warns(UserWarning, match="after batch 6 was not saved"):
        assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint_failures"] == 1
    full_from(12, 18, 20)
    with pytest.warns(UserWarning, match="was not saved"):
        assert main([*words, "--out", str(tmp_path / "c")]) == 5, "what it came to is not there"
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["checkpoint_failures"], result["steps"]) == (3, 20)
    newest = tmp_path / "c" / "checkpoints" / "00000010"
    assert "the checkpoint after batch 20 was not saved" in err
    assert f"The newest whole one is {newest}" in err
    with pytest.warns(UserWarning, match="was not saved"):
        assert main([*words[:-3], "--on-checkpoint-failure", "warn", "--out", str(tmp_path / "d")]) == 5
    assert "checkpoints that could not be saved: 3" in capsys.readouterr().out


def test_a_finished_run_prints_its_result_though_its_memory_cannot_be_written(
    dataset: st.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", dataset.path, "--model", "linear", "--epochs", 1, "--memory", "16MB", "--out", run, "--json"]
    with failing("writev", r"memory\.json", errno.ENOSPC):
        assert main([str(word) for word in words]) == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] == len(dataset)
    assert "memory.json: cannot write: No space left on device" in err
    assert newest_checkpoint(run).state["counts"]["n_samples"] == len(dataset)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("call", ["open_file", "stream", "stat"])
def test_a_checkpoint_that_cannot_be_read_for_now_is_neither_skipped_nor_removed(
    tmp_path: Path, call: str, code: int
) -> None:
    for n_batches in (1, 2):
        write_checkpoint(Files(), tmp_path, n_batches, {}, {"model": {"w": torch.zeros(3)}})
    before = tree_of(tmp_path)
    for pattern in (r"/00000002/state\.json$", r"/0000000\d/manifest\.json$"):
        with failing(call, pattern, code) as met, pytest.raises(ResourceError, match=os.strerror(code)) as caught:
            find_checkpoint(tmp_path)
        assert met
        assert "damaged" not in str(caught.value)
    assert tree_of(tmp_path) == before
    found, skipped = find_checkpoint(tmp_path)
    assert found is not None
    assert (found.path.name, skipped) == ("00000002", ())
