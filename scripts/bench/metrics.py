#!/usr/bin/env python3
"""The cost of metrics: CPU time of summing loss and scores over batches ÷ CPU time of the epoch.

An epoch is a pass of training and one over validation data that is as large, as `Trainer.fit` makes them. The share is
that of every call of the running metrics, by the clock of the thread that trains; with one thread for torch, as is the
default here, nothing of it falls to another.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
from scripts.runner import Result, new_parser, require_disk, run
from streamtrain.training.metrics.running import RunningMetrics

BAR: Final = 0.03
LESS: Final = "fewer --samples, or another --folder"
TASKS: Final = {
    "two classes": ("mlp:256,128", (20,), 2),
    "ten classes": ("mlp:256,128", (20,), 10),
    "one target": ("mlp:256,128", (20,), 0),
    "images": ("cnn", (28, 28), 10),
}
"""The model, the shape of a sample, and the number of classes; 0 of a quantity."""
IMAGES_FOR_ROWS: Final = 20
"""So many times fewer images than rows: a cnn takes longer."""


def main() -> None:
    """Measure, and print each result."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    run(arguments, measure, describe, fix=LESS)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every task."""
    for task in arguments.tasks:
        yield bench(task, folder / task, arguments)


def bench(task: str, folder: Path, arguments: argparse.Namespace) -> Result:
    """Measure one task."""
    model, shape, n_classes = TASKS[task]
    n_samples = arguments.samples // (IMAGES_FOR_ROWS if model == "cnn" else 1)
    require_disk(folder, 2 * n_samples * int(np.prod(shape)) * 4, fix=LESS)
    train, val = (written(folder / name, n_samples, shape, n_classes, seed) for seed, name in enumerate(("a", "b")))
    trainer = st.Trainer(model, task="classification" if n_classes else "regression", normalize="auto", device="cpu")
    seconds: list[float] = []
    shares: list[float] = []
    for last in range(1, arguments.repeats + 2):
        with watched() as of_metrics:
            started = time.process_time()
            fit(trainer, train, val, last, arguments)
            seconds.append(time.process_time() - started)
        shares.append(sum(of_metrics) / seconds[-1])
    # The first warms up.
    seconds, shares = seconds[1:], shares[1:]
    return {
        "bench": "metrics",
        "task": task,
        "model": model,
        "samples": n_samples,
        "batch_size": arguments.batch_size,
        "rounds": arguments.repeats,
        "torch_threads": arguments.threads,
        "epoch_cpu_s": round(statistics.median(seconds), 3),
        "share": round(statistics.median(shares), 4),
        "shares": [round(share, 4) for share in shares],
        "bar": BAR,
    }


def written(path: Path, n_samples: int, shape: tuple[int, ...], n_classes: int, seed: int) -> st.Dataset:
    """Write samples whose labels follow from them."""
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(n_samples, *shape)).astype(np.float32)
    told = x.reshape(n_samples, -1)[:, :8].sum(1)
    y = np.digitize(told, np.linspace(-4, 4, n_classes - 1)) if n_classes else told.astype(np.float32)
    return st.ingest({"x": x, "y": y}, path)


def fit(trainer: st.Trainer, train: st.Dataset, val: st.Dataset, last: int, arguments: argparse.Namespace) -> None:
    """Train and validate one epoch more."""
    how: dict[str, Any] = {"batch_size": arguments.batch_size, "memory": arguments.memory}
    with st.StreamLoader(train, **how) as stream, st.StreamLoader(val, shuffle=False, **how) as checked:
        trainer.fit(stream, val=checked, max_epochs=last, progress=False)


@contextmanager
def watched() -> Iterator[list[float]]:
    """Take the CPU seconds of every call of the running metrics."""
    seconds: list[float] = []
    before = {name: getattr(RunningMetrics, name) for name in ("add", "mean")}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **how: Any) -> Any:
            started = time.thread_time()
            found = method(*given, **how)
            seconds.append(time.thread_time() - started)
            return found

        return call

    try:
        for name, method in before.items():
            setattr(RunningMetrics, name, timed(method))
        yield seconds
    finally:
        for name, method in before.items():
            setattr(RunningMetrics, name, method)


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{result['task']:<12} {result['model']:<12} CPU seconds an epoch {result['epoch_cpu_s']:>7.3f}  "
        f"of which metrics {result['share']:.2%}"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, samples=200_000, batch_size=256, memory="64MB", repeats=5, threads=1, folder=None)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="tasks (all)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
