"""A step length along a descent direction: bracket, then zoom in, until the strong Wolfe conditions hold.

With f(t) the objective at step t and f'(t) its slope along the direction, a step is accepted where it lowers the
objective enough and has left the steep part behind::

    f(t) <= f(0) + c1 t f'(0)          (sufficient decrease)
    |f'(t)| <= c2 |f'(0)|              (curvature)

Source: J. Nocedal, S. J. Wright, Numerical Optimization, 2nd edition, 2006, algorithms 3.5 and 3.6, with the cubic
interpolation of equation 3.59. What is done where values do not differ: W. W. Hager, H. Zhang, SIAM J. Optim. 16, 2005.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

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
