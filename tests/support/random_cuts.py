"""Runs that are cut short at random, resumed until they are complete, and held against the uncut run.

``python tests/support/random_cuts.py 200`` makes so many of them; the tests make a few. A run is cut by a total of
steps (and resumed from its folder, or by the same trainer), by a signal, by a kill in a batch or inside any call of the
system while a checkpoint is written, or by a kill after it skipped a newest checkpoint that can be read again later.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import streamtrain as st
from streamtrain.optim.schedules import Schedule
from streamtrain.system.files import Files
from streamtrain.system.signals import Interrupted
from streamtrain.system.syscalls import Syscalls
from streamtrain.training.run.run_folder import RunFolder

N_SAMPLES, N_FEATURES, BATCH_SIZE, N_EPOCHS = 210, 5, 20, 3
EPOCH_BATCHES = 11
CUTS: Final = ("steps", "again", "signal", "kill", "kill in a call", "kill after a skip")
TIMES: Final = ("seconds", "samples_per_second", "stall_fraction")
_SCHEDULES: Final = (
    Schedule(name="exponential", options={"gamma": 0.8}),
    Schedule(name="step", every="step", options={"step_size": 4, "gamma": 0.9}),
)
_CALLS: Final = ("open", "writev", "fsync", "rename", "unlink", "mkdir", "rmdir", "fsync_dir", "exchange")


class Killed(BaseException):
    """In place of a process that is killed: nothing catches it, and nothing is written after it."""


class MortalSystem(Syscalls):
    """The system's calls, until one of them is the last."""

    left: float = float("inf")

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def _counted(name: str) -> Any:
    def call(self: MortalSystem, *arguments: Any) -> Any:
        self._count()
        return getattr(Syscalls, name)(self, *arguments)

    return call


for _name in _CALLS:
    setattr(MortalSystem, _name, _counted(_name))


class MortalLoader(st.StreamLoader):
    """A loader in whose batches a signal comes, or the end."""

    on_batch: dict[int, Any]

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(super().__iter__()):
            if what := self.on_batch.pop(i, None):
                what()
            yield batch


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how."""

    trainer: dict[str, Any]
    fit: dict[str, Any]
    has_dropout: bool
    drop_last: bool = False
    transform: Any = None
    n_cuts: Counter[str] = field(default_factory=Counter)

    def make_trainer(self) -> st.Trainer:
        torch.manual_seed(3)
        drop = [nn.Dropout(0.3)] if self.has_dropout else []
        model = nn.Sequential(nn.Linear(N_FEATURES, 6), nn.Tanh(), *drop, nn.Linear(6, 3))
        return st.Trainer(model, loss="cross_entropy", device="cpu", **self.trainer)

    def make_loader(self, dataset: st.Dataset) -> MortalLoader:
        how: dict[str, Any] = {"drop_last": self.drop_last, "transform": self.transform}
        loader = MortalLoader(dataset, batch_size=BATCH_SIZE, memory="8MB", seed=5, **how)
        loader.on_batch = {}
        return loader


def noisy(batch: Any) -> Any:
    """A transform that draws from torch's own generator."""
    return batch._replace(x=batch.x + 0.01 * torch.randn(batch.x.shape))


def make_dataset(folder: Path) -> st.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N_SAMPLES, N_FEATURES)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1)
    w = rng.integers(0, 3, N_SAMPLES).astype(np.float32)
    return st.ingest({"x": x, "y": y, "w": w}, folder / "d.zarr", block=7 * N_FEATURES * 4, progress=False)


