"""``train`` and ``evaluate`` with weighted samples, with sums over batches, and in each dtype of the sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.models.factory import build_model

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N, N_FEATURES, BATCH_SIZE = 300, 4, 32
EPOCH_BATCHES = 10


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, N_FEATURES)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int64), "w": rng.integers(0, 4, N) / 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> Path:
    path = tmp_path_factory.mktemp("data") / "table.zarr"
    st.ingest(arrays, path, block=20 * N_FEATURES * 4)
    return path


def result_of(capsys: pytest.CaptureFixture[str], command: str, *options: object) -> dict[str, Any]:
    assert main([command, *map(str, options), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def train(capsys: pytest.CaptureFixture[str], table: Path, *options: object) -> dict[str, Any]:
    fixed = ["--model", "linear", "--batch-size", BATCH_SIZE, "--memory", "64MB", "--normalize", "none"]
    return result_of(capsys, "train", table, *fixed, "--optimizer", "sgd", "--lr", 0.5, *options)


def config(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "config.json").read_text())
    return found


def by_hand(arrays: dict[str, np.ndarray], n_passes: int, lr: float) -> tuple[torch.nn.Module, list[float]]:
    """Full-batch gradient descent on the weighted mean, in float64 over the whole data at once; J at each pass."""
    model = build_model("linear", input_shape=(N_FEATURES,), n_outputs=2, seed=0).double()
    x, y, w = (torch.tensor(arrays[name]) for name in "xyw")
    found = []
    for _ in range(n_passes):
        loss = (F.cross_entropy(model(x.double()), y, reduction="none") * w).sum() / w.sum()
        found.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return model, found


@pytest.mark.parametrize("dtype", ["float64", "compensated", "float32"])
def test_the_epoch_rule_steps_on_the_weighted_mean_of_the_whole_data(
    table: Path, arrays: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    options = ["--update", "epoch", "--epochs", 3, "--weight", "w", "--grad-sum-dtype", dtype, "--out", "run"]
    result = train(capsys, table, *options)
    model, losses = by_hand(arrays, 3, 0.5)
    assert [epoch["loss"] for epoch in result["epochs"]] == pytest.approx(losses, rel=1e-5)
    assert (config("run")["weight"], config("run")["grad_sum_dtype"]) == ("w", dtype)
    measured = result_of(capsys, "evaluate", "run", table)
    x, y, w = (torch.tensor(arrays[name]) for name in "xyw")
    with torch.no_grad():
        each = F.cross_entropy(model(x.double()), y, reduction="none")
    assert measured["loss"] == pytest.approx(float((each * w).sum() / w.sum()), rel=1e-4), "weighted as it was trained"
    plain = result_of(capsys, "evaluate", "run", table, "--weight", "none")
    assert plain["loss"] == pytest.approx(float(each.mean()), rel=1e-4)


def test_accumulated_batches_are_one_larger_batch(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", 2, "--weight", "w", "--seed", 3]
    few = train(capsys, table, *options, "--accumulate-grad-batches", 4, "--out", "few")
    assert few["steps"] == 2 * 3, "windows of 4, 4 and 2 batches"
    assert config("few")["accumulate_grad_batches"] == 4
    whole = train(capsys, table, *options, "--accumulate-grad-batches", EPOCH_BATCHES, "--out", "whole")
    epoch = train(capsys, table, *options, "--update", "epoch", "--out", "epoch")
    assert [e["loss"] for e in whole["epochs"]] == pytest.approx([e["loss"] for e in epoch["epochs"]], rel=1e-5)


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_a_bad_weight_is_named_by_its_sample(
    arrays: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], update: str
) -> None:
    w = arrays["w"].copy()
    w[217] = -1.5
    st.ingest({**arrays, "w": w}, "bad.zarr", block=20 * N_FEATURES * 4)
    options = ["--model", "linear", "--batch-size", "32", "--memory", "64MB", "--normalize", "none", "--weight", "w"]
    assert main(["train", "bad.zarr", *options, "--update", update, "--epochs", "1"]) == 3
    err = capsys.readouterr().err
    assert "the weight of sample 217 is -1.5" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight", "v"], "unknown field 'v'"),
        (["--weight", "x"], "field x has shape (4,) a sample; a weight is one number"),
        (["--accumulate-grad-batches", "0"], "accumulate_grad_batches is 0; it must be an integer of at least 1"),
        (["--accumulate-grad-batches", "2", "--update", "epoch"], "accumulate_grad_batches"),
        (["--grad-sum-dtype", "float16"], "unknown grad_sum_dtype 'float16'"),
    ],
)
def test_bad_input_is_said_plainly(
    table: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["train", str(table), "--model", "linear", "--epochs", "1", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
