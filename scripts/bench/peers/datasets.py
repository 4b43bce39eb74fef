"""Hugging Face datasets, as its guides advise: a batch of indices a call when map-style, a buffer when streaming.

"Use with PyTorch": tensors by ``with_format("torch")``, and a ``BatchSampler`` that reads a whole batch at once.
"Differences between Dataset and IterableDataset": where shuffled reading is slow, stream
``to_iterable_dataset(num_shards)`` through a buffer (1,000 by default). Rows are lists of a fixed length. Tried beyond
what the guides say: ``with_format("arrow")`` and one view of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets as hf  # type: ignore[import-not-found]
import numpy as np
import pyarrow as pa
import torch
from datasets.arrow_writer import ArrowWriter  # type: ignore[import-not-found]
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

N_SHARDS = 128
BUFFER = 1000


def write(case: Case) -> None:
    """One Arrow file, written run by run."""
    features = hf.Features({"x": hf.List(hf.Value("uint8"), length=case.row_bytes), "y": hf.Value("int64")})
    with ArrowWriter(path=str(case.folder / "rows.arrow"), features=features) as writer:
        for start, stop in case.runs(4096):
            x = pa.FixedSizeListArray.from_arrays(pa.array(case.x[start:stop].reshape(-1)), case.row_bytes)
            writer.write_table(pa.table([x, pa.array(np.array(case.y[start:stop]))], schema=features.arrow_schema))
        writer.finalize()


def variants(way: str) -> list[Variant]:
    """Tensors and arrays as the guides have them, and Arrow viewed by hand; 0, 1 and 2 workers."""
    forms = [("torch", False), ("numpy", False), ("arrow", True)]
    return [v for form, by_hand in forms for v in worker_counts(way=way, form=form, by_hand=by_hand)]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``DataLoader`` over the dataset or its stream."""
    rows = hf.Dataset.from_file(str(case.folder / "rows.arrow"))
    if variant["way"] == "map":
        return mapped(rows, case, variant)
    return streamed(rows, case, variant)


def mapped(rows: Any, case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A random batch of indices a call."""
    n_workers = variant["num_workers"]
    batches: DataLoader[Any] = DataLoader(
        rows.with_format(variant["form"]),
        batch_size=None,
        sampler=BatchSampler(RandomSampler(rows), case.batch_size, drop_last=False),
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        collate_fn=as_batch,
    )
    return lambda epoch: iter(batches)


def streamed(rows: Any, case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """Shards in random order, a buffer, and batches made by the stream itself."""
    n_workers = variant["num_workers"]
    stream = rows.to_iterable_dataset(num_shards=min(N_SHARDS, len(rows)))
    stream = stream.shuffle(seed=0, buffer_size=BUFFER).with_format(variant["form"])
    stream = stream.batch(case.batch_size)
    batches: DataLoader[Any] = DataLoader(
        stream, batch_size=None, num_workers=n_workers, persistent_workers=n_workers > 0, collate_fn=as_batch
    )

    def epoch(number: int) -> Iterator[Batch]:
        stream.set_epoch(number)
        return iter(batches)

    return epoch


def as_batch(batch: Any) -> Batch:
    """Two tensors of what a format gives."""
    if isinstance(batch, dict):
        x, y = batch["x"], batch["y"]
        return torch.as_tensor(np.asarray(x)).to(torch.uint8), torch.as_tensor(np.asarray(y)).reshape(-1)
    return arrow_rows(batch, "x"), arrow_rows(batch, "y").reshape(-1)


def arrow_rows(table: Any, name: str) -> torch.Tensor:
    """A column of an Arrow table, of numbers or of lists of one length, of numbers or of lists of those."""
    column = table[name].combine_chunks()
    n_rows = len(column)
    while hasattr(column, "flatten") and "list" in str(column.type):
        n_rows = len(column) if "list" in str(column.type) else n_rows
        column = column.flatten()
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy()).reshape(n_rows, -1)


if __name__ == "__main__":
    hf.disable_progress_bars()
    serve(Peer(packages=("datasets", "torch"), write=write, variants=variants, loader=loader))
