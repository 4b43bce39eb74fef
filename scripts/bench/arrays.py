#!/usr/bin/env python3
"""HDF5 and Zarr as they are beside the dataset that ingest makes of them: epochs, and what the ingest costs.

``epoch``: samples/s of a loader over the ingested data ÷ those of a torch ``DataLoader`` whose dataset reads one sample
at a time with h5py, or with zarr, in random order; the latter for at most so many seconds. ``ingest``: a contiguous
HDF5 file ÷ ``cp`` of it, both durable. ``threads``: a gzip HDF5 file ingested by two threads ÷ by one.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import h5py
import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

import streamtrain as st
from scripts.bench.ingest import clear, copy
from scripts.runner import Result, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.system.units import parse_bytes

SHAPE: Final = (3, 32, 32)
ROW_BYTES: Final = 4 * 3 * 32 * 32
BARS: Final = {"epoch": 5.0, "ingest": 0.6, "threads": 1.7}
SECONDS: Final = 3.0
"""For which a loader of others is measured at most."""


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe, packages=("h5py", "zarr"))


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the data in each form, and measure each figure."""
    size = parse_bytes(arguments.size, name="--size")
    require_disk(folder, 6 * size)
    n = max(2 * arguments.batch_size, size // ROW_BYTES)
    st.ingest({"x": np.arange(9.0)}, folder / "first.zarr")  # imports all there is
    plain, packed, chunked = (folder / name for name in ("plain", "packed", "x.zarr"))
    write_h5(plain, n)
    write_h5(packed, n, chunks=(64, *SHAPE), compression="gzip", compression_opts=1, shuffle=True)
    write_zarr(chunked, n)
    for name, source, dataset in (
        ("h5py, contiguous", plain / "a.h5", partial(OneByOne, open_h5, plain / "a.h5")),
        ("h5py, gzip", packed / "a.h5", partial(OneByOne, open_h5, packed / "a.h5")),
        ("zarr", chunked, partial(OneByOne, open_zarr, chunked)),
    ):
        yield epoch(name, source, dataset, folder / "target", arguments)
    yield beside_cp(plain, folder / "target", arguments)
    yield threads(packed / "a.h5", folder / "target", arguments)


def rows(n: int) -> Iterator[tuple[int, Any]]:
    """Make normal numbers of few digits, which compress."""
    rng = np.random.default_rng(0)
    for start in range(0, n, 1024):
        yield start, np.round(rng.normal(size=(min(1024, n - start), *SHAPE)), 1).astype("f4")


def write_h5(folder: Path, n: int, **options: Any) -> None:
    """Write one array to a file in a folder of its own."""
    folder.mkdir()
    with h5py.File(folder / "a.h5", "w") as file:
        x = file.create_dataset("x", (n, *SHAPE), "f4", **options)
        for start, values in rows(n):
            x[start : start + len(values)] = values


def write_zarr(path: Path, n: int) -> None:
    """Write one array in zarr's own chunks and codec."""
    x = zarr.create_array(path, shape=(n, *SHAPE), dtype="f4", chunks=(64, *SHAPE))
    for start, values in rows(n):
        x[start : start + len(values)] = values


def open_h5(path: Path) -> Any:
    """Open the array of a file."""
    return h5py.File(path, "r")["x"]


def open_zarr(path: Path) -> Any:
    """Open an array."""
    return zarr.open_array(path, mode="r")


class OneByOne(Dataset[Any]):
    """An array read a sample at a time, opened by each worker for itself: what many programs do."""

    def __init__(self, open_array: Callable[[Path], Any], path: Path) -> None:
        self._open, self._path = open_array, path
        self._n = int(open_array(path).shape[0])
        self._array: Any = None

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Any:
        if self._array is None:
            self._array = self._open(self._path)
        return torch.from_numpy(np.asarray(self._array[index]))


def epoch(
    name: str, source: Path, make: Callable[[], Dataset[Any]], target: Path, arguments: argparse.Namespace
) -> Result:
    """Compare an epoch over the ingested data with the array read one by one."""
    seconds = timed(partial(st.ingest, source, target, memory=arguments.memory, progress=False))
    ours, theirs = [], []
    with st.StreamLoader(st.open(target), batch_size=arguments.batch_size, memory=arguments.memory) as loader:
        for counts, order in rounds(["ours", "theirs"], arguments.repeats):
            for way in order:
                if way == "ours":
                    rate = per_second(len(batch[0]) for batch in loader)
                    ours += [rate] if counts else []
                else:
                    others = DataLoader(
                        make(), arguments.batch_size, shuffle=True, num_workers=arguments.workers, drop_last=True
                    )
                    rate = per_second((len(batch) for batch in others), arguments.seconds)
                    theirs += [rate] if counts else []
    shutil.rmtree(target)
    return {
        "bench": "epoch",
        "source": name,
        "samples_s": round(statistics.median(ours)),
        "others_samples_s": round(statistics.median(theirs)),
        "ratio": median_ratio(ours, theirs),
        "ingest_seconds": round(seconds, 2),
        "bar": BARS["epoch"],
    }


def per_second(counts: Iterator[int], most_seconds: float | None = None) -> float:
    """Count samples per second, from the first batch on."""
    n, start = next(counts), time.perf_counter()
    for count in counts:
        n += count
        if most_seconds is not None and time.perf_counter() - start > most_seconds:
            break
    return n / (time.perf_counter() - start)


def beside_cp(folder: Path, target: Path, arguments: argparse.Namespace) -> Result:
    """Ingest a contiguous file, and copy it."""
    seconds: dict[str, list[float]] = {"cp": [], "ingest": []}
    options = {"memory": arguments.memory, "codec": "none", "progress": False}
    for counts, order in rounds(list(seconds), arguments.repeats):
        for name in order:
            took = timed(copy, folder, target) if name == "cp" else timed(partial(st.ingest, folder, target, **options))
            clear(target)
            seconds[name] += [took] if counts else []
    return compared("ingest", seconds["cp"], seconds["ingest"], folder / "a.h5")


def threads(source: Path, target: Path, arguments: argparse.Namespace) -> Result:
    """Ingest a gzip file by one thread and by two."""
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for counts, order in rounds(list(seconds), arguments.repeats):
        for name in order:
            options = {"memory": arguments.memory, "codec": "none", "progress": False, "n_workers": int(name)}
            took = timed(partial(st.ingest, source, target, **options))
            clear(target)
            seconds[name] += [took] if counts else []
    return compared("threads", seconds["1"], seconds["2"], source)


def compared(bench: str, before: list[float], after: list[float], source: Path) -> Result:
    """Put two ways beside each other."""
    return {
        "bench": bench,
        "source": "h5py, contiguous" if bench == "ingest" else "h5py, gzip",
        "source_bytes": source.stat().st_size,
        "before_seconds": round(statistics.median(before), 3),
        "seconds": round(statistics.median(after), 3),
        "ratio": median_ratio(before, after),
        "bar": BARS[bench],
    }


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    if result["bench"] == "epoch":
        beside = f"{result['samples_s']:>8} samples/s, one by one {result['others_samples_s']:>6}"
        beside += f", ingest {result['ingest_seconds']} s"
    else:
        beside = f"{result['seconds']} s, beside {result['before_seconds']} s"
    return f"{result['bench']:>8}  {result['source']:<17} {beside}  ratio {result['ratio']:.2f} (bar {result['bar']})"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, size="1GB", memory="256MB", batch_size=256, repeats=3, folder=None)
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader (default 2)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a DataLoader at most (default {SECONDS})")
    return parser.parse_args()


if __name__ == "__main__":
    main()
