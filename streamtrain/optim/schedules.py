"""Schedules of the learning rate and of Adam's β₁.

The schedulers of ``torch.optim.lr_scheduler`` go by their names: ``cosine``, ``onecycle``, ``step``, ``multistep``,
``exponential``, ``linear``, ``constant``, ``polynomial``, ``cyclic``, ``restarts`` (cosine annealing with warm
restarts), ``plateau`` (reduce on a plateau of the loss), or torch's own class name in any case. Those that take
functions or other schedulers come from a factory. They step once an epoch, as in torch's documentation; ``onecycle``
and ``cyclic`` once an optimizer step; `Schedule.every` overrides. ``plateau`` is given the loss at each epoch's end, on
the validation data where there is such.

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

from streamtrain.errors import UsageError, unknown_name
from streamtrain.system.arguments import is_number

ScheduleFactory = Callable[[Optimizer], LRScheduler]
"""Optimizer -> scheduler."""

_SHORT: Final = {
    "cosineannealing": "cosine",
    "cosineannealingwarmrestarts": "restarts",
    "reducelronplateau": "plateau",
}
_BY_FACTORY: Final = frozenset({"lambda", "multiplicative", "chainedscheduler", "sequential"})
BY_STEP: Final = frozenset({"onecycle", "cyclic"})
SCHEDULE_INTERVALS: Final = ("step", "epoch")
"""After what a schedule goes on."""

_N_TRIED: Final = 3
_NEEDED: Final = inspect.Parameter.empty


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
class RunLength:
    """How far a run goes, for the schedules that end with it.

    Parameters
    ----------
    n_epochs, n_steps : int
        Epochs and optimizer steps of the whole run.
    """

    n_epochs: int
    n_steps: int


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
        if self.every is not None and self.every not in SCHEDULE_INTERVALS:
            raise unknown_name("schedule_every", str(self.every), SCHEDULE_INTERVALS)
        if self.kind is None:
            if self.options:
                raise UsageError("options given beside a schedule's factory", fix="give them in the factory")
            return
        if self.kind is ReduceLROnPlateau and self.every == "step":
            raise _plateau_by_step("plateau")
        taken = _taken(self.kind)
        for option in self.options:
            if option not in taken:
                raise UsageError(f"{self.known_as} takes no {option!r}", why=f"It takes {', '.join(taken)}")
            self._check_value(option, taken[option])
        filled = ("T_max", "max_lr")
        for option, default in taken.items():
            if default is _NEEDED and option not in self.options and option not in filled:
                raise UsageError(
                    f"{self.known_as} asks for {option}",
                    why=f"It takes {', '.join(taken)}",
                    fix=f"--schedule-option {option}=VALUE",
                )

    def _check_value(self, option: str, default: object) -> None:
        """Refuse what torch takes, and then makes nothing of."""
        value = self.options[option]
        if option == "milestones" and not (isinstance(value, list | tuple) and all(type(n) is int for n in value)):
            what, fix = "is no list of integers", "--schedule-option milestones=[30,80], say"
        elif isinstance(value, str) and is_number(default):
            what, fix = "is no number", f"--schedule-option {option}={default}, say"
        else:
            return
        raise UsageError(f"{self.known_as}'s {option} is {value!r}, which {what}", fix=fix)

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
        return self.every or ("step" if self.cycles else "epoch")

    @property
    def cycles(self) -> bool:
        """Whether it is one by name that suits steps, and changes the momentum or β₁ as well."""
        return isinstance(self.name, str) and self.known_as in BY_STEP

    def completed(self, optimizer: Optimizer, horizon: RunLength) -> dict[str, object]:
        """The options, with the end of the run where the class asks for it."""
        n = self._n_times(horizon)
        needed = {} if self.kind is None else _taken(self.kind)
        filled: dict[str, object] = {"T_max": n} if needed.get("T_max") is _NEEDED else {}
        if needed.get("max_lr") is _NEEDED:
            filled["max_lr"] = [group["lr"] for group in optimizer.param_groups]
        if "steps_per_epoch" in needed and not {"total_steps", "epochs"} & self.options.keys():
            filled["total_steps"] = n
        return filled | dict(self.options)

    def _n_times(self, horizon: RunLength) -> int:
        return max(1, horizon.n_steps if self.every_ == "step" else horizon.n_epochs)

    def check(self, optimizer: Optimizer, horizon: RunLength | None = None) -> None:
        """Try the options, unless they are a factory's own, on a copy of an optimizer's settings.

        Raises
        ------
        UsageError
            torch refuses them, or comes to no learning rate with them.
        """
        if self.kind is None:
            return
        make: Callable[..., Any] = self.kind
        horizon = horizon or RunLength(n_epochs=1, n_steps=1)
        stand_in, n = _stand_in(optimizer), self._n_times(horizon)
        with warnings.catch_warnings(), self._refusals():
            # The stand-in takes no steps.
            warnings.simplefilter("ignore")
            made = make(stand_in, **self.completed(stand_in, horizon))
            if getattr(made, "total_steps", n) < n:
                raise ValueError(f"it ends after {made.total_steps} of {n} steps")
            for _ in range(min(_N_TRIED, n)):
                made.step(*([1.0] if self.kind is ReduceLROnPlateau else []))
                if not all(is_number(float(group["lr"])) for group in stand_in.param_groups):
                    raise ValueError(f"the learning rate becomes {stand_in.param_groups[0]['lr']}")

    def make(self, optimizer: Optimizer, horizon: RunLength) -> LRScheduler:
        """Make the scheduler over an optimizer.

        Raises
        ------
        UsageError
            torch refuses the options, or a factory made a scheduler that cannot go on as asked for.
        """
        self.check(optimizer, horizon)
        make: Callable[..., Any] = self.kind or self.name  # type: ignore[assignment]
        with self._refusals():
            made = make(optimizer, **self.completed(optimizer, horizon))
        if not isinstance(made, LRScheduler):
            raise UsageError(f"the schedule's factory returned {type(made).__name__}", fix="return an LRScheduler")
        if isinstance(made, ReduceLROnPlateau) and self.every_ == "step":
            raise _plateau_by_step(self.known_as)
        return made

    @contextmanager
    def _refusals(self) -> Iterator[None]:
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


def _plateau_by_step(name: str) -> UsageError:
    return UsageError(f"{name} every step", why="It looks at an epoch's loss", fix="every='epoch'")


def _stand_in(optimizer: Optimizer) -> Optimizer:
    """An optimizer of the same settings over weights of its own, whose learning rate is nobody's."""
    of_weights = ("params", "param_names")
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name not in of_weights}
        | {"params": [torch.nn.Parameter(torch.zeros(1))]}
        for group in optimizer.param_groups
    ]
    return Optimizer(groups, copy.deepcopy(optimizer.defaults))


