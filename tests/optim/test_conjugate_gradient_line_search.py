"""The line search: an accepted step satisfies both conditions, and every search ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.optim.conjugate_gradient import C1, C2, Trial, strong_wolfe

Function = Callable[[float], tuple[float, float]]


def start_of(function: Function) -> Trial:
    value, slope = function(0.0)
    return Trial(step=0.0, value=value, slope=slope)


def counted(function: Function) -> tuple[Function, list[float]]:
    steps: list[float] = []

    def counting(step: float) -> tuple[float, float]:
        steps.append(step)
        return function(step)

    return counting, steps


def convex(a: float, b: float) -> Function:
    """exp(a t) - b t, which is steep on one side and all but a line on the other."""
    return lambda t: (math.exp(min(a * t, 300.0)) - b * t, a * math.exp(min(a * t, 300.0)) - b)


def wavy(a: float, b: float) -> Function:
    """A slope downhill with waves on it, steep again far away."""
    return lambda t: (0.01 * t * t - t + b * math.sin(a * t), 0.02 * t - 1 + b * a * math.cos(a * t))


@given(
    make=st.sampled_from([convex, wavy]),
    a=st.floats(0.1, 5.0),
    b=st.floats(0.01, 20.0),
    first=st.floats(1e-6, 1e3),
)
def test_the_accepted_step_satisfies_both_conditions(
    make: Callable[[float, float], Function], a: float, b: float, first: float
) -> None:
    function, steps = counted(make(a, b))
    start = start_of(function)
    if start.slope >= 0:
        return
    steps.clear()
    found = strong_wolfe(function, start, first, max_trials=100)
    assert found is not None
    assert found.step == steps[-1], "so what is known of the last trial is known of the step"
    assert found.value <= start.value + C1 * found.step * start.slope + 1e-15 * abs(start.value)
    assert abs(found.slope) <= C2 * abs(start.slope)
    assert len(steps) == len(set(steps)), "no step is tried twice"


def test_it_goes_past_a_first_step_that_is_a_million_times_too_short() -> None:
    function, steps = counted(convex(0.1, 5.0))
    assert strong_wolfe(function, start_of(function), 1e-5) is not None
    assert len(steps) < 15


def test_a_function_without_a_minimum_ends_the_search_at_its_lowest_trial() -> None:
    found = strong_wolfe(lambda t: (-t, -1.0), Trial(step=0.0, value=0.0, slope=-1.0), 1.0, max_trials=4)
    assert found == Trial(step=1000.0, value=-1000.0, slope=-1.0)


def test_where_every_trial_is_too_high_there_is_no_step() -> None:
    start = Trial(step=0.0, value=0.0, slope=-1.0)
    assert strong_wolfe(lambda t: (1.0, 1.0), start, 1.0, max_trials=10) is None


def test_a_search_ends_where_steps_are_no_longer_told_apart() -> None:
    # Downhill until 1, where it jumps up: no step satisfies the second condition.
    function, steps = counted(lambda t: (-t, -1.0) if t < 1 else (1.0, 1.0))
    found = strong_wolfe(function, Trial(step=0.0, value=0.0, slope=-1.0), 3.0, max_trials=10_000)
    assert found is not None
    assert found.step == pytest.approx(1.0)
    assert len(steps) < 400


def test_slopes_tell_where_values_do_not() -> None:
    # A parabola on a plateau so high that its values near the minimum are all the same number.
    function = counted(lambda t: (1e9 + (t - 1e-6) ** 2, 2 * (t - 1e-6)))[0]
    found = strong_wolfe(function, start_of(function), 1e-3)
    assert found is not None
    assert found.step == pytest.approx(1e-6, rel=0.1)
