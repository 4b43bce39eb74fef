"""``train`` and ``evaluate``: what would crash, or have no effect, is refused; what ended a run is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.cli.options import most_threads

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "table.zarr"
    st.ingest({"x": x, "y": (x[:, 0] + 0.3 * x[:, 1] ** 2 > 0).astype(np.int64)}, path)
    return path


def train(table: Path, *options: object) -> int:
    fixed = ["--model", "linear", "--batch-size", "32", "--memory", "64MB"]
    return main(["train", str(table), *fixed, *map(str, options)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "step", "--schedule-option", "step_size=x"], "step with step_size='x'"),
        (["--schedule", "step", "--schedule-option", "step_size=0"], "step with step_size=0"),
        (["--schedule", "cosine", "--schedule-option", "T_max=0"], "cosine with T_max=0"),
        (["--schedule", "exponential", "--schedule-option", "gamma=nan"], "exponential with gamma='nan'"),
        (["--schedule", "multistep", "--schedule-option", "milestones=x"], "which is not a list of integers"),
        (["--optimizer", "lbfgs", "--update", "epoch", "--beta1", "linear:0.5"], "beta1 with LBFGS"),
        (["--threads", 999_999], f"threads is 999999; it may be at most {most_threads()} here"),
        (["--update", "epoch", "--lanes", 4], "--lanes with --update epoch"),
        (["--sample-path", "fast"], "sample_path is 'fast' with update='batch'"),
        (["--grad-sum-dtype", "float32"], "grad_sum_dtype is 'float32' with update='batch'"),
        (["--update", "sample", "--grad-sum-dtype", "compensated"], "nothing is summed"),
    ],
)
def test_what_train_refuses_leaves_nothing(
    table: Path, capsys: pytest.CaptureFixture[str], options: list[object], message: str
) -> None:
    assert train(table, *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Fix: " in err
    assert "Traceback" not in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("threads", [0, most_threads() + 1])
def test_compare_has_the_same_limits_of_threads(table: Path, capsys: pytest.CaptureFixture[str], threads: int) -> None:
    assert main(["compare", str(table), "--threads", str(threads)]) == 2
    assert f"threads is {threads}; it " in capsys.readouterr().err
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_outputs", -1, "n_outputs is -1, and not a positive integer"),
        ("n_outputs", "2", "n_outputs is '2', and not a positive integer"),
        ("n_outputs", True, "n_outputs is True"),
        ("input_shape", [4, -1], "input_shape is [4, -1], and not a list of positive integers"),
        ("input_shape", 4, "input_shape is 4"),
        ("weight", 5, "weight is 5, and not a text or null"),
        ("target", 5, "target is 5, and not a text"),
        ("target", None, "target is None, and not a text"),
        ("inputs", "x", "inputs is 'x', and not a list of at least one text"),
        ("inputs", [5], "inputs is [5]"),
        ("normalize", {"x": 1}, "and not a list of texts"),
        ("model", 5, "model is 5, and not a text"),
        ("loss", ["mse"], "loss is ['mse'], and not a text"),
    ],
)
def test_a_damaged_configuration_is_told_as_damage(
    table: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any, message: str
) -> None:
    assert train(table, "--epochs", 0, "--out", "run") == 0
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps(config | {name: value}))
    assert main(["evaluate", "run", str(table)]) == 6
    err = capsys.readouterr().err
    assert "run/config.json: is damaged. " in err
    assert message in err
    assert "Fix: train again" in err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--grad-tolerance", 0.1], "by --grad-tolerance: the norm of the gradient is at most that"),
        (["--loss-tolerance", 0.1], "by --loss-tolerance: a step lowered J by at most that"),
        (
            ["--grad-tolerance", 0.1, "--until-loss", 1e-9],
            "by --grad-tolerance: the norm of the gradient is at most that; --until-loss was not reached",
        ),
    ],
)
def test_what_ends_a_line_search_is_said(
    table: Path, capsys: pytest.CaptureFixture[str], options: list[object], line: str
) -> None:
    assert train(table, "--optimizer", "lbfgs", "--update", "epoch", "--l2", 0.1, "--epochs", 60, *options) == 0
    assert f"ended   {line}" in capsys.readouterr().out.splitlines()


def test_a_run_that_is_stuck_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    # All samples are the same, and their targets too, so that the bias alone fits them exactly.
    st.ingest({"x": np.zeros((40, 2), np.float32), "y": np.zeros(40, np.float32)}, "zero.zarr")
    options = ["--optimizer", "lbfgs", "--update", "epoch", "--normalize", "none", "--epochs", 200]
    assert train(Path("zero.zarr"), *options) == 0
    assert "ended   where no step lowers J any more" in capsys.readouterr().out.splitlines()


def test_a_run_that_came_to_its_total_says_nothing(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(table, "--epochs", 1) == 0
    assert train(table, "--max-steps", 2) == 0
    assert train(table, "--lr", 1e-30, "--optimizer", "sgd", "--patience", 1, "--monitor", "loss") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ended")]
    assert lines == ["ended   by --patience: the loss stopped falling"]
