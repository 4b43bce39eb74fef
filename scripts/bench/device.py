#!/usr/bin/env python3
"""Batches on a device beside the bus: bytes/s against bare pinned copies, samples/s, and the stall fraction.

Three ways stand side by side. ``own`` is a loader without ``device=`` and a copy of each batch, as anyone would write
it; ``host`` gathers on the host and copies whole spans from page-locked memory; ``device`` has the pool on the device,
where the blocks cross the bus once and the gather is the device's. The limit is the bare bus: copies of 8 MiB from
page-locked memory, one after another, as many bytes as an epoch has.

Each way is drained, and then trains an MLP; the same training on batches that lie ready on the device is its ideal. The
stall fraction is the share of the training time that the ideal does without; the wait fraction is the share that the
caller itself spends waiting for batches. Limit and ways alternate; figures are medians, ratios medians of the pairs'.

Needs CUDA, and exits with code 5 where there is none; ``--device cpu`` runs the same without a bus. Prints a table on
stderr and one JSON line per way on stdout.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import torch
from torch import Tensor, nn

import streamtrain as st
from scripts.data.synthetic import Recipe, arrays_of
from scripts.runner import Result, median_ratio, new_parser, require_disk, run, timed
from streamtrain.loader.device.accelerator import Accelerator
from streamtrain.loader.device.resolve import make_accelerator, resolve_device
from streamtrain.loader.device.transfer import Placement
from streamtrain.system.units import parse_bytes

WAYS: Final = ("own", "host", "device")
_PIECE_BYTES: Final = 8 << 20
_N_PIECES: Final = 4
_MOST_HELD_BYTES: Final = 1 << 30
_HIDDEN: Final = 256
_N_CLASSES: Final = 10


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every row size with every codec."""
    try:
        device = resolve_device(arguments.device)
    except st.DeviceError:
        print("This benchmark measures a CUDA device; --device cpu shows that it runs, and no more.", file=sys.stderr)
        raise
    for row_bytes, codec in itertools.product(arguments.row_bytes, arguments.codecs):
        yield from bench(folder / f"{row_bytes}-{codec}.zarr", row_bytes, codec, device, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        __doc__,
        row_bytes=[3072, 150_528],
        codecs=["none"],
        size="4GB",
        memory="1GB",
        batch_size=256,
        repeats=3,
        folder=None,
    )
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default all three")
    return parser.parse_args()


