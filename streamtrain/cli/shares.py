"""How a run's memory is shared out: what the whole process may take, and what of it is left for the loaders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from streamtrain.budget import solve
from streamtrain.errors import BudgetError
from streamtrain.limits import memory_limit
from streamtrain.loader import StreamLoader
from streamtrain.meter import MemoryMeter
from streamtrain.store import Dataset
from streamtrain.units import format_bytes, parse_bytes

DEFAULT_MEMORY: Final = "512MB"
VAL_SHARE: Final = 4
"""The loader of ``--val`` has one of so many parts."""
_MOST_REHEARSED_BYTES: Final = 64_000_000
_LEAST_STATED_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a process holds beside its loaders, in bytes.

    Parameters
    ----------
    reserved_bytes : int
        Before there was a model: the interpreter and the libraries.
    training_bytes : int
        The model, its gradients, and the optimizer's state.
    step_bytes : int
        What a step takes on top of that and gives back.
    """

    reserved_bytes: int
    training_bytes: int
    step_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.reserved_bytes + self.training_bytes + self.step_bytes

    def __str__(self) -> str:
        return (
            f"reserved {format_bytes(self.reserved_bytes)} + model, gradients and optimizer state "
            f"{format_bytes(self.training_bytes)} + a step {format_bytes(self.step_bytes)}"
        )


def n_rehearsed(dataset: Dataset, batch_size: int) -> int:
    """Rows to rehearse a step on: a batch, or fewer where rows are large."""
    most = max(_MOST_REHEARSED_BYTES // dataset.layout.row_bytes, 2)
    return max(min(batch_size, most, len(dataset)), 1)


def taken(reserved_bytes: int, step: MemoryMeter, after: MemoryMeter) -> Taken:
    """What a rehearsed step took: ``step`` watched it, and ``after`` began while what lasts was still held."""
    return Taken(
        reserved_bytes=reserved_bytes,
        training_bytes=max(0, after.before_bytes - reserved_bytes),
        step_bytes=max(0, step.before_bytes + step.peak_bytes - after.before_bytes),
    )


def check_sizes(memory: str | None, max_memory: str | None) -> None:
    """Refuse what is no size, before anything is begun."""
    if memory is not None:
        parse_bytes(memory, name="memory")
    if max_memory not in (None, "auto"):
        parse_bytes(str(max_memory), name="max_memory")


def loaders_bytes(memory: str | None, max_memory: str | None, taken: Taken) -> int:
    """What the loaders may own.

    Parameters
    ----------
    memory, max_memory : str, optional
        The options as given: the loaders' budget, and the whole process's; ``"auto"`` is the machine's limit.
    taken : Taken
        What the process holds without loaders.

    Raises
    ------
    BudgetError
        The process's budget leaves less than asked for, or nothing.

    Examples
    --------
    >>> taken = Taken(reserved_bytes=300_000_000, training_bytes=90_000_000, step_bytes=10_000_000)
    >>> loaders_bytes(None, None, taken), loaders_bytes(None, "1GB", taken), loaders_bytes("64MB", "1GB", taken)
    (512000000, 600000000, 64000000)
    """
    if max_memory is None:
        return parse_bytes(memory or DEFAULT_MEMORY, name="memory")
    limit = memory_limit().limit_bytes if max_memory == "auto" else parse_bytes(max_memory, name="max_memory")
    left = limit - taken.total_bytes
    wanted = parse_bytes(memory, name="memory") if memory else _LEAST_STATED_BYTES
    if left < wanted:
        raise BudgetError(
            f"max_memory is {format_bytes(limit)}, and the loaders would need {format_bytes(wanted)} of it",
            why=f"The process holds without them: {taken} = {format_bytes(taken.total_bytes)}",
            fix=f"--max-memory {-(-(taken.total_bytes + wanted) // 10**6) + 1}MB or more",
        )
    return wanted if memory else left


def steady_lanes(dataset: Dataset, batch_size: int, n_bytes: int) -> int:
    """Lanes that do not change with the last megabytes of what was left: those of 512 MB, or of its half, or of that...

    What a process holds is measured, and varies a little from run to run; the order must not.

    Raises
    ------
    BudgetError
        Not even the smallest such budget works.
    """
    stated = parse_bytes(DEFAULT_MEMORY)
    while stated > n_bytes and stated > _LEAST_STATED_BYTES:
        stated //= 2
    return solve(dataset.layout, batch_size=batch_size, memory=stated, rho=dataset.rho)[0].lanes


def make_val_loader(val: Dataset, batch_size: int, memory: int, device: str) -> StreamLoader:
    """The loader that measures, in stored order.

    Raises
    ------
    BudgetError
        Its share is too small.
    """
    try:
        return StreamLoader(val, batch_size=batch_size, memory=memory, shuffle=False, device=device)
    except BudgetError as error:
        where = f"--val, whose loader has 1/{VAL_SHARE} of --memory"
        raise BudgetError(
            error.what, where=where, why=error.why, fix="a larger --memory, or a run without --val"
        ) from error
