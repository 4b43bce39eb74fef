"""scDataset over zarr, as its documentation advises: block shuffling, many batches a fetch, indices sorted.

Its ``suggest_parameters``: ``fetch_factor`` up to 256 as memory allows, ``block_size`` from half of it to twice, half
the cores as workers, ``prefetch_factor = fetch_factor + 1``. A fetch asks zarr for its rows by ``oindex``; tried beyond
what is documented: a slice for each run of neighbouring rows. The array has chunks of 1 MiB, uncompressed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from scdataset import BlockShuffling, scDataset  # type: ignore[import-not-found]
from torch.utils.data import DataLoader

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

CHUNK_BYTES = 2**20

Fetched = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def write(case: Case) -> None:
    """One array, uncompressed; the numbers are kept in memory."""
    rows = min(max(1, CHUNK_BYTES // case.row_bytes), case.n_samples)
    x = case.x
    array = zarr.create_array(
        case.folder / "x.zarr", shape=x.shape, chunks=(rows, case.row_bytes), dtype="uint8", compressors=None
    )
    for start, stop in case.runs(rows * 16):
        array[start:stop] = x[start:stop]


def variants(way: str) -> list[Variant]:
    """Fetches of 64 and 256 batches, blocks of that size and twice that, by index and by hand; 0, 1 and 2 workers."""
    sizes = [(64, 64), (64, 128), (256, 256), (256, 512)]
    documented = [{"fetch_factor": f, "block_size": b, "num_workers": 0, "fetch": "oindex"} for f, b in sizes]
    documented += worker_counts(fetch_factor=256, block_size=512, fetch="oindex")[1:]
    return [*documented, *worker_counts(fetch_factor=256, block_size=512, fetch="slices", by_hand=True)]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``DataLoader`` over scDataset, which makes the batches."""
    fetch_factor = min(variant["fetch_factor"], max(1, case.n_samples // case.batch_size // 2))
    dataset = scDataset(
        Rows(case),
        BlockShuffling(block_size=variant["block_size"]),
        batch_size=case.batch_size,
        fetch_factor=fetch_factor,
        fetch_callback=fetch_slices if variant["fetch"] == "slices" else fetch_indices,
        batch_callback=take,
        seed=0,
    )
    n_workers = variant["num_workers"]
    options: dict[str, Any] = {}
    if n_workers:
        options = {
            "prefetch_factor": fetch_factor + 1,
            "persistent_workers": True,
            "multiprocessing_context": "spawn",
        }
    batches: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=n_workers, **options)
    return lambda epoch: iter(batches)


class Rows:
    """The array and the numbers; opened where it is first read."""

    def __init__(self, case: Case) -> None:
        self.path = case.folder / "x.zarr"
        self.y = np.array(case.y)
        self.array: Any = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> Any:
        """The array."""
        if self.array is None:
            self.array = zarr.open_array(self.path, mode="r")
        return self.array


def fetch_indices(rows: Rows, indices: npt.NDArray[np.int64]) -> Fetched:
    """Rows by sorted indices, in one call."""
    return rows.x.oindex[indices], rows.y[indices]


def fetch_slices(rows: Rows, indices: npt.NDArray[np.int64]) -> Fetched:
    """Rows by sorted indices, a slice for each run of neighbours."""
    cuts = np.flatnonzero(np.diff(indices) != 1) + 1
    starts, stops = indices[np.r_[0, cuts]], indices[np.r_[cuts - 1, len(indices) - 1]] + 1
    x = np.empty((len(indices), rows.x.shape[1]), dtype=np.uint8)
    at = 0
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        x[at : at + stop - start] = rows.x[start:stop]
        at += stop - start
    return x, rows.y[indices]


def take(fetched: Fetched, chosen: npt.NDArray[np.int64]) -> Batch:
    """A batch out of a fetch."""
    return torch.from_numpy(fetched[0][chosen]), torch.from_numpy(fetched[1][chosen])


if __name__ == "__main__":
    serve(Peer(packages=("scDataset", "zarr", "torch"), write=write, variants=variants, loader=loader))
