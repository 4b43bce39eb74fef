"""What a line search is told of J: at which scale, and of a trial that went too far that it is too high.

A trial is no step. Where J is not finite there, or so high that the optimizer's own arithmetic on it would leave the
range of the weights' dtype, the search has only to come nearer. It is told that J is infinite and that nothing is known
of its slope; torch's strong Wolfe search and `streamtrain.line_search` both halve the interval then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a pass found at some weights.

    Parameters
    ----------
    objective : float
        J, the penalty included.
    gradients : list of torch.Tensor
        Its gradient, one tensor for each parameter.
    """

    objective: float
    gradients: list[Tensor]


SCALE: Final = 2.0**20
"""What J is multiplied by, exactly, where its first gradient is below 1."""


def scale_at(grad_norm: float) -> float:
    """What a run multiplies J by before the optimizer has it: a power of two, by the norm of the first gradient.

    Torch's L-BFGS learns nothing of a curvature below an absolute 1e-10, which a gradient of 1e-5 can have; and its
    line search squares products of two gradients, which float32 holds for gradients below some 1e8. The scaled one has
    a norm of less than 2^20, and of at least 2^19 where the norm is at least 1. That is part of the method: the first
    trial of torch's L-BFGS, and of `streamtrain.conjugate_gradient`, is ``min(1, 1 / |g|_1) g`` with the scaled
    gradient g.

    Examples
    --------
    >>> scale_at(0.3) == 2**20, scale_at(1000.0) == 2**10
    (True, True)
    """
    return SCALE * 2.0 ** -max(0, math.frexp(grad_norm)[1])


def told(found: Measured, grad_norm: float, start: Measured, scale: float) -> Measured:
    """What a line search is told of a trial: what was found there, or that J is infinite.

    Parameters
    ----------
    found : Measured
        At the trial.
    grad_norm : float
        The Euclidean norm of its gradient.
    start : Measured
        Where the search began.
    scale : float
        What the optimizer has both multiplied by.

    Examples
    --------
    >>> start = Measured(objective=1.0, gradients=[torch.tensor([-3.0])])
    >>> trial = Measured(objective=0.5, gradients=[torch.tensor([2.0])])
    >>> told(trial, 2.0, start, SCALE) is trial
    True
    >>> told(Measured(objective=math.nan, gradients=[torch.tensor([2.0])]), 2.0, start, SCALE)
    Measured(objective=inf, gradients=[tensor([nan])])
    """
    largest = min(torch.finfo(gradient.dtype).max for gradient in found.gradients)
    # A first trial's step is 1 over this, and a search divides the rise by the step before it squares.
    steepness = max(1.0, scale * math.fsum(float(gradient.abs().sum()) for gradient in start.gradients))
    rise = scale * (found.objective - start.objective)
    fits = rise * steepness < largest**0.5 / 64 and scale * grad_norm < largest**0.25 / 8
    if fits and math.isfinite(found.objective):
        return found
    unknown = [torch.full(g.shape, math.nan, dtype=g.dtype, device=g.device) for g in found.gradients]
    return Measured(objective=math.inf, gradients=unknown)
