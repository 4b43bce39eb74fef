"""The update rules of gradient descent: after how much data the weights change.

======== =========================== ==========================================================================
rule     one step on the mean over   how
======== =========================== ==========================================================================
batch    a batch                     a short last batch is a mean over its own size
sample   one sample                  the plain loop; a batch is only the unit of reading
epoch    the whole dataset           one pass in stored order sums the gradients; one step at its end
======== =========================== ==========================================================================

A rule is handed the batches of a pass, one after the other, and told when the pass ends. It counts its own steps, so
that a total can stop the sample rule in the middle of a batch. A rule takes gradients through `gradient` alone and adds
them up in a `GradientSum` by weight, here the number of samples; those two are where other weights come in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.errors import DivergedError, unknown_name
from streamtrain.losses import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step needs: the model, its loss, and the optimizer over its parameters."""

    model: nn.Module
    loss: Loss
    optimizer: Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a rule saw while it took in a batch.

    Parameters
    ----------
    loss : float
        The mean loss over the samples, each measured just before it changed the weights.
    output, target : torch.Tensor
        Of shapes (n_samples, ...); the output without its graph.
    """

    loss: float
    output: Tensor
    target: Tensor

    @property
    def n_samples(self) -> int:
        """Samples taken in; fewer than the batch holds where the last step was reached inside it."""
        return len(self.target)


def gradient(learner: Learner, inputs: tuple[Tensor, ...], target: Tensor) -> tuple[float, Tensor]:
    """Leave the gradient of the mean loss over a batch in the parameters; return that loss and the output.

    Raises
    ------
    DivergedError
        The loss is not finite. No step has been taken on it, so the weights are the last good ones.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    output: Tensor = learner.model(*inputs)
    mean = learner.loss(output, target)
    mean.backward()  # type: ignore[no-untyped-call]
    value = mean.item()
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss is {value}",
            why="The weights, or a sample, have left the range of the numbers",
            fix="a smaller learning rate, or normalized inputs",
        )
    return value, output.detach()


class Rule(ABC):
    """One of the update rules, at work on a learner.

    Parameters
    ----------
    learner : Learner
        What it trains.

    Attributes
    ----------
    n_steps : int
        Optimizer steps taken so far.
    """

    name: ClassVar[str]
    in_stored_order: ClassVar[bool] = False
    """Whether passes read in stored order, since no order makes a difference."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.n_steps = 0

    @abstractmethod
    def learn(self, inputs: tuple[Tensor, ...], target: Tensor, max_steps: int | None = None) -> Learned:
        """Take in one batch; stop once ``n_steps`` is ``max_steps``."""

    def end_epoch(self) -> None:
        """Learn that the pass is complete; only a rule that waits for it has anything to do."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What the rule has to remember from one batch to the next: numbers and tensors."""
        return {"name": self.name, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.n_steps = state["n_steps"]

    def _step(self) -> None:
        self.learner.optimizer.step()
        self.n_steps += 1


class BatchRule(Rule):
    """One step per batch."""

    name = "batch"

    def learn(self, inputs: tuple[Tensor, ...], target: Tensor, max_steps: int | None = None) -> Learned:
        loss, output = gradient(self.learner, inputs, target)
        self._step()
        return Learned(loss=loss, output=output, target=target)


class SampleRule(Rule):
    """One step per sample: bit for bit the plain loop over single samples."""

    name = "sample"

    def learn(self, inputs: tuple[Tensor, ...], target: Tensor, max_steps: int | None = None) -> Learned:
        n_samples = len(target) if max_steps is None else min(len(target), max_steps - self.n_steps)
        loss, output = self._learn_one(inputs, target, 0)
        losses = [loss]
        # All outputs in one piece of memory. Kept one by one, each would lie where a freed gradient was, and the
        # allocator would need a new place for the next gradient: memory would grow by a gradient a sample.
        outputs = output.new_empty((n_samples, *output.shape[1:]))
        outputs[:1] = output
        del output
        for i in range(1, n_samples):
            loss, outputs[i : i + 1] = self._learn_one(inputs, target, i)
            losses.append(loss)
        return Learned(loss=math.fsum(losses) / n_samples, output=outputs, target=target[:n_samples])

    def _learn_one(self, inputs: tuple[Tensor, ...], target: Tensor, i: int) -> tuple[float, Tensor]:
        seen = gradient(self.learner, tuple(x[i : i + 1] for x in inputs), target[i : i + 1])
        self._step()
        return seen


class EpochRule(Rule):
    """One step per pass, on the exact mean gradient over the dataset."""

    name = "epoch"
    in_stored_order = True

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
        self._sum = GradientSum(parameters)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self._sum.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sum.load_state_dict(state["sum"])

    def learn(self, inputs: tuple[Tensor, ...], target: Tensor, max_steps: int | None = None) -> Learned:
        loss, output = gradient(self.learner, inputs, target)
        self._sum.add(len(target))
        return Learned(loss=loss, output=output, target=target)

    def end_epoch(self) -> None:
        self._sum.put_mean()
        self._step()


class GradientSum:
    """The weighted sum of the gradients that pass through some parameters, in float64.

    Summing in float64 makes the sum as good as each gradient in it, however many there are.

    Parameters
    ----------
    parameters : list of torch.nn.Parameter
        Whose ``grad`` is summed; one that never has any stays without.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(1))
    >>> total = GradientSum([weight])
    >>> for value, n_samples in ((1.0, 3), (5.0, 1)):
    ...     weight.grad = torch.tensor([value])
    ...     total.add(n_samples)
    >>> total.put_mean()
    >>> weight.grad
    tensor([2.])
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._weight = 0.0

    def add(self, weight: float) -> None:
        """Add each parameter's gradient, a mean over samples of this total weight."""
        self._weight += weight
        for i, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            if i not in self._sums:
                self._sums[i] = torch.zeros_like(parameter, dtype=torch.float64, requires_grad=False)
            self._sums[i].add_(parameter.grad, alpha=weight)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, by the parameter's number, and their weight."""
        return {"weight": self._weight, "sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from sums that ``state_dict`` gave, each on its parameter's device."""
        self._weight = state["weight"]
        self._sums = {i: total.to(self._parameters[i].device) for i, total in state["sums"].items()}

    def put_mean(self) -> None:
        """Put the weighted mean in place of each parameter's gradient, and begin anew."""
        for i, parameter in enumerate(self._parameters):
            parameter.grad = (self._sums[i] / self._weight).to(parameter.dtype) if i in self._sums else None
        self._clear()


RULES: Final[dict[str, type[Rule]]] = {rule.name: rule for rule in (BatchRule, SampleRule, EpochRule)}
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
