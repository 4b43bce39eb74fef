"""The loop of every worker: read a request a line from stdin, do it with its library, answer a line on stdout.

A worker runs under its peer's own Python, so this file needs numpy and nothing else. What a library prints goes to
stderr; the answers keep a channel of their own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

N_WATCHED: Final = 64
"""Batches whose row numbers are looked at to tell how well a loader mixes."""

Batch = tuple[Any, ...]
"""Rows as ``(n, row_bytes)`` uint8 and their numbers as ``(n,)`` int64: tensors or arrays, whichever comes natural."""

Variant = dict[str, Any]
"""Options of one way to use a library: ``num_workers`` and whatever else its documentation advises to tune."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be loaded.

    Parameters
    ----------
    source : Path
        Folder of ``x.npy``, rows of uint8, and ``y.npy``, their numbers as int64.
    folder : Path
        Where the peer keeps its own form of them.
    n_samples : int
        How many of the rows, from the first.
    row_bytes : int
        Bytes of a row.
    batch_size : int
        Samples of a batch.
    memory : str
        The budget of loaders that have one.
    """

    source: Path
    folder: Path
    n_samples: int
    row_bytes: int
    batch_size: int
    memory: str

    @property
    def x(self) -> npt.NDArray[np.uint8]:
        """The rows, mapped."""
        rows: npt.NDArray[np.uint8] = np.load(self.source / "x.npy", mmap_mode="r")[: self.n_samples]
        return rows

    @property
    def y(self) -> npt.NDArray[np.int64]:
        """The rows' numbers, mapped."""
        numbers: npt.NDArray[np.int64] = np.load(self.source / "y.npy", mmap_mode="r")[: self.n_samples]
        return numbers

    def runs(self, n_rows: int) -> Iterator[tuple[int, int]]:
        """All rows as (start, stop), ``n_rows`` at a time."""
        for start in range(0, self.n_samples, n_rows):
            yield start, min(start + n_rows, self.n_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One library as the benchmark sees it.

    Parameters
    ----------
    packages : tuple of str
        Distributions whose versions go into the record.
    write : callable
        Stores the rows of a case in the library's own form.
    variants : callable
        The ways to try, by the name of a way to use the library; the best of them counts.
    loader : callable
        Opens a case with a variant, and gives the batches of an epoch by its number.
    """

    packages: tuple[str, ...]
    write: Callable[[Case], None]
    variants: Callable[[str], list[Variant]]
    loader: Callable[[Case, Variant], Callable[[int], Iterator[Batch]]]


def serve(peer: Peer, worker_type: type[Worker] | None = None) -> None:
    """Answer requests until stdin ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = (worker_type or Worker)(peer)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            reason = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {reason[0] if reason else ''}"}
        print(json.dumps(answer), file=channel, flush=True)
    worker.batches = iter(())
    gc.collect()


class Worker:
    """The requests; between them it keeps the loader open and its iteration where it was."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.batches: Iterator[Batch] = iter(())
        self.row_numbers: list[npt.NDArray[np.int64]] = []

    def describe(self, way: str) -> dict[str, Any]:
        """The variants of a way, and the versions of what is used."""
        versions = {name: metadata.version(name) for name in self.peer.packages}
        return {"variants": self.peer.variants(way), "versions": versions}

    def write(self, case: dict[str, Any]) -> dict[str, Any]:
        """Store the rows."""
        what = as_case(case)
        what.folder.mkdir(parents=True)
        started = time.perf_counter()
        self.peer.write(what)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "stored_bytes": sum(f.stat().st_size for f in what.folder.rglob("*") if f.is_file()),
        }

    def open(self, case: dict[str, Any], variant: Variant) -> dict[str, Any]:
        """Open the loader and take a first batch."""
        started = time.perf_counter()
        epoch = self.peer.loader(as_case(case), variant)
        self.batches = chain.from_iterable(map(epoch, count()))
        next(self.batches)
        return {"seconds": time.perf_counter() - started}

    def run(self, warm_seconds: float, seconds: float) -> dict[str, Any]:
        """Take batches, epoch after epoch: first to warm up, then against the clock."""
        batches, n_samples = self.batches, 0
        ends = time.perf_counter() + warm_seconds
        while time.perf_counter() < ends:
            _, y = next(batches)
            if len(self.row_numbers) < N_WATCHED:
                self.row_numbers.append(np.asarray(y).astype(np.int64))
        started = now = time.perf_counter()
        while now < started + seconds:
            _, y = next(batches)
            n_samples += len(y)
            now = time.perf_counter()
        return {"samples": n_samples, "seconds": now - started}

    def mixing(self, case: dict[str, Any]) -> dict[str, Any]:
        """How far apart a batch's rows lie in the file: mean standard deviation ÷ that of rows drawn at random."""
        n_samples = as_case(case).n_samples
        spreads = [float(np.std(numbers)) for numbers in self.row_numbers if len(numbers) > 1]
        return {"mixing": round(float(np.mean(spreads)) / (n_samples / 12**0.5), 3) if spreads else None}

    def check(self, case: dict[str, Any], variant: Variant) -> dict[str, Any]:
        """Load one whole epoch and compare every row with the source's."""
        what = as_case(case)
        x, y = np.asarray(what.x), np.asarray(what.y)
        numbers: list[npt.NDArray[np.int64]] = []
        n_wrong = 0
        for rows, row_numbers in self.peer.loader(what, variant)(0):
            numbers.append(np.asarray(row_numbers).astype(np.int64))
            n_wrong += int((np.asarray(rows) != x[numbers[-1]]).any(axis=1).sum())
        gc.collect()
        seen = np.concatenate(numbers)
        return {
            "samples": what.n_samples,
            "yielded": len(seen),
            "distinct": len(np.unique(seen)),
            "wrong": n_wrong + int((~np.isin(seen, y)).sum()),
            "shuffled": bool((np.diff(seen) != 1).mean() > 0.5),
        }


def as_case(fields: dict[str, Any]) -> Case:
    """A case from what came over the channel."""
    return Case(**{**fields, "source": Path(fields["source"]), "folder": Path(fields["folder"])})


def worker_counts(**options: Any) -> list[Variant]:
    """The same options without worker processes, with one, and with two."""
    return [{"num_workers": n, **options} for n in (0, 1, 2)]
