"""Every figure that ``train`` and ``evaluate`` tell of a run, worked out again from its saved weights by plain PyTorch.

A run is taken epoch by epoch, so that the weights at each one's end are on the disk. The loss of an epoch of single
steps is that of every sample just before the step that it is in: a plain loop takes the same steps from the same
weights, and must come to the saved ones. A pass over the whole dataset is at one point: the saved weights before its
step, or with L-BFGS and CG those it came to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import streamtrain as st
from streamtrain.cli.main import main

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N, N_VAL, BATCH, HIDDEN, EPOCHS = 100, 40, 16, 5, 3
MEMORY = ("--memory", "16MB", "--device", "cpu")
EACH = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss, "l1": F.l1_loss}
PLAIN = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
LR = {"sgd": "0.05", "adam": "0.01", "adamw": "0.01", "rmsprop": "0.01", "adagrad": "0.05"}


@dataclass(frozen=True)
class Run:
    """How a run is trained."""

    update: str
    optimizer: str
    loss: str = "cross_entropy"
    weight: bool = False
    l2: float = 0.0
    epochs: int = EPOCHS
    more: tuple[str, ...] = field(default=())


RUNS = (
    Run("batch", "sgd", weight=True),
    Run("batch", "adam", "mse", l2=0.01),
    Run("batch", "rmsprop", "l1", weight=True, more=("--drop-last",)),
    Run("sample", "sgd"),
    Run("sample", "adamw", weight=True, more=("--sample-path", "plain")),
    Run("sample", "adagrad", "mse"),
    Run("epoch", "sgd", weight=True, l2=0.1),
    Run("epoch", "adam", "l1"),
    Run("epoch", "lbfgs", "mse", weight=True, l2=0.01, epochs=9),
    Run("epoch", "cg", l2=0.01, epochs=9),
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes and values, to train on and to measure on."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, n in (("train", N), ("val", N_VAL)):
        x = rng.normal(size=(n, 4)) * [1, 30, 1, 0] + [0, 500, 3, 0.1]
        value = np.sin(x[:, 0] * 2) + x[:, 1] / 100 + rng.normal(size=n) / 3
        rows = {"x": x.astype("float32"), "w": rng.integers(0, 4, n).astype("float32")}
        st.ingest(rows | {"y": value.astype("float32")}, folder / f"values-{name}.zarr")
        st.ingest(rows | {"y": np.digitize(value, [4.5, 5.5])}, folder / f"classes-{name}.zarr")
    return folder


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


class Plain:
    """A run's model, made of its saved weights alone, and its data."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        n_outputs = 3 if run.loss == "cross_entropy" else 1
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(4, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_outputs))
        self.load(folder)
        self.saved = load_file(newest(folder) / "normalize.safetensors")
        self.units = json.loads((folder / "config.json").read_text()).get("normalize_target")

    def load(self, folder: Path) -> None:
        """Take the weights that are saved."""
        self.model.load_state_dict(load_file(newest(folder) / "model.safetensors"))

    def each(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's loss, and whether its class was met, or its squared error in the data's own unit."""
        output = self.model((x - self.saved["x.mean"]) / self.saved["x.std"])
        if self.run.loss == "cross_entropy":
            return EACH[self.run.loss](output, y, reduction="none"), (output.argmax(-1) == y).double()
        (mean,), (std,) = self.units["mean"], self.units["std"]
        losses = EACH[self.run.loss](output[:, 0], ((y.double() - mean) / std).float(), reduction="none")
        return losses, (output[:, 0].detach().double() * std + mean - y).square()

    def penalty(self) -> Tensor:
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        return self.run.l2 / 2 * sum((w**2).sum() for w in weights)

    def named(self, sums: Any) -> dict[str, float]:
        """Loss and score, from weighted sums of the losses and of the hits or squares, and the sum of the weights."""
        loss, scores, of = (float(value) for value in sums)
        is_of_classes = self.run.loss == "cross_entropy"
        score = {"accuracy": scores / of} if is_of_classes else {"rmse": (scores / of) ** 0.5}
        return {"loss": loss / of} | score

    @torch.no_grad()
    def sums(self, x: Tensor, y: Tensor, w: Tensor) -> Any:
        losses, hits = self.each(x, y)
        of = w.double() if self.run.weight else torch.ones(len(y)).double()
        return np.array([(losses * of).sum(), (hits * of).sum(), of.sum()])

    def whole(self, x: Tensor, y: Tensor, w: Tensor) -> dict[str, float]:
        """J and the norm of its gradient over the whole dataset."""
        self.model.zero_grad()
        of = w if self.run.weight else torch.ones(len(y))
        objective = (self.each(x, y)[0] * of).sum() / of.sum() + self.penalty()
        objective.backward()
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return {"objective": objective.item(), "grad_norm": torch.cat(gradients).norm().item()}


def steps(plain: Plain, optimizer: torch.optim.Optimizer, batch: Any) -> Any:
    """Take a plain loop's steps on a batch; the sums of what every sample was before the step that it is in."""
    found, (x, w, y) = np.zeros(3), (batch.x, batch.w, batch.y)
    for some in torch.arange(len(y)).split(1 if plain.run.update == "sample" else len(y)):
        found += plain.sums(x[some], y[some], w[some])
        of = w[some] if plain.run.weight else torch.ones(len(some))
        if not of.any():
            continue
        optimizer.zero_grad()
        divisor = of.sum() if plain.run.update == "batch" else 1
        ((plain.each(x[some], y[some])[0] * of).sum() / divisor + plain.penalty()).backward()
        optimizer.step()
    return found


def of_epoch(plain: Plain, optimizer: torch.optim.Optimizer | None, loader: st.StreamLoader, epoch: int) -> Any:
    """The figures of an epoch, and the losses of its lines: a plain loop's, or those of the weights as they are."""
    found, losses, since = np.zeros(3), [], np.zeros(3)
    loader.set_epoch(epoch)
    for i, batch in enumerate(loader):
        sums = plain.sums(batch.x, batch.y, batch.w) if optimizer is None else steps(plain, optimizer, batch)
        found, since = found + sums, since + sums
        if (i + 1 + epoch * len(loader)) % 3 == 0:
            losses.append(since[0] / since[2])
            since = np.zeros(3)
    return plain.named(found), losses


def command(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def near(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.update}-{run.optimizer}-{run.loss}")
def test_every_figure_is_that_of_the_saved_weights(stored: Path, capsys: pytest.CaptureFixture[str], run: Run) -> None:
    kind, out = ("classes" if run.loss == "cross_entropy" else "values"), Path("run")
    data, val = st.open(stored / f"{kind}-train.zarr"), st.open(stored / f"{kind}-val.zarr")
    words = ["train", data.path, "--model", f"mlp:{HIDDEN}", "--val", val.path, "--out", out, "--resume", *MEMORY]
    words += ["--update", run.update, "--optimizer", run.optimizer, "--loss", run.loss, "--l2", run.l2, "--seed", 3]
    words += ["--batch-size", BATCH, "--log-every", 3, *run.more, *(["--weight", "w"] if run.weight else [])]
    words += ["--lr", LR[run.optimizer]] if run.optimizer in LR else []
    command(capsys, *words, "--epochs", 0)
    plain = Plain(run, out)
    rows, val_rows = ({name: torch.from_numpy(a) for name, a in some[:].items()} for some in (data, val))
    moves = run.update != "epoch"
    optimizer = PLAIN[run.optimizer](plain.model.parameters()) if moves else None
    in_order = {"shuffle": moves, "drop_last": "--drop-last" in run.more, "seed": 3}
    with st.StreamLoader(data, batch_size=BATCH, memory="12MB", **in_order) as loader:
        for epoch in range(run.epochs):
            expected, losses = of_epoch(plain, optimizer, loader, epoch)
            whole = {} if moves else plain.whole(**rows)
            told = command(capsys, *words, "--epochs", epoch + 1)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            lines = [line for line in lines if line["epoch"] == epoch + 1]
            if moves:
                saved = load_file(newest(out) / "model.safetensors")
                torch.testing.assert_close(dict(plain.model.state_dict()), saved, rtol=1e-4, atol=1e-5)
            plain.load(out)
            if run.optimizer in ("lbfgs", "cg"):
                expected, whole = plain.named(plain.sums(**rows)), plain.whole(**rows)
            elif run.update == "epoch":
                del whole["objective"]
            val_figures = plain.named(plain.sums(**val_rows))
            of_line = expected | whole | {f"val_{name}": value for name, value in val_figures.items()}
            line = lines[-1]
            assert {name: line[name] for name in of_line} == near(of_line), epoch
            told_names = {name for name in line if not name.endswith(("seconds", "second", "stall_fraction"))}
            told_names -= {name for name in told_names if name.startswith("trial_")}
            assert told_names == {"kind", "epoch", "steps", "samples", *of_line}
            assert [each["loss"] for each in lines[:-1] if "trial" not in each] == near(
                losses if not any("trial" in each for each in lines) else []
            )
            n_samples = len(loader) * BATCH if "--drop-last" in run.more else N
            assert line["samples"] == told["samples"] == (epoch + 1) * n_samples
            assert {name: told[name] for name in expected} == near(expected)
            assert told["val"] == near(val_figures)
            assert [{name: each[name] for name in of_line} for each in told["epochs"]] == [near(of_line)]
    for dataset, some, size in ((data, rows, 7), (val, val_rows, 1000)):
        found = command(capsys, "evaluate", out, dataset.path, "--checkpoint", "last", "--batch-size", size, *MEMORY)
        figures = plain.named(plain.sums(**some))
        assert {name: found[name] for name in figures} == near(figures)
        assert found["samples"] == len(dataset)
