"""MosaicML Streaming, as its documentation advises: MDS shards, a fixed-shape array encoding, ``shuffle=True``.

Its page on shuffling calls the default (``py1e``) right in nearly all cases. ``naive``, the exact shuffle, is tried
too: all shards are here, nothing has to be downloaded for it. ``batch_size`` is given to the dataset, as it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

try:
    import torchvision  # type: ignore[import-not-found]  # noqa: F401
except RuntimeError:
    # A torchvision built for CUDA comes without its operators beside a torch that is not, and then cannot be imported;
    # Streaming imports it, and MDS uses none of them.
    operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        operators.define(schema)  # type: ignore[no-untyped-call]

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # type: ignore[import-not-found]
from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]


def write(case: Case) -> None:
    """Shards of the default 64 MB, uncompressed, without hashes."""
    columns = {"x": f"ndarray:uint8:{case.row_bytes}", "y": "int64"}
    with MDSWriter(out=str(case.folder / "mds"), columns=columns) as shards:
        for start, stop in case.runs(4096):
            for row, number in zip(case.x[start:stop], case.y[start:stop], strict=True):
                shards.write({"x": row, "y": number})


def variants(way: str) -> list[Variant]:
    """The default and the exact shuffle, with 0, 1 and 2 workers."""
    return [*worker_counts(shuffle="py1e"), *worker_counts(shuffle="naive")]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``StreamingDataLoader`` over local shards; the dataset counts epochs itself."""
    clean_stale_shared_memory()
    dataset = StreamingDataset(
        local=str(case.folder / "mds"), shuffle=True, shuffle_algo=variant["shuffle"], batch_size=case.batch_size
    )
    n_workers = variant["num_workers"]
    batches = StreamingDataLoader(
        dataset, batch_size=case.batch_size, num_workers=n_workers, persistent_workers=n_workers > 0
    )
    return lambda epoch: pairs(batches)


def pairs(batches: Any) -> Iterator[Batch]:
    """Batches by field."""
    for batch in batches:
        yield batch["x"], batch["y"].reshape(-1)


if __name__ == "__main__":
    serve(Peer(packages=("mosaicml-streaming", "torch"), write=write, variants=variants, loader=loader))
    clean_stale_shared_memory()
