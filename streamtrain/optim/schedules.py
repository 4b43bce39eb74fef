"""Schedules of the learning rate and of Adam's β₁.

The schedulers of ``torch.optim.lr_scheduler`` go by their names: ``cosine``, ``onecycle``, ``step``, ``multistep``,
``exponential``, ``linear``, ``constant``, ``polynomial``, ``cyclic``, ``restarts`` (cosine annealing with warm
restarts), ``plateau`` (reduce on a plateau of the loss), or torch's own class name in any case. Those that take
functions or other schedulers need a factory. They step once an epoch, as in torch's documentation; ``onecycle`` and
``cyclic`` once an optimizer step; `Schedule.every` overrides. ``plateau`` is given at each epoch's end what the run
monitors, or else the loss; where the largest is best, its ``mode`` is ``max``.

β₁ is a function of the step t = 1, 2, ... D. P. Kingma, J. Ba, *Adam: a method for stochastic optimization*, ICLR 2015,
let it decay as β₁ λ^(t-1) (theorem 4.1). torch divides the first moment by 1 - β₁^t with the β₁ of that step.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.system.arguments import check_choice, is_number
from streamtrain.system.calls.public import public

ScheduleFactory = Callable[[Optimizer], LRScheduler]
Beta1 = Callable[[int], float]
"""From the step, counted from 1, to β₁."""

_SHORT: Final = {
    "cosineannealing": "cosine",
    "cosineannealingwarmrestarts": "restarts",
    "reducelronplateau": "plateau",
}
_BY_FACTORY: Final = frozenset({"lambda", "multiplicative", "chainedscheduler", "sequential"})
_BY_STEP: Final = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
_INTERVALS: Final = ("step", "epoch")
_BY_EPOCH: Final = "It watches the loss of epochs"
_PLAIN: Final = (bool, int, float, str, type(None))
_N_TRIED: Final = 3
_NEEDED: Final = inspect.Parameter.empty
_FILLED_IN: Final = ("T_max", "max_lr")
"""Options that follow from the run and its optimizer."""
_EXAMPLES: Final = {"step_size": 10, "milestones": [30, 80], "gamma": 0.9, "T_0": 10, "base_lr": 0.0001}
"""A value for each option that a schedule cannot do without."""


def _names() -> dict[str, type[LRScheduler]]:
    named = {}
    for kind in vars(lr_scheduler).values():
        if isinstance(kind, type) and issubclass(kind, LRScheduler) and kind.__name__.strip("_") != "LRScheduler":
            name = kind.__name__.lower().removesuffix("lr")
            named[_SHORT.get(name, name)] = kind
    return {name: named[name] for name in sorted(named.keys() - _BY_FACTORY)}


SCHEDULES: Final[Mapping[str, type[LRScheduler]]] = _names()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLength:
    """Epochs and optimizer steps of a whole run, for the schedules that end with it.

    ``best`` says whether the monitor is best at its ``min`` or its ``max``; None without one.
    """

    n_epochs: int
    n_steps: int
    best: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule of the learning rate.

    Parameters
    ----------
    name : str or callable
        A name in `SCHEDULES`, or a factory: a function of the optimizer that returns a scheduler.
    every : {"step", "epoch"}, optional
        When it steps; by default as the schedule needs.
    options : mapping
        The options of torch's class. Where the class needs them, the end of the run is filled in as ``T_max`` or
        ``total_steps``, and the optimizer's learning rate as ``max_lr``.

    Raises
    ------
    UnknownName
        No scheduler has that name, or ``every`` is neither of the two.
    UsageError
        The class does not take an option, or needs one that is missing.

    Examples
    --------
    >>> Schedule(name="CosineAnnealingLR").every_, Schedule(name="onecycle").every_
    ('epoch', 'step')
    >>> Schedule(name="step", options={"step_size": 10, "gamma": 0.5}).options["step_size"]
    10
    >>> Schedule(name="step")
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: step needs step_size. It takes step_size, gamma. Fix: ...
    """

    name: str | ScheduleFactory = field(kw_only=False)
    every: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @public
    def __post_init__(self) -> None:
        if self.every is not None:
            check_choice(self.every, "schedule_every", _INTERVALS)
        if not isinstance(self.options, Mapping):
            raise UsageError(f"options is {self.options!r:.80}; it must be a mapping of a schedule's options")
        if self.kind is None:
            if self.options:
                raise UsageError("options given together with a schedule's factory", fix="give them in the factory")
            self._check_factory()
            return
        if self.kind is ReduceLROnPlateau and self.every == "step":
            raise UsageError("plateau every step", why=_BY_EPOCH, fix=_schedule_with("plateau", "every", "epoch"))
        taken = _taken(self.kind)
        for option in self.options:
            if option not in taken:
                raise UsageError(f"{self.known_as} takes no {option!r}", why=f"It takes {', '.join(taken)}")
            self._check_value(option, taken[option])
        for option, default in taken.items():
            if default is _NEEDED and option not in {*self.options, *_FILLED_IN}:
                raise UsageError(
                    f"{self.known_as} needs {option}",
                    why=f"It takes {', '.join(taken)}",
                    fix=_schedule_with(self.known_as, "options", {**self.options, option: _EXAMPLES[option]}),
                )

    def _check_factory(self) -> None:
        """Refuse a class whose options are missing: it is known by name, with the end of the run filled in."""
        named = next((name for name, kind in SCHEDULES.items() if kind is self.name), None)
        taken = _taken(SCHEDULES[named]) if named is not None else {}
        missing = [option for option, default in taken.items() if default is _NEEDED]
        if named is None or not missing:
            return
        what = f"schedule is the class {self.known_as}, which needs {', '.join(missing)} besides the optimizer"
        options = {option: _EXAMPLES[option] for option in missing if option not in _FILLED_IN}
        if not options:
            raise UsageError(what, fix=Fix(Argument("schedule", named)))
        raise UsageError(what, fix=_schedule_with(named, "options", options))

    def _check_value(self, option: str, default: object) -> None:
        """Refuse values that torch accepts but cannot use."""
        value = self.options[option]
        if option == "milestones" and not (isinstance(value, list | tuple) and all(type(n) is int for n in value)):
            what, mended = "is not a list of integers", _EXAMPLES[option]
        elif not all(isinstance(part, _PLAIN) for part in (value if isinstance(value, list | tuple) else [value])):
            # A run's folder holds the options.
            what = "is not a number, a text or a list of these"
            raise UsageError(f"{self.known_as}'s {option} is {value!r:.80}, which {what}", fix="one of them")
        elif isinstance(value, str) and is_number(default):
            what, mended = "is not a number", default
        else:
            return
        fix = _schedule_with(self.known_as, "options", {**self.options, option: mended})
        raise UsageError(f"{self.known_as}'s {option} is {value!r:.80}, which {what}", fix=fix)

    @property
    def kind(self) -> type[LRScheduler] | None:
        """The scheduler's class; None for a factory."""
        return None if callable(self.name) else SCHEDULES[self.known_as]

    @property
    def known_as(self) -> str:
        """The name in `SCHEDULES`, or the factory's own."""
        if callable(self.name):
            return getattr(self.name, "__name__", type(self.name).__name__)
        if not isinstance(self.name, str):
            raise UsageError(f"schedule is {self.name!r}", fix="a name, a Schedule, or a function of the optimizer")
        given = self.name.lower()
        known = {kind.__name__.lower(): name for name, kind in SCHEDULES.items()} | {name: name for name in SCHEDULES}
        if given not in known:
            raise unknown_name("schedule", self.name, SCHEDULES)
        return known[given]

    @property
    def every_(self) -> str:
        """The interval between its steps, the default resolved."""
        return self.every or ("step" if self.kind in _BY_STEP else "epoch")

    def completed(self, optimizer: Optimizer, run: RunLength) -> dict[str, object]:
        """Complete the options with what the class needs to know of the run: its end, and which values are best."""
        taken = {} if self.kind is None else _taken(self.kind)
        ends = {"T_max": self._n_times(run), "max_lr": [group["lr"] for group in optimizer.param_groups]}
        filled: dict[str, object] = {name: end for name, end in ends.items() if taken.get(name) is _NEEDED}
        if "steps_per_epoch" in taken and not {"total_steps", "epochs"} & self.options.keys():
            filled["total_steps"] = self._n_times(run)
        if self.kind is ReduceLROnPlateau and run.best == "max":
            filled["mode"] = run.best
        return filled | dict(self.options)

    def _n_times(self, run: RunLength) -> int:
        return max(1, run.n_steps if self.every_ == "step" else run.n_epochs)

    def check(self, optimizer: Optimizer, run: RunLength) -> None:
        """Refuse a schedule by name whose first steps fail, tried on a copy of the optimizer's settings."""
        if self.kind is None:
            return
        n, of_weights = self._n_times(run), ("params", "param_names")
        settings = [{k: v for k, v in group.items() if k not in of_weights} for group in optimizer.param_groups]
        weights = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in settings]
        copied = Optimizer([a | b for a, b in zip(weights, copy.deepcopy(settings), strict=True)], optimizer.defaults)
        with warnings.catch_warnings(), self._refusals():
            # torch warns where a scheduler steps before its optimizer.
            warnings.simplefilter("ignore")
            made = self._made(copied, run)
            if getattr(made, "total_steps", n) < n:
                raise ValueError(f"it ends after {made.total_steps} of {n} steps")
            for _ in range(min(_N_TRIED, n)):
                made.step(*([1.0] if self.kind is ReduceLROnPlateau else []))
                if not all(is_number(float(group["lr"])) for group in copied.param_groups):
                    raise ValueError(f"the learning rate becomes {copied.param_groups[0]['lr']}")

    def make(self, optimizer: Optimizer, run: RunLength) -> LRScheduler:
        """Make the scheduler over an optimizer, once its first steps have been tried."""
        self.check(optimizer, run)
        with self._refusals():
            made = self._made(optimizer, run)
        if not isinstance(made, LRScheduler):
            raise UsageError(f"the schedule's factory returned {type(made).__name__}", fix="return an LRScheduler")
        if isinstance(made, ReduceLROnPlateau) and self.every_ == "step":
            fix = Fix(Argument("every", "epoch"), " of the schedule")
            raise UsageError(f"{self.known_as} every step", why=_BY_EPOCH, fix=fix)
        return made

    def _made(self, optimizer: Optimizer, run: RunLength) -> Any:
        make: Callable[..., Any] = self.kind or self.name  # type: ignore[assignment]
        return make(optimizer, **self.completed(optimizer, run))

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn torch's errors into a UsageError."""
        try:
            yield
        except UsageError:
            raise
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            raise UsageError(
                f"{self.known_as}{f' with {given}' if given else ''}: {error}",
                fix=f"what torch.optim.lr_scheduler.{self.kind.__name__} takes" if self.kind else "see the factory",
            ) from error


