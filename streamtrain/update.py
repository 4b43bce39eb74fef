"""An update rule by its name, with what it has to know."""

from __future__ import annotations

from streamtrain.errors import UsageError
from streamtrain.gradient_sum import check_grad_sum_dtype
from streamtrain.gradients import Learner
from streamtrain.rules import RULES, BatchRule, EpochRule, Rule, check_rule


def make_rule(
    update: str, learner: Learner, *, grad_sum_dtype: str = "float64", accumulate_grad_batches: int = 1
) -> Rule:
    """Put an update rule to work on a learner.

    Parameters
    ----------
    update : {"batch", "sample", "epoch"}
        Which.
    learner : Learner
        What it trains.
    grad_sum_dtype : {"float64", "compensated", "float32"}
        What sums of gradients are held in; see `streamtrain.gradient_sum`.
    accumulate_grad_batches : int
        How many batches the rule ``batch`` takes in for a step.

    Raises
    ------
    UnknownName
        No rule, or no dtype of a sum, has that name.
    UsageError
        Batches are to be accumulated under another rule, or their number is no integer of at least 1.

    Examples
    --------
    >>> from streamtrain.losses import resolve_loss
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
    k = accumulate_grad_batches
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UsageError(f"accumulate_grad_batches is {k!r}; it must be an integer of at least 1")
    if k > 1 and update != "batch":
        raise UsageError(
            f"accumulate_grad_batches is {k} with update={update!r}",
            why="Only the rule 'batch' steps on some batches",
            fix="update='batch'",
        )
    match update:
        case "batch":
            return BatchRule(learner, accumulate=k, grad_sum_dtype=grad_sum_dtype)
        case "epoch":
            return EpochRule(learner, grad_sum_dtype=grad_sum_dtype)
        case _:
            return RULES[update](learner)
