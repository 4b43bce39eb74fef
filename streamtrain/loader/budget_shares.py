"""The shares of one memory budget: a fixed part for each loader that measures, the rest for the one that trains."""

from __future__ import annotations

from collections.abc import Sequence

from streamtrain.errors import Argument, BudgetError, Fix
from streamtrain.loader.budget import BUDGET_PARTS, solve
from streamtrain.store.layout import Layout
from streamtrain.system.units import format_bytes, megabytes, memory_too_small


def eval_loader_bytes(memory: int) -> int:
    """Compute what a measuring loader may own of a budget."""
    return memory // BUDGET_PARTS


def train_loader_bytes(memory: int, n_measuring: int) -> int:
    """Compute what is left for the training loader."""
    return memory - n_measuring * eval_loader_bytes(memory)


def whole_budget_bytes(training: int, n_measuring: int) -> int:
    """Compute the budget of which so much is left for the training loader."""
    return -(-training * BUDGET_PARTS // (BUDGET_PARTS - n_measuring))


def smallest_budget_bytes(
    layout: Layout, batch_size: int, *, lanes: int | None = None, groups: int | None = None, shuffle: bool = True
) -> int:
    """Find the smallest budget that a loader of data in this layout works with."""

    def works(n_bytes: int) -> bool:
        try:
            solve(layout, batch_size=batch_size, memory=n_bytes, shuffle=shuffle, lanes=lanes, groups=groups)
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


def smallest_shared_budget_bytes(training: int, measuring: Sequence[int]) -> int:
    """Compute a budget that gives every loader its least: the training one's, and the measuring ones'."""
    of_training = whole_budget_bytes(training, len(measuring))
    return max(of_training, *(least * BUDGET_PARTS for least in measuring)) if measuring else training


def check_shared_memory(memory: int, training: int, measuring: Sequence[int]) -> None:
    """Refuse a budget in which the training loader, or one that measures, would lack its least."""
    in_all = smallest_shared_budget_bytes(training, measuring)
    if memory < in_all:
        needs = [
            f"training needs {format_bytes(training)}",
            *(f"validation {format_bytes(each)}" for each in measuring),
        ]
        raise BudgetError(
            memory_too_small(memory, in_all),
            why=f"Validation data gets 1/{BUDGET_PARTS} of it, and training the rest; {' and '.join(needs)}",
            fix=Fix(Argument("memory", megabytes(in_all))),
        )
