#!/usr/bin/env python3
"""How near the loader comes to the machine's limit: loader ÷ floor, from the same run and the same files.

The floor is two threads that do what cannot be left out, and nothing else: read the same blocks into a pool of the
same size, check, decode, and ``np.take`` every row once in random order into spans of the same size. It has no order
to work out, no slots to manage and no consumer. Beside it stands the bare read: the same two threads without the
take. Floor and loader alternate; the ratio is the median of the pairs' ratios.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

import streamtrain as st
from streamtrain.blocks import BlockReader
from streamtrain.slots import Slots, aligned_bytes, row_dtype
from streamtrain.units import parse_bytes

N_THREADS = 2


def main() -> None:
    """Run every row size with every codec."""
    arguments = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="streamtrain-bench-", dir=arguments.folder))
    try:
        for row_bytes in arguments.row_bytes:
            for codec in arguments.codecs:
                result = bench(folder / f"{row_bytes}-{codec}.zarr", row_bytes, codec, arguments)
                print(json.dumps(result), flush=True)
                print(describe(result), file=sys.stderr)
    finally:
        shutil.rmtree(folder)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row-bytes", type=int, nargs="+", default=[3072], help="bytes of a row (default 3072)")
    parser.add_argument("--codecs", nargs="+", default=["none", "lz4"], help="codecs (default none lz4)")
    parser.add_argument("--size", default="2GB", help="decoded bytes of each dataset (default 2GB)")
    parser.add_argument("--memory", default="512MB", help="the loader's budget (default 512MB)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of floor and loader (default 5)")
    parser.add_argument("--folder", help="where the data is made and removed again (default: the system's temp folder)")
    return parser.parse_args()


def bench(path: Path, row_bytes: int, codec: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one row size with one codec."""
    n_samples = max(1, parse_bytes(arguments.size) // (row_bytes + 8))
    require_disk(path.parent, 2 * parse_bytes(arguments.size))
    dataset = st.ingest(synthetic(n_samples, row_bytes), path, codec=codec)
    with st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory) as loader:
        floor = Floor(dataset, loader.sizes.slots, loader.sizes.span_batches * arguments.batch_size)
        seconds: dict[str, list[float]] = {"read": [], "floor": [], "loader": []}
        for repeat in range(arguments.repeats + 1):
            measured = {
                "read": floor.run(gather=False),
                "floor": floor.run(gather=True),
                "loader": timed(drain, loader),
            }
            for name, value in measured.items():
                # The first of each fills caches and is left out.
                seconds[name] += [value] if repeat else []
    megabytes = dataset.nbytes / 1e6
    shutil.rmtree(path)
    return {
        "bench": "loader",
        "row_bytes": row_bytes,
        "codec": codec,
        "cache": "warm",
        "decoded_bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "memory": arguments.memory,
        "batch_size": arguments.batch_size,
        **{f"{name}_mb_s": round(megabytes / statistics.median(values)) for name, values in seconds.items()},
        "samples_s": round(n_samples / statistics.median(seconds["loader"])),
        "ratio_to_floor": ratio(seconds["floor"], seconds["loader"]),
        "ratio_to_read": ratio(seconds["read"], seconds["loader"]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} torch threads",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "zarr": zarr.__version__},
    }


def ratio(limits: list[float], figures: list[float]) -> float:
    """The median of limit time ÷ figure time, pair by pair."""
    return round(statistics.median(a / b for a, b in zip(limits, figures, strict=True)), 3)


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{result['row_bytes']:>7} B rows, {result['codec']:<4}  read {result['read_mb_s']:>6} MB/s  "
        f"floor {result['floor_mb_s']:>6} MB/s  loader {result['loader_mb_s']:>6} MB/s  "
        f"{result['samples_s']:>11,} samples/s  loader/floor {result['ratio_to_floor']:.2f}  "
        f"loader/read {result['ratio_to_read']:.2f}"
    )


def require_disk(folder: Path, n_bytes: int) -> None:
    """Stop before the disk is full."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + 10**9:
        sys.exit(f"error: {folder} has {free / 1e9:.1f} GB free, the benchmark needs {n_bytes / 1e9 + 1:.1f} GB")


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


def timed(act: Callable[..., object], *arguments: Any) -> float:
    """The seconds an act takes."""
    started = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - started


def take_one(blocks: deque[int]) -> int | None:
    """The next block that no thread has taken."""
    try:
        return blocks.popleft()
    except IndexError:
        return None


class Floor:
    """Two threads, each with half of the pool; they take blocks from one list, so neither waits for the other."""

    def __init__(self, dataset: Any, n_slots: int, span_samples: int) -> None:
        self.reader = BlockReader(dataset)
        self.blocks = np.random.default_rng(1).permutation(dataset.layout.n_blocks).tolist()
        self.halves = [Half(dataset.layout, max(1, n_slots // N_THREADS), span_samples) for _ in range(N_THREADS)]

    def run(self, *, gather: bool) -> float:
        """The seconds for all blocks."""
        blocks = deque(self.blocks)
        threads = [threading.Thread(target=half.run, args=(self.reader, blocks, gather)) for half in self.halves]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started


class Half:
    """What one thread of the floor owns: slots, two spans, and the random order of its rows."""

    def __init__(self, layout: st.Layout, n_slots: int, span_samples: int) -> None:
        self.slots = Slots(layout, n_slots)
        self.buffers = [self.slots.buffers(slot) for slot in range(n_slots)]
        self.block_rows = layout.block_rows
        self.rows = np.random.default_rng(2).permutation(n_slots * layout.block_rows)
        self.spans = [
            [aligned_bytes(span_samples * f.row_bytes).view(row_dtype(f.row_bytes)) for f in layout.fields]
            for _ in range(2)
        ]

    def run(self, reader: BlockReader, blocks: deque[int], gather: bool) -> None:
        """Fill the slots, take all their rows, and so on until no block is left."""
        n_read = 0
        while (block := take_one(blocks)) is not None:
            reader.read(block, self.buffers[n_read])
            n_read += 1
            if n_read == len(self.buffers):
                self.take(n_read if gather else 0)
                n_read = 0
        self.take(n_read if gather else 0)

    def take(self, n_blocks: int) -> None:
        """Take the rows of the first blocks in random order."""
        rows_read = self.rows if n_blocks == len(self.buffers) else self.rows[self.rows < n_blocks * self.block_rows]
        width = len(self.spans[0][0])
        for turn, start in enumerate(range(0, len(rows_read), width)):
            rows = rows_read[start : start + width]
            for source, target in zip(self.slots.rows, self.spans[turn % 2], strict=True):
                np.take(source, rows, axis=0, out=target[: len(rows)], mode="clip")


if __name__ == "__main__":
    main()
