"""Output and target lined up for a loss, where that has a single meaning; nothing is broadcast."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from streamtrain.errors import UsageError

Kind = Literal["classes", "logits", "values", "custom"]
"""What a loss compares: scores of classes with a class, one logit with 0 or 1, numbers with numbers, or unknown."""


class Named(Protocol):
    """What is asked of a loss."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...


def align(loss: Named, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
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
    >>> from streamtrain.losses import resolve_loss
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


def _align_classes(loss: Named, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if target.dtype != torch.int64:
        raise _wrong_dtype(loss, target, "int64 class labels", "mse or l1, or store the labels as int64")
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise _wrong_shape(loss, output, target, "an output of shape (B, classes)")
    return output, target


def _align_values(loss: Named, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
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


def _wrong_dtype(loss: Named, target: Tensor, wanted: str, fix: str) -> UsageError:
    return UsageError(f"{loss.name} needs {wanted}; the target is {plain(target.dtype)}", fix=fix)


def _wrong_shape(loss: Named, output: Tensor, target: Tensor, wanted: str) -> UsageError:
    return UsageError(
        f"{loss.name} cannot compare an output of shape {tuple(output.shape)} with a target of {tuple(target.shape)}",
        why="Broadcasting one against the other would train on a wrong loss",
        fix=f"give the model {wanted}",
    )


def plain(dtype: torch.dtype | str) -> str:
    """A dtype, or its name, without its library's name."""
    return str(dtype).removeprefix("torch.")
