"""streamtrain itself, under the same rules as its peers: one worker, one process, its defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve
from streamtrain import StreamLoader, ingest
from streamtrain import open as open_dataset


def write(case: Case) -> None:
    """Ingest, uncompressed as the peers' stores are."""
    ingest({"x": case.x, "y": case.y}, case.folder / "rows.zarr", codec="none")


def variants(way: str) -> list[Variant]:
    """The defaults: there is nothing to tune but the budget, which the case names."""
    return [{}]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """Batches of the loader; each ``iter()`` is the next epoch."""
    batches = StreamLoader(open_dataset(case.folder / "rows.zarr"), batch_size=case.batch_size, memory=case.memory)

    def epoch(number: int) -> Iterator[Batch]:
        return iter(batches)

    return epoch


if __name__ == "__main__":
    serve(Peer(packages=("streamtrain", "torch", "zarr"), write=write, variants=variants, loader=loader))
