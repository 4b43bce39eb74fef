#!/usr/bin/env python3
"""The cost of checking: an epoch of the loader as it is, beside one that computes and compares no checksums.

There is no switch for that, and there shall be none: in this process alone, the method that does it gives way to an
empty one; reading and decoding stay. The two ways take turns, each epoch by a loader of its own, which holds no blocks
yet and so reads all of them. The first pair is left out, and each pair is begun by the other way than the one before.
The cost is the median of the pairs' ratios, less 1. Files are in the page cache.

Prints a table on stderr and one JSON line per codec on stdout.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import crc32c

import streamtrain as st
from scripts.bench.loader import drain, synthetic
from scripts.runner import Result, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.store.shard import ShardReader
from streamtrain.system.units import parse_bytes

WAYS: Final = ("checked", "unchecked")


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe, packages=("torch", "crc32c"))


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every codec."""
    for codec in arguments.codecs:
        yield bench(folder / f"{codec}.zarr", codec, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    return new_parser(
        __doc__,
        row_bytes=3072,
        codecs=["none", "lz4"],
        size="1GB",
        memory="512MB",
        batch_size=256,
        repeats=9,
        folder=None,
    ).parse_args()


def bench(path: Path, codec: str, arguments: argparse.Namespace) -> Result:
    """Measure one codec."""
    size = parse_bytes(arguments.size)
    n_samples = max(1, size // (arguments.row_bytes + 8))
    require_disk(path.parent, 2 * size)
    dataset = st.ingest(synthetic(n_samples, arguments.row_bytes), path, codec=codec, progress=False)
    seconds = both_ways(dataset, arguments)
    shutil.rmtree(path)
    rates = {way: dataset.nbytes / 1e6 / statistics.median(seconds[way]) for way in WAYS}
    return {
        "bench": "checking",
        "codec": codec,
        "row_bytes": arguments.row_bytes,
        "decoded_bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "memory": arguments.memory,
        "batch_size": arguments.batch_size,
        "cache": "warm",
        **{f"{way}_mb_s": round(rate) for way, rate in rates.items()},
        "ratio": median_ratio(seconds["checked"], seconds["unchecked"]),
        "ratios": [round(a / b, 3) for a, b in zip(seconds["checked"], seconds["unchecked"], strict=True)],
        "crc32c_mb_s": round(checksum_rate(dataset.layout.block_bytes)),
    }


def both_ways(dataset: st.Dataset, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of each epoch, both ways in turn; the first pair fills caches and is left out."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for counts, order in rounds(WAYS, arguments.repeats):
        for way in order:
            taken = epoch(dataset, arguments, is_checked=way == "checked")
            seconds[way] += [taken] if counts else []
    return seconds


def epoch(dataset: st.Dataset, arguments: argparse.Namespace, *, is_checked: bool) -> float:
    """The seconds in which a new loader gives every batch."""
    with (
        nullcontext() if is_checked else unchecked(),
        st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory) as loader,
    ):
        return timed(drain, loader)


@contextmanager
def unchecked() -> Iterator[None]:
    """Let the reader take every block for what was written."""
    with mock.patch.object(ShardReader, "check", _nothing):
        yield


def _nothing(*_: object) -> None:
    pass


def checksum_rate(n_bytes: int) -> float:
    """Megabytes a second of one thread that does nothing else, over a block again and again."""
    block = bytes(n_bytes)
    n_times = max(1, 50_000_000 // n_bytes)
    seconds = [timed(lambda: [crc32c.crc32c(block) for _ in range(n_times)]) for _ in range(3)]
    return n_times * n_bytes / 1e6 / min(seconds)


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{result['row_bytes']:>7} B rows, {result['codec']:<4}  MB/s: checked {result['checked_mb_s']:>5} "
        f"unchecked {result['unchecked_mb_s']:>5}  checking costs {result['ratio'] - 1:>6.1%} of the time "
        f"({min(result['ratios']) - 1:.1%} to {max(result['ratios']) - 1:.1%}); crc32c alone {result['crc32c_mb_s']:,}"
    )


if __name__ == "__main__":
    main()