def make_case(rng: random.Random) -> Case:
    """One of the ways to train: rules, optimizers, schedules, accumulation, weights and early stopping."""
    update = rng.choice(["batch", "accumulate", "sample", "sample", "epoch"])
    optimizer = rng.choice([{"optimizer": "adam"}, {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}])
    trainer: dict[str, Any] = {"update": update, **optimizer, "normalize": rng.choice([None, "auto"])}
    path = rng.choice(["auto", "plain"])
    if update == "accumulate":
        trainer |= {"update": "batch", "accumulate_grad_batches": rng.choice([2, 4])}
        trainer["grad_sum_dtype"] = rng.choice(["float64", "compensated"])
    if update == "sample":
        trainer["sample_path"] = path
    if rng.random() < 0.4:
        trainer["weight"] = "w"
    plateau = Schedule(name="plateau", options={"patience": 0, "factor": 0.5, "threshold": rng.choice([1e-4, 0.5])})
    trainer["schedule"] = rng.choice([None, plateau, plateau, *_SCHEDULES])
    if update == "batch" and rng.random() < 0.3:
        trainer["clip_grad_norm"] = 0.5
    fit = {
        "max_epochs": N_EPOCHS,
        "checkpoint_every": rng.choice([None, 1, 3, 4]),
        "log_every": rng.choice([1, 3, 5]),
        "patience": rng.choice([None, 1, 2]),
        "monitor": "loss",
    }
    has_dropout = update in ("batch", "accumulate") or (path == "plain" and update == "sample")
    return Case(
        trainer=trainer,
        fit=fit,
        has_dropout=has_dropout,
        drop_last=update != "epoch" and rng.random() < 0.2,
        transform=noisy if update != "epoch" and rng.random() < 0.3 else None,
    )


def train_whole(case: Case, dataset: st.Dataset, out: Path) -> st.Trainer:
    trainer = case.make_trainer()
    with case.make_loader(dataset) as loader:
        trainer.fit(loader, checkpoint=out, progress=False, **case.fit)
    return trainer


def train_in_pieces(case: Case, dataset: st.Dataset, out: Path, n_steps: int, rng: random.Random) -> st.Trainer:
    """Cut the run a few times, then let it come to its end; return the trainer that did."""
    trainer: st.Trainer | None = None
    with _Folder(out) as folder:
        for _ in range(rng.randint(1, 5)):
            cut = rng.choice(CUTS)
            case.n_cuts[cut] += 1
            trainer = _cut_once(case, dataset, folder, trainer, cut, n_steps, rng)
        return _fit(case, dataset, folder, trainer)[0]


