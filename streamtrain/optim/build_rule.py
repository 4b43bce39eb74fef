"""An update rule built from its name, with its options checked."""

from __future__ import annotations

from typing import Final

from torch import nn
from torch.optim import Optimizer

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.models.losses import Loss
from streamtrain.optim.full_batch import FullBatchRule
from streamtrain.optim.gradient_sum import GradientSum
from streamtrain.optim.gradients import NO_CLIPPING, Clipping, Learner, check_l2
from streamtrain.optim.optimizers import takes_closure
from streamtrain.optim.rules import BatchRule, EpochRule, UpdateRule
from streamtrain.optim.sample_fast_path.choice import check_sample_path
from streamtrain.optim.sample_rule import SampleRule
from streamtrain.optim.schedules import OptimizerSchedules
from streamtrain.optim.step_options import StepOptions
from streamtrain.system.arguments import check_choice, check_int

RULES: Final[dict[str, type[UpdateRule]]] = {rule.name: rule for rule in (BatchRule, SampleRule, EpochRule)}
_DEFAULTS: Final = StepOptions()


def check_rule(update: str) -> None:
    """Refuse a name that is not an update rule."""
    check_choice(update, "update rule", RULES)


def make_rule(update: str, learner: Learner, options: StepOptions = _DEFAULTS) -> UpdateRule:
    """Make an update rule for a learner; refuse options that are out of range or have no effect under it."""
    check_rule(update)
    total = GradientSum(options.grad_sum_dtype)
    check_sample_path(options.sample_path)
    _check_effect(update, options)
    _check_line_search(update, learner.optimizer, options)
    match update:
        case "batch":
            return BatchRule(learner, accumulate=options.accumulate_grad_batches, total=total)
        case "epoch" if takes_closure(learner.optimizer):
            tolerances = {"grad_tolerance": options.grad_tolerance, "loss_tolerance": options.loss_tolerance}
            return FullBatchRule(learner, total, **tolerances)
        case "epoch":
            return EpochRule(learner, total)
        case _:
            return SampleRule(learner, path=options.sample_path)


def make_learner(model: nn.Module, loss: Loss, optimizer: Optimizer, options: StepOptions) -> Learner:
    """Make the learner that steps are taken with.

    A line search refuses clipping and schedules: a clipped gradient, or a changing rate, would not be J's.
    """
    check_l2(options.l2)
    clipping = Clipping(norm=options.clip_grad_norm, value=options.clip_grad_value)
    has_schedules = options.schedule is not None or options.beta1 is not None
    if takes_closure(optimizer) and (has_schedules or clipping != NO_CLIPPING):
        names = ("schedule", "beta1", "clip_grad_norm", "clip_grad_value")
        raise UsageError(
            f"{next(name for name in names if getattr(options, name) is not None)} with {type(optimizer).__name__}",
            why="Its line search finds the length of every step, on J's own gradient",
            fix="leave it out",
        )
    return Learner(
        model=model,
        loss=loss,
        optimizer=optimizer,
        l2=options.l2,
        clipping=clipping,
        schedules=OptimizerSchedules(optimizer, options.schedule, options.beta1) if has_schedules else None,
        on_step=options.on_step,
    )


def _check_effect(update: str, options: StepOptions) -> None:
    """Refuse options that would have no effect under a rule."""
    k, sample_path, dtype = options.accumulate_grad_batches, options.sample_path, options.grad_sum_dtype
    check_int(k, "accumulate_grad_batches")
    if k > 1 and update != "batch":
        raise UsageError(
            f"accumulate_grad_batches is {k} with update={update!r}",
            why="Only the rule 'batch' takes a step over several batches",
            fix=Fix(Argument("update", "batch")),
        )
    if sample_path != "auto" and update != "sample":
        raise UsageError(
            f"sample_path is {sample_path!r} with update={update!r}",
            why="Only the rule 'sample' has more than one path",
            fix=Fix(Argument("update", "sample"), ", or leave it out"),
        )
    if dtype != "float64" and (update == "sample" or (update == "batch" and k == 1)):
        raise UsageError(
            f"grad_sum_dtype is {dtype!r} with update={update!r}",
            why="Its steps are on one gradient, and nothing is summed",
            fix=Fix(
                *(Argument("update", "epoch"), ", or ", Argument("accumulate_grad_batches", 2), " at least, "),
                "or leave it out",
            ),
        )


def _check_line_search(update: str, optimizer: Optimizer, options: StepOptions) -> None:
    """Refuse a line search without the whole dataset, and tolerances without a line search."""
    if update != "epoch" and takes_closure(optimizer):
        raise UsageError(
            f"{type(optimizer).__name__} with update={update!r}",
            why="Its line search compares J over the whole dataset, one pass for each value",
            fix=Fix(Argument("update", "epoch")),
        )
    given = [name for name in ("grad_tolerance", "loss_tolerance") if getattr(options, name) is not None]
    if given and not takes_closure(optimizer):
        raise UsageError(
            f"{given[0]} with {type(optimizer).__name__}",
            why="Only a line search knows J and its gradient at the weights that a step came to",
            fix=Fix(
                Argument("optimizer", "lbfgs"), " or ", Argument("optimizer", "cg"), ", or ", Argument("until_loss")
            ),
        )
