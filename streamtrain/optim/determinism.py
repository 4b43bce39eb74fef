"""The check that a forward pass is a function of weights and data, on which a line search relies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from streamtrain.errors import UsageError
from streamtrain.models.seeding import borrowed_random
from streamtrain.optim.gradients import TrainingBatch, weights_kept

_CHECKED_ROWS = 64


def digest(tensors: Iterable[Tensor]) -> str:
    """Digest the values of some tensors; 0 and -0 are equal."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        values = tensor.detach()
        # Adding zero makes a negative zero positive and changes nothing else.
        values = values + 0.0 if values.dtype.is_floating_point or values.is_complex() else values
        found.update(values.reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_deterministic(model: nn.Module, batch: TrainingBatch, before: str | None) -> str:
    """Refuse outputs that depend on more than weights and samples, and a first batch other than the pass before's.

    Return the digest of the first batch. The check changes neither buffers nor random state.
    """
    now = digest((*batch.inputs, batch.target))
    if before is None:
        _check_model(model, batch.rows(slice(_CHECKED_ROWS)).inputs)
    elif now != before:
        raise UsageError(
            "the data changes between the calls of a line search: the first batch is not that of the pass before",
            why="L-BFGS and conjugate gradients compare J at several weights, over the same samples",
            fix="a transform that takes no keys and draws nothing, or another optimizer",
        )
    return now


def _check_model(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    buffers = list(model.buffers())
    device = next(model.parameters()).device
    with torch.no_grad(), borrowed_random(device), weights_kept(buffers) as before:
        outputs = [model(*inputs) for _ in range(3)]
        changed = not all(map(torch.equal, buffers, before))
    if changed or not all(_equal(output, outputs[0]) for output in outputs[1:]):
        raise UsageError(
            f"the model's forward changes between the calls of a line search{_random_modules(model)}",
            why="L-BFGS and conjugate gradients compare J at several weights, so J must depend on nothing else",
            fix="Dropout with p=0, LayerNorm or GroupNorm in place of BatchNorm, or another optimizer",
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Compare two outputs up to rounding: the kernels of some devices do not round alike twice."""
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True))


def _random_modules(model: nn.Module) -> str:
    """Name the modules known to draw random numbers or to keep statistics."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    found = [
        f"{name.removeprefix('model.')} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and (isinstance(module, batch_norm) or _draws(module))
    ]
    return f": {', '.join(found)}" if found else ""


def _draws(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
