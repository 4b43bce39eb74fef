"""What belongs to every step, whatever the rule: a gradient that is finite, and clipped where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from streamtrain.errors import DivergedError, UsageError
from streamtrain.system.arguments import is_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """How far a gradient may go, on the mean that the step is taken on; by value first, then by norm.

    Parameters
    ----------
    value : float, optional
        No component is larger than this; by `torch.nn.utils.clip_grad_value_`.
    norm : float, optional
        The Euclidean norm over all parameters is at most this; by `torch.nn.utils.clip_grad_norm_`.

    Raises
    ------
    UsageError
        A limit is not positive and finite.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 40.0])
    >>> Clipping(value=4.0, norm=1.0).clip([weight])
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """

    value: float | None = None
    norm: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("clip_grad_value", self.value), ("clip_grad_norm", self.norm)):
            if limit is not None and not (is_number(limit) and limit > 0):
                raise UsageError(f"{name} is {limit!r}; it must be positive and finite")

    def clip(self, parameters: list[nn.Parameter]) -> None:
        """Clip the gradients of some parameters where they are.

        Raises
        ------
        UsageError
            A gradient is sparse.
        """
        if self != NO_CLIPPING and any(p.grad is not None and p.grad.is_sparse for p in parameters):
            raise UsageError("sparse gradients cannot be clipped", fix="sparse=False where the model's layers are made")
        if self.value is not None:
            clip_grad_value_(parameters, self.value)
        if self.norm is not None:
            clip_grad_norm_(parameters, self.norm)


NO_CLIPPING: Final = Clipping()


def gradient_sizes(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The norm of each gradient: scalars that are not read yet, and not finite where any component is not.

    They cost about what reading the gradients once does.
    """
    found = [dense(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return list(torch._foreach_norm(found)) if found else []


def check_finite(loss: float, sizes: Iterable[float], parameters: Iterable[nn.Parameter]) -> None:
    """Refuse a loss, or a gradient with `gradient_sizes`, that is not finite, before a step is taken on it.

    Raises
    ------
    DivergedError
        One is not. The weights are the last good ones.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([1.0, float("inf")])
    >>> check_finite(0.5, [size.item() for size in gradient_sizes([weight])], [weight])
    Traceback (most recent call last):
    ...
    streamtrain.errors.DivergedError: the gradient is not finite, at a loss of 0.5. ...
    """
    # A norm may overflow where every component is finite; that is looked at more closely.
    if not math.isfinite(loss) or (not math.isfinite(sum(sizes)) and not _are_finite(parameters)):
        raise not_finite(loss)


def check_finite_sum(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse a mean of gradients, each of them finite, that is not.

    Raises
    ------
    DivergedError
        It is not. The weights are the last good ones.
    """
    if not _are_finite(parameters):
        raise DivergedError(
            "the sum of the gradients is not finite, and each of them is",
            why="It has left the range of the numbers it is held in, or of the weights' own",
            fix="grad_sum_dtype='float64' (--grad-sum-dtype float64), or a loss of another scale",
        )


def not_finite(loss: float) -> DivergedError:
    """Build the error for a loss that is not finite, or that is and has a gradient that is not."""
    return DivergedError(
        f"the gradient is not finite, at a loss of {loss:g}" if math.isfinite(loss) else f"the loss is {loss}",
        why="The weights, or a sample, have left the range of the numbers",
        fix="a smaller learning rate, or normalized inputs",
    )


def _are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return all(bool(torch.isfinite(dense(gradient)).all()) for gradient in found)


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient: of a sparse one those that it has."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
