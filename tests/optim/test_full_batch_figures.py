"""Reports of runs with L-BFGS and CG: after every pass, the figures of the weights that the run has and saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doomed import Doomed, Killed
from in_memory import Arrays, Batches
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import streamtrain as st
from streamtrain.diagnostics.run_reader import read_run
from streamtrain.diagnostics.run_report import write_report
from streamtrain.optim.optimizers import FULL_BATCH

pytestmark = pytest.mark.usefixtures("one_thread")

N, L2 = 120, 1e-2
TIMES = ("seconds", "samples_per_second", "stall_fraction")


def curved() -> tuple[Any, Any]:
    """Rosenbrock's valley: most directions need several trials."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(N, 2))
    y = (1 - x[:, 0]) ** 2 + 10 * (x[:, 1] - x[:, 0] ** 2) ** 2
    return x, (y - y.mean()) / y.std()


def perceptron(n_outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, n_outputs)).double()


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(TIMES)} for line in found]


@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize("loss", ["mse", "l1", "cross_entropy"])
@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_after_every_pass_the_figures_are_those_of_the_weights(
    tmp_path: Path, optimizer: str, loss: str, weight: str | None
) -> None:
    x, y = curved()
    y = np.digitize(y, [-0.5, 0.5]) if loss == "cross_entropy" else y
    w = np.arange(N) % 4 if weight else np.ones(N)
    model = perceptron(3 if loss == "cross_entropy" else 1)
    seen: list[tuple[dict[str, float], dict[str, float]]] = []

    def figures() -> dict[str, float]:
        model.zero_grad()
        output, target, of = model(torch.from_numpy(x)), torch.from_numpy(y), torch.from_numpy(w).double()
        each = {"mse": F.mse_loss, "l1": F.l1_loss, "cross_entropy": F.cross_entropy}[loss]
        mean = (each(output if output.shape[1] > 1 else output[:, 0], target, reduction="none") * of).sum() / of.sum()
        penalty = L2 / 2 * sum((p**2).sum() for p in model.parameters() if p.ndim > 1)
        objective = mean + penalty
        objective.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        met = ((output.argmax(1) == target).double() * of).sum() / of.sum()
        squared = F.mse_loss(output[:, 0], target, reduction="none") if output.shape[1] == 1 else of
        rmse = ((squared * of).sum() / of.sum()).sqrt()
        score = ("accuracy", met) if loss == "cross_entropy" else ("rmse", rmse)
        found = {"loss": mean, score[0]: score[1], "objective": objective, "grad_norm": norm}
        return {name: value.item() for name, value in found.items()}

    trainer = st.Trainer(model, loss=loss, optimizer=optimizer, update="epoch", l2=L2, weight=weight, device="cpu")
    trainer.fit(
        Batches(Arrays(x=x, y=y, w=w), batch_size=50),
        max_epochs=25,
        checkpoint=tmp_path / "run",
        on_epoch=lambda summary: seen.append((summary.named(), figures())),
    )
    told = [line for line in lines(tmp_path / "run") if line["kind"] == "epoch"]
    has_trials = optimizer == "cg" or loss != "cross_entropy"
    assert any("trial_loss" in line for line in told) or not has_trials, "or nothing is tested"
    for line, (summary, expected) in zip(told, seen, strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert {name: summary[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


def jump(output: Tensor, _: Tensor) -> Tensor:
    """Downhill until 0.7, where it jumps up: a search goes back to an earlier trial."""
    return torch.where(output < 0.7, -output, 1 + 0 * output).mean()


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x))


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_step_back_to_an_earlier_trial_has_that_trial_s_figures(optimizer: str) -> None:
    data, model = Batches(Arrays(x=np.zeros((4, 1)), y=np.zeros(4))), Weight()
    seen: list[tuple[float, float]] = []
    trainer = st.Trainer(model, loss=jump, optimizer=optimizer, update="epoch", device="cpu")
    history = trainer.fit(data, max_epochs=80, on_epoch=lambda s: seen.append((s.train.loss, -model.w.item())))
    assert history.counts.n_steps > 1
    assert [told for told, _ in seen] == pytest.approx([real for _, real in seen])


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_until_loss_ends_at_the_weights_that_reached_it(optimizer: str) -> None:
    x, y = curved()
    model = perceptron(1)
    trainer = st.Trainer(model, loss="mse", optimizer=optimizer, update="epoch", device="cpu")
    history = trainer.fit(Batches(Arrays(x=x, y=y), batch_size=50), max_epochs=200, until_loss=0.6)
    assert (history.reached, history.stopped_by) == (True, "until_loss")
    with torch.no_grad():
        assert float(F.mse_loss(model(torch.from_numpy(x))[:, 0], torch.from_numpy(y))) <= 0.6


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_killed_run_goes_on_with_the_same_figures(tmp_path: Path, optimizer: str) -> None:
    x, y = curved()
    dataset = st.ingest({"x": x, "y": np.digitize(y, [-0.5, 0.5])}, tmp_path / "d.zarr", block=20 * 16)

    def fit(loader: Any, run: Path) -> list[dict[str, Any]]:
        trainer = st.Trainer(perceptron(3), loss="cross_entropy", optimizer=optimizer, update="epoch", device="cpu")
        trainer.fit(loader, max_epochs=14, checkpoint=run, checkpoint_every=1, log_every=1, resume="auto")
        return lines(run)

    how: dict[str, Any] = {"batch_size": 40, "memory": "8MB", "shuffle": False}
    with st.StreamLoader(dataset, **how) as loader:
        whole = fit(loader, tmp_path / "whole")
    assert any("trial_accuracy" in line for line in whole) or optimizer == "lbfgs", "or nothing is tested"
    for kill_after in range(4, 40, 7):
        doomed = Doomed(dataset, **how)
        doomed.left = kill_after
        with doomed, pytest.raises(Killed):
            fit(doomed, tmp_path / str(kill_after))
        with st.StreamLoader(dataset, **how) as loader:
            assert fit(loader, tmp_path / str(kill_after)) == whole, kill_after


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_report_draws_the_figures_of_the_weights(tmp_path: Path, optimizer: str) -> None:
    x, y = curved()
    trainer = st.Trainer(perceptron(1), loss="mse", optimizer=optimizer, update="epoch", device="cpu")
    trainer.fit(Batches(Arrays(x=x, y=y), batch_size=50), max_epochs=12, checkpoint=tmp_path / "run", log_every=1)
    kept = lines(tmp_path / "run")
    assert any("trial" in line for line in kept)
    told = read_run(tmp_path / "run")
    batches = [line for line in kept if line["kind"] == "batch" and "trial" not in line]
    assert [line["loss"] for line in told.batches] == [line["loss"] for line in batches]
    assert write_report(tmp_path / "run")[0].read_text().rstrip().endswith("</html>")
