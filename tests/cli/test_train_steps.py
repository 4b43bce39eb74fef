"""``train`` with what belongs to every step, with fixed batches, and with an early end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N = 300


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "table.zarr"
    st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, path)
    return path


def arguments(table: Path, *options: object) -> list[str]:
    return ["train", str(table), "--model", "linear", "--batch-size", "32", "--memory", "64MB", *map(str, options)]


def result_of(capsys: pytest.CaptureFixture[str], table: Path, *options: object) -> dict[str, Any]:
    assert main([*arguments(table, *options), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def config(run: str = "runs/1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "config.json").read_text())
    return found


def test_every_option_reaches_the_run(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--clip-grad-norm", 1, "--clip-grad-value", 0.5, "--autocast", "bf16", "--beta1", "linear:0.5"]
    schedule = ["--schedule", "multistep", "--schedule-option", "milestones=[1,2]", "--schedule-option", "gamma=0.5"]
    result_of(capsys, table, *steps, *schedule, "--reshuffle", "never", "--epochs", 2)
    found = config()
    assert (found["clip_grad_norm"], found["clip_grad_value"], found["reshuffle"]) == (1.0, 0.5, "never")
    assert (found["autocast"], found["beta1"], found["compile"]) == ("bfloat16", "linear:0.5", False)
    assert found["schedule"] == {"name": "multistep", "every": "epoch", "milestones": [1, 2], "gamma": 0.5}


def test_a_loss_that_is_reached_and_one_that_is_not(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, table, "--lr", 0.1, "--epochs", 50, "--until-loss", 0.3)
    assert (result["reached"], result["stopped_by"]) == (True, "until_loss")
    assert len(result["epochs"]) < 50
    result = result_of(capsys, table, "--epochs", 2, "--until-loss", 1e-9)
    assert (result["reached"], result["stopped_by"]) == (False, "epochs")
    assert main(arguments(table, "--epochs", "2", "--until-loss", "1e-9")) == 0
    assert "ended   by epochs; --until-loss was not reached" in capsys.readouterr().out.splitlines()


def test_patience_ends_a_run(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--val", table, "--optimizer", "sgd", "--lr", 1e-30, "--epochs", 20, "--patience", 2]
    result = result_of(capsys, table, *options)
    assert (result["stopped_by"], result["reached"], len(result["epochs"])) == ("patience", None, 3)


def test_a_run_that_has_its_epochs_says_that_nothing_was_trained(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result_of(capsys, table, "--epochs", 2, "--out", "a")
    kept = json.loads(Path("a/memory.json").read_text())
    assert main(arguments(table, "--epochs", 1, "--out", "a", "--resume")) == 0
    said = capsys.readouterr()
    assert "trained nothing: the run already has 2 epochs, and --epochs is the total" in said.out
    for absent in ("epoch      steps", "samples/s", "measured"):
        assert absent not in said.out
    assert json.loads(Path("a/memory.json").read_text()) == kept, "what the training took"


def test_a_run_resumes_with_its_batches_and_no_others(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result_of(capsys, table, "--epochs", 1, "--out", "a", "--reshuffle", "never")
    assert result_of(capsys, table, "--epochs", 2, "--out", "a", "--reshuffle", "never", "--resume")["steps"] == 20
    assert main(arguments(table, "--epochs", 3, "--out", "a", "--resume")) == 6
    assert "reshuffle: 'never' there, 'epoch' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "cosin"], "unknown schedule 'cosin'"),
        (["--schedule", "step"], "Fix: --schedule-option step_size=10"),
        (["--schedule-option", "gamma=0.5"], "--schedule-option or --schedule-every without --schedule"),
        (["--schedule", "step", "--schedule-option", "gamma"], "--schedule-option 'gamma' is not NAME=VALUE"),
        (["--update", "epoch", "--drop-last"], "update='epoch' with drop_last"),
        (["--autocast", "fp16"], "autocast to float16"),
        (["--optimizer", "sgd", "--beta1", "linear:0.5"], "beta1 with SGD, which has none"),
        (["--until-loss", "nan"], "until_loss is nan"),
        (["--patience", "0"], "patience is 0"),
    ],
)
def test_bad_input_is_said_plainly(
    table: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(arguments(table, *options)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_divergence_is_8_and_names_step_samples_and_checkpoint(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--loss", "mse", "--optimizer", "sgd", "--lr", "1e30", "--model", "mlp:4", "--checkpoint-every", "1"]
    rng = np.random.default_rng(0)
    st.ingest({"x": rng.normal(size=(N, 4)).astype(np.float32), "y": rng.normal(size=N).astype(np.float32)}, "r.zarr")
    assert main(arguments(Path("r.zarr"), *options)) == 8
    err = capsys.readouterr().err
    assert "epoch 1, step " in err
    assert "samples" in err.lower()
    assert "The last checkpoint is runs/1/checkpoints/0000000" in err
