"""Samples drawn by index, as a torch ``DataLoader`` asks for them: each block read once a batch, and a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np

from streamtrain.errors import OutOfRange, StreamtrainWarning, UsageError
from streamtrain.store.reads.ranges import BlockReads, sample_of

_told: WeakSet[BlockReads] = WeakSet()


def drawn_samples(dataset: BlockReads, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Read some rows, in their order; warn once of a dataset whose rows are drawn here and there."""
    layout = dataset.layout
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row // layout.block_rows, []).append(place)
    _warn_of_draws(dataset, rows, len(places))
    found: list[dict[str, Any]] = [{} for _ in rows]
    for field in layout.own_fields:
        for block, of_block in places.items():
            values, start = dataset.read_block(field.name, block), layout.block_range(block)[0]
            for place in of_block:
                found[place][field.name] = sample_of(values, rows[place] - start, copies=True)
    return found


def _warn_of_draws(dataset: BlockReads, rows: Sequence[int], n_blocks: int) -> None:
    if dataset in _told or list(rows) == list(range(rows[0], rows[0] + len(rows))) or _is_later_worker():
        return
    _told.add(dataset)
    factor = n_blocks * dataset.layout.block_rows / len(rows)
    warnings.warn(
        StreamtrainWarning(
            f"samples are read at random indices, and each read takes a whole block of {dataset.layout.block_rows:,}: "
            f"{factor:,.1f} times the data",
            fix="a StreamLoader, which shuffles and reads each block about once",
        ),
        stacklevel=4,
    )


def _is_later_worker() -> bool:
    """Say whether this is a worker process of a DataLoader, other than the first."""
    data: Any = sys.modules.get("torch.utils.data")
    worker = data and data.get_worker_info()
    return worker is not None and worker.id > 0


def row_of(key: object, n_samples: int) -> int:
    """Find the row that an index means, negative ones counted from the end."""
    if isinstance(key, bool) or not isinstance(key, int | np.integer):
        raise UsageError(f"a dataset is indexed by an int or a slice, not by {type(key).__name__}")
    row = int(key) + (n_samples if key < 0 else 0)
    if not 0 <= row < n_samples:
        raise OutOfRange(f"sample {key} of {n_samples}", fix=f"the last one is {n_samples - 1}")
    return row
