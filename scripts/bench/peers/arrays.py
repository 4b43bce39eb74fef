"""Peers without a library: a mapped .npy file, and arrays and tensors in memory.

In the peers' favour the permutation of the batched loops is drawn beforehand and not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts


def write(case: Case) -> None:
    """The .npy files are there already."""


def variants(way: str) -> list[Variant]:
    """Both kinds of array for the loop in memory; 0, 1 and 2 workers for a ``DataLoader``."""
    if way == "loop in memory":
        return [{"way": way, "array": kind} for kind in ("numpy", "torch")]
    if way == "memmap, batched":
        return [{"way": way}]
    return worker_counts(way=way)


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """The loop or the ``DataLoader`` that a variant names."""
    if variant["way"] == "memmap, batched":
        return batched(case.x, np.array(case.y), case.batch_size, torch.from_numpy)
    if variant["way"] == "loop in memory":
        x, y = np.array(case.x), np.array(case.y)
        if variant["array"] == "numpy":
            return batched(x, y, case.batch_size, np.asarray)
        return batched(torch.from_numpy(x), torch.from_numpy(y), case.batch_size, torch.as_tensor)
    rows: Dataset[Any]
    if variant["way"] == "TensorDataset":
        rows = TensorDataset(torch.from_numpy(np.array(case.x)), torch.from_numpy(np.array(case.y)))
    else:
        rows = Rows(case.x, np.array(case.y))
    n_workers = variant["num_workers"]
    batches = DataLoader(rows, case.batch_size, shuffle=True, num_workers=n_workers, persistent_workers=n_workers > 0)
    return lambda epoch: iter(batches)


def batched(x: Any, y: Any, batch_size: int, finish: Callable[[Any], Any]) -> Callable[[int], Iterator[Batch]]:
    """``x[permutation[i : i + batch_size]]``, again and again."""
    permutation = np.random.default_rng(0).permutation(len(y))
    indices = torch.from_numpy(permutation) if isinstance(x, torch.Tensor) else permutation

    def epoch(number: int) -> Iterator[Batch]:
        for start in range(0, len(y), batch_size):
            rows = indices[start : start + batch_size]
            yield finish(x[rows]), finish(y[rows])

    return epoch


class Rows(Dataset[Any]):
    """A mapped array, row by row, as the tutorials do it."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return torch.from_numpy(np.array(self.x[index])), self.y[index]


if __name__ == "__main__":
    serve(Peer(packages=("numpy", "torch"), write=write, variants=variants, loader=loader))
