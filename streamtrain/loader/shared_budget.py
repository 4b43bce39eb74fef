"""One memory budget over the training loader and the validation loaders, and over a whole process.

Each loader that only measures has a fixed part; the training loader has the rest. From a budget for the whole process,
the measured memory of the model, its gradients, the optimizer's state and a step is subtracted first.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from streamtrain.errors import Argument, BudgetError, Fix
from streamtrain.loader.budget import BUDGET_PARTS, solve
from streamtrain.loader.budget_shares import smallest_budget_bytes
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.store.dataset import Dataset
from streamtrain.system.memory import MemoryMeter, at_most, held_bytes, memory_limit
from streamtrain.system.units import format_bytes, megabytes, parse_bytes

_MOST_REHEARSED_BYTES: Final = 64_000_000


def n_preflight_rows(dataset: Dataset, batch_size: int) -> int:
    """Count the rows to rehearse a step on, outside any loader: a batch, or fewer where rows are large."""
    most = max(_MOST_REHEARSED_BYTES // dataset.layout.batch_row_bytes, 2)
    return max(min(batch_size, most, len(dataset)), 1)


DEFAULT_MEMORY: Final = "512MB"
_MEGABYTE: Final = 10**6
_SPARE_SHARE: Final = 12
_LEAST_SPARE_BYTES: Final = 4_000_000
_MEASURED_ANEW: Final = 1.08
"""A process's measured memory varies from run to run; a remedy has to do for the next one too."""
_FIRST_STEP_BYTES: Final = 10_000_000
"""Memory that a first step takes however small the model is."""
_LEFT_FREE: Final = 0.95  # the share of the free memory that ``auto`` takes


