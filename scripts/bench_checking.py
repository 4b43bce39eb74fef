#!/usr/bin/env python3
"""What checking costs: an epoch of the loader as it is, beside one that computes and compares no checksums.

There is no switch for that, and there shall be none: in this process alone, the two functions that do it give way to
empty ones; reading and decoding stay. The two ways take turns, each epoch by a loader of its own, which holds no blocks
yet and so reads all of them. The first pair is left out, and each pair is begun by the other way than the one before.
The cost is the median of the pairs' ratios, less 1. Files are in the page cache.

Prints a table on stderr and one JSON line per codec on stdout.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from unittest import mock

import crc32c
from bench_common import (
    machine,
    median_ratio,
    plain_errors,
    print_result,
    require_disk,
    timed,
    versions,
    working_folder,
)
from bench_loader import drain, synthetic

import streamtrain as st
from streamtrain.loader import block_reader
from streamtrain.system.units import parse_bytes

WAYS: Final = ("checked", "unchecked")


def main() -> None:
    """Run every codec."""
    arguments = parse_arguments()
    with plain_errors(), working_folder(arguments.folder) as folder:
        for codec in arguments.codecs:
            result = bench(folder / f"{codec}.zarr", codec, arguments)
            print_result(result, describe(result))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row-bytes", type=int, default=3072, help="bytes of a row (default 3072)")
    parser.add_argument("--codecs", nargs="+", default=["none", "lz4"], help="codecs (default none lz4)")
    parser.add_argument("--size", default="1GB", help="decoded bytes of each dataset (default 1GB)")
    parser.add_argument("--memory", default="512MB", help="the loader's budget (default 512MB)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9, help="pairs of epochs (default 9)")
    parser.add_argument("--folder", help="where the data is made and removed again (default: the system's temp folder)")
    return parser.parse_args()


def bench(path: Path, codec: str, arguments: argparse.Namespace) -> dict[str, Any]:
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
        "machine": machine(),
        "versions": versions("torch", "crc32c"),
    }


def both_ways(dataset: st.Dataset, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of each epoch, both ways in turn; the first pair fills caches and is left out."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for pair in range(arguments.repeats + 1):
        for way in WAYS if pair % 2 else reversed(WAYS):
            taken = epoch(dataset, arguments, is_checked=way == "checked")
            seconds[way] += [taken] if pair else []
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
    with (
        mock.patch.object(block_reader, "crc32c", _nothing),
        mock.patch.object(block_reader.BlockReader, "_check", _nothing),
    ):
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
