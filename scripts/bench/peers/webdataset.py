"""WebDataset, as its README and FAQ advise: tar shards, shuffled, a shuffle buffer, batches made inside the workers.

A row and its number are one member ``.bin``, which halves the tar headers to parse; nothing is decoded but by
``np.frombuffer``. ``batched`` is given a collation that stacks once.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import webdataset as wds  # type: ignore[import-not-found]

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

SHARD_BYTES = 64_000_000
N_SHARDS_AT_LEAST = 8


def write(case: Case) -> None:
    """Shards of about 64 MB, at least eight so that each worker has several."""
    rows = max(1, min(SHARD_BYTES // (case.row_bytes + 8), -(-case.n_samples // N_SHARDS_AT_LEAST)))
    for number, (start, stop) in enumerate(case.runs(rows)):
        with tarfile.open(case.folder / f"rows-{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for row, index in zip(case.x[start:stop], case.y[start:stop], strict=True):
                content = row.tobytes() + index.tobytes()
                member = tarfile.TarInfo(f"{index:09d}.bin")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def variants(way: str) -> list[Variant]:
    """Buffers of 1,000 and 10,000 samples, with 0, 1 and 2 workers."""
    return [*worker_counts(buffer=1000), *worker_counts(buffer=10_000)]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """Shards, buffer, batches; each iteration shuffles anew."""
    shards = sorted(str(path) for path in case.folder.glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(variant["buffer"])
        .batched(case.batch_size, collation_fn=stack)
    )
    n_workers = variant["num_workers"]
    batches = wds.WebLoader(dataset, batch_size=None, num_workers=n_workers, persistent_workers=n_workers > 0)
    return lambda epoch: iter(batches)


def stack(samples: list[dict[str, Any]]) -> Batch:
    """One copy for all rows of a batch."""
    rows = np.frombuffer(b"".join(sample["bin"] for sample in samples), dtype=np.uint8).reshape(len(samples), -1)
    numbers = np.ascontiguousarray(rows[:, -8:]).view(np.int64).reshape(-1)
    return torch.from_numpy(rows[:, :-8].copy()), torch.from_numpy(numbers)


if __name__ == "__main__":
    serve(Peer(packages=("webdataset", "torch"), write=write, variants=variants, loader=loader))
