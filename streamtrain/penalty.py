"""The penalty inside J: ``l2 / 2`` times the sum of the squared weights, biases left out.

J is then the mean loss plus the penalty, and its gradient has ``l2`` times the weight in it, once for every step,
whatever the update rule. A weight is what has at least two axes, as matrices, kernels and embeddings do; biases and the
scales of normalizations have one. With plain SGD that is what ``weight_decay`` does, except that it spares the biases;
with Adam it is not what AdamW does, whose decay stays out of J.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from streamtrain.errors import UsageError
from streamtrain.system.arguments import is_number


def check_l2(l2: float) -> None:
    """Refuse a factor that is no finite number of at least 0.

    Raises
    ------
    UsageError
        It is none.
    """
    if not is_number(l2) or l2 < 0:
        raise UsageError(f"l2 is {l2!r}; it must be 0 or positive, and finite")


def penalized(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the parameters that the penalty is on: trained, and no biases.

    Examples
    --------
    >>> [tuple(parameter.shape) for parameter in penalized(nn.Linear(3, 2).parameters())]
    [(2, 3)]
    """
    return [parameter for parameter in parameters if parameter.ndim >= 2 and parameter.requires_grad]


def penalty(parameters: Iterable[nn.Parameter], l2: float) -> float:
    """The penalty on some parameters, summed in float64 where the device has it.

    Examples
    --------
    >>> penalty([nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.tensor([3.0]))], 0.1)
    0.25
    """
    if not l2:
        return 0.0
    squares = [_square(parameter.detach()) for parameter in penalized(parameters)]
    return l2 / 2 * math.fsum(torch.stack(squares).tolist()) if squares else 0.0


def _square(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.reshape(-1)
    wide = flat if flat.device.type == "mps" else flat.double()
    return wide.dot(wide)


def add_penalty(parameters: Iterable[nn.Parameter], l2: float) -> None:
    """Add the penalty's gradient to what the parameters hold of J's."""
    for parameter in penalized(parameters) if l2 else ():
        weight = parameter.detach()
        if parameter.grad is None:
            parameter.grad = weight * l2
        elif parameter.grad.is_sparse:
            parameter.grad = (weight * l2).add_(parameter.grad)
        else:
            parameter.grad.add_(weight, alpha=l2)
