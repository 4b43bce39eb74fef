#!/usr/bin/env python3
"""The loader beside the machine's limit: loader ÷ floor, from the same run and the same files.

The floor is two threads that do what cannot be left out, and nothing else: read the same blocks into a pool of the
same size, check, decode, and ``np.take`` every row once in random order into spans of the same size. It has no order
to work out, no slots to manage and no consumer. Beside it stands the bare read: the same two threads without the
take. Floor and loader alternate; the ratio is the median of the pairs' ratios. And there is what one would write if all
fitted in memory, ``x[perm[i:i + n]]`` over the same rows as one tensor and as one numpy array, each for a part of an
epoch; of the tensor's, with one thread and with torch's default, the faster counts.

With a cold page cache the limit is one thread that reads the same files from one end to the other.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import numpy.typing as npt
import torch

import streamtrain as st
from scripts.bench.loader_floor import Floor
from scripts.runner import Result, drop_caches, median_ratio, new_parser, require_disk, run, timed
from streamtrain.system.units import parse_bytes

NAMES: Final = ("read", "floor", "loader", "tensor", "array")
LOOP_BYTES: Final = 500_000_000
"""Decoded bytes that the loops in memory take, at the most, from all over the rows."""


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every row size with every codec, warm and cold."""
    for row_bytes, codec in itertools.product(arguments.row_bytes, arguments.codecs):
        yield from bench(folder / f"{row_bytes}-{codec}.zarr", row_bytes, codec, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        __doc__,
        row_bytes=[3072],
        codecs=["none", "lz4"],
        size="2GB",
        memory="512MB",
        batch_size=256,
        repeats=5,
        folder=None,
    )
    parser.add_argument("--caches", nargs="+", choices=["warm", "cold"], default=["warm"], help="default warm")
    parser.add_argument("--no-in-memory", dest="in_memory", action="store_false", help="leave out x[perm[i:i + n]]")
    return parser.parse_args()


