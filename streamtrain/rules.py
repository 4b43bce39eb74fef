"""The update rules of gradient descent: after how much data the weights change.

======== =========================== ==========================================================================
rule     one step on the mean over   how
======== =========================== ==========================================================================
batch    a batch                     a short last batch is a mean over its own size
sample   one sample                  a loop over samples; a batch is only the unit of reading
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

from typing import Any, Final

from torch import Tensor

from streamtrain.errors import unknown_name
from streamtrain.gradient_sum import GradientSum
from streamtrain.gradients import Gradient, Learner, grad_norm, gradient
from streamtrain.penalty import add_penalty
from streamtrain.rule import Learned, Rule
from streamtrain.sample_rule import SampleRule
from streamtrain.stepping import check_finite_sum

__all__ = ["RULES", "BatchRule", "EpochRule", "Learned", "Rule", "SampleRule", "check_rule"]


class BatchRule(Rule):
    """One step per batch, or per window of ``accumulate`` batches."""

    name = "batch"

    def __init__(self, learner: Learner, *, accumulate: int = 1, grad_sum_dtype: str = "float64") -> None:
        super().__init__(learner)
        self._accumulate = accumulate
        self._sum = GradientSum(grad_sum_dtype)
        self._n_waiting = 0

    def options(self) -> dict[str, object]:
        return {"accumulate_grad_batches": self._accumulate} | self._sum.options() if self._accumulate > 1 else {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self._sum.state_dict(), "n_waiting": self._n_waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sum.load_state_dict(self.learner.parameters, state["sum"])
        self._n_waiting = state["n_waiting"]

    def abandon(self) -> None:
        self._sum.clear()
        self._n_waiting = 0

    @property
    def spans(self) -> str | None:
        return f"accumulate_grad_batches={self._accumulate}" if self._accumulate > 1 else None

    def steps_per_epoch(self, n_batches: int, n_samples: int) -> int:
        return -(-n_batches // self._accumulate)

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
            _add(self._sum, self.learner, seen)
            self._n_waiting += 1
            if self._n_waiting == self._accumulate:
                self.end_epoch()
        return _learned(seen, target, weight)

    def end_epoch(self) -> None:
        self._n_waiting = 0
        if put_mean(self._sum, self.learner):
            self._step()


class EpochRule(Rule):
    """One step per pass, on the exact mean gradient over the dataset."""

    name = "epoch"
    in_stored_order = True
    spans = "update='epoch'"

    def __init__(self, learner: Learner, *, grad_sum_dtype: str = "float64") -> None:
        super().__init__(learner)
        self._sum = GradientSum(grad_sum_dtype)
        self._checks = True

    def options(self) -> dict[str, object]:
        return self._sum.options()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self._sum.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sum.load_state_dict(self.learner.parameters, state["sum"])

    def abandon(self) -> None:
        self._sum.clear()

    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> Learned:
        seen = gradient(self.learner, inputs, target, weight, summed=True, check=self._checks)
        _add(self._sum, self.learner, seen)
        return _learned(seen, target, weight)

    def end_epoch(self) -> None:
        if not put_mean(self._sum, self.learner):
            return
        add_penalty(self.learner.parameters, self.learner.l2)
        self.grad_norm = grad_norm(self.learner.parameters)
        self._step_on_whole()


def _add(total: GradientSum, learner: Learner, seen: Gradient) -> None:
    # Where nothing has a weight the gradient is 0, or 0 times what is not finite.
    if seen.weight:
        total.add(learner.parameters, seen.weight)


def put_mean(total: GradientSum, learner: Learner, *, check: bool = True) -> float:
    """Leave the mean gradient, or the summed loss's own, in the parameters; return what the sum was divided by.

    That is 0, and the parameters keep what they have, where nothing summed has a weight.

    Raises
    ------
    DivergedError
        With ``check``, the sum has left the range of its numbers, or of the gradients'. No step has been taken on it.
    """
    if not total.weight:
        total.clear()
        return 0.0
    divisor = 1.0 if learner.loss.summed else total.weight
    total.put(learner.parameters, divisor)
    if check:
        check_finite_sum(learner.parameters)
    return divisor


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