def bench(
    path: Path, row_bytes: int, codec: str, device: torch.device, arguments: argparse.Namespace
) -> Iterator[Result]:
    """Measure one row size with one codec."""
    n_samples = max(_N_CLASSES, parse_bytes(arguments.size) // (row_bytes + 8))
    recipe = Recipe(n_samples=n_samples, shape=(row_bytes,), compressibility=1.33, n_classes=_N_CLASSES)
    require_disk(path.parent, 2 * recipe.n_bytes)
    dataset = st.ingest(arrays_of(recipe), path, codec=codec)
    accelerator = make_accelerator(device)
    bus, step = Bus(accelerator), Step(row_bytes, accelerator)
    rounds: list[dict[str, float]] = []
    terms: dict[str, dict[str, int]] = {}
    # The first round fills caches and is left out.
    for _ in range(arguments.repeats + 1):
        measured = {"bus": timed(bus.run, dataset.nbytes)}
        for way in arguments.ways:
            with Way(way, dataset, device, arguments) as batches:
                measured |= batches.measure(accelerator, step)
                terms[way] = dict(batches.loader.projection.terms)
        rounds.append(measured)
    seconds = {name: [measured[name] for measured in rounds[1:]] for name in rounds[0]}
    about = {
        "bench": "device",
        "row_bytes": row_bytes,
        "codec": codec,
        "cache": "warm",
        "decoded_bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "memory": arguments.memory,
        "batch_size": arguments.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
    for way in arguments.ways:
        yield about | figures(way, dataset, seconds) | {"terms": terms[way]}
    shutil.rmtree(path)


def figures(way: str, dataset: st.Dataset, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What came of one way."""
    drained, trained = seconds[f"{way}_drained"], seconds[f"{way}_trained"]
    gigabytes = dataset.nbytes / 1e9
    return {
        "way": way,
        "bus_gb_s": round(gigabytes / statistics.median(seconds["bus"]), 2),
        "h2d_gb_s": round(gigabytes / statistics.median(drained), 2),
        "ratio_to_bus": median_ratio(seconds["bus"], drained),
        "samples_s": round(len(dataset) / statistics.median(drained)),
        "train_samples_s": round(len(dataset) / statistics.median(trained)),
        "stall_fraction": round(max(0.0, 1 - median_ratio(seconds[f"{way}_ideal"], trained)), 3),
        "wait_fraction": median_ratio(seconds[f"{way}_waited"], trained),
    }


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{result['device']}  {result['row_bytes']:>7} B rows, {result['codec']:<4}  {result['way']:<6}  "
        f"bus {result['bus_gb_s']:>6.2f} GB/s  loader {result['h2d_gb_s']:>6.2f} GB/s ({result['ratio_to_bus']:.2f})  "
        f"{result['samples_s']:>11,} samples/s  training {result['train_samples_s']:>11,} samples/s  "
        f"stall {result['stall_fraction']:.3f}"
    )


class Bus:
    """Page-locked memory and as much on the device, for bare copies."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.copies = accelerator.copies
        self.sources = [torch.from_numpy(accelerator.page_locked(_PIECE_BYTES)) for _ in range(_N_PIECES)]
        self.targets = [self.copies.empty(_PIECE_BYTES) for _ in range(_N_PIECES)]

    def run(self, n_bytes: int) -> None:
        """Copy so many bytes, and wait for the last."""
        mark = self.copies.run(lambda: None)
        pieces = itertools.cycle(zip(self.sources, self.targets, strict=True))
        for start in range(0, n_bytes, _PIECE_BYTES):
            n = min(_PIECE_BYTES, n_bytes - start)
            mark = self.copies.run(_copy(*next(pieces), n))
        mark.wait()


def _copy(source: Tensor, target: Tensor, n: int) -> Callable[[], object]:
    return lambda: target[:n].copy_(source[:n], non_blocking=True)


class Step:
    """Steps of plain SGD on an MLP; the caller waits for nothing but the end."""

    def __init__(self, row_bytes: int, accelerator: Accelerator) -> None:
        layers = nn.Linear(row_bytes, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _N_CLASSES)
        self.model = nn.Sequential(*layers).to(accelerator.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def take(self, x: Tensor, y: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss: Tensor = nn.functional.cross_entropy(self.model(x.flatten(1).float().div_(255)), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class Way:
    """A loader on its way to the device; for ``own``, with the copies that its user writes.

    Parameters
    ----------
    way : {"own", "host", "device"}
        Which.
    dataset : Dataset
        The data.
    device : torch.device
        Where batches end.
    arguments : argparse.Namespace
        ``batch_size`` and ``memory`` of the loader.
    """

    def __init__(self, way: str, dataset: st.Dataset, device: torch.device, arguments: argparse.Namespace) -> None:
        self.way, self.device = way, device
        places: dict[str, Any] = {"host": Placement(device=device, pool="host"), "own": None}
        place = places.get(way, Placement(device=device, pool="device"))
        self.loader = st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory, device=place)

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()

    def batches(self) -> Iterable[Any]:
        """An epoch, on the device."""
        if self.way != "own":
            return self.loader
        return (tuple(tensor.to(self.device, non_blocking=True) for tensor in batch) for batch in self.loader)

    def measure(self, accelerator: Accelerator, step: Step) -> dict[str, float]:
        """Seconds to drain an epoch, to train one, and to train one from batches that lie ready."""
        self.drain(accelerator)
        drained = timed(self.drain, accelerator)
        waited = self.loader.wait_seconds
        trained = timed(self.train, accelerator, step, self.batches())
        waited = self.loader.wait_seconds - waited
        held = list(self.hold())
        few = itertools.islice(itertools.cycle(held), len(self.loader))
        ideal = timed(self.train, accelerator, step, few)
        named = {"drained": drained, "trained": trained, "waited": waited, "ideal": ideal}
        return {f"{self.way}_{name}": value for name, value in named.items()}

    def drain(self, accelerator: Accelerator) -> None:
        """Take every batch of an epoch, until the last has come."""
        for batch in self.batches():
            del batch
        accelerator.mark().wait()

    def train(self, accelerator: Accelerator, step: Step, batches: Iterable[Any]) -> None:
        """Take a step on every batch, until the last is done."""
        for x, y in batches:
            step.take(x, y)
        accelerator.mark().wait()

    def hold(self) -> Iterator[tuple[Tensor, ...]]:
        """Copies of an epoch's first whole batches, of a gigabyte at most."""
        n_bytes = 0
        for batch in self.batches():
            n_bytes += sum(tensor.nbytes for tensor in batch)
            if n_bytes > _MOST_HELD_BYTES:
                break
            yield tuple(tensor.clone() for tensor in batch)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all", file=sys.stderr)
