"""Nonlinear conjugate gradients with restarts, and a strong-Wolfe line search.

With g the gradient and d the direction::

    d_k = -g_k + beta_k d_(k-1),    beta_k = max(0, g_k . (g_k - g_(k-1)) / (g_(k-1) . g_(k-1)))

which is Polak and Ribiere's formula kept from going negative ("PR+"). The direction is the steepest descent again where
beta is 0, where two successive gradients are far from orthogonal, after as many steps as there are weights, and where
the direction would not lead down.

The line search brackets a step and zooms in. With f(t) the objective at step t and f'(t) its slope along the direction,
it accepts a step that lowers the objective enough and has left the steep part behind::

    f(t) <= f(0) + c1 t f'(0)          (sufficient decrease)
    |f'(t)| <= c2 |f'(0)|              (curvature)

Sources: J. Nocedal, S. J. Wright, Numerical Optimization, 2nd edition, 2006, algorithms 5.4, 3.5 and 3.6 with equations
5.44, 5.45, 5.52 and 3.59; E. Polak, G. Ribiere, RIRO 3, 1969; M. J. D. Powell, Mathematical Programming 12, 1977; for
values that do not differ, W. W. Hager, H. Zhang, SIAM J. Optim. 16, 2005.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.models.real_view import as_real

C1: Final = 1e-4
C2: Final = 0.1
"""The book's advice for conjugate gradients; quasi-Newton directions make do with 0.9."""

MAX_TRIALS: Final = 25

