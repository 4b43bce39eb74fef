#!/usr/bin/env python3
"""Images beside bare threads: images/s of a loader that decodes ÷ those of two threads that decode and crop alone.

The threads read the same files, in order, and put the same crops into memory of their own, by the same functions; a
``DataLoader`` over the files with two workers does so too. All alternate; a ratio is the median of the rounds' ratios.
Beside it: the bytes of the dataset ÷ those of the files, and the loader's anonymous memory beside its budget.

Then WebDataset and LitData (``--peers``), each in an environment of its own that is made for the run and removed: the
same files, decoded and cropped by the same function; the best of 0, 1 and 2 workers, kept from epoch to epoch, in turn
with a loader that is opened anew. Their memory is what the worker and its helpers hold, anonymous and shared, what is
shared counted once; ``idle`` is the part that Python and the imports take. Then a table of what may be stored instead:
KB an image, and images/s, warm and cold; root empties the page cache, others ask for it (``cache`` says which).

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import streamtrain as st
from scripts.bench.peers.images.compare import PEERS, compare
from scripts.bench.peers.images.worker import HOW, collate, decoded
from scripts.bench.peers.process import ENVIRONMENT_BYTES
from scripts.bench.peers.worker import Batch, Case
from scripts.runner import Result, drop_caches, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.loader.decode.images import decode_into
from streamtrain.system.memory import MemoryMeter
from streamtrain.system.units import format_bytes, parse_bytes

THREADS = 2
BARS = {"two threads": 0.92, "DataLoader": 1.0, "stored": 1.01, "peer": 1.0, "cold": 0.9}
STORED: dict[str, dict[str, Any]] = {
    "encoded": {},
    "short side 256": {"max_side": 256},
    "decoded 256, none": {"store": "decoded", "size": 256, "codec": "none"},
    "decoded 256, lz4": {"store": "decoded", "size": 256, "codec": "lz4"},
    "decoded 256, zstd": {"store": "decoded", "size": 256, "codec": "zstd"},
    "decoded 224, none": {"store": "decoded", "size": 224, "codec": "none"},
}
"""What is stored of the images -> the options of the ingest."""
_IMAGE_BYTES = 110_000


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe, packages=("torch", "pillow"))


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the images, and measure each way."""
    n_bytes = arguments.samples * _IMAGE_BYTES
    needed = 5 * n_bytes + (ENVIRONMENT_BYTES if arguments.peers else 0)
    require_disk(folder, needed, fix="fewer --samples, or another --folder")
    paths = write_images(folder / "images", arguments.samples, arguments.seed)
    dataset = st.ingest(folder / "images", folder / "encoded", memory=arguments.memory, progress=False)
    yield beside_threads(dataset, paths, arguments)
    case = Case(
        source=folder / "images",
        folder=folder / "peer" / "work" / "stored",
        n_samples=len(paths),
        row_bytes=0,
        batch_size=arguments.batch_size,
        memory=arguments.memory,
    )
    for peer in arguments.peers:
        yield beside_peer(peer, folder / "peer", case, dataset, arguments)
    yield from stored_ways(folder, arguments)


