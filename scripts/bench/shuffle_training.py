"""Fashion-MNIST sorted by class, trained in several orders: the training part of ``shuffle.py``."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

import streamtrain as st
from scripts.bench.shuffle_orders import I64, rolling_window
from scripts.data.fashion_mnist import FILES, TARGET, WAYS, get
from scripts.data.ingest_sorted import read_idx
from scripts.runner import Result
from streamtrain.loader.budget import solve

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

BLOCK_ROWS: Final = 20
BATCH_SIZE: Final = 64
LANES_PER_SAMPLE: Final = 48 / 60_000
"""48 lanes: with what is read ahead, 2 % of Fashion-MNIST's blocks."""


def smallest_memory(dataset: Any, batch_size: int, lanes: int) -> int:
    """The least budget that these lanes run in, to the kilobyte: then nothing is cached from epoch to epoch."""
    low, high = 0, 1
    while not works(dataset, batch_size, lanes, 1000 * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(dataset, batch_size, lanes, 1000 * middle) else (middle, high)
    return 1000 * high


def works(dataset: Any, batch_size: int, lanes: int, memory: int) -> bool:
    """Whether a budget is enough."""
    try:
        solve(dataset.layout, batch_size=batch_size, memory=memory, lanes=lanes)
    except st.BudgetError:
        return False
    return True


def bench_training(path: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Test accuracy by order, over seeds."""
    # Layers this small gain nothing by threads, and one thread gives the same figures on every machine of a kind.
    torch.set_num_threads(1)
    x, y, test_x, test_y = (torch.from_numpy(array.copy()) for array in fashion_mnist(arguments.fashion))
    dataset = st.ingest(
        {"x": x.numpy(), "y": y.numpy().astype(np.int64)}, path, block=(x[0].numel() + 8) * BLOCK_ROWS, codec="none"
    )
    lanes = max(2, int(len(x) * LANES_PER_SAMPLE) // 2 * 2)
    memory = smallest_memory(dataset, BATCH_SIZE, lanes)
    share = solve(dataset.layout, batch_size=BATCH_SIZE, memory=memory, lanes=lanes)[0].slots / dataset.layout.n_blocks
    window = max(1, round(share * dataset.layout.n_blocks))

    def streamed(seed: int) -> Iterator[Batches]:
        with st.StreamLoader(dataset, batch_size=BATCH_SIZE, memory=memory, lanes=lanes, seed=seed) as loader:
            for _ in range(arguments.train_epochs):
                yield loader

    def indexed(draw: Callable[[np.random.Generator], I64]) -> Callable[[int], Iterator[Batches]]:
        def epochs(seed: int) -> Iterator[Batches]:
            rng = np.random.default_rng(seed)
            for _ in range(arguments.train_epochs):
                order = torch.from_numpy(draw(rng))
                yield ((x[some], y[some].long()) for some in torch.split(order, BATCH_SIZE))

        return epochs

    orders: dict[str, Callable[[int], Iterator[Batches]]] = {
        "full reshuffle": indexed(lambda rng: rng.permutation(len(x))),
        "streamtrain": streamed,
        f"rolling window, {window} blocks": indexed(lambda rng: rolling_window(rng, len(x), BLOCK_ROWS, window)),
    }
    least = 0.0
    for order, epochs in orders.items():
        scores = [accuracy(epochs(seed), test_x, test_y, seed) for seed in range(arguments.seeds)]
        mean, deviation = statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
        least = least or mean - deviation
        ours = order == "streamtrain"
        yield {
            "bench": "shuffle-training",
            "order": order,
            "lanes": lanes if ours else None,
            "memory": memory if ours else None,
            "pool_share": round(share, 4) if "reshuffle" not in order else None,
            "batch_size": BATCH_SIZE,
            "epochs": arguments.train_epochs,
            "accuracies": [round(score, 4) for score in scores],
            "accuracy": round(mean, 4),
            "deviation": round(deviation, 4),
            "bar": round(least, 4) if ours else None,
        }


def describe_training(result: Result) -> str:
    """One line for people."""
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
