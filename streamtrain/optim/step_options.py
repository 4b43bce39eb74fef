"""Options of an optimizer step: accumulation, clipping, schedules, autocast, compile and penalties.

The command line reads them for its help, so nothing here imports torch before a step is described.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from streamtrain.system.arguments import check_flags, check_optional_functions

if TYPE_CHECKING:
    import torch

    from streamtrain.optim.schedules import Beta1, OptimizerSchedules, Schedule, ScheduleFactory


def _option(default: object, help_text: str, section: str, **command_line: object) -> Any:
    """Declare an option with its help on the command line, its section there, and anything else that click takes."""
    return field(default=default, metadata={"help": help_text, "section": section, **command_line})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """The options of a step, each declared once; `streamtrain.Trainer` explains them."""

    accumulate_grad_batches: int = _option(
        1, "Batches per step, with the update rule batch.", "More on steps", type=int, metavar="K"
    )
    grad_sum_dtype: str = _option(
        "float64",
        "The type in which gradients are summed over batches: float64, compensated (two float32), or float32.",
        "Update rules",
    )
    sample_path: str = _option(
        "auto",
        "With the update rule sample: plain, fast (the same up to rounding), or auto: fast for models it supports.",
        "Update rules",
    )
    clip_grad_norm: float | None = _option(
        None, "Scale longer gradients down to this norm.", "Steps", type=float, metavar="NORM"
    )
    clip_grad_value: float | None = _option(
        None, "Clip each component of a gradient to this size.", "Optimizer", type=float, metavar="VALUE"
    )
    schedule: str | Schedule | ScheduleFactory | None = _option(
        None,
        "cosine, step, onecycle, plateau, linear, exponential, constant, multistep, cyclic, polynomial, restarts.",
        "Steps",
    )
    beta1: str | Beta1 | None = _option(
        None, "How Adam's beta1 changes: linear:LAST over the run, or exponential:FACTOR per step.", "Optimizer"
    )
    autocast: str | torch.dtype | None = _option(None, "Compute in bfloat16 where it is precise enough.", "Speed")
    compile: bool = _option(False, "Compile the model with torch.compile.", "Speed", is_flag=True)
    l2: float = _option(0.0, "Add l2/2 times the sum of the squared weights to the mean loss.", "Optimizer", type=float)
    on_step: Callable[[], None] | None = None
    grad_tolerance: float | None = _option(
        None, "Stop when the norm of the gradient is at most this.", "L-BFGS and CG", type=float
    )
    loss_tolerance: float | None = _option(
        None, "Stop when a step lowers the mean loss by at most this.", "L-BFGS and CG", type=float
    )

    def __post_init__(self) -> None:
        check_flags(compile=self.compile)
        check_optional_functions(on_step=self.on_step)

    def describe(self, schedules: OptimizerSchedules | None) -> dict[str, object]:
        """Describe the options for ``config.json``, without those that the rule describes itself."""
        from streamtrain.models.alignment import dtype_name
        from streamtrain.models.forward import check_autocast

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
