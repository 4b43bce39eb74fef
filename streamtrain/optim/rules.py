"""The update rules ``batch`` and ``epoch``, and the base class of all update rules.

``batch`` steps on the mean over a batch, or over ``accumulate`` batches, with a step for what is left at the end of a
pass. ``sample`` steps on every sample; a batch is only the unit of reading. ``epoch`` sums the gradients of a pass in
stored order and takes one step at its end. A rule counts its steps, so that a total can stop ``sample`` inside a batch.

Where samples have weights w, a rule steps on the weighted mean, and takes no step where the weights sum to 0. In a mean
over one sample the weight cancels, so under ``sample`` w scales the sample's loss, and with it the step of plain
gradient descent; 0 skips the sample, and weights of mean 1 keep the meaning of the learning rate. Class weights are
torch's own and cancel there, as in torch; with ``reduction="sum"`` they do not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from streamtrain.models.real_view import as_real
from streamtrain.optim.gradient_sum import GradientSum, joined_sums
from streamtrain.optim.gradients import (
    BatchResult,
    Learner,
    TrainingBatch,
    add_penalty,
    batch_gradient,
    check_finite,
    check_finite_sum,
    grad_norm,
    gradient_sizes,
    non_finite_error,
)
from streamtrain.optim.ranks.exchange import ALONE, DivergedElsewhere, Exchange, refuse_sparse

Figures = dict[str, float | None]
"""Measurements of a pass, by name: loss, score, ..."""


def changing_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that training may change, as the statistics of BatchNorm are; not the inputs' own."""
    return list(getattr(model, "model", model).buffers())


