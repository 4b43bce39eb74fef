"""LitData over images: ``optimize`` of the files' bytes into chunks of 64 MB, decoded in ``__getitem__``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import litdata as ld  # type: ignore[import-not-found]
import torch

from scripts.bench.peers.images.worker import ImageWorker, collate, decoded, files
from scripts.bench.peers.litdata import CHUNK_BYTES
from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts


def write(case: Case) -> None:
    """The bytes as they are, and the number."""
    ld.optimize(
        fn=as_stored,
        inputs=[str(path) for path in files(case)],
        output_dir=str(case.folder / "chunks"),
        chunk_bytes=CHUNK_BYTES,
        num_workers=2,
        reorder_files=False,
        verbose=False,
    )


def as_stored(path: str) -> dict[str, Any]:
    """A sample as it is stored."""
    return {"image": Path(path).read_bytes(), "number": int(Path(path).stem)}


def variants(way: str) -> list[Variant]:
    """0, 1 and 2 workers."""
    return worker_counts()


class Decoded(ld.StreamingDataset):  # type: ignore[misc]
    """Samples decoded as they are read."""

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
        stored = super().__getitem__(index)
        return decoded(stored["image"], stored["number"])


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``StreamingDataLoader`` that counts epochs itself."""
    dataset = Decoded(str(case.folder / "chunks"), shuffle=True, drop_last=False)
    n_workers = variant["num_workers"]
    batches = ld.StreamingDataLoader(
        dataset,
        batch_size=case.batch_size,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        collate_fn=collate,
    )
    return lambda epoch: iter(batches)


if __name__ == "__main__":
    serve(Peer(packages=("litdata", "torch", "pillow"), write=write, variants=variants, loader=loader), ImageWorker)
