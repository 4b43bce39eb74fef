#!/usr/bin/env python3
"""The quality of the shuffle: through the real loader, beside full reshuffles and others' orders, from the same run.

Table: data sorted in several ways, for several numbers of lanes. *var* is the batch label variance ÷ that of a full
random reshuffle, *drift* the largest prefix discrepancy ÷ a full reshuffle's: 1 is as good as random, less is better.
*power* is how much more batches vary for the sinusoidal labels that are worst for the order, beside it for those that
are worst for full reshuffles: `shuffle_spectrum.py` has more of it. *pairs* is how much more often samples of the same
two blocks meet in a batch. *reads* is blocks read in an epoch ÷ blocks stored, counted where blocks are read, with a
pool that cannot hold the data.

Training: Fashion-MNIST sorted by class, a pool of 2 % of it, an MLP 784-128-10, SGD 0.1, batch 64; test accuracy over
seeds, beside that of full reshuffles of the same data and the same initial weights.

Sections: the same, in equal sections each sorted by class, with the lanes that follow from what memory holds.

Prints a line for people on stderr and one JSON line on stdout per result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
from scripts.bench.shuffle_budget import smallest_memory
from scripts.bench.shuffle_orders import I64, rolling_window, shuffle_buffer, window_of_blocks
from scripts.bench.shuffle_spectrum import PARTS, largest_power
from scripts.bench.shuffle_training import bench_sections, bench_training, describe_training
from scripts.runner import Result, new_parser, require_disk, run
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.shuffle.quality import Array, LabelPopulation, ShuffleQuality, label_population, measure_quality

SAMPLES: Final = 1_000_000
BATCH_SIZE: Final = 256
BARS: Final = {
    ("10 classes sorted", 254): {"variance": 0.3, "drift": 0.8, "reads_ratio": 1.06},
    ("1000 classes sorted", 1006): {"variance": 1.0, "drift": 5.0, "reads_ratio": 1.21},
}
"""Limits of a row, at so many samples in blocks and batches of these sizes. Where nothing is cached each
lane may read two blocks more."""
IMBALANCED: Final = (0.40, 0.25, 0.15, 0.10, 0.05, 0.03, 0.02)
LESS: Final = "fewer --samples, or another --folder"
WINDOW_BLOCKS: Final = 256
BUFFER_SAMPLES: Final = 5_000
BLOCK_ROWS: Final = 100
PEERS: Final[dict[str, Callable[[np.random.Generator, int], I64]]] = {
    f"block window, {WINDOW_BLOCKS} blocks": lambda rng, n: window_of_blocks(rng, n, BLOCK_ROWS, WINDOW_BLOCKS),
    f"rolling window, {WINDOW_BLOCKS} blocks": lambda rng, n: rolling_window(rng, n, BLOCK_ROWS, WINDOW_BLOCKS),
    f"shuffle buffer, {BUFFER_SAMPLES:,} samples": lambda rng, n: shuffle_buffer(rng, n, BLOCK_ROWS, BUFFER_SAMPLES),
    "stored order": lambda _, n: np.arange(n),
}


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure_parts, describe, fix=LESS)


def measure_parts(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure what was asked for."""
    if "table" in arguments.parts:
        require_disk(folder, arguments.samples * 8 * (len(labels_by_name(1)) + 1), fix=LESS)
        yield from bench_table(folder / "table.zarr", arguments)
    if "training" in arguments.parts:
        require_disk(folder, 10**8, fix="another --folder")
        yield from bench_training(folder / "sorted.zarr", arguments)
    if "sections" in arguments.parts:
        require_disk(folder, 10**9, fix="another --folder")
        yield from bench_sections(folder, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, samples=SAMPLES, batch_size=BATCH_SIZE, folder=None)
    parser.add_argument("--parts", nargs="+", choices=["table", "training", "sections"], default=["table", "training"])
    parser.add_argument("--lanes", type=int, nargs="+", default=[62, 254, 1006], help="lanes (default 62 254 1006)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each row of the table (default 8)")
    parser.add_argument(
        "--spectrum-batches", type=int, default=600, help="batches of each part of the spectrum (default 600)"
    )
    parser.add_argument("--seeds", type=int, default=10, help="runs of each order in training (default 10)")
    parser.add_argument("--train-epochs", type=int, default=3, help="epochs of each run (default 3)")
    parser.add_argument(
        "--sections", type=int, nargs="+", default=[1, 10, 100, 200, 365], help="sections (default 1 10 100 200 365)"
    )
    parser.add_argument(
        "--held", type=int, nargs="+", default=[1, 8, 30], help="blocks of which memory holds one (default 1 8 30)"
    )
    parser.add_argument("--fashion", type=Path, help="where the four files of Fashion-MNIST are (default: fetch them)")
    return parser.parse_args()


