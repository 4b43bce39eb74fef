"""The update rules of gradient descent: after how much data the weights change.

======== =========================== ==========================================================================
rule     one step on the mean over   how
======== =========================== ==========================================================================
batch    a batch                     a short last batch is a mean over its own size
sample   one sample                  the plain loop; a batch is only the unit of reading
epoch    the whole dataset           one pass in stored order sums the gradients; one step at its end
======== =========================== ==========================================================================

A rule is handed the batches of a pass, one after the other, and told when the pass ends. It counts its own steps, so
that a total can stop the sample rule in the middle of a batch. A rule takes gradients through `gradient` alone, and
adds them up in a `GradientSum`.

Where samples have weights w, a rule steps on the weighted mean, and the batch rule takes no step where the weights sum
to 0. The sample rule is the exception: in a mean over one sample the weight cancels. There w scales the sample's loss,
and so the step of plain gradient descent, and 0 skips the sample; weights whose mean is 1 keep the meaning of the
learning rate. Class weights are torch's own and cancel there, as in torch; with ``reduction="sum"`` they do not.

With ``accumulate`` k the batch rule steps on the mean over k batches, exact in the same way as the epoch's. What is
left of them at the end of a pass has a step of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, cast

from torch import Tensor

from streamtrain.errors import unknown_name
from streamtrain.gradient_sum import GradientSum
from streamtrain.gradients import Gradient, Learner, grad_norm, gradient
from streamtrain.penalty import add_penalty


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a rule saw while it took in a batch.

    Parameters
    ----------
    loss : float
        The mean loss over the samples, each measured just before it changed the weights.
    output, target : torch.Tensor
        Of shapes (n_samples, ...); the output without its graph.
    weight : float, optional
        What the loss is the mean over: the weights of the samples, and of their classes, summed. By default the number
        of samples.
    sample_weights : torch.Tensor, optional
        Of shape (n_samples,), where samples have weights.
    """

    loss: float
    output: Tensor
    target: Tensor
    weight: float | None = None
    sample_weights: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Samples taken in; fewer than the batch holds where the last step was reached inside it."""
        return len(self.target)


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
    grad_norm : float or None
        The norm of the gradient of the whole dataset that the last step was taken on; under the rule ``epoch`` alone.
    """

    name: ClassVar[str]
    in_stored_order: ClassVar[bool] = False
    """Whether passes read in stored order, since no order makes a difference."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.n_steps = 0
        self.grad_norm: float | None = None

    @abstractmethod
    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> Learned:
        """Take in one batch, its samples weighted by ``weight``, (B,); stop once ``n_steps`` is ``max_steps``."""

    @property
    def spans(self) -> str | None:
        """By what option a step comes to be on several batches; None where none is."""
        return None

    def options(self) -> dict[str, object]:
        """How it was made, as ``config.json`` holds it."""
        return {}

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
        """Step on the mean gradient, the penalty's put to it."""
        if self.learner.l2:
            add_penalty(self.learner.parameters, self.learner.l2)
        self._step_on_whole()

    def _step_on_whole(self) -> None:
        self.learner.optimizer.step()
        self.n_steps += 1


class BatchRule(Rule):
    """One step per batch, or per window of ``accumulate`` batches."""

    name = "batch"

    def __init__(self, learner: Learner, *, accumulate: int = 1, grad_sum_dtype: str = "float64") -> None:
        super().__init__(learner)
        self._accumulate = accumulate
        self._sum = GradientSum(learner.parameters, grad_sum_dtype)
        self._n_waiting = 0

    def options(self) -> dict[str, object]:
        return {"accumulate_grad_batches": self._accumulate} | self._sum.options() if self._accumulate > 1 else {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self._sum.state_dict(), "n_waiting": self._n_waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sum.load_state_dict(state["sum"])
        self._n_waiting = state["n_waiting"]

    @property
    def spans(self) -> str | None:
        return f"accumulate_grad_batches={self._accumulate}" if self._accumulate > 1 else None

    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> Learned:
        seen = gradient(self.learner, inputs, target, weight, summed=self._accumulate > 1)
        if self._accumulate == 1:
            if seen.weight:
                self._step()
        else:
            self._sum.add(seen.weight)
            self._n_waiting += 1
            if self._n_waiting == self._accumulate:
                self.end_epoch()
        return _learned(seen, target, weight)

    def end_epoch(self) -> None:
        if self._n_waiting and self._sum.weight:
            self._sum.put(1.0 if self.learner.loss.summed else self._sum.weight)
            self._step()
        self._sum.clear()
        self._n_waiting = 0


class SampleRule(Rule):
    """One step per sample: bit for bit the plain loop over single samples."""

    name = "sample"

    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> Learned:
        factors = [None] * len(target) if weight is None else weight.tolist()
        losses: list[float] = []
        weights: list[float] = []
        outputs: Tensor | None = None
        for i, factor in enumerate(factors):
            if max_steps is not None and self.n_steps >= max_steps:
                break
            seen = self._learn_one(inputs, target, i, factor)
            # All outputs in one piece of memory. Kept one by one, each would lie where a freed gradient was, and the
            # allocator would need a new place for the next gradient: memory would grow by a gradient a sample.
            outputs = seen.output.new_empty((len(target), *seen.output.shape[1:])) if outputs is None else outputs
            outputs[i : i + 1] = seen.output
            losses.append(seen.loss * seen.weight)
            weights.append(seen.weight)
            del seen
        n, total = len(losses), math.fsum(weights)
        return Learned(
            loss=math.fsum(losses) / total if total else 0.0,
            output=cast(Tensor, outputs)[:n],
            target=target[:n],
            weight=total,
            sample_weights=None if weight is None else weight[:n],
        )

    def _learn_one(self, inputs: tuple[Tensor, ...], target: Tensor, i: int, factor: float | None) -> Gradient:
        """Take in sample ``i``, its loss times a factor; a factor of 0 measures it and takes no step."""
        seen = gradient(self.learner, tuple(x[i : i + 1] for x in inputs), target[i : i + 1], scale=factor)
        if seen.weight and factor != 0:
            self._step()
        return seen if factor is None else replace(seen, weight=seen.weight * factor)


class EpochRule(Rule):
    """One step per pass, on the exact mean gradient over the dataset."""

    name = "epoch"
    in_stored_order = True
    spans = "update='epoch'"

    def __init__(self, learner: Learner, *, grad_sum_dtype: str = "float64") -> None:
        super().__init__(learner)
        self._sum = GradientSum(learner.parameters, grad_sum_dtype)

    def options(self) -> dict[str, object]:
        return self._sum.options()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self._sum.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sum.load_state_dict(state["sum"])

    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> Learned:
        seen = gradient(self.learner, inputs, target, weight, summed=True)
        self._sum.add(seen.weight)
        return _learned(seen, target, weight)

    def end_epoch(self) -> None:
        self._sum.put(1.0 if self.learner.loss.summed else self._sum.weight)
        add_penalty(self.learner.parameters, self.learner.l2)
        self.grad_norm = grad_norm(self.learner.parameters)
        self._step_on_whole()


def _learned(seen: Gradient, target: Tensor, weight: Tensor | None) -> Learned:
    return Learned(loss=seen.loss, output=seen.output, target=target, weight=seen.weight, sample_weights=weight)


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
