"""Lance and LanceDB, as their documentation advises: batches read by one call, columns of a fixed length.

Tried are ``take`` of a batch of random rows, which the page on PyTorch builds ``SafeLanceDataset`` on (here without its
turn through Python objects); and LanceDB's ``StreamingDataset``, whose pages advise larger read batches where reading
is the limit. Their other advice, shuffling in clumps, is left out: a clump's rows stay in their order. Lance is not
safe to fork, so workers are spawned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lance  # type: ignore[import-not-found]
import lancedb  # type: ignore[import-not-found]
import numpy as np
import pyarrow as pa
import torch
from lancedb.streaming import StreamingDataset  # type: ignore[import-not-found]
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts


def write(case: Case) -> None:
    """One table, its rows as lists of a fixed length."""
    schema = pa.schema([("x", pa.list_(pa.uint8(), case.row_bytes)), ("y", pa.int64())])
    lance.write_dataset(tables(case, schema), str(case.folder / "rows.lance"), schema=schema)


def tables(case: Case, schema: Any) -> Iterator[Any]:
    """Runs of rows as Arrow."""
    for start, stop in case.runs(4096):
        x = pa.FixedSizeListArray.from_arrays(pa.array(case.x[start:stop].reshape(-1)), case.row_bytes)
        yield pa.record_batch([x, pa.array(np.array(case.y[start:stop]))], schema=schema)


def variants(way: str) -> list[Variant]:
    """``take`` with 0, 1 and 2 workers; the stream with its own and with larger reads."""
    streams = [{"read": "stream", "num_workers": 0, "rows": rows} for rows in (64, 256, 1024)]
    return [*worker_counts(read="take"), *streams]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``DataLoader`` that reads a batch a call, or a stream."""
    path = case.folder / "rows.lance"
    if variant["read"] == "stream":
        return partial(stream, lancedb.connect(str(case.folder)).open_table("rows"), case, variant)
    rows = Rows(str(path), case.n_samples)
    n_workers = variant["num_workers"]
    batches: DataLoader[Any] = DataLoader(
        rows,
        batch_size=None,
        sampler=BatchSampler(RandomSampler(rows), case.batch_size, drop_last=False),
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        multiprocessing_context="spawn" if n_workers else None,
    )
    return lambda epoch: iter(batches)


def stream(table: Any, case: Case, variant: Variant, number: int) -> Iterator[Batch]:
    """An epoch of LanceDB's stream, its rows turned to tensors by the read batch."""
    dataset = StreamingDataset(table, shuffle_seed=0, epoch=number, read_batch_size=variant["rows"], transform=samples)
    for pairs in DataLoader(dataset, batch_size=case.batch_size, collate_fn=list):
        yield torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def samples(table: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rows of a read batch, as views."""
    x, y = as_batch(table)
    return list(zip(x, y, strict=True))


class Rows(Dataset[Any]):
    """Many rows by their numbers, opened where they are first read."""

    def __init__(self, path: str, n_samples: int) -> None:
        self.path, self.n_samples = path, n_samples
        self.table: Any = None

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, indices: list[int]) -> Batch:
        if self.table is None:
            self.table = lance.dataset(self.path)
        return as_batch(self.table.take(indices).combine_chunks())


def as_batch(table: Any) -> Batch:
    """Two tensors of an Arrow table or batch."""
    x, y = (column.combine_chunks() if hasattr(column, "combine_chunks") else column for column in table.columns)
    return tensor(x.flatten()).reshape(len(y), -1), tensor(y)


def tensor(column: Any) -> torch.Tensor:
    """A writable copy of a column of numbers."""
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())


if __name__ == "__main__":
    serve(Peer(packages=("pylance", "lancedb", "torch"), write=write, variants=variants, loader=loader))