def labels_by_name(n_samples: int) -> dict[str, I64]:
    """The table's labels, each sorted in its way."""
    places = np.arange(n_samples)
    walk = np.cumsum(np.random.default_rng(0).standard_normal(n_samples))
    deciles = np.quantile(walk, np.arange(1, 10) / 10)
    return {
        **{f"{k} classes sorted": places * k // n_samples for k in (10, 100, 1000)},
        "7 imbalanced sorted": np.searchsorted(np.cumsum(IMBALANCED)[:-1], (places + 0.5) / n_samples),
        "10 classes, random walk": np.searchsorted(deciles, walk),
    }


def bench_table(path: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Every kind of labels, by every order; one dataset holds them all, since the order depends on none."""
    labels = labels_by_name(arguments.samples)
    fields = {f"y{place}": values for place, values in enumerate(labels.values())}
    row_bytes = 8 * (len(fields) + 1)
    dataset = st.ingest(
        {"sample": np.arange(arguments.samples), **fields}, path, block=row_bytes * BLOCK_ROWS, codec="none"
    )
    rng = np.random.default_rng(1)
    reshuffles = [rng.permutation(arguments.samples) for _ in range(2 * arguments.epochs)]
    populated = {name: label_population(values) for name, values in labels.items()}
    reference = {name: quality(populated[name], reshuffles, arguments) for name in labels}
    chance = spectrum(reshuffles[: arguments.epochs], arguments)
    for name, found in reference.items():
        yield row(name, "full reshuffle", found, found, arguments, {"power": chance}, chance)
    for lanes in arguments.lanes:
        orders, about = loader_orders(dataset, fields, lanes, arguments)
        about |= {"power": spectrum(orders, arguments)}
        for name in labels:
            yield row(
                name,
                "streamtrain",
                quality(populated[name], orders, arguments),
                reference[name],
                arguments,
                about,
                chance,
            )
    for order, draw in PEERS.items():
        orders = [draw(np.random.default_rng(seed), arguments.samples) for seed in range(arguments.epochs)]
        about = {"power": spectrum(orders, arguments)}
        for name in labels:
            yield row(
                name, order, quality(populated[name], orders, arguments), reference[name], arguments, about, chance
            )


def spectrum(orders: Sequence[I64], arguments: argparse.Namespace) -> dict[str, float]:
    """The largest power of an order's batches in each part of its epochs."""
    return {
        part: round(largest_power(orders, arguments.batch_size, part=part, most_batches=arguments.spectrum_batches), 2)
        for part in PARTS
    }


def loader_orders(
    dataset: Any, fields: dict[str, I64], lanes: int, arguments: argparse.Namespace
) -> tuple[list[I64], dict[str, Any]]:
    """The samples of several epochs as the loader yields them, and what it read for them."""
    memory = smallest_memory(dataset.layout, arguments.batch_size, lanes=lanes)
    orders, n_read = [], []
    with (
        counted_reads() as reads,
        StreamLoader(dataset, batch_size=arguments.batch_size, memory=memory, lanes=lanes, seed=0) as loader,
    ):
        # One epoch more: the first reads its own blocks and some of the next epoch's.
        for _ in range(arguments.epochs + 1):
            batches = list(loader)
            n_read.append(len(reads))
            orders.append(torch.cat([batch.sample for batch in batches]).numpy())
            for name, values in fields.items():
                found = torch.cat([getattr(batch, name) for batch in batches]).numpy()
                assert np.array_equal(found, values[orders[-1]]), f"field {name} does not go with its sample"
        sizes = loader.sizes
    n_blocks = dataset.layout.n_blocks
    return orders[1:], {
        "lanes": lanes,
        "memory": memory,
        "pool_share": round(sizes.slots / n_blocks, 4),
        "reads_ratio": round((n_read[-1] - n_read[0]) / arguments.epochs / n_blocks, 4),
    }


class counted_reads:  # noqa: N801 - a context, used as a function
    """While it lasts, loaders that are made note every block they read; the notes are what it gives."""

    def __enter__(self) -> deque[int]:
        blocks: deque[int] = deque()
        read = BlockReader.read

        def counted(reader: BlockReader, block: int, slots: Sequence[memoryview]) -> float:
            blocks.append(block)
            return read(reader, block, slots)

        self._patch = mock.patch.object(BlockReader, "read", counted)
        self._patch.start()
        return blocks

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def quality(
    populated: tuple[LabelPopulation, Array], orders: Sequence[I64], arguments: argparse.Namespace
) -> list[ShuffleQuality]:
    """The quality of each of some orders."""
    population, classes = populated
    return [
        measure_quality([order], classes.take, population, batch_size=arguments.batch_size, block_rows=BLOCK_ROWS)
        for order in orders
    ]


def row(
    labels: str,
    order: str,
    found: Sequence[ShuffleQuality],
    reference: Sequence[ShuffleQuality],
    arguments: argparse.Namespace,
    about: dict[str, Any],
    chance: dict[str, float],
) -> Result:
    """One row of the table, relative to the full reshuffles of this run."""
    variance, drift = (
        statistics.fmean(getattr(q, name) for q in found) / statistics.fmean(getattr(q, name) for q in reference)
        for name in ("variance", "drift")
    )
    coincidence = statistics.fmean(q.coincidence or 0.0 for q in found)
    as_agreed = (arguments.samples, arguments.batch_size) == (SAMPLES, BATCH_SIZE)
    bar = BARS.get((labels, about.get("lanes", 0))) if as_agreed else None
    result = {
        "bench": "shuffle",
        "labels": labels,
        "order": order,
        **about,
        "samples": arguments.samples,
        "block_rows": BLOCK_ROWS,
        "batch_size": arguments.batch_size,
        "epochs": len(found),
        "variance": round(variance, 3),
        "drift": round(drift, 3),
        "coincidence": round(coincidence, 2),
        "reference": {
            "variance": round(statistics.fmean(q.variance for q in reference), 4),
            "drift": round(statistics.fmean(q.drift for q in reference), 4),
            "power": chance,
        },
        "bar": bar,
    }
    if bar:
        result["bar_met"] = all(result[name] <= most for name, most in bar.items())
    return result


def describe(result: Result) -> str:
    """One line for people."""
    if result["bench"] != "shuffle":
        return describe_training(result)
    ours = "lanes" in result
    lanes = f"{result['lanes']:>5} lanes, {result['pool_share']:5.1%}" if ours else " " * 18
    reads = f"  reads {result['reads_ratio']:.3f}" if ours else ""
    power, chance = result["power"]["whole"], result["reference"]["power"]["whole"]
    return (
        f"{result['labels']:<24} {result['order']:<34} {lanes}  power {power:6.2f} / {chance:.2f}  "
        f"var {result['variance']:7.3f}  drift {result['drift']:6.2f}  pairs {result['coincidence']:6.1f}{reads}"
    )


if __name__ == "__main__":
    main()
