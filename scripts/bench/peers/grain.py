"""Grain, as its documentation advises: ArrayRecord files of ``group_size:1``, a global shuffle, then batches.

Threads read (``ReadOptions``: 16 by default, none for data in memory, both tried), worker processes where Python is
the limit (``mp_prefetch``: 0, 1, 2). ArrayRecord's performance guide: on a local disk uncompressed records are fastest.
A batch may also be asked of the source in one call (``__getitems__``), which is tried as "source".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain.python as grain  # type: ignore[import-not-found]
import numpy as np
from absl import flags  # type: ignore[import-not-found]
from array_record.python.array_record_module import ArrayRecordWriter  # type: ignore[import-not-found]

from scripts.bench.peers.worker import Batch, Case, Peer, Variant, serve, worker_counts

N_FILES = 8


def write(case: Case) -> None:
    """Eight files of records of a row and its number."""
    for number, (start, stop) in enumerate(case.runs(-(-case.n_samples // N_FILES))):
        writer = ArrayRecordWriter(str(case.folder / f"rows-{number}.array_record"), "group_size:1,uncompressed")
        for row, index in zip(case.x[start:stop], case.y[start:stop], strict=True):
            writer.write(row.tobytes() + index.tobytes())
        writer.close()


def variants(way: str) -> list[Variant]:
    """Record by record with threads and without, and a batch a call; 0, 1 and 2 worker processes."""
    return [
        *worker_counts(read="record", threads=16),
        *worker_counts(read="record", threads=0),
        *worker_counts(read="batch", threads=2),
    ]


def loader(case: Case, variant: Variant) -> Callable[[int], Iterator[Batch]]:
    """A dataset an epoch, seeded by its number."""
    flags.FLAGS(["grain"], known_only=True)
    records = grain.ArrayRecordDataSource(sorted(str(path) for path in case.folder.glob("*.array_record")))

    def epoch(number: int) -> Iterator[Batch]:
        order = grain.MapDataset.range(len(records)).shuffle(seed=number)
        if variant["read"] == "batch":
            batches = order.batch(case.batch_size).map(Read(records))
        else:
            source = grain.MapDataset.source(records).shuffle(seed=number)
            batches = source.batch(case.batch_size, batch_fn=stack)
        options = grain.ReadOptions(
            num_threads=variant["threads"], prefetch_buffer_size=64 if variant["threads"] else 0
        )
        iterated = batches.to_iter_dataset(options)
        if variant["num_workers"]:
            iterated = iterated.mp_prefetch(grain.MultiprocessingOptions(num_workers=variant["num_workers"]))
        return iter(iterated)

    return epoch


class Read:
    """A batch of records by their numbers, in one call."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __call__(self, indices: Any) -> Batch:
        return stack(self.records.__getitems__(indices.tolist()))


def stack(records: Sequence[bytes]) -> Batch:
    """One copy for all rows of a batch."""
    rows = np.frombuffer(b"".join(records), dtype=np.uint8).reshape(len(records), -1)
    return rows[:, :-8], np.ascontiguousarray(rows[:, -8:]).view(np.int64).reshape(-1)


if __name__ == "__main__":
    serve(Peer(packages=("grain", "array_record"), write=write, variants=variants, loader=loader))
