"""An update rule built from its name, with its options checked."""

from __future__ import annotations

from typing import Final

from torch.optim import Optimizer

from streamtrain.errors import UsageError, unknown_name
from streamtrain.optim.full_batch import FullBatchRule
from streamtrain.optim.gradient_sum import check_grad_sum_dtype
from streamtrain.optim.gradients import Learner
from streamtrain.optim.optimizers import takes_closure
from streamtrain.optim.rules import BatchRule, EpochRule, UpdateRule
from streamtrain.optim.sample_fast_path.choice import check_sample_path
from streamtrain.optim.sample_rule import SampleRule
from streamtrain.system.arguments import check_int

RULES: Final[dict[str, type[UpdateRule]]] = {rule.name: rule for rule in (BatchRule, SampleRule, EpochRule)}
"""Name -> rule."""


def check_rule(update: str) -> None:
    """Refuse a name that is no update rule.

    Raises
    ------
    UnknownName
        No rule has that name.

    Examples
    --------
    >>> check_rule("bach")
    Traceback (most recent call last):
    ...
    streamtrain.errors.UnknownName: unknown update rule 'bach'. Known: batch, epoch, sample. Fix: did you mean 'batch'?
    """
    if update not in RULES:
        raise unknown_name("update rule", update, RULES)


def make_rule(
    update: str,
    learner: Learner,
    *,
    grad_sum_dtype: str = "float64",
    accumulate_grad_batches: int = 1,
    sample_path: str = "auto",
    grad_tolerance: float | None = None,
    loss_tolerance: float | None = None,
) -> UpdateRule:
    """Put an update rule to work on a learner.

    Parameters
    ----------
    update : {"batch", "sample", "epoch"}
        Which.
    learner : Learner
        What it trains.
    grad_sum_dtype : {"float64", "compensated", "float32"}
        What sums of gradients are held in; see `streamtrain.optim.gradient_sum`.
    accumulate_grad_batches : int
        How many batches the rule ``batch`` takes in for a step.
    sample_path : {"auto", "plain", "fast"}
        How the rule ``sample`` goes about it; see `streamtrain.optim.sample_fast_path`.

    grad_tolerance, loss_tolerance : float, optional
        Where an optimizer with a line search has converged; see `streamtrain.optim.full_batch`.

    Raises
    ------
    UnknownName
        No rule, no path, or no dtype of a sum, has that name.
    UsageError
        Batches are to be accumulated under another rule, or their number is no integer of at least 1. Or an optimizer
        with a line search is to work under another rule than ``epoch``. Or a path or a dtype of sums is named under a
        rule that has none.

    Examples
    --------
    >>> from streamtrain.models.losses import resolve_loss
    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> learner = Learner(model=net, loss=resolve_loss("mse"), optimizer=torch.optim.SGD(net.parameters()))
    >>> make_rule("epoch", learner, grad_sum_dtype="compensated").name
    'epoch'
    >>> make_rule("batch", learner, accumulate_grad_batches=0)
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: accumulate_grad_batches is 0; it must be an integer of at least 1
    """
    check_rule(update)
    check_grad_sum_dtype(grad_sum_dtype)
    check_sample_path(sample_path)
    k = accumulate_grad_batches
    _check_effect(update, k, sample_path=sample_path, grad_sum_dtype=grad_sum_dtype)
    _check_line_search(update, learner.optimizer, grad_tolerance=grad_tolerance, loss_tolerance=loss_tolerance)
    match update:
        case "batch":
            return BatchRule(learner, accumulate=k, grad_sum_dtype=grad_sum_dtype)
        case "epoch" if takes_closure(learner.optimizer):
            return FullBatchRule(
                learner,
                grad_sum_dtype=grad_sum_dtype,
                grad_tolerance=grad_tolerance,
                loss_tolerance=loss_tolerance,
            )
        case "epoch":
            return EpochRule(learner, grad_sum_dtype=grad_sum_dtype)
        case _:
            return SampleRule(learner, path=sample_path)


def _check_effect(update: str, k: int, *, sample_path: str, grad_sum_dtype: str) -> None:
    """Refuse options that would have no effect under a rule."""
    check_int(k, "accumulate_grad_batches")
    if k > 1 and update != "batch":
        raise UsageError(
            f"accumulate_grad_batches is {k} with update={update!r}",
            why="Only the rule 'batch' steps on some batches",
            fix="update='batch'",
        )
    if sample_path != "auto" and update != "sample":
        raise UsageError(
            f"sample_path is {sample_path!r} with update={update!r}",
            why="Only the rule 'sample' has more than one path",
            fix="update='sample', or leave it out",
        )
    if grad_sum_dtype != "float64" and (update == "sample" or (update == "batch" and k == 1)):
        raise UsageError(
            f"grad_sum_dtype is {grad_sum_dtype!r} with update={update!r}",
            why="Its steps are on one gradient, and nothing is summed",
            fix="update='epoch', or accumulate_grad_batches of at least 2, or leave it out",
        )


def _check_line_search(
    update: str, optimizer: Optimizer, *, grad_tolerance: float | None, loss_tolerance: float | None
) -> None:
    """Refuse a line search under a rule that has no whole dataset, and its tolerances where there is none."""
    if update != "epoch" and takes_closure(optimizer):
        raise UsageError(
            f"{type(optimizer).__name__} with update={update!r}",
            why="Its line search compares J over the whole dataset, one pass for each value",
            fix="update='epoch'",
        )
    if (grad_tolerance, loss_tolerance) != (None, None) and not takes_closure(optimizer):
        name = "loss_tolerance" if grad_tolerance is None else "grad_tolerance"
        raise UsageError(
            f"{name} with {type(optimizer).__name__}",
            why="Only a line search knows J and its gradient at the weights that a step came to",
            fix="optimizer='lbfgs' or 'cg', or until_loss",
        )
