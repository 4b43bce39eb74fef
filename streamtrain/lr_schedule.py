"""A schedule of the learning rate, by name: what it takes, when it goes on, and the scheduler of torch's it stands for.

The schedulers of ``torch.optim.lr_scheduler`` go by their names: ``cosine``, ``onecycle``, ``step``, ``multistep``,
``exponential``, ``linear``, ``constant``, ``polynomial``, ``cyclic``, ``restarts`` (cosine annealing with warm
restarts), ``plateau`` (reduce on a plateau of the loss), or torch's own class name in any case. Those that take
functions or other schedulers come from a factory. They step once an epoch, as torch's documentation has it;
``onecycle`` and ``cyclic`` once an optimizer step; `Schedule.every` says otherwise. ``plateau`` is shown the loss at
each epoch's end, on the validation data where there is such.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from streamtrain.counts import Totals
from streamtrain.errors import UsageError, unknown_name

ScheduleFactory = Callable[[Optimizer], LRScheduler]
"""Optimizer -> scheduler."""

_SHORT: Final = {
    "cosineannealing": "cosine",
    "cosineannealingwarmrestarts": "restarts",
    "reducelronplateau": "plateau",
}
_BY_FACTORY: Final = frozenset({"lambda", "multiplicative", "chainedscheduler", "sequential"})
BY_STEP: Final = frozenset({"onecycle", "cyclic"})
EVERY: Final = ("step", "epoch")
"""After what a schedule goes on."""


def _names() -> dict[str, type[LRScheduler]]:
    named = {}
    for kind in vars(lr_scheduler).values():
        if isinstance(kind, type) and issubclass(kind, LRScheduler) and kind.__name__.strip("_") != "LRScheduler":
            name = kind.__name__.lower().removesuffix("lr")
            named[_SHORT.get(name, name)] = kind
    return {name: named[name] for name in sorted(named.keys() - _BY_FACTORY)}


SCHEDULES: Final[Mapping[str, type[LRScheduler]]] = _names()
"""Name -> class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """How far a run goes, for the schedules that end with it.

    Parameters
    ----------
    n_epochs, n_steps : int
        Epochs and optimizer steps of the whole run.
    """

    n_epochs: int
    n_steps: int


def horizon(totals: Totals, steps_per_epoch: int) -> Horizon:
    """How far a run goes whose epochs have so many steps.

    Examples
    --------
    >>> horizon(Totals(max_epochs=10, max_steps=25), 10)
    Horizon(n_epochs=3, n_steps=25)
    """
    of_epochs = math.inf if totals.max_epochs is None else totals.max_epochs * steps_per_epoch
    of_steps = math.inf if totals.max_steps is None else totals.max_steps
    n_steps = int(min(of_epochs, of_steps))
    return Horizon(n_epochs=-(-n_steps // max(1, steps_per_epoch)), n_steps=n_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule of the learning rate.

    Parameters
    ----------
    name : str or callable
        Of `SCHEDULES`, or a factory.
    every : {"step", "epoch"}, optional
        After what it goes on; by default what suits it.
    options : mapping
        What torch's class takes. The end of the run is filled in where the class asks for it: ``T_max``,
        ``total_steps``; and the optimizer's learning rate as ``max_lr``.

    Raises
    ------
    UnknownName
        No scheduler has that name, or ``every`` is neither.
    UsageError
        The class does not take an option, or asks for one.

    Examples
    --------
    >>> Schedule(name="CosineAnnealingLR").every_, Schedule(name="onecycle").every_
    ('epoch', 'step')
    >>> Schedule(name="step")
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: step asks for step_size. It takes step_size, gamma. Fix: ...
    """

    name: str | ScheduleFactory
    every: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every is not None and self.every not in EVERY:
            raise unknown_name("schedule_every", str(self.every), EVERY)
        if self.kind is None:
            if self.options:
                raise UsageError("options given beside a schedule's factory", fix="give them in the factory")
            return
        if self.kind is ReduceLROnPlateau and self.every == "step":
            raise UsageError("plateau every step", why="It looks at an epoch's loss", fix="every='epoch'")
        taken = _taken(self.kind)
        for option in self.options:
            if option not in taken:
                raise UsageError(f"{self.known_as} takes no {option!r}", why=f"It takes {', '.join(taken)}")
        filled = ("T_max", "max_lr")
        for option, is_needed in taken.items():
            if is_needed and option not in self.options and option not in filled:
                raise UsageError(
                    f"{self.known_as} asks for {option}",
                    why=f"It takes {', '.join(taken)}",
                    fix=f"--schedule-option {option}=VALUE",
                )

    @property
    def kind(self) -> type[LRScheduler] | None:
        """The class; None of a factory."""
        return None if callable(self.name) else SCHEDULES[self.known_as]

    @property
    def known_as(self) -> str:
        """The name in `SCHEDULES`, or the factory's own."""
        if callable(self.name):
            return getattr(self.name, "__name__", type(self.name).__name__)
        if not isinstance(self.name, str):
            raise UsageError(f"schedule is {self.name!r}", fix="a name, a Schedule, or a function of the optimizer")
        given = self.name.lower()
        of_class = {kind.__name__.lower(): name for name, kind in SCHEDULES.items()}
        if given not in SCHEDULES and given not in of_class:
            raise unknown_name("schedule", self.name, SCHEDULES)
        return given if given in SCHEDULES else of_class[given]

    @property
    def every_(self) -> str:
        """After what it goes on."""
        return self.every or ("step" if self.known_as in BY_STEP else "epoch")

    def completed(self, optimizer: Optimizer, horizon: Horizon) -> dict[str, object]:
        """The options, with the end of the run where the class asks for it."""
        n = max(1, horizon.n_steps if self.every_ == "step" else horizon.n_epochs)
        needed = {} if self.kind is None else _taken(self.kind)
        filled: dict[str, object] = {"T_max": n} if needed.get("T_max") else {}
        if needed.get("max_lr"):
            filled["max_lr"] = [group["lr"] for group in optimizer.param_groups]
        if "steps_per_epoch" in needed and not {"total_steps", "epochs"} & self.options.keys():
            filled["total_steps"] = n
        return filled | dict(self.options)

    def make(self, optimizer: Optimizer, horizon: Horizon) -> LRScheduler:
        """Make the scheduler over an optimizer.

        Raises
        ------
        UsageError
            torch refuses the options.
        """
        make: Callable[..., Any] = self.kind or self.name  # type: ignore[assignment]
        try:
            made = make(optimizer, **self.completed(optimizer, horizon))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"{self.known_as} refuses its options: {error}", fix="see torch.optim.lr_scheduler"
            ) from error
        if not isinstance(made, LRScheduler):
            raise UsageError(f"the schedule's factory returned {type(made).__name__}", fix="return an LRScheduler")
        return made


def _taken(kind: type[LRScheduler]) -> dict[str, bool]:
    """What a class takes -> whether it has to be given."""
    parameters = inspect.signature(kind).parameters.values()
    hidden = ("optimizer", "last_epoch", "scale_fn")
    return {p.name: p.default is inspect.Parameter.empty for p in parameters if p.name not in hidden}


def resolve_schedule(schedule: str | Schedule | ScheduleFactory | None) -> Schedule | None:
    """A schedule from its name, a value, or a factory."""
    return schedule if schedule is None or isinstance(schedule, Schedule) else Schedule(name=schedule)