def write_images(folder: Path, n_samples: int, seed: int) -> list[Path]:
    """Write JPEGs of 500 × 400, smooth shapes under noise, in ten folders; each is about as large as a photo."""
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(n_samples):
        coarse = rng.integers(0, 256, (10, 13, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 400), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 14, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"class{number % 10}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        paths.append(path)
    return paths


def beside_threads(dataset: st.Dataset, paths: Sequence[Path], arguments: argparse.Namespace) -> Result:
    """Measure the loader beside bare threads and a DataLoader over the files."""
    peaks: list[int] = []
    ways: dict[str, Callable[[], object]] = {
        "loader": lambda: peaks.append(epoch(dataset, arguments)),
        "two threads": lambda: bare(paths, HOW),
        "DataLoader": lambda: over_files(paths, arguments.batch_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    torch.set_num_threads(1)
    for counts, order in rounds(list(ways), arguments.repeats):
        for name in order:
            took = timed(ways[name])
            seconds[name] += [took] if counts else []
    n_files = sum(path.stat().st_size for path in paths)
    return {
        "bench": "images",
        "samples": len(paths),
        "file_bytes": n_files // len(paths),
        "memory": arguments.memory,
        **{f"{name} images_s": round(len(paths) / min(each)) for name, each in seconds.items()},
        **{f"ratio_to {name}": median_ratio(seconds[name], seconds["loader"]) for name in ways if name != "loader"},
        "stored_to_files": round(dataset.stored_bytes / n_files, 4),
        "peak_bytes": max(peaks),
        "bars": BARS,
        "rounds": arguments.repeats,
    }


def epoch(dataset: st.Dataset, arguments: argparse.Namespace) -> int:
    """Go through the dataset once, by a loader of its own: it reads no epoch ahead; return its peak of memory."""
    how: dict[str, Any] = {"batch_size": arguments.batch_size, "memory": arguments.memory, "seed": arguments.seed}
    with MemoryMeter() as meter, st.StreamLoader(dataset, decode={"image": HOW}, **how) as loader:
        for _ in loader:
            pass
    return meter.peak_bytes


def bare(paths: Sequence[Path], how: st.Images) -> None:
    """Read, decode and crop every file in two threads, in order."""

    def work(first: int) -> None:
        target = np.empty(how.shape, np.uint8)
        for number in range(first, len(paths), THREADS):
            decode_into(target, paths[number].read_bytes(), how, number)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def beside_peer(peer: str, place: Path, case: Case, dataset: st.Dataset, arguments: argparse.Namespace) -> Result:
    """Measure the loader beside a library, or tell why it is not."""
    peaks: list[int] = []
    record = compare(peer, place, case, lambda: peaks.append(epoch(dataset, arguments)), arguments.repeats)
    return record | {"loader peak_bytes": max(peaks, default=0), "bar": BARS["peer"]}


class Files(Dataset[tuple[torch.Tensor, int]]):
    """The files as a dataset of torch, cropped by the same functions."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return decoded(self._paths[number].read_bytes(), number)


def over_files(paths: Sequence[Path], batch_size: int) -> None:
    """Go through the files once, shuffled, in two processes."""
    batches: DataLoader[Batch] = DataLoader(
        Files(paths), batch_size=batch_size, shuffle=True, num_workers=THREADS, collate_fn=collate
    )
    for _ in batches:
        pass


def stored_ways(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure each way to store the images: their bytes, and an epoch of the loader."""
    for name, options in STORED.items():
        target = folder / "stored"
        dataset = st.ingest(
            folder / "images", target, memory="1GB", progress=False, overwrite=target.exists(), **options
        )
        yield {"bench": "images stored", "stored": name} | cold_and_warm(dataset, target, arguments)


def cold_and_warm(dataset: st.Dataset, folder: Path, arguments: argparse.Namespace) -> Result:
    """Measure epochs of a stored dataset: warm, and each after a cold one where the page cache lets go of it."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    epoch(dataset, arguments)
    for _ in range(arguments.repeats):
        cache = drop_caches([folder]) if "cold" in arguments.caches else "not dropped"
        if cache != "not dropped":
            seconds["cold"].append(timed(epoch, dataset, arguments))
        seconds["warm"].append(timed(epoch, dataset, arguments))
    record: Result = {
        "image_kb": round(dataset.stored_bytes / len(dataset) / 1000, 1),
        "images_s": round(len(dataset) / min(seconds["warm"])),
    }
    if seconds["cold"]:
        record["cache"] = cache
        record["cold images_s"] = round(len(dataset) / min(seconds["cold"]))
        record["cold_to_warm"] = median_ratio(seconds["warm"], seconds["cold"])
    return record


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    if result["bench"] == "images stored":
        line = f"{result['stored']:<20} {result['image_kb']:>7.1f} KB an image  {result['images_s']:>7,} images/s"
        if "cold_to_warm" not in result:
            return f"{line}; cold not measured"
        return f"{line}  cold {result['cold images_s']:>7,}  cold/warm {result['cold_to_warm']:.2f} ({result['cache']})"
    if result["bench"] == "images peer":
        return describe_peer(result)
    rates = "  ".join(f"{name} {result[f'{name} images_s']:,}" for name in ("loader", "two threads", "DataLoader"))
    return (
        f"{result['samples']:,} JPEGs of {format_bytes(result['file_bytes'])}: images/s {rates}\n"
        f"loader/threads {result['ratio_to two threads']:.2f}  loader/DataLoader {result['ratio_to DataLoader']:.2f}  "
        f"stored/files {result['stored_to_files']:.3f}  "
        f"memory {format_bytes(result['peak_bytes'])} of {format_bytes(parse_bytes(result['memory']))}"
    )


def describe_peer(result: dict[str, Any]) -> str:
    """A peer's line."""
    if "not_measured" in result:
        return f"{result['peer']:<20} not measured: {result['not_measured']}"
    return (
        f"{result['peer']:<20} {result['images_s']:,} images/s with {result['num_workers']} workers, "
        f"loader {result['loader images_s']:,}: loader/peer {result['ratio']:.2f}  "
        f"memory {format_bytes(result['memory_bytes'])}, idle {format_bytes(result['idle_bytes'])}; "
        f"loader {format_bytes(result['loader peak_bytes'])}"
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__, samples=20_000, batch_size=64, memory="256MB", repeats=3, seed=0, folder=None)
    known = (*PEERS, "none")
    parser.add_argument("--peers", nargs="+", choices=known, default=list(PEERS), help="libraries beside it, or none")
    parser.add_argument("--caches", nargs="+", choices=["warm", "cold"], default=["warm", "cold"], help="default both")
    arguments = parser.parse_args()
    arguments.peers = [peer for peer in arguments.peers if peer != "none"]
    return arguments


if __name__ == "__main__":
    main()
