"""Losses by name: the mean over the samples of a batch, and what each asks of its target.

A `Loss` lines the model's output up with the target before it measures, so that the classic silent mistake, an output
of shape (B, 1) broadcast against a target of shape (B,) to a (B, B) table of differences, cannot happen: the one
axis too many is dropped where that has a single meaning, and everything else is refused.

Floats of different widths meet in the wider one, as everywhere in torch; no other dtype is converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it

from streamtrain.errors import UsageError, unknown_name

Kind = Literal["classes", "logits", "values", "custom"]
"""What a loss compares: scores of classes with a class, one logit with 0 or 1, numbers with numbers, or unknown."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Output (B, ...) and target (B, ...) -> the mean over the B samples, a scalar tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A named mean loss.

    Parameters
    ----------
    name : str
        As the user wrote it, or the callable's own name.
    kind : {"classes", "logits", "values", "custom"}
        What the target has to be; of a ``"custom"`` loss nothing is known and nothing is checked.
    mean : callable
        The function itself.

    Examples
    --------
    >>> import torch
    >>> mse = resolve_loss("mse")
    >>> float(mse(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])))
    2.0
    """

    name: str
    kind: Kind
    mean: LossFunction

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar tensor.

        Raises
        ------
        UsageError
            The shapes or dtypes do not fit each other; see `align`.
        """
        return self.mean(*align(self, output, target))


_NAMED: Final[dict[str, tuple[Kind, LossFunction, type[nn.Module]]]] = {
    "cross_entropy": ("classes", F.cross_entropy, nn.CrossEntropyLoss),
    "nll": ("classes", F.nll_loss, nn.NLLLoss),
    "bce_with_logits": ("logits", F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
    "mse": ("values", F.mse_loss, nn.MSELoss),
    "l1": ("values", F.l1_loss, nn.L1Loss),
}

LOSSES: Final = tuple(_NAMED)
"""The names `resolve_loss` knows."""


def resolve_loss(loss: str | LossFunction | Loss) -> Loss:
    """Turn a name or a callable into a `Loss`.

    torch's own functions and modules behind the names (``F.mse_loss``, ``nn.CrossEntropyLoss(...)``) are recognised and
    checked like them. Any other callable must return the mean over the samples of its batch.

    Raises
    ------
    UnknownName
        No loss has that name.
    UsageError
        A loss module that sums or returns one value per sample, or something that cannot be called.

    Examples
    --------
    >>> resolve_loss("cross_entropy").kind, resolve_loss(torch.nn.MSELoss()).kind, resolve_loss(max).kind
    ('classes', 'values', 'custom')
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise unknown_name("loss", loss, _NAMED)
        kind, mean, _ = _NAMED[loss]
        return Loss(name=loss, kind=kind, mean=mean)
    if not callable(loss):
        raise UsageError(f"loss is {loss!r}", fix=f"one of {', '.join(_NAMED)}, or a function (output, target) -> mean")
    _check_reduction(loss)
    name, recognised = _recognise(loss)
    return Loss(name=name, kind=recognised, mean=loss)


def _recognise(loss: LossFunction) -> tuple[str, Kind]:
    for name, (kind, function, module) in _NAMED.items():
        if loss is function or type(loss) is module:
            return name, kind
    return getattr(loss, "__name__", type(loss).__name__), "custom"


def _check_reduction(loss: object) -> None:
    reduction = getattr(loss, "reduction", "mean")
    if isinstance(loss, nn.Module) and reduction != "mean":
        raise UsageError(
            f"{type(loss).__name__} has reduction={reduction!r}",
            why="Every update rule steps on the mean over the samples",
            fix="reduction='mean'",
        )


def default_loss(target_dtype: torch.dtype) -> str:
    """The loss that fits a target when none is named: ``cross_entropy`` for int64 class labels, ``mse`` for floats.

    Raises
    ------
    UsageError
        The dtype is neither.

    Examples
    --------
    >>> default_loss(torch.int64), default_loss(torch.float32)
    ('cross_entropy', 'mse')
    """
    if target_dtype == torch.int64:
        return "cross_entropy"
    if target_dtype.is_floating_point:
        return "mse"
    raise UsageError(
        f"no loss fits a {_plain(target_dtype)} target by default", fix="name one, or store int64 or float"
    )


def align(loss: Loss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Line output and target up for a loss, or say why they do not fit.

    ======= ============================ ======================================================
    kind    target                       shapes
    ======= ============================ ======================================================
    classes int64                        output (B, C, ...), target (B, ...) or (B, 1)
    logits  float                        equal, or one of them with one last axis of length 1 more
    values  float                        equal, or one of them with one last axis of length 1 more
    custom  anything                     anything
    ======= ============================ ======================================================

    Raises
    ------
    UsageError
        The target's dtype is of another kind, or the shapes could only meet by broadcasting.

    Examples
    --------
    >>> import torch
    >>> output, target = align(resolve_loss("l1"), torch.zeros(8, 1), torch.zeros(8))
    >>> output.shape, target.shape
    (torch.Size([8]), torch.Size([8]))
    """
    match loss.kind:
        case "custom":
            return output, target
        case "classes":
            return _align_classes(loss, output, target)
        case _:
            return _align_values(loss, output, target)


def _align_classes(loss: Loss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if target.dtype != torch.int64:
        raise _wrong_dtype(loss, target, "int64 class labels", "mse or l1, or store the labels as int64")
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise _wrong_shape(loss, output, target, "an output of shape (B, classes)")
    return output, target


def _align_values(loss: Loss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if not target.dtype.is_floating_point:
        fix = "cross_entropy for class labels, or store the target as a float"
        raise _wrong_dtype(loss, target, "a float target", fix)
    if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
        output = output[..., 0]
    elif target.ndim == output.ndim + 1 and target.shape[-1] == 1:
        target = target[..., 0]
    if output.shape != target.shape:
        raise _wrong_shape(loss, output, target, "an output of the target's shape")
    wider = torch.promote_types(output.dtype, target.dtype)
    return output.to(wider), target.to(wider)


def _wrong_dtype(loss: Loss, target: Tensor, wanted: str, fix: str) -> UsageError:
    return UsageError(f"{loss.name} needs {wanted}; the target is {_plain(target.dtype)}", fix=fix)


def _wrong_shape(loss: Loss, output: Tensor, target: Tensor, wanted: str) -> UsageError:
    return UsageError(
        f"{loss.name} cannot compare an output of shape {tuple(output.shape)} with a target of {tuple(target.shape)}",
        why="Broadcasting one against the other would train on a wrong loss",
        fix=f"give the model {wanted}",
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