def _schedule_with(name: str, argument: str, value: object) -> Fix:
    return Fix(Argument(argument, value, within=f"schedule=st.Schedule(name={name!r}, {{}})"), ", say")


def _taken(kind: type[LRScheduler]) -> dict[str, object]:
    """Return a class's options and their defaults, `_NEEDED` where there is none."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("optimizer", "last_epoch", "scale_fn")}


def beta1_of(beta1: str | Beta1, first: float, *, n_steps: int) -> Beta1:
    """Make the function of the step that a text stands for, starting at the optimizer's β₁."""
    if callable(beta1):
        return beta1
    kind, _, text = str(beta1).partition(":")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if kind == "linear" and 0 <= number < 1:
        return lambda step: first + (number - first) * min(1.0, (step - 1) / max(1, n_steps - 1))
    if kind == "exponential" and 0 < number <= 1:
        return lambda step: float(first * number ** (step - 1))
    raise UsageError(
        f"beta1 is {beta1!r}",
        fix="linear:LAST with LAST in [0, 1), exponential:FACTOR with FACTOR in (0, 1], or a function",
    )


class OptimizerSchedules:
    """The schedules of a run, of the learning rate and of β₁, at work on its optimizer."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: str | Schedule | ScheduleFactory | None = None,
        beta1: str | Beta1 | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._schedule = schedule if schedule is None or isinstance(schedule, Schedule) else Schedule(name=schedule)
        self._every = self._schedule.every_ if self._schedule is not None else None
        self._scheduler: LRScheduler | None = None
        self._completed: dict[str, object] = {}
        self._beta1_given = beta1
        self._beta1: Beta1 | None = None
        self._beta1_steps: int | None = None
        if self._schedule is not None:
            self._schedule.check(optimizer, RunLength(n_epochs=1, n_steps=1))
        if beta1 is not None:
            self._check_beta1()
            beta1_of(beta1, self._first_beta1(), n_steps=1)

    def _check_beta1(self) -> None:
        if "betas" not in self._optimizer.param_groups[0]:
            name = type(self._optimizer).__name__
            raise UsageError(
                f"beta1 with {name}, which has none", fix=Fix(Argument("optimizer", "adam"), ", or a similar one")
            )
        schedule = self._schedule
        if schedule is not None and schedule.kind in _BY_STEP and schedule.options.get("cycle_momentum", True):
            raise UsageError(
                "beta1 given together with a schedule that changes it",
                fix=Fix(Argument("options", {"cycle_momentum": False}), " of the schedule, or no ", Argument("beta1")),
            )

    def _first_beta1(self) -> float:
        return float(self._optimizer.param_groups[0]["betas"][0])

    @property
    def by_step(self) -> bool:
        """Whether anything changes from step to step."""
        return self._beta1_given is not None or self._every == "step"

    @property
    def lr(self) -> float | None:
        """The learning rate now; None where no schedule changes it."""
        return None if self._schedule is None else float(self._optimizer.param_groups[0]["lr"])

    def describe(self) -> dict[str, object]:
        """Describe the schedules for ``config.json``."""
        schedule, beta1 = self._schedule, self._beta1_given
        return {
            "schedule": schedule
            and {"name": schedule.known_as, "every": schedule.every_, **schedule.options, **self._completed},
            "beta1": getattr(beta1, "__name__", "a function") if callable(beta1) else beta1,
            **({"beta1_steps": self._beta1_steps} if self._beta1_steps is not None else {}),
        }

    def begin(self, run: RunLength) -> None:
        """Set the schedules up for a run; a resumed run keeps them, and refuses another end."""
        self._begin_beta1(run.n_steps)
        if self._schedule is None:
            return
        completed = self._schedule.completed(self._optimizer, run)
        if self._scheduler is None:
            self._scheduler, self._completed = self._schedule.make(self._optimizer, run), completed
        self._check_mode(self._schedule, run.best)
        for name in ("T_max", "total_steps"):
            if completed.get(name) != self._completed.get(name):
                raise UsageError(
                    f"the schedule was set up for {name}={self._completed[name]}; this call has {completed[name]}",
                    fix=Fix("a new trainer with ", Argument("options", {name: completed[name]}), " of the schedule"),
                )

    def _check_mode(self, schedule: Schedule, best: str | None) -> None:
        """Refuse a plateau that takes for worse what the run takes for better."""
        if isinstance(self._scheduler, ReduceLROnPlateau) and best not in (None, self._scheduler.mode):
            what = f"{schedule.known_as} has the mode {self._scheduler.mode!r}"
            fix = Fix(Argument("options", {"mode": best}), " of the schedule") if schedule.kind else f"mode={best!r}"
            raise UsageError(what, why=f"What the run monitors is best at its {best}", fix=fix)

    def _begin_beta1(self, n_steps: int) -> None:
        given = self._beta1_given
        if given is not None and self._beta1 is None:
            self._beta1 = beta1_of(given, self._first_beta1(), n_steps=n_steps)
            # Only a linear β₁ depends on where the run ends.
            self._beta1_steps = n_steps if isinstance(given, str) and given.startswith("linear:") else None
        elif self._beta1_steps is not None and n_steps != self._beta1_steps:
            raise UsageError(
                f"beta1 was set up for {self._beta1_steps} steps; this call has {n_steps}",
                fix="beta1 as a function of the step, which has no end",
            )

    def before_step(self, step: int) -> None:
        """Set β₁ for a step, counted from 1; refuse one outside [0, 1)."""
        if self._beta1 is None:
            return
        beta1 = self._beta1(step)
        if not (isinstance(beta1, int | float) and 0 <= beta1 < 1):
            raise UsageError(f"beta1 is {beta1!r} at step {step}; it must be in [0, 1)")
        for group in self._optimizer.param_groups:
            group["betas"] = (beta1, *group["betas"][1:])

    def after_step(self) -> None:
        """Advance a schedule of steps."""
        if self._scheduler is not None and self._every == "step":
            self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Advance a schedule of epochs, given the epoch's loss."""
        if self._scheduler is None or self._every != "epoch":
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss)
        else:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state: numbers, texts and tensors."""
        return {"scheduler": self._scheduler.state_dict() if self._scheduler else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scheduler's state; the learning rate comes back with the optimizer's own."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