def _taken(kind: type[LRScheduler]) -> dict[str, object]:
    """What a class takes -> its default, or that it has to be given."""
    parameters = inspect.signature(kind).parameters.values()
    hidden = ("optimizer", "last_epoch", "scale_fn")
    return {p.name: p.default for p in parameters if p.name not in hidden}


def resolve_schedule(schedule: str | Schedule | ScheduleFactory | None) -> Schedule | None:
    """A schedule from its name, a value, or a factory."""
    return schedule if schedule is None or isinstance(schedule, Schedule) else Schedule(name=schedule)


Beta1 = Callable[[int], float]
"""Step, counted from 1 -> β₁."""


def depends_on_run_length(beta1: str | Beta1 | None) -> bool:
    """Whether a β₁ depends on how many steps the run has.

    Examples
    --------
    >>> [depends_on_run_length(beta1) for beta1 in ("linear:0.5", "exponential:0.9", lambda step: 0.9)]
    [True, False, False]
    """
    return isinstance(beta1, str) and beta1.startswith("linear:")


def beta1_of(beta1: str | Beta1, first: float, *, n_steps: int) -> Beta1:
    """The function of the step that a name stands for, from the optimizer's own β₁ on.

    Raises
    ------
    UsageError
        The name is unknown, or its number out of range.

    Examples
    --------
    >>> beta1_of("linear:0.5", 0.9, n_steps=5)(3)
    0.7
    """
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


def check_beta1(beta1: object, step: int) -> None:
    """Refuse what is no β₁.

    Raises
    ------
    UsageError
        It is not in [0, 1).
    """
    if not (isinstance(beta1, int | float) and 0 <= beta1 < 1):
        raise UsageError(f"beta1 is {beta1!r} at step {step}; it must be in [0, 1)")