def bench(path: Path, row_bytes: int, codec: str, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure one row size with one codec."""
    size = parse_bytes(arguments.size)
    n_samples = max(1, size // (row_bytes + 8))
    require_disk(path.parent, 2 * size)
    dataset = st.ingest(synthetic(n_samples, row_bytes), path, codec=codec)
    about = {
        "bench": "loader",
        "row_bytes": row_bytes,
        "codec": codec,
        "decoded_bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "memory": arguments.memory,
        "batch_size": arguments.batch_size,
    }
    with st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory) as loader:
        about["lanes"] = loader.sizes.lanes
        if "warm" in arguments.caches:
            yield about | warm(dataset, loader, arguments)
        if "cold" in arguments.caches:
            yield about | cold(dataset, loader, arguments)
    shutil.rmtree(path)


def warm(dataset: st.Dataset, loader: st.StreamLoader, arguments: argparse.Namespace) -> dict[str, Any]:
    """Read limit, floor, loader and the loop in memory, in turn."""
    floor = Floor(dataset, loader.sizes.slots, loader.sizes.span_batches * arguments.batch_size)
    loops = Loops(dataset, arguments.batch_size) if arguments.in_memory else None
    seconds: dict[str, list[float]] = {name: [] for name in NAMES if loops or name not in ("tensor", "array")}
    for repeat in range(arguments.repeats + 1):
        measured = {
            "read": floor.run(gather=False),
            "floor": floor.run(gather=True),
            "loader": timed(drain, loader),
        }
        if loops:
            measured |= {"tensor": loops.tensors(), "array": loops.arrays()}
        for name, value in measured.items():
            # The first of each fills caches and is left out.
            seconds[name] += [value] if repeat else []
    others = [name for name in seconds if name != "loader"]
    return {
        "cache": "warm",
        **rates(dataset, seconds),
        **{f"ratio_to_{name}": median_ratio(seconds[name], seconds["loader"]) for name in others},
    }


def cold(dataset: st.Dataset, loader: st.StreamLoader, arguments: argparse.Namespace) -> dict[str, Any]:
    """The loader against one thread that reads the same files in order, both from a cold page cache."""
    files = sorted(path for path in dataset.path.rglob("*") if path.is_file())
    seconds: dict[str, list[float]] = {"read": [], "loader": []}
    for _ in range(arguments.repeats):
        how = drop_caches(files)
        seconds["read"].append(timed(read_files, files))
        drop_caches(files)
        # A new loader: one that has run holds blocks of the next epoch.
        with st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory) as fresh:
            seconds["loader"].append(timed(drain, fresh))
    return {
        "cache": "cold",
        "emptied_by": how,
        **rates(dataset, seconds),
        "stored_mb_s": round(dataset.stored_bytes / 1e6 / statistics.median(seconds["loader"])),
        "ratio_to_read": median_ratio(seconds["read"], seconds["loader"]),
    }


def rates(dataset: st.Dataset, seconds: dict[str, list[float]]) -> dict[str, int]:
    """Decoded megabytes a second of each, and the loader's samples."""
    megabytes = dataset.nbytes / 1e6
    return {
        **{f"{name}_mb_s": round(megabytes / statistics.median(values)) for name, values in seconds.items()},
        "samples_s": round(len(dataset) / statistics.median(seconds["loader"])),
    }


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    figures = " ".join(f"{name} {result[f'{name}_mb_s']:>5}" for name in NAMES if f"{name}_mb_s" in result)
    ratios = "  ".join(f"/{name} {result[f'ratio_to_{name}']:.2f}" for name in NAMES if result.get(f"ratio_to_{name}"))
    head = f"{result['row_bytes']:>7} B rows, {result['codec']:<4} {result['cache']}"
    return f"{head}  MB/s: {figures}  {result['samples_s']:>11,} samples/s  loader: {ratios}"


class Loops:
    """The loop one writes over rows in memory: seconds for an epoch, told from a part of one."""

    def __init__(self, dataset: st.Dataset, batch_size: int) -> None:
        self._arrays = [field[:] for field in dataset[:].values()]
        self._tensors = [torch.from_numpy(array) for array in self._arrays]
        self._batch_size = batch_size
        n_taken = min(len(dataset), math.ceil(LOOP_BYTES / dataset.layout.row_bytes))
        self._order = np.random.default_rng(0).permutation(len(dataset))[:n_taken]
        self._epochs = n_taken / len(dataset)

    def arrays(self) -> float:
        """With numpy."""
        return timed(self._take, self._arrays, self._order) / self._epochs

    def tensors(self) -> float:
        """With torch, by one thread or by as many as it takes by itself."""
        default = torch.get_num_threads()
        seconds = []
        for n_threads in {1, default}:
            torch.set_num_threads(n_threads)
            seconds.append(timed(self._take, self._tensors, torch.from_numpy(self._order)))
        torch.set_num_threads(default)
        return min(seconds) / self._epochs

    def _take(self, fields: list[Any], order: torch.Tensor | npt.NDArray[np.int64]) -> None:
        for start in range(0, len(order), self._batch_size):
            for field in fields:
                field[order[start : start + self._batch_size]]


def read_files(files: list[Path]) -> None:
    """Read files from one end to the other, as fast as one thread can."""
    buffer = bytearray(8 << 20)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def synthetic(n_samples: int, row_bytes: int) -> Iterator[dict[str, Any]]:
    """Rows of random bytes with six of eight bits in use (so they compress to about three quarters), and labels."""
    generator = np.random.default_rng(0)
    step = max(1, 8_000_000 // row_bytes)
    for start in range(0, n_samples, step):
        n = min(step, n_samples - start)
        x = generator.integers(0, 64, (n, row_bytes), dtype=np.uint8)
        yield {"x": x, "y": np.arange(start, start + n) * 10 // n_samples}


def drain(loader: Any) -> None:
    """Take every batch of an epoch."""
    for _ in loader:
        pass


if __name__ == "__main__":
    main()
