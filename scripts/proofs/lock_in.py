#!/usr/bin/env python3
"""Local lock-in: batches that stay the same can hold descent where batches that are formed anew let it go on.

The data are made up of cancelling pairs: two samples whose gradients, at the weights that training begins with, are
each other's negative. In the order of the loader's epoch 0 the two of a pair stand in the same batch. A batch of one
pair then has the gradient zero, exactly, and so it is in every epoch that has the same batches: descent stands at a
saddle of J for ever. Epochs whose batches are formed anew tear the pairs apart; the gradients of the new batches are
not zero, the weights leave the saddle, and J falls.

The model is the smallest with a hidden unit, ``v tanh(u x + c) + b``, at u = v = b = 0 and c = 0.5; J is the mean
square error. There a sample of x with the target y has ∂J/∂v = -2 y tanh(c) and ∂J/∂b = -2 y, and no other gradient:
those of (x, 1) and (-x, -1) cancel. At J's minimum v tanh(u x + c) + b is the sign of x, which has an error near 0; at
the saddle the error is 1.

Everything else is the same in both runs: the data, the loader and its seed, the weights at first, the learning rate.
Prints a table on stderr and one JSON line per run on stdout; ``--plot`` draws the two curves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch
from torch import nn

import streamtrain as st
from scripts.runner import Result, new_parser, run

WAYS: Final = {"never": "fixed batches", "epoch": "batches formed anew"}


def main() -> None:
    """Train both ways, print how the loss went, and draw it."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    results = run(arguments, measure, describe, fix="fewer --pairs, or another --folder")
    if arguments.plot:
        draw({result["reshuffle"]: result["losses"] for result in results}, arguments.plot)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Train both ways."""
    dataset = cancelling_pairs(arguments.pairs, arguments.seed, folder)
    for way in WAYS:
        yield {
            "show": "lock_in",
            "reshuffle": way,
            "pairs": arguments.pairs,
            "epochs": arguments.epochs,
            "lr": arguments.lr,
            "seed": arguments.seed,
            "losses": train(dataset, way, arguments),
        }


def describe(result: Result) -> str:
    """One line for people."""
    return f"{WAYS[result['reshuffle']]:>20}: loss {' '.join(f'{loss:.4f}' for loss in result['losses'])}"


def cancelling_pairs(n_pairs: int, seed: int, folder: Path) -> st.Dataset:
    """Write a dataset in which the two samples of every batch of epoch 0 are a pair."""
    empty = {name: np.zeros(2 * n_pairs, np.float32) for name in ("x", "y")}
    # The order is a function of shape and seed alone, so a dataset of the same shape tells it.
    with loader_of(st.ingest(empty, folder / "shape.zarr"), seed, "epoch") as loader:
        pairs = [loader.last_samples() for _ in loader]
    rng = np.random.default_rng(seed)
    x, y = np.empty(2 * n_pairs, np.float32), np.empty(2 * n_pairs, np.float32)
    for pair in pairs:
        x[pair] = np.array([1.0, -1.0]) * rng.uniform(0.5, 2.0)
        y[pair] = 1.0, -1.0
    return st.ingest({"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)}, folder / "pairs.zarr")


def loader_of(dataset: st.Dataset, seed: int, reshuffle: str, *, shuffle: bool = True) -> st.StreamLoader:
    """Batches of two."""
    return st.StreamLoader(dataset, batch_size=2, memory="16MB", seed=seed, reshuffle=reshuffle, shuffle=shuffle)


def new_model() -> nn.Sequential:
    """The model at the saddle."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("0.bias").fill_(0.5)
    return model


def train(dataset: st.Dataset, reshuffle: str, arguments: argparse.Namespace) -> list[float]:
    """J over the whole dataset before the first epoch, and after each."""
    trainer = st.Trainer(new_model(), loss="mse", optimizer="sgd", lr=arguments.lr, device="cpu")
    with (
        loader_of(dataset, arguments.seed, reshuffle) as loader,
        loader_of(dataset, arguments.seed, "epoch", shuffle=False) as whole,
    ):
        before = trainer.evaluate(whole).loss
        history = trainer.fit(loader, max_epochs=arguments.epochs, val=whole, progress=False)
    return [before, *(epoch.val.loss for epoch in history if epoch.val is not None)]


def draw(losses: dict[str, list[float]], path: Path) -> None:
    """Draw the loss against the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (way, found), style in zip(losses.items(), ("o-", "s-"), strict=True):
        axes.plot(range(len(found)), found, style, label=f"{WAYS[way]} (reshuffle='{way}')")
    axes.set_xlabel("epochs")
    axes.set_ylabel("mean square error over the dataset")
    axes.set_ylim(bottom=0)
    axes.set_title("Local lock-in on cancelling pairs")
    axes.legend()
    figure.savefig(path)


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = new_parser(__doc__, seed=0, folder=None)
    parser.add_argument("--pairs", type=int, default=512, help="cancelling pairs (default: 512)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each run (default: 12)")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate (default: 0.05)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves, by matplotlib")
    arguments = parser.parse_args()
    if arguments.plot and not arguments.plot.parent.is_dir():
        parser.error(f"--plot {arguments.plot}: there is no folder {arguments.plot.parent}")
    return arguments


if __name__ == "__main__":
    main()
