"""The folder of a run: what is in it, and what becomes of a damaged one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from streamtrain.checkpoint import (
    MODEL,
    RunFolder,
    load_normalize_state,
    load_weights,
    newest_checkpoint,
    next_run,
    read_config,
    tensor_bytes,
)
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.normalize import Normalize


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints; the model's weights are 1, then 2."""
    path = tmp_path / "runs" / "1"
    model = nn.Linear(2, 1)
    with RunFolder(path, {"model": "linear"}) as folder:
        folder.log(kind="batch", loss=0.5)
        folder.log(kind="epoch", loss=float("nan"))
        for n_batches, value in ((9, 1.0), (10, 2.0)):
            nn.init.constant_(model.weight, value)
            folder.save(n_batches, model, {"x": Normalize(torch.tensor(3.0), torch.tensor(0.0))})
    return path


def test_a_run_holds_config_metrics_and_weights(run: Path) -> None:
    assert read_config(run) == {"model": "linear"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "batch", "loss": 0.5}, {"kind": "epoch", "loss": None}]
    checkpoint = newest_checkpoint(run)
    assert checkpoint.name == "00000010"
    model = nn.Linear(2, 1)
    load_weights(model, checkpoint / MODEL)
    assert model.weight.tolist() == [[2.0, 2.0]]
    assert load_normalize_state(checkpoint) == {"x": {"mean": torch.tensor(3.0), "std": torch.tensor(1.0)}}


def test_nothing_appears_before_there_is_something_to_keep(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}):
        pass
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="the run folder is taken") as caught:
        RunFolder(run, {})
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError):
        RunFolder(run / "config.json", {})


def test_runs_are_numbered_by_the_highest(run: Path) -> None:
    (run.parent / "12").mkdir()
    (run.parent / "notes").mkdir()
    assert next_run(run.parent) == run.parent / "13"


def test_no_run_names_those_beside_it(run: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json is missing. Fix: one of {run}") as caught:
        read_config(run.parent / "2")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_config_is_refused(run: Path, text: str) -> None:
    (run / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json"):
        read_config(run)


def test_a_run_without_weights_says_so(run: Path) -> None:
    for file in run.glob(f"checkpoints/*/{MODEL}"):
        file.unlink()
    with pytest.raises(CheckpointError, match="It did not end") as caught:
        newest_checkpoint(run)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("keep", [0, 7, 60, 90])
def test_truncated_weights_are_refused(run: Path, keep: int) -> None:
    file = newest_checkpoint(run) / MODEL
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        load_weights(nn.Linear(2, 1), file)


def test_weights_of_another_model_are_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="another model: size mismatch for weight") as caught:
        load_weights(nn.Linear(3, 1), newest_checkpoint(run) / MODEL)
    assert caught.value.exit_code == 6
    with pytest.raises(CheckpointError, match="is missing"):
        load_weights(nn.Linear(2, 1), run / "none")


def test_a_pickle_is_not_weights(run: Path) -> None:
    file = newest_checkpoint(run) / MODEL
    file.write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(nn.Linear(2, 1), file)


def test_tied_and_transposed_weights_are_kept(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.out.weight = self.into.weight
            self.register_buffer("view", torch.arange(6.0).reshape(2, 3).T)

    saved, loaded = Tied(), Tied()
    file = tmp_path / "tied"
    file.write_bytes(tensor_bytes(saved.state_dict()))
    load_weights(loaded, file)
    assert torch.equal(loaded.out.weight, saved.into.weight)
    assert loaded.out.weight is loaded.into.weight


def test_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="'extra' is dict, not a tensor"):
        tensor_bytes({"extra": {}})
