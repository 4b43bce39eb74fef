"""The smallest budget with which the loader has what an order is to be measured with."""

from __future__ import annotations

from collections.abc import Callable

from streamtrain.errors import BudgetError
from streamtrain.loader.budget import LoaderSizes, solve
from streamtrain.store.layout import Layout


def smallest_memory(
    layout: Layout,
    batch_size: int,
    *,
    lanes: int | None = None,
    is_enough: Callable[[LoaderSizes], bool] = lambda sizes: True,
) -> int:
    """The least budget that works and whose sizes are enough, to the kilobyte: nothing more is cached.

    Parameters
    ----------
    lanes : int, optional
        Given; by default those that follow from the budget.
    is_enough : callable
        Of sizes; True for those of every larger budget, too.
    """

    def works(memory: int) -> bool:
        try:
            return is_enough(solve(layout, batch_size=batch_size, memory=memory, lanes=lanes)[0])
        except BudgetError:
            return False

    low, high = 0, 1
    while not works(1000 * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(1000 * middle) else (middle, high)
    return 1000 * high
