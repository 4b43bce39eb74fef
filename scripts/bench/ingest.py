#!/usr/bin/env python3
"""Ingest beside copying: MB/s of ingesting .npy files ÷ MB/s of ``cp`` of the same files.

Both end when what they wrote is durable: after ``cp``, the copies and their directory are flushed, as ingest flushes
all it writes. The source is in the page cache for both. They alternate, and so does who comes first; the ratio is the
median of the pairs' ratios.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.data.synthetic import Recipe, write_npy
from scripts.runner import Result, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.errors import ResourceError
from streamtrain.system.units import parse_bytes

KINDS = {"uint8": 3072, "float32": 784}
"""Features of a row, by dtype: an RGB image of 32 × 32, a table of 784 columns."""

N_CLASSES = 10
BAR = 0.7
"""Of ``cp``, at least."""


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe, packages=())


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the data of each kind, and measure each codec on it."""
    size = parse_bytes(arguments.size, name="--size")
    require_disk(folder, 3 * size)
    st.ingest({"x": np.arange(9.0)}, folder / "first.zarr")  # imports all there is
    for kind in arguments.kinds:
        source = folder / kind
        write_source(source, kind, size)
        for codec in arguments.codecs:
            yield bench(source, kind, codec, arguments)
        shutil.rmtree(source)


def write_source(folder: Path, kind: str, size: int) -> None:
    """Write ``x.npy`` and ``y.npy``: bytes with six of eight bits random, or normal variates around class means."""
    n_features = KINDS[kind]
    n_samples = max(1, size // (n_features * np.dtype(kind).itemsize + 8))
    if kind == "uint8":
        write_npy(Recipe(n_samples=n_samples, shape=(n_features,), n_classes=min(N_CLASSES, n_samples)), folder)
        return
    folder.mkdir()
    y = np.arange(n_samples) * N_CLASSES // n_samples
    np.save(folder / "y.npy", y)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", kind, (n_samples, n_features))
    generator = np.random.default_rng(0)
    for start in range(0, n_samples, 2048):
        rows = x[start : start + 2048]
        rows[:] = generator.standard_normal(rows.shape, np.float32)
        rows += y[start : start + 2048, None]
    x.flush()


def bench(source: Path, kind: str, codec: str, arguments: argparse.Namespace) -> Result:
    """Measure one kind of rows with one codec."""
    target = source.with_name("target")
    n_bytes = sum(file.stat().st_size for file in source.iterdir())
    seconds: dict[str, list[float]] = {"cp": [], "ingest": []}
    for counts, order in rounds(list(seconds), arguments.repeats):
        for name in order:
            took = timed(copy, source, target) if name == "cp" else timed(ingest, source, target, codec, arguments)
            if name == "ingest":
                stored = st.open(target)
                about = {"stored_codec": stored.layout.codec, "stored_bytes": stored.stored_bytes}
            clear(target)
            seconds[name] += [took] if counts else []
    return {
        "bench": "ingest",
        "dtype": kind,
        "features": KINDS[kind],
        "codec": codec,
        **about,
        "cache": "warm",
        "source_bytes": n_bytes,
        "memory": arguments.memory,
        **{f"{name}_mb_s": round(n_bytes / 1e6 / statistics.median(values)) for name, values in seconds.items()},
        "ratio_to_cp": median_ratio(seconds["cp"], seconds["ingest"]),
        "bar": BAR,
        "pairs": arguments.repeats,
    }


def ingest(source: Path, target: Path, codec: str, arguments: argparse.Namespace) -> None:
    """Ingest the files; all of it is durable at the end."""
    labels = source / "y.npy"
    st.ingest(source / "x.npy", target, labels=labels, codec=codec, memory=arguments.memory, progress=False)


def copy(source: Path, target: Path) -> None:
    """Copy the files with ``cp``, and flush the copies and their directory."""
    # Where the file system could share the blocks, nothing would be copied.
    options = ["--reflink=never"] if sys.platform == "linux" else []
    done = subprocess.run(["cp", "-r", *options, str(source), str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResourceError("cp failed", where=str(target), why=done.stderr.strip(), fix="another --folder")
    for path in (*target.iterdir(), target, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clear(target: Path) -> None:
    """Remove what was written, and let the disk come to rest."""
    shutil.rmtree(target)
    os.sync()


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    codec = result["codec"] + (f" ({result['stored_codec']})" if result["codec"] == "auto" else "")
    return (
        f"{result['dtype']:>8} × {result['features']:<5} codec {codec:<12} cp {result['cp_mb_s']:>6} MB/s  "
        f"ingest {result['ingest_mb_s']:>6} MB/s  ingest/cp {result['ratio_to_cp']:.2f}"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, codecs=["none", "lz4", "auto"], size="2GB", memory="1GB", repeats=5, folder=None)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="row dtypes (both)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
