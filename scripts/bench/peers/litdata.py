"""LitData, as its README advises: ``optimize`` into chunks of 64 MB, ``StreamingDataset`` and ``StreamingDataLoader``.

Rows of one size are stored two ways, and the faster counts: as a mapping of an array and a number (the README's general
way), and as one run of bytes cut by ``TokensLoader``, its loader for runs of one type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import litdata as ld  # type: ignore[import-not-found]
import numpy as np
import torch

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

CHUNK_BYTES = "64MB"
NUMBER_BYTES = 8


def write(case: Case) -> None:
    """Both forms."""
    runs = list(case.runs(4096))
    ld.optimize(
        fn=partial(mappings, case),
        inputs=runs,
        output_dir=str(case.folder / "mappings"),
        chunk_bytes=CHUNK_BYTES,
        num_workers=2,
        reorder_files=False,
        verbose=False,
    )
    ld.optimize(
        fn=partial(runs_of_bytes, case),
        inputs=runs,
        output_dir=str(case.folder / "tokens"),
        chunk_size=(64_000_000 // (case.row_bytes + NUMBER_BYTES)) * (case.row_bytes + NUMBER_BYTES),
        num_workers=2,
        reorder_files=False,
        item_loader=ld.TokensLoader(),
        verbose=False,
    )


def mappings(case: Case, run: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """The samples of a run of rows."""
    for row, number in zip(case.x[slice(*run)], case.y[slice(*run)], strict=True):
        yield {"x": np.array(row), "y": int(number)}


def runs_of_bytes(case: Case, run: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The samples of a run of rows, each with its number's bytes behind it."""
    x, y = case.x[slice(*run)], case.y[slice(*run)]
    for row in np.hstack([x, y.view(np.uint8).reshape(-1, NUMBER_BYTES)]):
        yield torch.from_numpy(row)


def variants(way: str) -> list[Variant]:
    """Both forms, with 0, 1 and 2 workers."""
    return [*worker_counts(form="mappings"), *worker_counts(form="tokens")]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A ``StreamingDataLoader`` that counts epochs itself."""
    is_mapping = variant["form"] == "mappings"
    dataset = ld.StreamingDataset(
        str(case.folder / variant["form"]),
        item_loader=None if is_mapping else ld.TokensLoader(block_size=case.row_bytes + NUMBER_BYTES),
        shuffle=True,
        drop_last=False,
    )
    n_workers = variant["num_workers"]
    batches = ld.StreamingDataLoader(
        dataset, batch_size=case.batch_size, num_workers=n_workers, persistent_workers=n_workers > 0
    )
    return partial(epoch_of_mappings if is_mapping else epoch_of_tokens, batches, case.row_bytes)


def epoch_of_mappings(batches: Any, row_bytes: int, number: int) -> Iterator[Batch]:
    """Batches by field."""
    for batch in batches:
        yield batch["x"], batch["y"]


def epoch_of_tokens(batches: Any, row_bytes: int, number: int) -> Iterator[Batch]:
    """Batches of rows with their numbers behind them, cut apart."""
    for batch in batches:
        yield batch[:, :row_bytes], batch[:, row_bytes:].contiguous().view(torch.int64).reshape(-1)


if __name__ == "__main__":
    serve(Peer(packages=("litdata", "torch"), write=write, variants=variants, loader=loader))
