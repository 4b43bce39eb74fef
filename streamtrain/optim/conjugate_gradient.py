"""Nonlinear conjugate gradients with restarts, and a strong-Wolfe line search.

With g the gradient and d the direction::

    d_k = -g_k + beta_k d_(k-1),    beta_k = max(0, g_k . (g_k - g_(k-1)) / (g_(k-1) . g_(k-1)))

which is Polak and Ribiere's formula kept from going negative ("PR+"). The direction is the steepest descent again where
beta is 0, where two successive gradients are far from orthogonal, after as many steps as there are weights, and where
the direction would not lead down.

The line search brackets a step and zooms in. With f(t) the objective at step t and f'(t) its slope along the direction,
a step is accepted where it lowers the objective enough and has left the steep part behind::

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
"""What the book advises for conjugate gradients; quasi-Newton directions make do with 0.9."""

MAX_TRIALS: Final = 25

_GROWTH: Final = 10.0
_MARGIN: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a step led to.

    Parameters
    ----------
    step : float
        Its length, in units of the direction.
    value : float
        The objective there.
    slope : float
        Its derivative along the direction there.
    """

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
    c1: float = C1,
    c2: float = C2,
    rounding: float = sys.float_info.epsilon,
    max_trials: int = MAX_TRIALS,
) -> Trial | None:
    """Find a step that satisfies the strong Wolfe conditions.

    Parameters
    ----------
    objective : callable
        Evaluated at every trial, and never twice at the same one.
    start : Trial
        At step 0; its slope is negative.
    step : float
        The first step to try, positive.
    c1, c2 : float
        Of the two conditions, ``0 < c1 < c2 < 1``.
    rounding : float
        The relative error of a value. Values that are closer than that are told apart by the slopes between them.
    max_trials : int
        After how many it ends.

    Returns
    -------
    Trial or None
        The step that satisfies both conditions, the last that was tried. A search that ends before it found one gives
        the lowest that satisfies the first; None where there is none.

    Examples
    --------
    >>> parabola = lambda t: ((t - 3.0) ** 2, 2 * (t - 3.0))
    >>> strong_wolfe(parabola, Trial(step=0.0, value=9.0, slope=-6.0), 0.5)
    Trial(step=3.0, value=0.0, slope=0.0)
    """
    search = _Search(objective, start, c1=c1, c2=c2, rounding=rounding, n_left=max_trials)
    found = search.bracket(step)
    return found if found is not start else None


class _Search:
    """The conditions of one search, and the trials it has left."""

    def __init__(
        self, objective: Objective, start: Trial, *, c1: float, c2: float, rounding: float, n_left: int
    ) -> None:
        self._objective = objective
        self._start = start
        self._c1 = c1
        self._c2 = c2
        self._rounding = rounding
        self._noise = rounding * abs(start.value)
        self._n_left = n_left

    def bracket(self, step: float) -> Trial:
        """Go on until the minimum has been passed, and look for it in the last interval."""
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
        """Narrow an interval down: ``low`` is the lower end of the two, and its slope points to ``high``."""
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
        return self._rise(self._start, trial) > self._c1 * trial.step * self._start.slope

    def _is_flat(self, trial: Trial) -> bool:
        return abs(trial.slope) <= self._c2 * abs(self._start.slope)

    def _is_narrow(self, low: Trial, high: Trial) -> bool:
        return abs(high.step - low.step) <= self._rounding * max(low.step, high.step)

    def _rise(self, before: Trial, after: Trial) -> float:
        """How much higher the second is; where the values do not tell, as their slopes have it."""
        rise = after.value - before.value
        if abs(rise) > self._noise:
            return rise
        return (after.step - before.step) * (before.slope + after.slope) / 2

    def _beyond(self, before: Trial, trial: Trial) -> float:
        """A step past both: where the objective seems to be lowest, within bounds."""
        least, most = trial.step + _MARGIN * (trial.step - before.step), _GROWTH * trial.step
        guess = self._lowest(before, trial)
        return most if math.isnan(guess) else min(max(guess, least), most)

    def _between(self, low: Trial, high: Trial) -> float:
        """A step between: where the objective seems to be lowest if that is well inside, else the middle."""
        near, far = min(low.step, high.step), max(low.step, high.step)
        margin = _MARGIN * (far - near)
        guess = self._lowest(low, high)
        return guess if near + margin <= guess <= far - margin else (near + far) / 2

    def _lowest(self, a: Trial, b: Trial) -> float:
        """Where the cubic with these values and slopes, or the parabola with these slopes, is lowest; else NaN."""
        d1 = a.slope + b.slope - 3 * self._rise(a, b) / (b.step - a.step)
        square = d1 * d1 - a.slope * b.slope
        if square < 0:
            return math.nan
        d2 = math.copysign(math.sqrt(square), b.step - a.step)
        below = b.slope - a.slope + 2 * d2
        return b.step - (b.step - a.step) * (b.slope + d2 - d1) / below if below else math.nan


_FAR_FROM_ORTHOGONAL: Final = 0.1
_ROUNDINGS: Final = 16
"""How many roundings of its last digit an objective may be off by."""


class ConjugateGradient(Optimizer):
    """Polak and Ribiere's nonlinear conjugate gradients with restarts and a strong-Wolfe line search.

    ``step(closure)`` is one iteration: a direction and a search along it. The closure leaves the gradient in the
    parameters and returns the objective; it is called at the weights as they are, and once for each step that is tried.
    An iteration that finds no step leaves the weights as they were.

    Keeps two vectors of the size of the weights.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        On one device; complex ones count as twice as many real ones.
    lr : float
        What the first step of all is multiplied by; later ones begin at what the one before came to.

    Raises
    ------
    ValueError
        ``lr`` is not positive, or there are several parameter groups.

    Examples
    --------
    >>> w = nn.Parameter(torch.tensor([5.0, 5.0], dtype=torch.float64))
    >>> cg = ConjugateGradient([w])
    >>> def closure():
    ...     w.grad = torch.tensor([1.0, 10.0]) * w.detach()
    ...     return float(0.5 * (torch.tensor([1.0, 10.0]) * w.detach() ** 2).sum())
    >>> for _ in range(8):
    ...     _ = cg.step(closure)
    >>> closure() < 1e-12
    True
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
        # Of a gradient that is not zero, its square may be.
        if not gradient.dot(gradient):
            return value
        # The state belongs to the first parameter, so that loading it puts it on that one's device.
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
        """The step of the same first-order fall as in the iteration before; at first, one of length at most ``lr``."""
        if state.get("fall"):
            return float(state["fall"]) / slope
        return float(self.param_groups[0]["lr"]) * min(1.0, 1.0 / float(gradient.abs().sum()))

    def _gradient(self) -> Tensor:
        parts = (as_real(torch.zeros_like(p) if p.grad is None else p.grad) for p in self._params)
        return torch.cat([part.reshape(-1) for part in parts])

    def _move(self, weights: list[Tensor], direction: Tensor, step: float) -> None:
        """Put the parameters at ``weights + step * direction``."""
        # A step that the weights' dtype does not hold leads as far as one that it does.
        step = min(step, torch.finfo(direction.dtype).max)
        offset = 0
        for parameter, weight in zip(map(as_real, self._params), map(as_real, weights), strict=True):
            part = direction[offset : offset + weight.numel()].view_as(weight)
            offset += weight.numel()
            parameter.copy_(torch.add(weight, part, alpha=step) if step else weight)


def _direction(state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, float]:
    """The next direction and the objective's slope along it."""
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