class _Folder:
    """The run's folder: opened anew by every process, kept by a trainer that goes on itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: RunFolder | None = None

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self.open is not None:
            self.open.close()
            self.open = None


def _fit(
    case: Case,
    dataset: st.Dataset,
    folder: _Folder,
    trainer: st.Trainer | None,
    *,
    max_steps: int | None = None,
    on_batch: dict[int, Any] | None = None,
    left: float = float("inf"),
) -> tuple[st.Trainer, st.History]:
    """Train on: a trainer itself, or a new one from the folder."""
    resume = "auto" if trainer is None else None
    trainer = trainer or case.make_trainer()
    with case.make_loader(dataset) as loader:
        loader.on_batch = on_batch or {}
        if folder.open is None:
            system = MortalSystem()
            system.left = left
            config = trainer.describe(loader)
            folder.open = RunFolder(folder.path, config, resumes=True, files=Files(system=system))
        how = case.fit | {"max_steps": max_steps}
        history = trainer.fit(loader, checkpoint=folder.open, resume=resume, progress=False, **how)  # type: ignore[arg-type]
    return trainer, history


def _cut_once(
    case: Case,
    dataset: st.Dataset,
    folder: _Folder,
    trainer: st.Trainer | None,
    cut: str,
    n_steps: int,
    rng: random.Random,
) -> st.Trainer | None:
    """Go on until the cut; return the trainer if it is to go on itself."""
    at = rng.randrange(EPOCH_BATCHES)
    if cut in ("steps", "again"):
        before = trainer.counts.n_steps if trainer else 0
        trainer, history = _fit(case, dataset, folder, trainer, max_steps=rng.randint(before, n_steps))
        # A trainer whose run has ended early begins to wait anew when it is called again: that is no cut.
        if cut == "again" and history.stopped_by != "patience":
            return trainer
    elif cut == "signal":
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        with suppress(Interrupted):
            _fit(case, dataset, folder, trainer, on_batch={at: lambda: signal.raise_signal(number)})
    elif cut == "kill in a call":
        folder.end()
        with suppress(Killed):
            _fit(case, dataset, folder, None, left=rng.randrange(120))
    else:
        away = _unreadable_newest(folder.path) if cut == "kill after a skip" else nullcontext()
        with away, suppress(Killed):
            _fit(case, dataset, folder, None if cut == "kill after a skip" else trainer, on_batch={at: _die})
    folder.end()
    return None


def _die() -> None:
    raise Killed


@contextmanager
def _unreadable_newest(run: Path) -> Iterator[None]:
    """The weights of the newest checkpoint are away for the block, and back afterwards."""
    found = sorted(path for path in (run / "checkpoints").glob("*") if path.name.isdecimal())
    file = found[-1] / "model.safetensors" if found else run / "none"
    away = run.with_name("away")
    if len(found) < 2 or not file.exists():
        yield
        return
    os.rename(file, away)  # noqa: PTH104
    try:
        yield
    finally:
        # A run that came by this batch again has written it anew.
        if file.parent.exists() and not file.exists():
            os.rename(away, file)  # noqa: PTH104
        else:
            away.unlink()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` but what a clock said."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines]


def difference(case: Case, whole: Path, pieces: Path) -> str | None:
    """The first difference between two runs' folders: the newest checkpoint's tensors and counts, and the metrics."""
    ends = [sorted((run / "checkpoints").iterdir())[-1] for run in (whole, pieces)]
    if ends[0].name != ends[1].name:
        return f"it ends after {ends[1].name} batches, the whole after {ends[0].name}"
    for name in ("model", "normalize", "training"):
        files = [end / f"{name}.safetensors" for end in ends]
        if files[0].exists() != files[1].exists():
            return f"{name}.safetensors is there once"
        if files[0].exists():
            one, other = map(load_file, files)
            wrong = [key for key in one.keys() | other.keys() if not _is_same(one.get(key), other.get(key))]
            if wrong:
                return f"{name}.safetensors: {', '.join(sorted(wrong))}"
    states = [json.loads((end / "state.json").read_bytes()) for end in ends]
    if states[0]["counts"] != states[1]["counts"]:
        return f"counts {states[1]['counts']}, not {states[0]['counts']}"
    bests = [state["best"] for state in states]
    if bests[0] != bests[1]:
        return f"the best is {bests[1]}, not {bests[0]}"
    if "checkpoint" in bests[0]:
        files = [run / "checkpoints" / bests[0]["checkpoint"] / "model.safetensors" for run in (whole, pieces)]
        if files[0].read_bytes() != files[1].read_bytes():
            return "the best has other weights"
    lines = [metrics(run) for run in (whole, pieces)]
    if lines[0] != lines[1]:
        pairs = zip([*lines[0], None], [*lines[1], None], strict=False)
        return next(f"metrics: {ours}, not {theirs}" for theirs, ours in pairs if ours != theirs)
    return None


def _is_same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def check(seed: int, dataset: st.Dataset, folder: Path) -> tuple[str | None, Case]:
    """Make the runs of a seed; what differs, if anything does."""
    rng = random.Random(seed)
    case = make_case(rng)
    whole, pieces = folder / "whole", folder / "pieces"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        n_steps = train_whole(case, dataset, whole).counts.n_steps
        train_in_pieces(case, dataset, pieces, n_steps, rng)
    return difference(case, whole, pieces), case


def main(n: int, first: int = 0) -> int:
    torch.set_num_threads(1)
    n_cuts: Counter[str] = Counter()
    n_cases: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        dataset = make_dataset(Path(name))
        for seed in range(first, first + n):
            folder = Path(name) / str(seed)
            folder.mkdir()
            found, case = check(seed, dataset, folder)
            n_cuts += case.n_cuts
            trainer = case.trainer
            n_cases[f"{trainer['update']}, {trainer['optimizer']}"] += 1
            n_cases["plateau"] += getattr(trainer["schedule"], "name", None) == "plateau"
            n_cases["accumulation"] += "accumulate_grad_batches" in trainer
            n_cases["weights"] += "weight" in trainer
            if found:
                wrong.append(seed)
                print(f"seed {seed}: {found}\n  {trainer}, {case.fit}, {dict(case.n_cuts)}", flush=True)
    print(f"{n} runs, {n_cuts.total()} cuts ({', '.join(f'{k} {v}' for k, v in sorted(n_cuts.items()))})")
    print(f"of them {', '.join(f'{k} {v}' for k, v in sorted(n_cases.items()))}")
    print(f"equal to the uncut run bit for bit: {n - len(wrong)} of {n}{f'; not: {wrong}' if wrong else ''}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:] or ["200"])))