_GROWTH: Final = 10.0
_MARGIN: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A step, in units of the direction, with the objective and its slope along the direction there."""

    step: float
    value: float
    slope: float


Objective = Callable[[float], tuple[float, float]]
"""Step -> value and slope there."""


def strong_wolfe(
    objective: Objective,
    start: Trial,
    step: float,
    *,
    rounding: float = sys.float_info.epsilon,
    max_trials: int = MAX_TRIALS,
) -> Trial | None:
    """Find a step that satisfies the strong Wolfe conditions, where ``start`` is at step 0.

    It is the last step that was tried. A search that ends before gives the lowest step of sufficient decrease, or None.
    Values closer than ``rounding``, their relative error, are compared by their slopes.
    """
    search = _Search(objective, start, rounding, max_trials)
    found = search.bracket(step)
    return found if found is not start else None


class _Search:
    """The conditions of one search, and the number of trials left."""

    def __init__(self, objective: Objective, start: Trial, rounding: float, n_left: int) -> None:
        self._objective = objective
        self._start = start
        self._rounding = rounding
        self._noise = rounding * abs(start.value)
        self._n_left = n_left

    def bracket(self, step: float) -> Trial:
        """Lengthen the step until the minimum has been passed, then search the last interval."""
        low = self._start
        while (trial := self._attempt(step)) is not None:
            if self._is_too_high(trial) or self._rise(low, trial) >= 0:
                return self._zoom(low, trial)
            if self._is_flat(trial):
                return trial
            if trial.slope >= 0:
                return self._zoom(trial, low)
            step, low = self._beyond(low, trial), trial
        return low

    def _zoom(self, low: Trial, high: Trial) -> Trial:
        """Narrow an interval: ``low`` is its lower end, whose slope points to ``high``."""
        while not self._is_narrow(low, high) and (trial := self._attempt(self._between(low, high))) is not None:
            if self._is_too_high(trial) or self._rise(low, trial) >= 0:
                high = trial
                continue
            if self._is_flat(trial):
                return trial
            if trial.slope * (high.step - low.step) >= 0:
                high = low
            low = trial
        return low

    def _attempt(self, step: float) -> Trial | None:
        if not self._n_left:
            return None
        self._n_left -= 1
        value, slope = self._objective(step)
        return Trial(step=step, value=value, slope=slope)

    def _is_too_high(self, trial: Trial) -> bool:
        return self._rise(self._start, trial) > C1 * trial.step * self._start.slope

    def _is_flat(self, trial: Trial) -> bool:
        return abs(trial.slope) <= C2 * abs(self._start.slope)

    def _is_narrow(self, low: Trial, high: Trial) -> bool:
        return abs(high.step - low.step) <= self._rounding * max(low.step, high.step)

    def _rise(self, before: Trial, after: Trial) -> float:
        """Compute how much higher the second is, from the slopes where the values differ by no more than rounding."""
        rise = after.value - before.value
        if abs(rise) > self._noise:
            return rise
        return (after.step - before.step) * (before.slope + after.slope) / 2

    def _beyond(self, before: Trial, trial: Trial) -> float:
        """Choose a step past both: where the objective seems lowest, within bounds."""
        least, most = trial.step + _MARGIN * (trial.step - before.step), _GROWTH * trial.step
        guess = self._lowest(before, trial)
        return most if math.isnan(guess) else min(max(guess, least), most)

    def _between(self, low: Trial, high: Trial) -> float:
        """Choose a step between: where the objective seems lowest if that is well inside, else the middle."""
        near, far = min(low.step, high.step), max(low.step, high.step)
        margin = _MARGIN * (far - near)
        guess = self._lowest(low, high)
        return guess if near + margin <= guess <= far - margin else (near + far) / 2

    def _lowest(self, a: Trial, b: Trial) -> float:
        """Minimize the cubic with these values and slopes, or the parabola with these slopes; NaN without a minimum."""
        d1 = a.slope + b.slope - 3 * self._rise(a, b) / (b.step - a.step)
        square = d1 * d1 - a.slope * b.slope
        if square < 0:
            return math.nan
        d2 = math.copysign(math.sqrt(square), b.step - a.step)
        below = b.slope - a.slope + 2 * d2
        return b.step - (b.step - a.step) * (b.slope + d2 - d1) / below if below else math.nan


_FAR_FROM_ORTHOGONAL: Final = 0.1
_ROUNDINGS: Final = 16
"""The error of an objective, in roundings of its last digit."""


class ConjugateGradient(Optimizer):
    """Polak and Ribiere's nonlinear conjugate gradients with restarts and a strong-Wolfe line search.

    ``step(closure)`` is one iteration: a direction and a search along it. The closure returns the objective and leaves
    the gradient in the parameters; it is called at the current weights, and once a trial. An iteration that finds no
    step leaves the weights as they were. ``lr`` bounds the first trial; later searches begin from the last step.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1.0) -> None:
        if not lr > 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        super().__init__(params, {"lr": lr})
        if len(self.param_groups) != 1:
            raise ValueError("ConjugateGradient takes one parameter group")
        self._params: list[nn.Parameter] = self.param_groups[0]["params"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float | Tensor]) -> float:  # type: ignore[override]
        """Take one iteration; return the objective that it began at."""
        evaluate = torch.enable_grad()(closure)
        value = float(evaluate())
        gradient = self._gradient()
        # The square of a gradient that is not zero may be zero.
        if not gradient.dot(gradient):
            return value
        # The state belongs to the first parameter, so that loading puts it on that parameter's device.
        state = self.state[self._params[0]]
        direction, slope = _direction(state, gradient)
        weights = [parameter.clone() for parameter in self._params]

        def along(step: float) -> tuple[float, float]:
            self._move(weights, direction, step)
            return float(evaluate()), float(self._gradient().dot(direction))

        first = self._first_step(state, gradient, slope)
        start = Trial(step=0.0, value=value, slope=slope)
        found = strong_wolfe(along, start, first, rounding=_ROUNDINGS * torch.finfo(gradient.dtype).eps)
        self._move(weights, direction, found.step if found else 0.0)
        state["direction"], state["gradient"] = direction, gradient
        state["fall"] = found.step * slope if found else 0.0
        return value

    def _first_step(self, state: dict[str, Any], gradient: Tensor, slope: float) -> float:
        """Choose the step of the same first-order fall as before; at first, one of length at most ``lr``."""
        if state.get("fall"):
            return float(state["fall"]) / slope
        return float(self.param_groups[0]["lr"]) * min(1.0, 1.0 / float(gradient.abs().sum()))

    def _gradient(self) -> Tensor:
        parts = (as_real(torch.zeros_like(p) if p.grad is None else p.grad) for p in self._params)
        return torch.cat([part.reshape(-1) for part in parts])

    def _move(self, weights: list[Tensor], direction: Tensor, step: float) -> None:
        # A step beyond the dtype's range leads no further than its largest number.
        step = min(step, torch.finfo(direction.dtype).max)
        offset = 0
        for parameter, weight in zip(map(as_real, self._params), map(as_real, weights), strict=True):
            part = direction[offset : offset + weight.numel()].view_as(weight)
            offset += weight.numel()
            parameter.copy_(torch.add(weight, part, alpha=step) if step else weight)


def _direction(state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, float]:
    """Compute the next direction and the objective's slope along it."""
    square = float(gradient.dot(gradient))
    steepest = gradient.neg()
    if "gradient" not in state or state["n_bent"] >= gradient.numel():
        state["n_bent"] = 1
        return steepest, -square
    before = state["gradient"]
    overlap = float(gradient.dot(before))
    beta = max(0.0, (square - overlap) / float(before.dot(before)))
    direction = torch.add(steepest, state["direction"], alpha=beta)
    slope = float(gradient.dot(direction))
    if not beta or abs(overlap) >= _FAR_FROM_ORTHOGONAL * square or slope >= 0:
        state["n_bent"] = 1
        return steepest, -square
    state["n_bent"] += 1
    return direction, slope
