"""Which samples of a batch a loss or a gradient owes it to that it is not finite."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from streamtrain.errors import DivergedError, StreamtrainError
from streamtrain.optim.gradients import Learner
from streamtrain.shuffle.order import I64

_NAMED: Final = 8


def name_culprits(
    error: DivergedError, learner: Learner, inputs: tuple[Tensor, ...], target: Tensor, samples: I64 | None
) -> None:
    """Add to an error the samples behind it, as far as they can be told apart.

    Looked at are, one after the other until something is found: values that are not finite in the batch itself,
    weights, each sample's loss, each sample's gradient.

    Parameters
    ----------
    error : DivergedError
        From a step on the batch; the weights are those it was to be taken at.
    learner : Learner
        What it trains.
    inputs, target : tuple of torch.Tensor, torch.Tensor
        Of shapes (B, ...).
    samples : (B,) int64, optional
        The samples of the batch; None where the stream cannot say.
    """
    if samples is None or len(samples) != len(target):
        return
    places, why = _find(learner, inputs, target)
    found = samples if places is None else samples[places]
    error.samples = tuple(int(sample) for sample in found)
    error.why = f"{why}: {_listed(found)}"


def _find(learner: Learner, inputs: tuple[Tensor, ...], target: Tensor) -> tuple[I64 | None, str]:
    bad = _bad_rows((*inputs, target))
    if len(bad):
        return bad, "These samples hold values that are not finite"
    if not all(bool(torch.isfinite(parameter).all()) for parameter in learner.parameters):
        return None, "Weights are not finite since the step before; the batch is of samples"
    try:
        bad_losses, bad_gradients = _by_sample(learner, inputs, target)
    except (StreamtrainError, RuntimeError, ValueError, TypeError, IndexError):
        # A loss that couples samples, say; the batch is then all that is known.
        return None, "The batch is of samples"
    if len(bad_losses):
        return bad_losses, "These samples have a loss that is not finite"
    if len(bad_gradients):
        return bad_gradients, "These samples have a gradient that is not finite"
    return None, "The batch is of samples"


def _bad_rows(tensors: tuple[Tensor, ...]) -> I64:
    bad = torch.zeros(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        if tensor.is_floating_point():
            bad |= ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
    return _places(bad.tolist())


def _by_sample(learner: Learner, inputs: tuple[Tensor, ...], target: Tensor) -> tuple[I64, I64]:
    """The places of the samples whose own loss, and of those whose own gradient, is not finite."""
    with torch.no_grad():
        output = learner.model(*inputs)
    ones = [slice(i, i + 1) for i in range(len(target))]
    bad_losses = _places([not bool(torch.isfinite(learner.loss.total(output[one], target[one])[0])) for one in ones])
    if len(bad_losses):
        return bad_losses, _places([])
    # Each by itself: in one graph, a gradient that is not finite times the zero of another's loss is none either.
    return bad_losses, _places([_has_bad_gradient(learner, tuple(x[one] for x in inputs), target[one]) for one in ones])


def _has_bad_gradient(learner: Learner, inputs: tuple[Tensor, ...], target: Tensor) -> bool:
    loss, _ = learner.loss.total(learner.model(*inputs), target)
    gradients = torch.autograd.grad(loss, learner.parameters, allow_unused=True)
    return not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)


def _places(bad: list[bool]) -> I64:
    return np.flatnonzero(np.array(bad, np.bool_)).astype(np.int64)


def _listed(samples: I64) -> str:
    named = ", ".join(str(sample) for sample in samples[:_NAMED])
    return named if len(samples) <= _NAMED else f"{named}, ... ({len(samples)} in all)"
