"""Fashion-MNIST sorted by class, trained in several orders: the training parts of ``shuffle.py``."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

import streamtrain as st
from scripts.bench.shuffle_budget import smallest_memory
from scripts.bench.shuffle_orders import I64, rolling_window
from scripts.data.fashion_mnist import FILES, TARGET, WAYS, get
from scripts.data.ingest_sorted import read_idx
from scripts.runner import Result
from streamtrain.loader.budget import LoaderSizes, solve

Batches = Iterable[tuple[torch.Tensor, ...]]
Epochs = Callable[[int], Iterator[Batches]]
"""Seed -> the batches of each epoch."""
Images = tuple[npt.NDArray[Any], ...]
"""Images and labels to train on, sorted by class, and those to test on."""

BLOCK_ROWS: Final = 20
BATCH_SIZE: Final = 64
LANES_PER_SAMPLE: Final = 48 / 60_000
"""48 lanes: with what is read ahead, 2 % of Fashion-MNIST's blocks."""


def bench_training(path: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Test accuracy by order, over seeds."""
    images = fashion_mnist(arguments.fashion)
    x, y = images[:2]
    dataset = ingested(x, y, path)
    lanes = max(2, int(len(x) * LANES_PER_SAMPLE) // 2 * 2)
    memory = smallest_memory(dataset.layout, BATCH_SIZE, lanes=lanes)
    share = solve(dataset.layout, batch_size=BATCH_SIZE, memory=memory, lanes=lanes)[0].slots / dataset.layout.n_blocks
    window = max(1, round(share * dataset.layout.n_blocks))
    orders: dict[str, Epochs] = {
        "full reshuffle": indexed(images, lambda rng: rng.permutation(len(x)), arguments),
        "streamtrain": streamed(dataset, arguments, memory=memory, lanes=lanes),
        f"rolling window, {window} blocks": indexed(
            images, lambda rng: rolling_window(rng, len(x), BLOCK_ROWS, window), arguments
        ),
    }
    least = 0.0
    for order, epochs in orders.items():
        scores = accuracies(images, epochs, arguments)
        mean, deviation = mean_and_deviation(scores)
        least = least or mean - deviation
        ours = order == "streamtrain"
        yield {
            "bench": "shuffle-training",
            "order": order,
            "lanes": lanes if ours else None,
            "memory": memory if ours else None,
            "pool_share": round(share, 4) if "reshuffle" not in order else None,
            **figures(scores, arguments),
            "bar": round(least, 4) if ours else None,
        }


def bench_sections(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Test accuracy beside a full reshuffle's on data in equal sections, each sorted by class, held in part."""
    images = fashion_mnist(arguments.fashion)
    x, y = images[:2]
    reference = accuracies(images, indexed(images, lambda rng: rng.permutation(len(x)), arguments), arguments)
    for held in arguments.held:
        for n_sections in arguments.sections:
            order = sections(y, n_sections)
            dataset = ingested(x[order], y[order], folder / f"{held}-{n_sections}.zarr")
            n_blocks = dataset.layout.n_blocks // held
            memory = smallest_memory(dataset.layout, BATCH_SIZE, is_enough=partial(holds, n_blocks))
            lanes = solve(dataset.layout, batch_size=BATCH_SIZE, memory=memory)[0].lanes
            scores = accuracies(images, streamed(dataset, arguments, memory=memory), arguments)
            (mean, deviation), (expected, spread) = mean_and_deviation(scores), mean_and_deviation(reference)
            yield {
                "bench": "shuffle-sections",
                "sections": n_sections,
                "blocks_of_which_one_is_held": held,
                "lanes": lanes,
                "memory": memory,
                **figures(scores, arguments),
                "reference": {"accuracy": round(expected, 4), "deviation": round(spread, 4)},
                "standard_errors": round(
                    (mean - expected) / max(math.hypot(deviation, spread) / math.sqrt(len(scores)), 1e-9), 2
                ),
            }


def holds(n_blocks: int, sizes: LoaderSizes) -> bool:
    """Whether memory has room for so many blocks."""
    return sizes.slots >= n_blocks


def sections(y: npt.NDArray[Any], n_sections: int) -> I64:
    """Where the samples come from when labels that are sorted become equal sections, each sorted."""
    found: I64 = np.argsort(np.arange(len(y)) % n_sections, kind="stable")
    return found


def ingested(x: npt.NDArray[Any], y: npt.NDArray[Any], path: Path) -> Any:
    """Store images and labels in small blocks."""
    return st.ingest(
        {"x": x, "y": y.astype(np.int64)}, path, block=(x[0].size + 8) * BLOCK_ROWS, codec="none", progress=False
    )


def streamed(dataset: Any, arguments: argparse.Namespace, **given: Any) -> Epochs:
    """Epochs of the loader, from a seed."""

    def epochs(seed: int) -> Iterator[Batches]:
        with st.StreamLoader(dataset, batch_size=BATCH_SIZE, seed=seed, **given) as loader:
            for _ in range(arguments.train_epochs):
                yield loader

    return epochs


def indexed(images: Images, draw: Callable[[np.random.Generator], I64], arguments: argparse.Namespace) -> Epochs:
    """Epochs of the data in memory in an order that is drawn, from a seed."""
    x, y = (torch.from_numpy(array.copy()) for array in images[:2])

    def epochs(seed: int) -> Iterator[Batches]:
        rng = np.random.default_rng(seed)
        for _ in range(arguments.train_epochs):
            order = torch.from_numpy(draw(rng))
            yield ((x[some], y[some].long()) for some in torch.split(order, BATCH_SIZE))

    return epochs


def accuracies(images: Images, epochs: Epochs, arguments: argparse.Namespace) -> list[float]:
    """The accuracy of each seed."""
    # Layers this small gain nothing by threads, and one thread gives the same figures on every machine of a kind.
    torch.set_num_threads(1)
    test_x, test_y = (torch.from_numpy(array.copy()) for array in images[2:])
    return [accuracy(epochs(seed), test_x, test_y, seed) for seed in range(arguments.seeds)]


def mean_and_deviation(scores: Sequence[float]) -> tuple[float, float]:
    """Of some scores; one has no deviation."""
    return statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0


def figures(scores: Sequence[float], arguments: argparse.Namespace) -> Result:
    """What is said of the runs of one order."""
    mean, deviation = mean_and_deviation(scores)
    return {
        "batch_size": BATCH_SIZE,
        "epochs": arguments.train_epochs,
        "accuracies": [round(score, 4) for score in scores],
        "accuracy": round(mean, 4),
        "deviation": round(deviation, 4),
    }


def describe_training(result: Result) -> str:
    """One line for people."""
    if result["bench"] == "shuffle-sections":
        held = result["blocks_of_which_one_is_held"]
        return (
            f"{result['sections']:>4} sections  {'held whole' if held == 1 else f'1/{held} held':<10} "
            f"{result['lanes']:>4} lanes  accuracy {result['accuracy']:.4f} ± {result['deviation']:.4f}  "
            f"full reshuffle {result['reference']['accuracy']:.4f}  {result['standard_errors']:+.1f} standard errors"
        )
    bar = f"  (at least {result['bar']:.4f})" if result["bar"] is not None else ""
    spread = f"accuracy {result['accuracy']:.4f} ± {result['deviation']:.4f}"
    return f"sorted by class, trained  {result['order']:<30} {spread}{bar}"


def fashion_mnist(folder: Path | None) -> tuple[npt.NDArray[Any], ...]:
    """Images and labels, the training set sorted by class, then the test set."""
    if folder is None:
        folder = TARGET
        print(f"Fashion-MNIST: {get(folder, FILES, WAYS)}", file=sys.stderr)
    x, y, test_x, test_y = (read_idx(folder / name) for name in FILES)
    order = np.argsort(y, kind="stable")
    return x[order], y[order], test_x, test_y


def accuracy(epochs: Iterator[Batches], test_x: torch.Tensor, test_y: torch.Tensor, seed: int) -> float:
    """Train a new model on some epochs; the share of the test set it gets right."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(test_x[0].numel(), 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batches in epochs:
        for x, y in batches:
            loss = torch.nn.functional.cross_entropy(model(x.float() / 255), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        return float((model(test_x.float() / 255).argmax(1) == test_y).float().mean())
