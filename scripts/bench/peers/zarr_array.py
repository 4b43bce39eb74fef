"""``DataLoader`` over a zarr array: what the two give together, without a loader that knows chunks.

A random row costs a whole chunk, so chunks of 64 KiB are taken rather than the megabyte that zarr's user guide names
for plain reading; uncompressed. Tried row by row, and a batch of rows a call (``oindex``), which PyTorch's page on
``torch.utils.data`` advises where the source can do it (a batch sampler as ``sampler``, ``batch_size=None``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
import zarr
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

CHUNK_BYTES: Final = 2**16


def write(case: Case) -> None:
    """One array, uncompressed."""
    rows = min(max(1, CHUNK_BYTES // case.row_bytes), case.n_samples)
    x = case.x
    array = zarr.create_array(
        case.folder / "x.zarr", shape=x.shape, chunks=(rows, case.row_bytes), dtype="uint8", compressors=None
    )
    for start, stop in case.runs(rows * 64):
        array[start:stop] = x[start:stop]


def variants(way: str) -> list[Variant]:
    """Row by row, and batches in one call; 0, 1 and 2 workers."""
    return [*worker_counts(read="a row"), *worker_counts(read="a batch")]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``DataLoader`` with the read of a variant."""
    rows = Rows(case)
    n_workers = variant["num_workers"]
    sampler = RandomSampler(rows)
    options: dict[str, Any] = {"batch_size": case.batch_size, "sampler": sampler}
    if variant["read"] == "a batch":
        options = {"batch_size": None, "sampler": BatchSampler(sampler, case.batch_size, drop_last=False)}
    # A forked child would wait for the event loop's thread, which only its parent has.
    context = "spawn" if n_workers else None
    batches: DataLoader[Any] = DataLoader(
        rows, num_workers=n_workers, persistent_workers=n_workers > 0, multiprocessing_context=context, **options
    )
    return lambda epoch: iter(batches)


class Rows(Dataset[Any]):
    """A row, or many, of the array; opened where it is first read."""

    def __init__(self, case: Case) -> None:
        self.path = case.folder / "x.zarr"
        self.y = np.array(case.y)
        self.x: Any = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        if self.x is None:
            self.x = zarr.open_array(self.path, mode="r")
        rows = self.x.oindex[np.asarray(index)] if isinstance(index, list) else self.x[index]
        return torch.from_numpy(np.asarray(rows)), torch.as_tensor(self.y[index])


if __name__ == "__main__":
    serve(Peer(packages=("zarr", "torch"), write=write, variants=variants, loader=loader))
