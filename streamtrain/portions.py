"""How loaders that train and measure at once share a budget: each that measures has a fixed part, one has the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from streamtrain.budget import solve
from streamtrain.errors import BudgetError
from streamtrain.store.dataset import Dataset

PARTS: Final = 4
"""A loader that measures has one of so many parts."""
_MOST_REHEARSED_BYTES: Final = 64_000_000


def measuring_bytes(memory: int) -> int:
    """What a loader that measures may own of a budget."""
    return memory // PARTS


def training_bytes(memory: int, n_measuring: int) -> int:
    """What is left for the loader that trains.

    Examples
    --------
    >>> training_bytes(103, 2), measuring_bytes(103)
    (53, 25)
    """
    return memory - n_measuring * measuring_bytes(memory)


def n_rehearsed(dataset: Dataset, batch_size: int) -> int:
    """Rows to rehearse a step on, whose memory is no loader's: a batch, or fewer where rows are large."""
    most = max(_MOST_REHEARSED_BYTES // dataset.layout.row_bytes, 2)
    return max(min(batch_size, most, len(dataset)), 1)


def least_bytes(dataset: Dataset, batch_size: int, *, lanes: int | None = None, shuffle: bool = True) -> int:
    """The smallest budget that a loader of this dataset works with."""

    def works(n_bytes: int) -> bool:
        try:
            solve(dataset.layout, batch_size=batch_size, memory=n_bytes, lanes=lanes, shuffle=shuffle)
        except BudgetError:
            return False
        return True

    low, high = 0, 1 << 20
    while not works(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def least_in_all(training: int, measuring: Sequence[int]) -> int:
    """A budget of whose parts none is too small, where each of these bytes is the least for its loader.

    Examples
    --------
    >>> least_in_all(90, [10]), least_in_all(90, [10, 100]), least_in_all(90, [])
    (120, 400, 90)
    >>> training_bytes(120, 1), training_bytes(119, 1)
    (90, 90)
    """
    of_training = -(-training * PARTS // (PARTS - len(measuring)))
    return max(of_training, *(least * PARTS for least in measuring)) if measuring else training