class OptimizerSchedules:
    """The schedules of a run at work on its optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose parameter groups they change.
    schedule : str, Schedule or callable, optional
        Of the learning rate.
    beta1 : str or callable, optional
        Of β₁, as a function of the step, or by name: ``"linear:0.5"`` goes from the optimizer's own to 0.5 over the
        run; ``"exponential:0.9999"`` is β₁ λ^(t-1) with that λ.

    Raises
    ------
    UnknownName
        No schedule has that name.
    UsageError
        The optimizer has no β₁, or its options are wrong, or two schedules would change β₁.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> adam = torch.optim.Adam([weight], lr=0.1)
    >>> schedules = OptimizerSchedules(adam, "linear", "exponential:0.5")
    >>> schedules.begin(RunLength(n_epochs=5, n_steps=50))
    >>> schedules.before_step(3)
    >>> adam.param_groups[0]["betas"], round(adam.param_groups[0]["lr"], 4)
    ((0.225, 0.999), 0.0333)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: str | Schedule | ScheduleFactory | None = None,
        beta1: str | Beta1 | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._schedule = resolve_schedule(schedule)
        self._beta1_given = beta1
        self._beta1: Beta1 | None = None
        self._beta1_steps: int | None = None
        self._scheduler: LRScheduler | None = None
        self._completed: dict[str, object] = {}
        if self._schedule is not None:
            self._schedule.check(optimizer)
        if beta1 is not None:
            self._check_beta1()
            beta1_of(beta1, self._first_beta1(), n_steps=1)

    def _check_beta1(self) -> None:
        if "betas" not in self._optimizer.param_groups[0]:
            name = type(self._optimizer).__name__
            raise UsageError(f"beta1 with {name}, which has none", fix="adam, or one of its kin")
        options = self._schedule.options if self._schedule else {}
        if self._schedule is not None and self._schedule.cycles and options.get("cycle_momentum", True):
            raise UsageError(
                "beta1 given beside a schedule that changes it",
                fix="cycle_momentum=false as an option of the schedule, or no beta1",
            )

    def _first_beta1(self) -> float:
        return float(self._optimizer.param_groups[0]["betas"][0])

    @property
    def by_step(self) -> bool:
        """Whether anything changes from step to step."""
        return self._beta1_given is not None or (self._schedule is not None and self._schedule.every_ == "step")

    def describe(self) -> dict[str, object]:
        """The schedules as ``config.json`` holds them."""
        schedule, beta1 = self._schedule, self._beta1_given
        return {
            "schedule": schedule
            and {"name": schedule.known_as, "every": schedule.every_, **schedule.options, **self._completed},
            "beta1": getattr(beta1, "__name__", "a function") if callable(beta1) else beta1,
            **({"beta1_steps": self._beta1_steps} if self._beta1_steps is not None else {}),
        }

    def begin(self, horizon: RunLength) -> None:
        """Set the schedules up for a run; a run that goes on keeps them.

        Raises
        ------
        UsageError
            torch refuses the options; or they were set up for another end of the run.
        """
        self._begin_beta1(horizon.n_steps)
        if self._schedule is None:
            return
        completed = self._schedule.completed(self._optimizer, horizon)
        if self._scheduler is None:
            self._scheduler, self._completed = self._schedule.make(self._optimizer, horizon), completed
            return
        for name in ("T_max", "total_steps"):
            if completed.get(name) != self._completed.get(name):
                raise UsageError(
                    f"the schedule was set up for {name}={self._completed[name]}; this call means {completed[name]}",
                    fix=f"the {name} of both calls together, as an option of the schedule",
                )

    def _begin_beta1(self, n_steps: int) -> None:
        if self._beta1_given is None:
            return
        if self._beta1 is None:
            self._beta1 = beta1_of(self._beta1_given, self._first_beta1(), n_steps=n_steps)
            self._beta1_steps = n_steps if depends_on_run_length(self._beta1_given) else None
        elif self._beta1_steps is not None and n_steps != self._beta1_steps:
            raise UsageError(
                f"beta1 was set up for {self._beta1_steps} steps; this call means {n_steps}",
                fix="beta1 as a function of the step, which has no end",
            )

    def before_step(self, step: int) -> None:
        """Set what step number ``step``, counted from 1, is taken with.

        Raises
        ------
        UsageError
            The function of β₁ leaves [0, 1).
        """
        if self._beta1 is None:
            return
        beta1 = self._beta1(step)
        check_beta1(beta1, step)
        for group in self._optimizer.param_groups:
            group["betas"] = (beta1, *group["betas"][1:])

    def after_step(self) -> None:
        """Go on after a step."""
        if self._scheduler is not None and self._schedule is not None and self._schedule.every_ == "step":
            self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Go on after an epoch that came to this loss."""
        if self._scheduler is None or self._schedule is None or self._schedule.every_ != "epoch":
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss)
        else:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Where they stand: numbers, texts and tensors."""
        return {"scheduler": self._scheduler.state_dict() if self._scheduler else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; the optimizer's own state has the learning rate that goes with it."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