@dataclass(frozen=True, slots=True, kw_only=True)
class NonLoaderMemory:
    """Bytes that a process holds besides its loaders."""

    reserved_bytes: int  # before there was a model: the interpreter and the libraries
    training_bytes: int  # what came with the model and its first step, and stays
    step_bytes: int  # what a step takes on top of that and gives back
    model_bytes: int = 0  # of these the weights, their gradients, and the optimizer's state; the rest is of libraries
    best_bytes: int = 0  # a copy of the weights of the best epoch, where no run folder keeps them

    @property
    def spare_bytes(self) -> int:
        """Bytes that allocators may keep over many steps, which the few measured ones do not show."""
        return max(_LEAST_SPARE_BYTES, (self.training_bytes + self.step_bytes) // _SPARE_SHARE)

    @property
    def libraries_bytes(self) -> int:
        """The interpreter and the libraries, with what they load for a first step."""
        return max(0, self.reserved_bytes + self.training_bytes - self.model_bytes)

    @property
    def total_bytes(self) -> int:
        """The sum, with the spare bytes."""
        return self.reserved_bytes + self.training_bytes + self.step_bytes + self.best_bytes + self.spare_bytes

    def __str__(self) -> str:
        best = f" + the best weights {format_bytes(self.best_bytes)}" if self.best_bytes else ""
        return (
            f"libraries {format_bytes(self.libraries_bytes)} + model {format_bytes(self.model_bytes)} (weights, "
            f"gradients and the optimizer's state) + one step {format_bytes(self.step_bytes)}{best} + what allocators "
            f"keep {format_bytes(self.spare_bytes)}"
        )


def non_loader_memory(
    reserved_bytes: int, step: MemoryMeter, after: MemoryMeter, *, model_bytes: int = 0
) -> NonLoaderMemory:
    """Sum up a rehearsed step: ``step`` watched it, ``after`` began while lasting memory was still held."""
    return NonLoaderMemory(
        reserved_bytes=reserved_bytes,
        training_bytes=max(0, after.before_bytes - reserved_bytes),
        step_bytes=max(0, step.before_bytes + step.peak_bytes - after.before_bytes),
        model_bytes=model_bytes,
    )


def check_memory_options(memory: str | int | None, max_memory: str | None) -> None:
    """Refuse a text that is not a size, or more than the machine allows, before anything is begun."""
    for name, value in (("memory", memory), ("max_memory", max_memory)):
        if value is None or (name == "max_memory" and isinstance(value, str) and value == "auto"):
            continue
        n_bytes = parse_bytes(value, name=name)
        limit = memory_limit()
        # The kernel rounds a group's limit down to whole pages.
        if n_bytes - limit.limit_bytes >= mmap.PAGESIZE:
            # What the process holds already is part of its own budget, and of no loader's.
            there = min(limit.limit_bytes, limit.free_bytes + held_bytes())
            raise BudgetError(
                f"{name} is {format_bytes(n_bytes)}; {limit.source} allows {format_bytes(limit.limit_bytes)}, "
                f"of which {format_bytes(limit.free_bytes)} are free",
                fix=Fix(Argument(name, megabytes(there - _MEGABYTE)), " or less")
                if name == "max_memory"
                else at_most(name, limit.free_bytes),
            )


def require_rehearsal(parameter_bytes: int, n_states: int) -> None:
    """Refuse a model whose first step would exceed what the machine, or its control group, has left.

    It is estimated: the kernel kills a process that only measures. A step takes gradients, the optimizer's states, as
    many temporary arrays and one, and the rehearsal of it a copy of the weights.
    """
    limit = memory_limit()
    needed = _FIRST_STEP_BYTES + (3 + 2 * n_states) * parameter_bytes
    if needed > limit.free_bytes:
        raise BudgetError(
            f"the first step of this model takes about {format_bytes(needed)}; {format_bytes(limit.free_bytes)} are "
            f"free of the {format_bytes(limit.limit_bytes)} that {limit.source} allows",
            why=f"Its weights are {format_bytes(parameter_bytes)}; gradients, {n_states} states of the optimizer and "
            "what a step computes are as large",
            fix=f"a smaller model, or free memory: {megabytes(held_bytes() + needed)} in all would do",
        )


def loader_budget_bytes(
    memory: str | int | None,
    max_memory: str | None,
    taken: NonLoaderMemory,
    *,
    least_bytes: int = 1,
    held_now: int | None = None,
) -> int:
    """Compute the loaders' budget from the options; ``"auto"`` is the machine's limit, or less where less is free.

    ``held_now`` is what the process holds; by default no more than was reserved.
    """
    if max_memory is None:
        return parse_bytes(memory or DEFAULT_MEMORY, name="memory")
    wanted = parse_bytes(memory, name="memory") if memory else least_bytes
    limit, left, why, is_free = _left(max_memory, taken, taken.reserved_bytes if held_now is None else held_now)
    if left < wanted:
        needed = megabytes(round((taken.total_bytes + wanted) * _MEASURED_ANEW))
        raise BudgetError(
            f"max_memory is {format_bytes(limit)}, and the loaders would need {format_bytes(wanted)} of it",
            why=why,
            fix=Fix(Argument("max_memory", needed), " or more")
            if is_free
            else f"free memory; {needed} in all would do",
        )
    return wanted if memory else left


def _left(max_memory: str, taken: NonLoaderMemory, held_now: int) -> tuple[int, int, str, bool]:
    """Find the process's budget, the loaders' part of it, the reason why it is no more, and if more is free."""
    holds = f"The process holds without them: {taken} = {format_bytes(taken.total_bytes)}"
    limit = memory_limit()
    # What the process holds now, of the model's share too, is no longer free, but its own.
    free = held_now + int(limit.free_bytes * _LEFT_FREE) - taken.total_bytes
    if max_memory == "auto":
        stated, left = limit.limit_bytes, min(limit.limit_bytes - taken.total_bytes, free)
    else:
        stated = parse_bytes(max_memory, name="max_memory")
        left = stated - taken.total_bytes
        if left <= free:
            return stated, left, holds, True
        left = free
    return stated, left, f"{holds}; {format_bytes(limit.free_bytes)} are free on the machine", False


def steady_lanes(dataset: Dataset, batch_size: int, n_bytes: int, *, groups: int | None = None) -> int:
    """Choose lanes that a few megabytes more or less do not change: those of 512 MB, or its half, or that half's...

    What a process holds is measured, and varies a little from run to run; the order must not.
    """
    least = smallest_budget_bytes(dataset.layout, batch_size, groups=groups)
    stated = parse_bytes(DEFAULT_MEMORY)
    while stated > n_bytes and stated > least:
        stated //= 2
    return solve(dataset.layout, batch_size=batch_size, memory=max(stated, least), groups=groups)[0].lanes


@contextmanager
def in_terms_of_process(taken: NonLoaderMemory | None) -> Iterator[None]:
    """Restate a refusal inside the block, if the budget for the whole process sized the loaders."""
    try:
        yield
    except BudgetError as error:
        if taken is None:
            raise
        raise process_budget_error(error, taken) from error


def process_budget_error(error: BudgetError, taken: NonLoaderMemory) -> BudgetError:
    """Restate a loader's refusal in terms of the budget for the whole process."""
    fix = error.fix
    if isinstance(fix, Fix) and (found := fix.argument("memory")) is not None:
        whole = Argument("max_memory")
        if found.n_bytes is not None or found.value is not None:
            n_bytes = parse_bytes(str(found.value)) if found.n_bytes is None else found.n_bytes
            whole = Argument("max_memory", megabytes(taken.total_bytes + n_bytes))
        fix = Fix(*(whole if part is found else part for part in fix.parts))
    return BudgetError(error.what, where=error.where, why=error.why, fix=fix)


def make_val_loader(val: Dataset, batch_size: int, memory: int, device: str, on_bad_block: str) -> StreamLoader:
    """Make the loader that measures, in stored order."""
    try:
        return StreamLoader(
            val, batch_size=batch_size, memory=memory, shuffle=False, device=device, on_bad_block=on_bad_block
        )
    except BudgetError as error:
        where = f"the validation data, whose loader has 1/{BUDGET_PARTS} of the memory"
        of_part = error.fix.argument("memory") if isinstance(error.fix, Fix) else None
        assert of_part is not None
        assert of_part.n_bytes is not None
        whole = Argument("memory", n_bytes=BUDGET_PARTS * of_part.n_bytes)
        fix = Fix(whole, " or more, or no ", Argument("val"))
        raise BudgetError(error.what, where=where, why=error.why, fix=fix) from error
