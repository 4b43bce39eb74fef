"""β₁ of Adam as a function of the step t = 1, 2, ...

D. P. Kingma, J. Ba, *Adam: a method for stochastic optimization*, ICLR 2015, let it decay as β₁ λ^(t-1) (theorem 4.1).
torch divides the first moment by 1 - β₁^t with the β₁ of that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from streamtrain.errors import UsageError

Beta1 = Callable[[int], float]
"""Step, counted from 1 -> β₁."""


def ends_with_run(beta1: str | Beta1 | None) -> bool:
    """Whether a β₁ depends on how many steps the run has.

    Examples
    --------
    >>> ends_with_run("linear:0.5"), ends_with_run("exponential:0.9"), ends_with_run(lambda step: 0.9)
    (True, False, False)
    """
    return isinstance(beta1, str) and beta1.startswith("linear:")


def beta1_of(beta1: str | Beta1, first: float, *, n_steps: int) -> Beta1:
    """The function of the step that a name stands for, from the optimizer's own β₁ on.

    Raises
    ------
    UsageError
        The name is unknown, or its number out of range.

    Examples
    --------
    >>> beta1_of("linear:0.5", 0.9, n_steps=5)(3)
    0.7
    """
    if callable(beta1):
        return beta1
    kind, _, text = str(beta1).partition(":")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if kind == "linear" and 0 <= number < 1:
        return lambda step: first + (number - first) * min(1.0, (step - 1) / max(1, n_steps - 1))
    if kind == "exponential" and 0 < number <= 1:
        return lambda step: float(first * number ** (step - 1))
    raise UsageError(
        f"beta1 is {beta1!r}",
        fix="linear:LAST with LAST in [0, 1), exponential:FACTOR with FACTOR in (0, 1], or a function",
    )


def check_beta1(beta1: object, step: int) -> None:
    """Refuse what is no β₁.

    Raises
    ------
    UsageError
        It is not in [0, 1).
    """
    if not (isinstance(beta1, int | float) and 0 <= beta1 < 1):
        raise UsageError(f"beta1 is {beta1!r} at step {step}; it must be in [0, 1)")
