"""The update rules ``batch`` and ``epoch``, and the base class of all update rules.

======== =========================== ==========================================================================
rule     one step on the mean over   how
======== =========================== ==========================================================================
batch    a batch                     a short last batch is a mean over its own size
sample   one sample                  a loop over samples; a batch is only the unit of reading
epoch    the whole dataset           one pass in stored order sums the gradients; one step at its end
======== =========================== ==========================================================================

A rule is handed the batches of a pass, one after the other, and learns when the pass ends. It counts its own steps, so
that a total can stop the sample rule in the middle of a batch. A rule takes gradients from
`streamtrain.optim.gradients` alone, and sums them in a `GradientSum`.

Where samples have weights w, a rule steps on the weighted mean, and the batch rule takes no step where the weights sum
to 0. The sample rule is the exception: in a mean over one sample the weight cancels. There w scales the sample's loss,
and so the step of plain gradient descent, and 0 skips the sample; weights whose mean is 1 keep the meaning of the
learning rate. Class weights are torch's own and cancel there, as in torch; with ``reduction="sum"`` they do not.

With ``accumulate`` k the batch rule steps on the mean over k batches, exact in the same way as the epoch's. The batches
left over at the end of a pass have a step of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from streamtrain.optim.gradient_sum import GradientSum
from streamtrain.optim.gradients import BatchGradient, Learner, add_penalty, batch_gradient, check_finite_sum, grad_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
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
    is_trial : bool
        Whether the weights are those of a trial of a line search, which the run may not come to.
    n_before : int
        Samples of it that an earlier call took in, before the run was cut short inside the batch.
    """

    loss: float
    output: Tensor
    target: Tensor
    weight: float | None = None
    sample_weights: Tensor | None = None
    is_trial: bool = False
    n_before: int = 0

    @property
    def n_samples(self) -> int:
        """Samples taken in; fewer than the batch holds where the last step was reached inside it."""
        return len(self.target)

    @property
    def n_new(self) -> int:
        """Those of them that this call took in."""
        return self.n_samples - self.n_before


Figures = dict[str, float | None]
"""What a pass has measured, by name: loss, score, ..."""


class UpdateRule(ABC):
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
    objective : float or None
        J over the whole dataset, the penalty included; where a line search compares it.
    settled : bool
        Whether the loss of the pass that ended last is at weights that the run came to, as always but for a trial.
    is_fresh : bool
        Whether `figures_of_weights` gave the figures of other weights than the time before.
    """

    name: ClassVar[str]
    in_stored_order: ClassVar[bool] = False
    """Whether passes read in stored order, since no order makes a difference."""
    ends_inside_batches: ClassVar[bool] = False
    """Whether the last step may come before a batch's end."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.n_steps = 0
        self.grad_norm: float | None = None
        self.objective: float | None = None
        self.settled = True
        self.is_fresh = True

    @abstractmethod
    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> BatchResult:
        """Take in one batch, its samples weighted by ``weight``, (B,); stop once ``n_steps`` is ``max_steps``.

        What follows a stop inside a batch is the same batch again, of which the rest is taken in.
        """

    @property
    def converged(self) -> str | None:
        """Why no further step is asked for; None where one is."""
        return None

    @property
    def way(self) -> str:
        """Its name, and where there is a choice how it goes about it."""
        return self.name

    @property
    def spans(self) -> str | None:
        """By what option a step comes to be on several batches; None where none is."""
        return None

    def options(self) -> dict[str, object]:
        """How it was made, as ``config.json`` holds it."""
        return {}

    def steps_per_epoch(self, n_batches: int, n_samples: int) -> int:
        """How many steps an epoch of so many batches and samples has."""
        return 1

    def later_memory(self) -> list[Tensor]:
        """As much memory as later steps will hold and the first ones do not."""
        return []

    def end_epoch(self) -> None:
        """Learn that the pass is complete; only a rule that waits for it has anything to do."""
        return

    def figures_of_weights(self, of_pass: Figures) -> Figures:
        """Return what a pass has measured at the weights that the run has come to; asked for at the end of each.

        Parameters
        ----------
        of_pass : dict
            What the pass that has just ended measured; returned itself, unless that was a trial which is not taken.
        """
        return of_pass

    def abandon(self) -> None:
        """Forget what the pass has come to, which does not go on; the steps that were taken stay."""
        return

    def pause(self) -> bool:
        """Leave a pass between two batches, to resume it later; False where it is to begin anew."""
        return True

    @contextmanager
    def at_last_step(self) -> Iterator[None]:
        """Inside the block the weights are those of the last step, also where a pass measures others."""
        yield

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
        learner, schedules = self.learner, self.learner.schedules
        learner.clipping.clip(learner.parameters)
        if schedules is not None:
            schedules.before_step(self.n_steps + 1)
        learner.optimizer.step()
        self.n_steps += 1
        if schedules is not None:
            schedules.after_step()
        if learner.on_step is not None:
            learner.on_step()


class BatchRule(UpdateRule):
    """One step per batch, or per window of ``accumulate`` batches."""

    name = "batch"

    def __init__(self, learner: Learner, *, accumulate: int = 1, total: GradientSum | None = None) -> None:
        super().__init__(learner)
        self._accumulate = accumulate
        self._sum = total or GradientSum()
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
    ) -> BatchResult:
        seen = batch_gradient(self.learner, inputs, target, weight, summed=self._accumulate > 1)
        if self._accumulate == 1:
            if seen.weight:
                self._step()
        else:
            _add(self._sum, self.learner, seen)
            self._n_waiting += 1
            if self._n_waiting == self._accumulate:
                self.end_epoch()
        return _batch_result(seen, target, weight)

    def end_epoch(self) -> None:
        self._n_waiting = 0
        if put_mean(self._sum, self.learner):
            self._step()


class EpochRule(UpdateRule):
    """One step per pass, on the exact mean gradient over the dataset."""

    name = "epoch"
    in_stored_order = True
    spans = "update='epoch'"

    def __init__(self, learner: Learner, total: GradientSum | None = None) -> None:
        super().__init__(learner)
        self._sum = total or GradientSum()
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
    ) -> BatchResult:
        seen = batch_gradient(self.learner, inputs, target, weight, summed=True, check=self._checks)
        _add(self._sum, self.learner, seen)
        return _batch_result(seen, target, weight)

    def end_epoch(self) -> None:
        if not put_mean(self._sum, self.learner):
            return
        add_penalty(self.learner.parameters, self.learner.l2)
        self.grad_norm = grad_norm(self.learner.parameters)
        self._step_on_whole()


def _add(total: GradientSum, learner: Learner, seen: BatchGradient) -> None:
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


def _batch_result(seen: BatchGradient, target: Tensor, weight: Tensor | None) -> BatchResult:
    return BatchResult(loss=seen.loss, output=seen.output, target=target, weight=seen.weight, sample_weights=weight)
