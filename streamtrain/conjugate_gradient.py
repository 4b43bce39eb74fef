"""Nonlinear conjugate gradients: each direction is the steepest descent, bent towards the one before it.

With g the gradient and d the direction::

    d_k = -g_k + beta_k d_(k-1),    beta_k = max(0, g_k . (g_k - g_(k-1)) / (g_(k-1) . g_(k-1)))

which is Polak and Ribiere's formula kept from going negative ("PR+"). The direction is the steepest descent again where
beta is 0, where two gradients in turn are far from orthogonal, after as many steps as there are weights, and where the
direction would not lead down.

Source: J. Nocedal, S. J. Wright, Numerical Optimization, 2nd edition, 2006, algorithm 5.4 with equations 5.44, 5.45 and
5.52; E. Polak, G. Ribiere, RIRO 3, 1969; M. J. D. Powell, Mathematical Programming 12, 1977.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.line_search import Trial, strong_wolfe

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
        Real ones, on one device.
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
        parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in self._params)
        return torch.cat([part.reshape(-1) for part in parts])

    def _move(self, weights: list[Tensor], direction: Tensor, step: float) -> None:
        """Put the parameters at ``weights + step * direction``."""
        # A step that the weights' dtype does not hold leads as far as one that it does.
        step = min(step, torch.finfo(direction.dtype).max)
        offset = 0
        for parameter, weight in zip(self._params, weights, strict=True):
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
