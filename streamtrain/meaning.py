"""What changes its meaning where one step is taken on several batches: said once, before training."""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor, nn

from streamtrain.models.losses import Loss

_TOLERANCE: Final = 1e-3


def warn_of_modules(model: nn.Module, spans: str | None) -> None:
    """Warn of modules whose output for a sample depends on its batch, where a step is taken on several batches.

    Parameters
    ----------
    model : torch.nn.Module
        What is trained.
    spans : str, optional
        By what a step comes to span batches, if it does; see `streamtrain.optim.rules.Rule.spans`.

    Examples
    --------
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of_modules(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "update='epoch'")
    >>> str(caught[0].message).split(":")[0]
    "Dropout under update='epoch'"
    """
    if spans is None:
        return
    norms = _names(model, nn.modules.batchnorm._BatchNorm)
    drops = _names(model, nn.modules.dropout._DropoutNd)
    why = [
        "BatchNorm takes each batch's own mean and variance, and its averages move batch by batch" if norms else "",
        "Dropout draws a mask for each batch, so the gradient is a mean over as many masks" if drops else "",
    ]
    if any(why):
        warnings.warn(
            f"{', '.join([*norms, *drops])} under {spans}: {'; '.join(filter(None, why))}; the "
            "step is not the one on all of these samples as one batch",
            stacklevel=4,
        )


def warn_of_loss(loss: Loss, output: Tensor, target: Tensor, spans: str | None) -> None:
    """Warn of a loss of the user's own that is no mean over samples, where a step is taken on several batches.

    It is measured on an output (B, ...) and target (B, ...), and on their halves.
    """
    if loss.each is not None or len(target) < 2 or spans is None:
        return
    half = len(target) // 2
    with torch.no_grad():
        whole = float(loss(output, target))
        parts = half * float(loss(output[:half], target[:half]))
        parts += (len(target) - half) * float(loss(output[half:], target[half:]))
    if not abs(parts / len(target) - whole) <= _TOLERANCE * (abs(whole) + _TOLERANCE):
        warnings.warn(
            f"{loss.name} under {spans}: it is no mean over the samples of a batch "
            f"({whole:.6g} over {len(target)} samples, {parts / len(target):.6g} over their halves), so the mean over "
            "the batches depends on how they are formed",
            stacklevel=5,
        )


def _names(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return sorted({type(module).__name__ for module in model.modules() if isinstance(module, kind)})
