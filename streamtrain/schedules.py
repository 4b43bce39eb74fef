"""What changes from step to step or from epoch to epoch: the learning rate, and Adam's β₁."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from streamtrain.beta1 import Beta1, beta1_of, check_beta1, ends_with_run
from streamtrain.errors import UsageError
from streamtrain.lr_schedule import Horizon, Schedule, ScheduleFactory, resolve_schedule


class Schedules:
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
    >>> schedules = Schedules(adam, "linear", "exponential:0.5")
    >>> schedules.begin(Horizon(n_epochs=5, n_steps=50))
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

    def begin(self, horizon: Horizon) -> None:
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
            self._beta1_steps = n_steps if ends_with_run(self._beta1_given) else None
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
