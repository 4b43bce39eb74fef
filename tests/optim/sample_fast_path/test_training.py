"""The sample rule's path in a run: reported before it, kept in its folder, and taken again on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doomed import Doomed, Killed
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import CheckpointError, DivergedError

N, BATCH_SIZE = 150, 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return st.ingest({"x": x, "y": y}, tmp_path_factory.mktemp("data") / "d.zarr", progress=False)


def make_trainer(path: str, **options: Any) -> st.Trainer:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    how = {"loss": "cross_entropy", "update": "sample", "normalize": "auto", "device": "cpu", **options}
    return st.Trainer(model, sample_path=path, **how)


def fit(
    trainer: st.Trainer, dataset: st.Dataset, run: Path | None = None, max_epochs: int = 1, kill_after: int = 0
) -> Any:
    resume = "auto" if run else None
    how = {"checkpoint": run, "checkpoint_every": 2, "resume": resume, "progress": False}
    with (Doomed if kill_after else st.StreamLoader)(dataset, batch_size=BATCH_SIZE, memory="16MB") as loader:
        loader.left = kill_after
        return trainer.fit(loader, max_epochs=max_epochs, **how)


def weights(trainer: st.Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_a_run_goes_on_along_its_own_path_bit_for_bit(
    dataset: st.Dataset, tmp_path: Path, path: str, options: dict[str, Any]
) -> None:
    whole = make_trainer(path, **options)
    fit(whole, dataset, max_epochs=2)
    run = tmp_path / "run"
    with pytest.raises(Killed):
        fit(make_trainer(path, **options), dataset, run, max_epochs=2, kill_after=7)
    assert json.loads((run / "config.json").read_text())["sample_path"] == path
    # What goes on asks for nothing.
    second = make_trainer("auto", **options)
    history = fit(second, dataset, run, max_epochs=2)
    assert history.resumed_from_batch == 6
    assert second.way == ("sample (fast path)" if path == "fast" else "sample (plain path)")
    assert torch.equal(weights(second), weights(whole))
    other = "plain" if path == "fast" else "fast"
    with pytest.raises(CheckpointError, match=f"the run took the {path} sample path; {other} is asked for") as caught:
        fit(make_trainer(other, **options), dataset, run, max_epochs=3)
    assert "checkpoints" in str(caught.value.where)
    assert str(caught.value).count("Fix:") == 1


def test_both_paths_come_to_the_same(dataset: st.Dataset) -> None:
    trainers = {path: make_trainer(path, optimizer="sgd") for path in ("fast", "plain")}
    losses = {path: fit(trainer, dataset, max_epochs=2).last.train.loss for path, trainer in trainers.items()}
    assert losses["fast"] == pytest.approx(losses["plain"], rel=1e-5)
    torch.testing.assert_close(weights(trainers["fast"]), weights(trainers["plain"]), rtol=1e-4, atol=1e-6)


def test_divergence_names_the_step_and_the_sample(tmp_path: Path) -> None:
    y = np.ones((40, 2), np.float32)
    y[17] = 3e38  # whose square is infinite
    data = st.ingest({"x": np.ones((40, 4), np.float32), "y": y}, tmp_path / "huge.zarr", progress=False)
    wheres = []
    for path in ("fast", "plain"):
        with pytest.raises(DivergedError, match="the loss is inf") as caught:
            fit(make_trainer(path, loss="mse", normalize=None), data, max_epochs=1)
        assert caught.value.samples == (17,)
        wheres.append(caught.value.where)
    assert wheres[0] == wheres[1], "the same step"


def test_the_command_says_which_path_it_takes_and_why(
    dataset: st.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        str(dataset.path),
        "--model",
        "mlp:4",
        "--update",
        "sample",
        "--epochs",
        "1",
        "--memory",
        "16MB",
    ]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "update  sample (fast path), adam" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "b"), "--optimizer", "rmsprop"]) == 0
    assert "sample (plain path: the optimizer is RMSprop), rmsprop" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "c"), "--sample-path", "plain"]) == 0
    assert "sample (plain path), adam" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "d"), "--optimizer", "rmsprop", "--sample-path", "fast"]) == 2
    assert "sample_path is 'fast', and the optimizer is RMSprop" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "e"), "--sample-path", "fats"]) == 2
    assert "did you mean 'fast'?" in capsys.readouterr().err
