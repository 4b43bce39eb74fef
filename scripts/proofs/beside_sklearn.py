#!/usr/bin/env python3
"""streamtrain's mlp beside scikit-learn's: the same rows, widths, batch size, epochs and Adam, in memory there.

digits: 1,797 digits of 8 by 8 pixels, which scikit-learn brings. fashion: the 70,000 images of Fashion-MNIST, fetched
where --images does not have them. flights: a made table of the shape of a year's flights; its label is the delay at
arrival. Each is ingested and trained on by streamtrain's commands, once for each of --seeds. scikit-learn gets the rows
of the stored split "train", rescaled as the run rescales them, targets in units of their spread, and no penalty. The
mean error or accuracy on the split "test" is compared: the bar is 1 %. One JSON line for each set of data.
"""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
from scripts.data import fashion_mnist
from scripts.hour import tables
from scripts.runner import Result, new_parser, run
from streamtrain.training.inference.saved_run import normalize_modules, read_run

BAR: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """What both are given: data and its ingest, widths, batch size and epochs."""

    name: str
    make: Callable[[Path, Any], str]  # makes the data, and returns the words of its ingest
    widths: tuple[int, ...]
    batch_size: int
    epochs: int


def digits(folder: Path, arguments: Any) -> str:
    """Write the digits that scikit-learn brings."""
    found = importlib.import_module("sklearn.datasets").load_digits()
    np.save(folder / "images.npy", found.images.astype(np.uint8))
    np.save(folder / "labels.npy", found.target)
    return f"{folder / 'images.npy'} {folder / 'data'} --labels {folder / 'labels.npy'}"


def fashion(folder: Path, arguments: Any) -> str:
    """Find the images, or fetch them."""
    images, labels = (arguments.images / f"train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    if not images.exists():
        fashion_mnist.get(arguments.images, fashion_mnist.FILES, fashion_mnist.WAYS)
    return f"{images} {folder / 'data'} --labels {labels}"


def flights(folder: Path, arguments: Any) -> str:
    """Make a table of flights, and take its numbers; what is missing is filled in and marked."""
    path = tables.write(tables.flights(arguments.flights), folder / "flights.csv")
    left_out = "--exclude carrier,origin,dest,time_hour --na fill=mean --na-mask --drop-unlabelled"
    return f"{path} {folder / 'data'} --label-column arr_delay --task regression {left_out}"


EVERY: Final = (
    Peers(name="digits", make=digits, widths=(64,), batch_size=32, epochs=20),
    Peers(name="fashion", make=fashion, widths=(256, 128), batch_size=128, epochs=5),
    Peers(name="flights", make=flights, widths=(64, 32), batch_size=512, epochs=4),
)


def measure(folder: Path, arguments: Any) -> Iterator[Result]:
    """Train both on each set of data, and measure what they made."""
    for peers in EVERY:
        if peers.name not in arguments.data:
            continue
        place = folder / peers.name
        place.mkdir()
        streamtrain(f"ingest {peers.make(place, arguments)} --split val=0.1,test=0.1")
        figure, ours, theirs = "", list[float](), list[float]()
        for seed in range(arguments.seeds):
            out = place / f"run-{seed}"
            widths = ",".join(map(str, peers.widths))
            sizes = f"--model mlp:{widths} --batch-size {peers.batch_size} --epochs {peers.epochs} --seed {seed}"
            streamtrain(f"train {place / 'data'} {sizes} --lr 0.001 --out {out}")
            found = streamtrain(f"evaluate {out} {place / 'data'} --split test --checkpoint last")
            figure = "rmse" if found.get("rmse") is not None else "accuracy"
            ours.append(found[figure])
            theirs.append(of_scikit_learn(peers, place, out, figure, seed))
        mean, of_peer = float(np.mean(ours)), float(np.mean(theirs))
        yield {
            "data": peers.name,
            "rows": {split: len(st.open(place / "data" / split)) for split in ("train", "test")},
            "model": f"mlp:{','.join(map(str, peers.widths))}, batches of {peers.batch_size}, {peers.epochs} epochs",
            "figure": figure,
            "streamtrain": ours,
            "scikit_learn": theirs,
            "off": (mean - of_peer) / of_peer * (1 if figure == "rmse" else -1),  # above 0 is worse than scikit-learn
            "within": abs(mean - of_peer) <= BAR * of_peer,
        }


def streamtrain(command: str) -> dict[str, Any]:
    """Run a command, and return its result."""
    print(f"streamtrain {command}", file=sys.stderr)
    words = [sys.executable, "-m", "streamtrain", *shlex.split(command), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"streamtrain {command}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def of_scikit_learn(peers: Peers, place: Path, out: Path, figure: str, seed: int) -> float:
    """Train scikit-learn's model on the rows that the run was trained on, and measure it."""
    is_regression = figure == "rmse"
    (inputs, labels), (new, wanted) = (rows_of(place / "data" / split, out) for split in ("train", "test"))
    mean, std = (labels.mean(), labels.std()) if is_regression else (0, 1)
    networks = importlib.import_module("sklearn.neural_network")
    model = (networks.MLPRegressor if is_regression else networks.MLPClassifier)(
        hidden_layer_sizes=peers.widths,
        solver="adam",
        alpha=0.0,
        batch_size=peers.batch_size,
        learning_rate_init=0.001,
        max_iter=peers.epochs,
        n_iter_no_change=peers.epochs + 1,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Of more epochs that would lower the loss: both get as many.
        warnings.simplefilter("ignore")
        model.fit(inputs, (labels - mean) / std if is_regression else labels)
    answers = model.predict(new) * std + mean
    return float(np.sqrt(np.mean((wanted - answers) ** 2)) if is_regression else np.mean(wanted == answers))


def rows_of(split: Path, out: Path) -> tuple[Any, Any]:
    """Read all inputs, rescaled as a run rescales them, and labels."""
    rows, modules = st.open(split)[:], normalize_modules(read_run(out))
    fields = [name for name in ("x", "x_missing") if name in rows]
    scaled = [modules[name](torch.from_numpy(rows[name])).numpy() if name in modules else rows[name] for name in fields]
    return np.concatenate([values.reshape(len(values), -1) for values in scaled], axis=1), rows["y"]


def describe(result: Result) -> str:
    """Write the figures of a set of data as a line."""
    ours, theirs = (f"{np.mean(result[name]):.4f}" for name in ("streamtrain", "scikit_learn"))
    verdict = "within" if result["within"] else "not within"
    told = f"{result['figure']} {ours}, scikit-learn {theirs}: {result['off']:+.2%}, {verdict} {BAR:.0%}"
    return f"{result['data']}, {result['model']}: {told}"


if __name__ == "__main__":
    parser = new_parser(__doc__, folder=None)
    every = [peers.name for peers in EVERY]
    parser.add_argument("--data", nargs="+", choices=every, default=every, help="which (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    parser.add_argument("--images", type=Path, default=fashion_mnist.TARGET, help="where Fashion-MNIST is, or is put")
    parser.add_argument("--flights", type=int, default=tables.ALL_FLIGHTS, help="rows of the table of flights")
    results = run(parser.parse_args(), measure, describe, packages=("torch", "scikit-learn"))
    raise SystemExit(not all(result["within"] for result in results))
