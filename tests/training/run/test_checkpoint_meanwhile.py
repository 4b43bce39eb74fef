"""A checkpoint that is removed or replaced while it is read leads to the newest one, whole, and to no complaint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamtrain.errors import CheckpointError
from streamtrain.models.normalization import Normalize
from streamtrain.system.files import Files
from streamtrain.training.run import checkpoint
from streamtrain.training.run.checkpoint import (
    load_weights,
    newest_checkpoint,
    normalize_states,
    normalize_tensors,
    write_checkpoint,
)
from streamtrain.training.run.run_folder import RunFolder


def save(run: Path, n_batches: int, value: float) -> None:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    normalize = normalize_tensors({"x": Normalize(torch.tensor(value), torch.tensor(1.0))})
    state = {"counts": value, "metrics_bytes": 0}
    write_checkpoint(Files(), run, n_batches, state, {"model": model.state_dict(), "normalize": normalize})


def went_on(run: Path) -> None:
    save(run, 11, 11.0)
    save(run, 12, 12.0)


def replaced_the_newest(run: Path) -> None:
    save(run, 10, 12.0)


def removed_the_newest(run: Path) -> None:
    """What is there of it while the next one is made, and it is removed."""
    went_on(run)
    save(run, 13, 12.0)


@pytest.mark.parametrize("meanwhile", [went_on, replaced_the_newest, removed_the_newest])
@pytest.mark.parametrize("function", ["_folders", "_read_manifest", "read_checkpoint", "read_tensors"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
def test_it_is_the_newest_one(
    tmp_path: Path,
    meanwhile: Callable[[Path], None],
    function: str,
    when: str,
    call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(tmp_path, 9, 9.0)
    save(tmp_path, 10, 10.0)
    real, left = getattr(checkpoint, function), [call]

    def held_open(*args: Any, **options: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            if not left[0] and when == "before":
                left[0] -= 1
                meanwhile(tmp_path)
        found = real(*args, **options)
        if left[0] == 0:
            left[0] -= 1
            meanwhile(tmp_path)
        return found

    monkeypatch.setattr(checkpoint, function, held_open)
    found = newest_checkpoint(tmp_path)
    if left[0] > 0:  # a function that is called once for a checkpoint
        assert found.state["counts"] == 10.0
        return
    model = nn.Linear(2, 1)
    load_weights(model, found)
    # All of one checkpoint, and of the newest there was when the last look at it began.
    value = found.state["counts"]
    assert value in ({12.0} if function != "_folders" else {10.0, 12.0})
    assert model.weight.tolist() == [[value, value]]
    assert normalize_states(found)["x"]["mean"].item() == value


def test_damage_is_damage_beside_a_trainer_too(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}):
        with pytest.raises(CheckpointError, match=r"It is being trained, and has not saved its first\. Fix: wait"):
            newest_checkpoint(tmp_path / "run")
        save(tmp_path / "run", 9, 9.0)
        (tmp_path / "run/checkpoints/00000009/model.safetensors").write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match=r"model.safetensors: has 7 of \d+ bytes"):
            newest_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the run has no whole checkpoint.*Fix: train again"):
        newest_checkpoint(tmp_path / "run")
