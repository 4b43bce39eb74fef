"""WebDataset over images: tar shards of the very files, shuffled, a buffer of 1,000, decoded and stacked in workers."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import webdataset as wds  # type: ignore[import-not-found]

from scripts.bench.peers.images.worker import ImageWorker, collate, decoded, files
from scripts.bench.peers.webdataset import N_SHARDS_AT_LEAST, SHARD_BYTES
from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts


def write(case: Case) -> None:
    """Shards of about 64 MB, at least eight, each of every so many of the files: workers get as many."""
    paths = files(case)
    n_shards = max(N_SHARDS_AT_LEAST, -(-sum(path.stat().st_size for path in paths) // SHARD_BYTES))
    # Two workers share the shards evenly.
    n_shards += n_shards % 2
    for number in range(n_shards):
        with tarfile.open(case.folder / f"images-{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for path in paths[number::n_shards]:
                shard.add(path, arcname=path.name)


def variants(way: str) -> list[Variant]:
    """0, 1 and 2 workers."""
    return worker_counts()


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """Shards, buffer of encoded images, decoding, batches; each iteration shuffles anew."""
    shards = sorted(str(path) for path in case.folder.glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(1000)
        .map(as_sample)
        .batched(case.batch_size, collation_fn=collate)
    )
    n_workers = variant["num_workers"]
    batches = wds.WebLoader(dataset, batch_size=None, num_workers=n_workers, persistent_workers=n_workers > 0)
    return lambda epoch: iter(batches)


def as_sample(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The crop and the number of a member."""
    return decoded(sample["jpg"], int(sample["__key__"]))


if __name__ == "__main__":
    serve(Peer(packages=("webdataset", "torch", "pillow"), write=write, variants=variants, loader=loader), ImageWorker)