class UpdateRule(ABC):
    """An update rule at work on a learner."""

    name: ClassVar[str]
    # Whether passes read in stored order, since no order makes a difference.
    in_stored_order: ClassVar[bool] = False
    # Whether the last step may come before a batch's end.
    ends_inside_batches: ClassVar[bool] = False
    # Whether a batch that other ranks did not finish leaves everything as it was after the one before.
    undoes_batches = False

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        # With the other ranks of a training that share its batches.
        self.exchange: Exchange = ALONE
        self.n_steps = 0
        # The norm of the whole dataset's gradient at the last step; under the rule epoch alone.
        self.grad_norm: float | None = None
        # J over the whole dataset, the penalty included, where a line search compares it.
        self.objective: float | None = None
        # Whether the last pass measured weights that the run came to, not a trial.
        self.settled = True
        # Whether `figures_of_weights` gave the figures of other weights than the time before.
        self.is_fresh = True

    @abstractmethod
    def learn(self, batch: TrainingBatch, max_steps: int | None = None) -> BatchResult:
        """Take in one batch; stop once ``n_steps`` is ``max_steps``.

        After a stop inside a batch, the next call is given the same batch and takes in the rest.
        """

    @property
    def converged(self) -> str | None:
        """The reason to take no further step, or None."""
        return None

    @property
    def way(self) -> str:
        """The rule's name, with the path that it takes where there is a choice."""
        return self.name

    @property
    def spans(self) -> str | None:
        """The option by which a step covers several batches, or None."""
        return None

    def options(self) -> dict[str, object]:
        """Its options, as ``config.json`` holds them."""
        return {}

    def steps_per_epoch(self, n_batches: int, n_samples: int) -> int:
        """Count the steps of an epoch of so many batches and samples."""
        return 1

    def later_memory(self) -> list[Tensor]:
        """Hold as much memory as later steps need beyond the first ones."""
        return []

    def end_epoch(self) -> None:
        """Note that the pass is complete."""
        return

    def figures_of_weights(self, of_pass: Figures) -> Figures:
        """Return what has been measured at the run's weights, given the figures of the pass that has just ended.

        These are the pass's own, unless it measured a trial that is not taken.
        """
        return of_pass

    def abandon(self) -> None:
        """Forget a pass that will not be resumed; the steps taken stay."""
        return

    def pause(self) -> bool:
        """Leave a pass between two batches, to resume it later; False where it must begin anew."""
        return True

    @contextmanager
    def at_last_step(self) -> Iterator[None]:
        """Give the model the weights of the last step inside the block, also where a pass measures others."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """The state from one batch to the next: numbers and tensors."""
        return {"name": self.name, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``."""
        self.n_steps = state["n_steps"]

    def joined(self, states: Sequence[dict[str, Any]], *, is_first: bool) -> dict[str, Any]:
        """Join the states of several ranks: the first of the new ones gets what all of them have summed."""
        return states[0]

    def _step(self) -> None:
        """Step on the mean gradient with the penalty's added."""
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
        self._buffers = changing_buffers(learner.model)
        self.undoes_batches = accumulate == 1

    def options(self) -> dict[str, object]:
        return {"accumulate_grad_batches": self._accumulate} | self._sum.options() if self._accumulate > 1 else {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sum": self._sum.state_dict(), "n_waiting": self._n_waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sum.load_state_dict(self.learner.parameters, state["sum"])
        self._n_waiting = state["n_waiting"]

    def joined(self, states: Sequence[dict[str, Any]], *, is_first: bool) -> dict[str, Any]:
        return states[0] | {"sum": joined_sums([each["sum"] for each in states] if is_first else [])}

    def abandon(self) -> None:
        self._sum.clear()
        self._n_waiting = 0

    @property
    def spans(self) -> str | None:
        return f"accumulate_grad_batches={self._accumulate}" if self._accumulate > 1 else None

    def steps_per_epoch(self, n_batches: int, n_samples: int) -> int:
        return -(-n_batches // self._accumulate)

    def learn(self, batch: TrainingBatch, max_steps: int | None = None) -> BatchResult:
        is_shared = self.exchange.world_size > 1
        if is_shared and self._buffers:
            # As DistributedDataParallel does: statistics of the first rank's rows are everybody's.
            self.exchange.copy_of_first(self._buffers)
        with self._buffers_kept() if is_shared else nullcontext():
            seen = batch_gradient(self.learner, batch, summed=is_shared or self._accumulate > 1, check=not is_shared)
            if is_shared:
                seen = self._exchanged(seen)
        if self._accumulate == 1:
            if seen.weight if seen.of_all is None else seen.of_all[1]:
                self._step()
        else:
            _add(self._sum, self.learner, seen)
            self._n_waiting += 1
            if self._n_waiting == self._accumulate:
                self.end_epoch()
        return seen

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put the buffers back where the block fails."""
        before = [buffer.clone() for buffer in self._buffers]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for buffer, kept in zip(self._buffers, before, strict=True):
                    buffer.copy_(kept)
            raise

    def _exchanged(self, seen: BatchResult) -> BatchResult:
        """Exchange the loss of a batch, and its gradient where a step follows, whose mean all ranks then have."""
        exchange, parameters = self.exchange, self.learner.parameters
        if not seen.weight:
            # The gradient is 0, or 0 times what is not finite.
            self.learner.optimizer.zero_grad(set_to_none=True)
        refuse_sparse(parameters)
        has_gradient = [float(parameter.grad is not None) for parameter in parameters]
        is_bad = seen.weight > 0 and not math.isfinite(seen.loss)
        told = [seen.loss * seen.weight if seen.weight else 0.0, seen.weight, float(seen.n_samples)]
        told += [float(is_bad), float(is_bad and exchange.rank)]
        loss, weight, n_samples, n_bad, bad_rank, *n_ranks = exchange.add([*told, *has_gradient])
        mean = loss / weight if weight else 0.0
        if n_bad and not is_bad:
            on = f"rank {bad_rank:.0f}" if n_bad == 1 else f"{n_bad:.0f} other ranks"
            raise DivergedElsewhere(f"the loss is {mean}, of samples on {on}", fix="see what is said there")
        if n_bad:
            raise non_finite_error(mean)
        if self._accumulate == 1 and weight:
            some = [parameter for parameter, n in zip(parameters, n_ranks, strict=True) if n]
            for parameter in some:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [as_real(parameter.grad) for parameter in some if parameter.grad is not None]
            exchange.add_tensors(gradients)
            torch._foreach_div_(gradients, 1.0 if self.learner.loss.summed else weight)
            check_finite(mean, [float(size) for size in gradient_sizes(parameters)], parameters)
        elif weight:
            check_finite(mean, [float(size) for size in gradient_sizes(parameters)], parameters)
        return replace(seen, of_all=(mean, weight, round(n_samples)))

    def end_epoch(self) -> None:
        self._n_waiting = 0
        if put_mean(self._sum, self.learner, exchange=self.exchange):
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

    def learn(self, batch: TrainingBatch, max_steps: int | None = None) -> BatchResult:
        seen = batch_gradient(self.learner, batch, summed=True, check=self._checks)
        _add(self._sum, self.learner, seen)
        return seen

    def end_epoch(self) -> None:
        if not put_mean(self._sum, self.learner, exchange=self.exchange):
            return
        add_penalty(self.learner.parameters, self.learner.l2)
        self.grad_norm = grad_norm(self.learner.parameters)
        self._step_on_whole()


def _add(total: GradientSum, learner: Learner, seen: BatchResult) -> None:
    # Where nothing has a weight the gradient is 0, or 0 times what is not finite.
    if seen.weight:
        total.add(learner.parameters, seen.weight)


def put_mean(total: GradientSum, learner: Learner, *, exchange: Exchange = ALONE, check: bool = True) -> float:
    """Leave the mean gradient, or the summed loss's own, in the parameters; return what the sum was divided by.

    The sum is that of all ranks. It is divided by 0 where nothing summed has a weight; then the parameters keep their
    gradients. With ``check`` a sum that is not finite is a DivergedError.
    """
    total.add_over(exchange, learner.parameters)
    if not total.weight:
        total.clear()
        return 0.0
    divisor = 1.0 if learner.loss.summed else total.weight
    total.put(learner.parameters, divisor)
    if check:
        check_finite_sum(learner.parameters)
    return divisor
