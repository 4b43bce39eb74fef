"""L-BFGS and conjugate gradients over a stream: J and its gradient over the whole dataset, one pass for each.

Such an optimizer asks for J several times inside one step, at weights of its choice. The stream cannot wait for it: the
trainer makes, counts and saves passes, and may stop inside one. So a step goes as far as the known values of J:

1. J is answered at weights where a pass has measured it.
2. At other weights the step is abandoned, the optimizer's state is put back, and the next pass measures J there.
3. Then the step is taken again from its beginning, which costs a few operations on vectors.

So a run can be saved at any batch of any pass, and resumes from there. Between passes, in a checkpoint, and after a
broken pass the model has the weights of the last whole step, never those of a trial. A run's figures of a pass are also
those of the last whole step; a trial's are kept until it is known whether the step goes there.

A trial does not end a run. Where J is not finite there, or so high that the optimizer's arithmetic would leave the
range of the weights' dtype, the line search is given an infinite J without a slope, and halves the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from streamtrain.errors import UsageError
from streamtrain.optim.conjugate_gradient import MAX_TRIALS
from streamtrain.optim.determinism import check_deterministic, digest
from streamtrain.optim.gradient_sum import ExactSum, GradientSum
from streamtrain.optim.gradients import (
    BatchResult,
    Learner,
    TrainingBatch,
    add_penalty,
    copy_weights,
    grad_norm,
    non_finite_error,
    penalty,
    put_weights,
    weights_kept,
)
from streamtrain.optim.rules import EpochRule, Figures, put_mean
from streamtrain.system.arguments import is_number


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveValue:
    """J at some weights, the penalty included, and its gradient, one tensor for each parameter."""

    objective: float
    gradients: list[Tensor]


SCALE: Final = 2.0**20
"""The factor of J where its first gradient is below 1; a power of two, so exact."""


def objective_scale(grad_norm: float) -> float:
    """Choose the factor of J that the optimizer is given: a power of two, by the norm of the first gradient.

    Torch's L-BFGS ignores a curvature below an absolute 1e-10, which a gradient of 1e-5 can have, and its line search
    squares products of two gradients, which float32 holds for gradients below some 1e8. The scaled gradient has a norm
    below 2^20, and of at least 2^19 where the norm is at least 1. The factor is part of the method: the first trial of
    torch's L-BFGS, and of `streamtrain.optim.conjugate_gradient`, is ``min(1, 1 / |g|_1) g`` with the scaled g.
    """
    return SCALE * 2.0 ** -max(0, math.frexp(grad_norm)[1])


def trial_value(found: ObjectiveValue, grad_norm: float, start: ObjectiveValue, scale: float) -> ObjectiveValue:
    """Return the value of a trial, or an infinite J where the scaled search from its start could not hold it."""
    largest = min(torch.finfo(gradient.dtype).max for gradient in found.gradients)
    # A first trial's step is 1 over this, and a search divides the rise by the step before it squares.
    steepness = max(1.0, scale * math.fsum(float(gradient.abs().sum()) for gradient in start.gradients))
    rise = scale * (found.objective - start.objective)
    fits = rise * steepness < largest**0.5 / 64 and scale * grad_norm < largest**0.25 / 8
    if fits and math.isfinite(found.objective):
        return found
    unknown = [torch.full(g.shape, math.nan, dtype=g.dtype, device=g.device) for g in found.gradients]
    return ObjectiveValue(objective=math.inf, gradients=unknown)


_BESIDE: Final = 4
"""Other vectors of the weights' size: direction and gradient of the step before, and two copies of the weights for a
checkpoint inside a line search."""


class _UnmeasuredWeights(Exception):
    """The optimizer asks for J at weights that no pass has measured."""


class FullBatchRule(EpochRule):
    """One pass for each value of J that the optimizer asks for; a step where a line search has ended.

    The run has converged at a norm of J's gradient of at most ``grad_tolerance``, or after a step that lowered J by at
    most ``loss_tolerance``, relative to J where J is above 1. It is ``stuck`` where no step can lower J: the gradient
    is zero, or the numbers have no digits for less.
    """

    def __init__(
        self,
        learner: Learner,
        total: GradientSum | None = None,
        *,
        grad_tolerance: float | None = None,
        loss_tolerance: float | None = None,
    ) -> None:
        _check_one_iteration(learner.optimizer)
        super().__init__(learner, total)
        self._tolerances = {"grad_tolerance": grad_tolerance, "loss_tolerance": loss_tolerance}
        for name, value in self._tolerances.items():
            if value is not None and not (is_number(value) and value > 0):
                raise UsageError(f"{name} is {value!r}; it must be positive and finite")
        self._values: list[float] = []
        self.settled = False
        self.stuck = False
        self._known: dict[str, ObjectiveValue] = {}
        self._figures: dict[str, Figures] = {}
        self._measured_at = self._reported_at = ""
        self._scale: float | None = None
        self._before_trial: list[Tensor] | None = None
        self._start = ""
        self._loss = ExactSum()
        self._first_batch: str | None = None
        self._begins_anew = True

    def learn(self, batch: TrainingBatch, max_steps: int | None = None) -> BatchResult:
        if self._before_trial is None:
            self._first_batch = check_deterministic(self.learner.model, batch, self._first_batch)
            self._go_to_trial()
        learned = super().learn(batch, max_steps)
        self._loss.add(learned.loss * learned.weight)
        return learned if self._checks else replace(learned, is_trial=True)

    def end_epoch(self) -> None:
        """Note J and its gradient, and take the step that they make possible."""
        if self._before_trial is None and self.exchange.world_size > 1:
            # More ranks than blocks: this one had no batch.
            self._go_to_trial()
        divisor = put_mean(self._sum, self.learner, exchange=self.exchange, check=self._checks)
        if not divisor:
            return
        [loss] = self.exchange.add([self._loss.value])
        parameters = self.learner.parameters
        add_penalty(parameters, self.learner.l2)
        self.objective = loss / divisor + penalty(parameters, self.learner.l2)
        self.grad_norm = grad_norm(parameters)
        at = self._measured_at = digest(parameters)
        if self._checks and not math.isfinite(self.objective):
            raise non_finite_error(self.objective)
        if self._scale is None:
            self._scale = objective_scale(self.grad_norm)
        found = ObjectiveValue(objective=self.objective, gradients=[_gradient_of(p) for p in parameters])
        is_trial = not self._checks
        self._known[at] = (
            trial_value(found, self.grad_norm, self._known[self._start], self._scale) if is_trial else found
        )
        self._leave_trial()
        self._take_steps(at)
        self.settled = digest(parameters) == at
        if self.settled:
            self._values = [*self._values[-1:], self.objective]

    def figures_of_weights(self, of_pass: Figures) -> Figures:
        here = digest(self.learner.parameters)
        known = {**self._figures, self._measured_at: of_pass}
        self._figures = {at: figures for at, figures in known.items() if at == here or at in self._known}
        self.is_fresh, self._reported_at = here != self._reported_at, here
        # An older checkpoint made inside a line search lacks the figures of the weights where the search began.
        return self._figures.get(here, of_pass)

    @property
    def converged(self) -> str | None:
        grad_tolerance, loss_tolerance = self._tolerances.values()
        if self.settled and self.grad_norm is not None and self.grad_norm <= (grad_tolerance or -1.0):
            return "grad_tolerance"
        if self.settled and loss_tolerance is not None and len(self._values) == 2:
            before, now = self._values
            if abs(before - now) <= loss_tolerance * max(abs(before), abs(now), 1.0):
                return "loss_tolerance"
        return "stuck" if self.stuck else None

    def later_memory(self) -> list[Tensor]:
        """Hold L-BFGS's history, which grows by two vectors a step, and the gradient of every trial of a search."""
        group = self.learner.optimizer.param_groups[0]
        n_vectors = 2 * group.get("history_size", 0) + group.get("max_eval", MAX_TRIALS) + _BESIDE
        return [torch.ones_like(p).detach() for p in self.learner.parameters for _ in range(n_vectors)]

    def abandon(self) -> None:
        super().abandon()
        self._leave_trial()

    def pause(self) -> bool:
        # Between two calls the weights are those of the last step, at which no trial can be resumed.
        self.abandon()
        return False

    @contextmanager
    def at_last_step(self) -> Iterator[None]:
        if self._before_trial is None:
            yield
            return
        with weights_kept(self.learner.parameters):
            put_weights(self.learner.parameters, self._before_trial)
            yield

    def _go_to_trial(self) -> None:
        """Go to the weights that the optimizer asks for next."""
        self._before_trial = self._advance() or copy_weights(self.learner.parameters)
        self._look_where_it_is()

    def _look_where_it_is(self) -> None:
        """Note whether the pass is at a trial, whose values need not be finite."""
        self._start = digest(self._before_trial or ())
        self._checks = self._start == digest(self.learner.parameters)

    def _leave_trial(self) -> None:
        if self._before_trial is not None:
            put_weights(self.learner.parameters, self._before_trial)
        self._before_trial = None
        self._checks = True
        self._loss = ExactSum()

    def _take_steps(self, at: str) -> None:
        """Take the steps that the known values of J make possible, up to the first unmeasured weights."""
        while True:
            start = digest(self.learner.parameters)
            before = self._advance()
            if before is not None:
                put_weights(self.learner.parameters, before)
                return
            end = digest(self.learner.parameters)
            if end != start:
                self.n_steps += 1
                if self.learner.on_step is not None:
                    self.learner.on_step()
                # A search may go back to an earlier trial. A pass is then made there again, so that every step has one
                # whose loss, J and gradient are those it came to.
                self._known = {at: self._known[at]} if end == at else {}
                self._begins_anew = False
            elif self._begins_anew:
                self.stuck = True
                return
            else:
                # The learnt curvature leads nowhere; the steepest descent may lead somewhere.
                self.learner.optimizer.state.clear()
                self._known = {end: self._known[end]}
                self._begins_anew = True

    def _advance(self) -> list[Tensor] | None:
        """Step as far as J is known; return None, or the earlier weights if the model is left at unmeasured ones."""
        optimizer, parameters = self.learner.optimizer, self.learner.parameters
        weights = copy_weights(parameters)
        state = {parameter: _kept(values) for parameter, values in optimizer.state.items()}
        try:
            optimizer.step(self._look_up)
        except _UnmeasuredWeights:
            optimizer.state.clear()
            optimizer.state.update(state)
            return weights
        return None

    def _look_up(self) -> float:
        parameters = self.learner.parameters
        found = self._known.get(digest(parameters))
        if found is None or self._scale is None:
            raise _UnmeasuredWeights
        for parameter, gradient in zip(parameters, found.gradients, strict=True):
            parameter.grad = gradient * self._scale
        return found.objective * self._scale

    def state_dict(self) -> dict[str, Any]:
        known = {at: {"objective": m.objective, "gradients": m.gradients} for at, m in self._known.items()}
        return super().state_dict() | {
            "known": known,
            "scale": self._scale,
            "trial": None if self._before_trial is None else copy_weights(self.learner.parameters),
            "loss": self._loss.state(),
            "first_batch": self._first_batch,
            **({"world_size": self.exchange.world_size} if self.exchange.world_size > 1 else {}),
            "begins_anew": self._begins_anew,
            "stuck": self.stuck,
            "settled": self.settled,
            "grad_norm": self.grad_norm,
            "values": self._values,
            "figures": self._figures,
            "measured_at": self._measured_at,
            "reported_at": self._reported_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._known = {
            at: ObjectiveValue(objective=found["objective"], gradients=self._placed(found["gradients"]))
            for at, found in state["known"].items()
        }
        self._scale = state.get("scale", SCALE)
        self._put_trial(state.get("trial"), state.get("before_trial"))
        self._loss = ExactSum(*state["loss"])
        # Other ranks begin a pass with other batches.
        alone = self.exchange.world_size == 1 and state.get("world_size", 1) == 1
        self._first_batch = state["first_batch"] if alone else None
        self._begins_anew = state["begins_anew"]
        self.stuck = state["stuck"]
        self.settled = state["settled"]
        self.grad_norm = state["grad_norm"]
        self._values = state["values"]
        self._figures = state.get("figures", {})
        self._measured_at = state.get("measured_at", "")
        reported_at = digest(self._before_trial or self.learner.parameters) if self._values else ""
        self._reported_at = state.get("reported_at", reported_at)

    def _put_trial(self, trial: list[Tensor] | None, before: list[Tensor] | None) -> None:
        """Resume at a trial; the model has the weights of the last step, or the trial's in older checkpoints."""
        self._before_trial = None if before is None else self._placed(before)
        if trial is not None:
            self._before_trial = copy_weights(self.learner.parameters)
            put_weights(self.learner.parameters, self._placed(trial))
        self._checks = True
        if self._before_trial is not None:
            self._look_where_it_is()

    def _placed(self, tensors: list[Tensor]) -> list[Tensor]:
        pairs = zip(tensors, self.learner.parameters, strict=True)
        return [tensor.to(parameter.device, copy=True) for tensor, parameter in pairs]


def _check_one_iteration(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        max_iter, max_eval = group.get("max_iter", 1), group.get("max_eval", 2)
        search = group.get("line_search_fn", "strong_wolfe")
        if max_iter != 1 or max_eval < 2 or search is None:
            raise UsageError(
                f"{type(optimizer).__name__} has max_iter={max_iter}, max_eval={max_eval}, line_search_fn={search!r}",
                why="A step is one iteration here, with a line search of at least one trial",
                fix="max_iter=1, max_eval=26, line_search_fn='strong_wolfe', or optimizer='lbfgs'",
            )


def _gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter).detach() if parameter.grad is None else parameter.grad.detach().clone()


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    """Copy an optimizer's state.

    Tensors are copied, as L-BFGS overwrites the gradient of the step before. Those in lists are shared: they are its
    history, as large as all else together, and it only appends and removes.
    """
    return {name: _kept_value(value) for name, value in values.items()}


def _kept_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value
