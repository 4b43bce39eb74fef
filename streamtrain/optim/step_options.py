"""Options of an optimizer step: accumulation, clipping, schedules, autocast, compile and penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch

from streamtrain.models.alignment import dtype_name
from streamtrain.models.forward import check_autocast
from streamtrain.optim.schedules import Beta1, OptimizerSchedules, Schedule, ScheduleFactory
from streamtrain.system.arguments import check_flags, check_optional_functions


def _option(default: object, help_text: str, **command_line: object) -> Any:
    """Declare an option with its help on the command line, and anything else that click takes."""
    return field(default=default, metadata={"help": help_text, **command_line})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """The options of a step, each declared once; `streamtrain.Trainer` explains them."""

    accumulate_grad_batches: int = _option(1, "Batches of a step, with the update rule batch.", type=int, metavar="K")
    grad_sum_dtype: str = _option(
        "float64", "What gradients are summed in over batches: float64, compensated (two float32), or float32."
    )
    sample_path: str = _option(
        "auto",
        "With the update rule sample: plain, fast (the same to rounding), or auto: fast for models that it knows.",
    )
    clip_grad_norm: float | None = _option(
        None, "The most a gradient's Euclidean norm may be.", type=float, metavar="NORM"
    )
    clip_grad_value: float | None = _option(
        None, "The most a component of a gradient may be.", type=float, metavar="VALUE"
    )
    schedule: str | Schedule | ScheduleFactory | None = _option(
        None, "Of the learning rate: cosine, onecycle, step, plateau, ... of torch's schedulers."
    )
    beta1: str | Beta1 | None = _option(
        None, "How Adam's beta1 changes: linear:LAST over the run, or exponential:FACTOR a step."
    )
    autocast: str | torch.dtype | None = _option(None, "Compute in bfloat16 where that is good enough.", metavar="bf16")
    compile: bool = _option(False, "Compile the model with torch.compile.", is_flag=True)
    l2: float = _option(0.0, "J has l2/2 times the sum of the squared weights in it.", type=float)
    on_step: Callable[[], None] | None = None
    grad_tolerance: float | None = _option(
        None, "With lbfgs, cg: end at a gradient whose norm is at most this.", type=float
    )
    loss_tolerance: float | None = _option(
        None, "With lbfgs, cg: end where a step lowers J by at most this.", type=float
    )

    def __post_init__(self) -> None:
        check_flags(compile=self.compile)
        check_optional_functions(on_step=self.on_step)

    def describe(self, schedules: OptimizerSchedules | None) -> dict[str, object]:
        """Describe the options for ``config.json``, without those that the rule describes itself."""
        autocast = check_autocast(self.autocast)
        return {
            "clip_grad_norm": self.clip_grad_norm,
            "clip_grad_value": self.clip_grad_value,
            **(schedules.describe() if schedules else {"schedule": None, "beta1": None}),
            "autocast": dtype_name(autocast) if autocast else None,
            "compile": self.compile,
            "l2": self.l2,
            "grad_tolerance": self.grad_tolerance,
            "loss_tolerance": self.loss_tolerance,
        }

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Select these options out of others, by name."""
        return cls(**{each.name: given[each.name] for each in fields(cls) if each.name in given})
