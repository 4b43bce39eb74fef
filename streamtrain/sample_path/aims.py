"""The losses by name, one sample at a time: each one's gradient with respect to the output, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it

from streamtrain.errors import UsageError
from streamtrain.models.losses import Loss, align
from streamtrain.sample_path.network import Network

Write = Callable[[Tensor, Tensor, Tensor, float], object]
"""(output, target, gradient, 1 / width), vectors of one sample each: writes the gradient."""


def _cross_entropy(z: Tensor, wanted: Tensor, dz: Tensor, _: float) -> None:
    torch.softmax(z, 0, out=dz)
    dz.sub_(wanted)


def _nll(_: Tensor, wanted: Tensor, dz: Tensor, __: float) -> None:
    torch.neg(wanted, out=dz)


def _bce_with_logits(z: Tensor, wanted: Tensor, dz: Tensor, share: float) -> None:
    torch.sigmoid(z, out=dz)
    dz.sub_(wanted).mul_(share)


def _mse(z: Tensor, wanted: Tensor, dz: Tensor, share: float) -> None:
    torch.sub(z, wanted, out=dz)
    dz.mul_(2 * share)


def _l1(z: Tensor, wanted: Tensor, dz: Tensor, share: float) -> None:
    torch.sub(z, wanted, out=dz)
    dz.sign_().mul_(share)


_WRITES: Final[dict[str, Write]] = {
    "cross_entropy": _cross_entropy,
    "nll": _nll,
    "bce_with_logits": _bce_with_logits,
    "mse": _mse,
    "l1": _l1,
}

AIMS: Final = tuple(_WRITES)
"""The names of the losses that are known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a chunk's outputs are to become.

    Parameters
    ----------
    write : callable
        Writes the loss's gradient with respect to row i of the output.
    weights : sequence of float
        What each sample weighs in a mean: the elements of its target, and nothing where its class is ignored.
    losses : callable
        The mean loss of each of the first n rows, (n,).
    """

    write: Callable[[int], object]
    weights: Sequence[float]
    losses: Callable[[int], Tensor]


def aim_at(loss: Loss, net: Network, target: Tensor) -> Aim:
    """Set a network's outputs against the targets of a chunk.

    Raises
    ------
    UsageError
        They do not fit each other, or a label is out of the range of the classes.

    Examples
    --------
    >>> from streamtrain.models.losses import resolve_loss
    >>> net = Network([torch.nn.Linear(2, 2)], 4)
    >>> aim = aim_at(resolve_loss("mse"), net, torch.ones(3, 2))
    >>> aim.write(1)
    >>> aim.weights, aim.losses(3), net.d_output.all[1]
    ([2.0, 2.0, 2.0], tensor([1., 1., 1.]), tensor([-1., -1.]))
    """
    n, width = len(target), net.output.all.shape[1]
    _, aligned = align(loss, net.output.all[:n], target)
    if loss.kind == "classes":
        wanted, weights = _one_hot(aligned, loss, width, net.output.all.dtype)
    else:
        wanted, weights = aligned.reshape(n, width), [float(width)] * n
    rows, outputs, deltas = list(wanted.unbind()), net.output.vectors, net.d_output.vectors
    function, share = _WRITES[loss.name], 1 / width

    def write(i: int) -> None:
        function(outputs[i], rows[i], deltas[i], share)

    def losses(n_rows: int) -> Tensor:
        assert loss.each is not None
        each = loss.each(*align(loss, net.output.all[:n_rows], target[:n_rows]))
        return each.reshape(n_rows, -1).mean(1)

    return Aim(write=write, weights=weights, losses=losses)


def _one_hot(labels: Tensor, loss: Loss, n_classes: int, dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    counts = loss.counted(labels)
    wanted = labels.where(counts, 0)
    if not ((wanted >= 0) & (wanted < n_classes)).all():
        bad = wanted[(wanted < 0) | (wanted >= n_classes)][0]
        raise UsageError(f"label {int(bad)} of {n_classes} classes", fix=f"labels from 0 to {n_classes - 1}")
    return F.one_hot(wanted, n_classes).to(dtype), counts.to(torch.float64).tolist()
