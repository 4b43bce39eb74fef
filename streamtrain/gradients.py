"""The gradient of J over a batch: what every update rule steps on, or adds up before it steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.models.losses import Loss
from streamtrain.schedules import Schedules
from streamtrain.stepping import NO_CLIPPING, Clipping, check_finite, dense, gradient_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step needs: the model, its loss, the optimizer over its parameters, and what belongs to every step.

    ``on_step`` is called after each one, when the weights are those it came to; see `streamtrain.setting.Setting`.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    l2: float = 0.0
    clipping: Clipping = NO_CLIPPING
    schedules: Schedules | None = None
    on_step: Callable[[], None] | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains, in its order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What `gradient` found beside the gradient itself.

    Parameters
    ----------
    loss : float
        The weighted mean loss over the batch; 0 where nothing in it has a weight.
    output : torch.Tensor
        Of shape (B, ...), without its graph.
    weight : float
        The sum of the weights in that mean: the samples', and their classes'; without any, the number of samples (of a
        target of several elements a sample, of elements).
    """

    loss: float
    output: Tensor
    weight: float


def gradient(
    learner: Learner,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    weight: Tensor | None = None,
    *,
    summed: bool = False,
    scale: float | None = None,
    check: bool = True,
) -> Gradient:
    """Leave the gradient of J over a batch in the parameters.

    Parameters
    ----------
    learner : Learner
        Its optimizer's gradients are dropped first.
    inputs, target : tuple of torch.Tensor, torch.Tensor
        Of shapes (B, ...).
    weight : torch.Tensor, optional
        The samples' weights, (B,), not negative.
    summed : bool
        Leave the gradient of the weighted sum of the losses instead, which no division has rounded: over several
        batches these add up, and J's gradient is their sum over the sum of the weights, or over 1 where the loss itself
        is ``summed``.
    scale : float, optional
        A factor of the gradient.
    check : bool
        Whether a loss or a gradient that is not finite is refused, as it is where a step is taken on it.

    Raises
    ------
    DivergedError
        With ``check``, the loss or its gradient is not finite. No step has been taken on it: the weights are the last
        good ones.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    output: Tensor = learner.model(*inputs)
    measured, weights = (learner.loss.total if summed else learner.loss.objective)(output, target, weight)
    factor = None if scale is None else torch.full_like(measured, scale)
    measured.backward(factor)  # type: ignore[no-untyped-call]
    value, total_weight, *sizes = numbers(measured, weights, *gradient_sizes(learner.parameters))
    if not total_weight:
        return Gradient(loss=0.0, output=output.detach(), weight=0.0)
    if check:
        check_finite(value, sizes, learner.parameters)
    mean = value / total_weight if summed or learner.loss.summed else value
    return Gradient(loss=mean, output=output.detach(), weight=total_weight)


def numbers(loss: Tensor, *others: Tensor | float) -> list[float]:
    """Read a loss and other scalars, waiting once for the device."""
    scalars = (loss, *others)
    # On the CPU there is nothing to wait for, and reading one costs less than putting them together.
    if loss.device.type == "cpu":
        return [float(x.item()) if isinstance(x, Tensor) else float(x) for x in scalars]
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    found = torch.stack([x.detach().to(loss.device, wide) for x in scalars if isinstance(x, Tensor)]).tolist()
    read = iter(found)
    return [next(read) if isinstance(x, Tensor) else float(x) for x in scalars]


def grad_norm(parameters: list[nn.Parameter]) -> float:
    """The Euclidean norm of all the gradients together."""
    wide = torch.float32 if parameters[0].device.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(dense(p.grad), dtype=wide) for p in parameters if p.grad is not None]
    return math.hypot(*torch.stack(norms).tolist()) if norms else 0.0
