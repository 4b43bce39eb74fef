"""The golden runs: how they were trained, interrupted and measured, and whether this machine computes alike."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
import torch
from golden import open_golden, run_command
from torch import nn

import streamtrain as st

TRAINED_ON: Final = "lz4"
Told = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is kept.

    Parameters
    ----------
    options : tuple of str
        Of its command line; there is none for what Python trains.
    stop_after : int, optional
        The batch after which the interrupted one of the pair got Ctrl-C; a run without is kept finished alone.
    n_epochs : int
        What it is finished after.
    """

    options: tuple[str, ...] = ()
    stop_after: int | None = None
    n_epochs: int = 3


_COMMON: Final = (
    *("--model", "mlp:4", "--epochs", "3", "--batch-size", "16", "--memory", "16MB", "--seed", "5", "--device", "cpu"),
    *("--log-every", "6", "--checkpoint-every", "7"),
)
PYTHON: Final = "python"
RUNS: Final[dict[str, Run]] = {
    "batch": Run(options=(*_COMMON, "--lr", "0.05", "--weight", "w", "--val", "datasets/none.zarr"), stop_after=20),
    "sample": Run(options=(*_COMMON, "--update", "sample"), stop_after=20),
    "sample-plain": Run(
        options=(*_COMMON, "--update", "sample", "--sample-path", "plain", "--optimizer", "sgd", "--momentum", "0.5")
    ),
    "epoch": Run(
        options=(*_COMMON, "--update", "epoch", "--optimizer", "sgd", "--lr", "0.5", "--momentum", "0.9"), stop_after=20
    ),
    "lbfgs": Run(options=(*_COMMON, "--update", "epoch", "--optimizer", "lbfgs", "--l2", "0.01"), stop_after=38),
    "cg": Run(options=(*_COMMON, "--update", "epoch", "--optimizer", "cg", "--epochs", "8"), n_epochs=8),
    PYTHON: Run(stop_after=17),
}
INTERRUPTED: Final = tuple(name for name, run in RUNS.items() if run.stop_after)
TIMES: Final = ("seconds", "samples_per_second", "stall_fraction")


def train(name: str, out: str) -> Told:
    """Train a golden run in the current folder, or resume it; what is told of it."""
    if name == PYTHON:
        return _train_in_python(out)
    told: Told = json.loads(run_command(*_words(name, out)))
    return told


def _words(name: str, out: str) -> tuple[str, ...]:
    return ("train", f"datasets/{TRAINED_ON}.zarr", *RUNS[name].options, "--out", out, "--resume", "--json")


def make_trainer() -> st.Trainer:
    """The trainer of the run that Python trains: dropout, accumulated batches, and a schedule."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.25), nn.Linear(6, 3))
    sgd = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
    how = {"accumulate_grad_batches": 4, "clip_grad_norm": 1.0, "normalize": "auto", "device": "cpu"}
    return st.Trainer(model, loss="cross_entropy", schedule="cosine", **sgd, **how)


def make_loader() -> st.StreamLoader:
    """The loader of the run that Python trains."""
    return st.StreamLoader(open_golden(TRAINED_ON), batch_size=16, memory="8MB", seed=9)


def _train_in_python(out: str) -> Told:
    with make_loader() as loader:
        history = make_trainer().fit(
            loader, max_epochs=3, checkpoint=out, checkpoint_every=5, resume="auto", log_every=6, progress=False
        )
    last = history.last
    return {
        "steps": history.counts.n_steps,
        "samples": history.counts.n_samples,
        "epochs": [summary.named() for summary in history],
        "resumed_from_batch": history.resumed_from_batch,
    } | (last.train.named() if last else {})


@contextmanager
def ctrl_c_after(n_batches: int) -> Iterator[None]:
    """Press Ctrl-C while the training data's batch of that number is on its way; the run ends behind its step."""
    seen = [0]
    plain: Callable[[st.StreamLoader], Iterator[Any]] = st.StreamLoader.__iter__

    def counted(loader: st.StreamLoader) -> Iterator[Any]:
        for batch in plain(loader):
            if loader.dataset.path.stem == TRAINED_ON:
                seen[0] += 1
                if seen[0] == n_batches:
                    signal.raise_signal(signal.SIGINT)
            yield batch

    st.StreamLoader.__iter__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        st.StreamLoader.__iter__ = plain  # type: ignore[method-assign]


def train_until_ctrl_c(name: str, out: str) -> None:
    """Train a golden run, and interrupt it at its place."""
    stop_after = RUNS[name].stop_after
    assert stop_after is not None
    with ctrl_c_after(stop_after), suppress(KeyboardInterrupt):
        # The command line answers with the exit code, Python with the exception.
        if name == PYTHON:
            _train_in_python(out)
        else:
            run_command(*_words(name, out), exit_code=130)
            return
        raise AssertionError(f"{name} was not interrupted")


def evaluate(name: str, run: str) -> dict[str, float]:
    """Loss and score of a finished run's weights on another dataset than it was trained on."""
    told = json.loads(run_command("evaluate", run, "datasets/none.zarr", "--batch-size", "64", "--json"))
    return {measure: told[measure] for measure in ("loss", "accuracy")}


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` but what a clock said."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(TIMES)} for line in read]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The same as version 0.1.0 had it: of a trial that was not taken, the trial's own figures, unsaid, and no rate."""
    return [_of_pass(line) for line in lines(run)]


def _of_pass(line: dict[str, Any]) -> dict[str, Any]:
    of_trial = {name.removeprefix("trial_"): value for name, value in line.items() if name.startswith("trial_")}
    of_line = {name: value for name, value in line.items() if not name.startswith("trial") and name != "lr"}
    return {name: of_trial.get(name, value) for name, value in of_line.items()}


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((run / "checkpoints").iterdir())


def weights(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's weights, as NumPy has them."""
    found: dict[str, Any] = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    return found


def arithmetic() -> str:
    """A digest of a few steps of stock torch and NumPy: who computes the same here computes the same in a run.

    Matrix products and exponentials may differ in their last bits between processors and versions of torch.
    """
    x = torch.arange(64 * 4, dtype=torch.float32).reshape(64, 4).remainder(13) / 7 - 0.9
    y = torch.arange(64) % 3
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape).remainder(5) / 11 - 0.17)
    optimizer = torch.optim.Adam(model.parameters())
    for rows in (slice(0, 16), slice(16, 32), slice(5, 6), slice(0, 64), slice(7, 13)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    digest = hashlib.sha256(f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {np.__version__}".encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    digest.update(np.exp(x.double().numpy() @ x.double().numpy().T / 64).tobytes())
    return digest.hexdigest()
