"""Options of an optimizer step: accumulation, clipping, schedules, autocast, compile and penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from streamtrain.errors import UsageError
from streamtrain.models.alignment import dtype_name
from streamtrain.models.forward import check_autocast, make_forward
from streamtrain.models.losses import Loss
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.build_rule import make_rule
from streamtrain.optim.gradients import NO_CLIPPING, Clipping, Learner, check_l2
from streamtrain.optim.optimizers import takes_closure
from streamtrain.optim.rules import UpdateRule
from streamtrain.optim.schedules import Beta1, OptimizerSchedules, Schedule, ScheduleFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How steps are taken.

    Parameters
    ----------
    accumulate_grad_batches : int
        How many batches a step of the rule ``batch`` is on; what is left of them at an epoch's end has its own step.
    grad_sum_dtype : {"float64", "compensated", "float32"}
        What gradients are summed in, by the rule ``epoch`` and over accumulated batches; see
        `streamtrain.optim.gradient_sum`.
    sample_path : {"auto", "plain", "fast"}
        How the rule ``sample`` takes its steps: by the plain loop, or several times as fast and the same to rounding
        where the model, loss and optimizer are known to `streamtrain.optim.sample_fast_path`; ``"auto"`` is fast where
        it can be. A run that goes on takes the path it took.
    clip_grad_norm, clip_grad_value : float, optional
        How far the gradient of a step may go; see `streamtrain.optim.gradients.Clipping`.
    schedule : str, Schedule or callable, optional
        How the learning rate changes, by a name of torch's schedulers, with options, or as a function of the optimizer;
        see `streamtrain.optim.schedules`.
    beta1 : str or callable, optional
        How β₁ of Adam changes, a function of the step, ``"linear:LAST"`` or ``"exponential:FACTOR"``.
    autocast : str or torch.dtype, optional
        ``"bfloat16"``, or ``"bf16"``: what the model computes in where `torch.autocast` finds that good enough.
    compile : bool
        Whether `torch.compile` compiles the model.
    l2 : float
        The factor of the penalty, l2/2 times the sum of the squared weights (not biases), which is a part of J.
    on_step : callable, optional
        Called after every step, without arguments; the weights are those it came to. It may change anything, such as
        step a scheduler of the user's own, so the rule ``sample`` takes the plain path with it.
    grad_tolerance, loss_tolerance : float, optional
        Where a run with ``lbfgs`` or ``cg`` ends: at a norm of J's gradient of at most the first, or after a step that
        lowers J by at most the second, relative to J where that is above 1.

    Raises
    ------
    UsageError
        A name is unknown, a number is out of its range, or an option has no meaning beside another.
    """

    accumulate_grad_batches: int = 1
    grad_sum_dtype: str = "float64"
    sample_path: str = "auto"
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    schedule: str | Schedule | ScheduleFactory | None = None
    beta1: str | Beta1 | None = None
    autocast: str | torch.dtype | None = None
    compile: bool = False
    l2: float = 0.0
    on_step: Callable[[], None] | None = None
    grad_tolerance: float | None = None
    loss_tolerance: float | None = None

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Take a setting's options out of others, and return both.

        Examples
        --------
        >>> setting, others = StepOptions.split({"clip_grad_norm": 1.0, "momentum": 0.9})
        >>> setting.clip_grad_norm, others
        (1.0, {'momentum': 0.9})
        """
        own = {field.name for field in fields(cls)}
        setting = cls(**{name: value for name, value in options.items() if name in own})
        return setting, {name: value for name, value in options.items() if name not in own}

    def front(self, model: nn.Module, inputs: tuple[str, ...], device: torch.device) -> NormalizedModel:
        """The model as it is to be run, behind what rescales its inputs."""
        autocast = check_autocast(self.autocast)
        return NormalizedModel(
            model, inputs, make_forward(model, device=device, autocast=autocast, compiled=self.compile)
        )

    def learner(self, front: NormalizedModel, loss: Loss, optimizer: Optimizer) -> Learner:
        """What the steps are taken with.

        Raises
        ------
        UsageError
            The optimizer searches along a line: a clipped gradient, or a rate that changes, would not be J's.
        """
        check_l2(self.l2)
        clipping = Clipping(norm=self.clip_grad_norm, value=self.clip_grad_value)
        has_schedules = self.schedule is not None or self.beta1 is not None
        if takes_closure(optimizer) and (has_schedules or clipping != NO_CLIPPING):
            names = ("schedule", "beta1", "clip_grad_norm", "clip_grad_value")
            given = next(name for name in names if getattr(self, name) is not None)
            raise UsageError(
                f"{given} with {type(optimizer).__name__}",
                why="Its line search finds the length of every step, on J's own gradient",
                fix="leave it out",
            )
        return Learner(
            model=front,
            loss=loss,
            optimizer=optimizer,
            l2=self.l2,
            clipping=clipping,
            schedules=OptimizerSchedules(optimizer, self.schedule, self.beta1) if has_schedules else None,
            on_step=self.on_step,
        )

    def rule(self, update: str, learner: Learner) -> UpdateRule:
        """The update rule at work on a learner; see `streamtrain.optim.build_rule.make_rule`."""
        return make_rule(
            update,
            learner,
            grad_sum_dtype=self.grad_sum_dtype,
            accumulate_grad_batches=self.accumulate_grad_batches,
            sample_path=self.sample_path,
            grad_tolerance=self.grad_tolerance,
            loss_tolerance=self.loss_tolerance,
        )

    def describe(self, learner: Learner) -> dict[str, object]:
        """The setting as ``config.json`` holds it, without what the rule itself says."""
        autocast = check_autocast(self.autocast)
        schedules = learner.schedules.describe() if learner.schedules else {"schedule": None, "beta1": None}
        return {
            "clip_grad_norm": self.clip_grad_norm,
            "clip_grad_value": self.clip_grad_value,
            **schedules,
            "autocast": dtype_name(autocast) if autocast else None,
            "compile": self.compile,
            "l2": self.l2,
            "grad_tolerance": self.grad_tolerance,
            "loss_tolerance": self.loss_tolerance,
        }
