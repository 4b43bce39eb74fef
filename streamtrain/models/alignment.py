"""Output and target lined up for a loss, by what the loss compares; nothing is broadcast.

The classic silent mistake, an output of shape (B, 1) broadcast against a target of shape (B,) to a (B, B) table of
differences, cannot happen with a loss of torch's: the one axis too many is dropped where that has a single meaning, and
everything else is refused with both shapes. What fits does not depend on B, so that a batch of one sample is no
exception.

Floats of different widths are promoted to the wider one, as everywhere in torch; no other dtype is converted.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, UsageError

LossKind = Literal["classes", "logits", "values", "numbers", "labels", "label lists", "unfit", "custom"]
"""What a loss compares; see `align`."""


class NamedLoss(Protocol):
    """What is asked of a loss."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> LossKind: ...


def align(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Line output and target up for a loss, or say why they do not fit.

    =========== ================ =============================================================
    kind        target           shapes
    =========== ================ =============================================================
    classes     int64            output (B, C, ...), target (B, ...) or (B, 1)
    logits      float            equal, or one of them with one last axis of length 1 more
    values      float            equal, or one of them with one last axis of length 1 more
    numbers     real             equal, or one of them with one last axis of length 1 more
    labels      real             the same; (B,) is one label a sample, (B, 1)
    label lists int64            output (B, C), target (B, C), or one of them with one last axis
                                 of length 1 more
    unfit       anything         none: it takes more than an output and a target
    custom      anything         anything
    =========== ================ =============================================================

    Raises
    ------
    UsageError
        The target's dtype is of another kind, or the shapes could only meet by broadcasting.

    Examples
    --------
    >>> from streamtrain.models.losses import resolve_loss
    >>> output, target = align(resolve_loss("l1"), torch.zeros(8, 1), torch.zeros(8))
    >>> output.shape, target.shape
    (torch.Size([8]), torch.Size([8]))
    """
    match loss.kind:
        case "custom":
            return output, target
        case "unfit":
            raise _unfit(loss, output, target)
        case "classes":
            return _align_classes(loss, output, target)
        case "label lists":
            return _align_label_lists(loss, output, target)
        case _:
            return _align_values(loss, output, target)


def _align_classes(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if target.dtype != torch.int64:
        fix = "mse or l1, or store the labels as int64"
        raise _wrong_dtype(loss, output, target, "int64 class labels", fix)
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise _wrong_shape(loss, output, target, "an output of shape (B, classes)")
    return output, target


def _align_values(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    takes_any = loss.kind in ("numbers", "labels")
    if not (takes_any or target.dtype.is_floating_point or target.is_complex()):
        fix = "cross_entropy for class labels, or store the target as a float"
        raise _wrong_dtype(loss, output, target, "a float target", fix)
    before = output, target
    output, target = drop_last_axis(output, target)
    if output.shape != target.shape:
        raise _wrong_shape(loss, *before, "an output of the target's shape")
    if loss.kind == "labels" and output.ndim == 1:
        output, target = output[:, None], target[:, None]
    if takes_any and not target.dtype.is_floating_point:
        return output, target
    wider = torch.promote_types(output.dtype, target.dtype)
    return output.to(wider), target.to(wider)


def _align_label_lists(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if target.dtype != torch.int64:
        fix = "store the lists as int64, each filled up with -1"
        raise _wrong_dtype(loss, output, target, "int64 lists of labels", fix)
    before = output, target
    output, target = drop_last_axis(output, target)
    if output.shape != target.shape or output.ndim != 2:
        raise _wrong_shape(loss, *before, "an output of shape (B, classes), and as many places in every list")
    return output, target


def drop_last_axis(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the last axis, of length 1, that one of the two has more than the other.

    Examples
    --------
    >>> [tuple(tensor.shape) for tensor in drop_last_axis(torch.zeros(4, 3), torch.zeros(4, 3, 1))]
    [(4, 3), (4, 3)]
    """
    if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
        return output[..., 0], target
    if target.ndim == output.ndim + 1 and target.shape[-1] == 1:
        return output, target[..., 0]
    return output, target


def check_element_weight(loss: NamedLoss, weight: Tensor, output: Tensor, target: Tensor) -> None:
    """Refuse weights inside a loss that are none of a sample's elements, and would be broadcast over the batch.

    Raises
    ------
    UsageError
        Their shape does not fit one sample of the target.

    Examples
    --------
    >>> from streamtrain.models.losses import resolve_loss
    >>> check_element_weight(resolve_loss("mse"), torch.ones(3), torch.zeros(4, 3), torch.zeros(4, 3))
    """
    of_sample = target.shape[1:]
    shape = weight.shape[1:] if weight.ndim == target.ndim and weight.shape[0] == 1 else weight.shape
    pairs = zip(reversed(shape), reversed(of_sample), strict=False)
    if len(shape) > len(of_sample) or any(mine not in (1, theirs) for mine, theirs in pairs):
        raise UsageError(
            f"the weight of {loss.name} has shape {tuple(weight.shape)}, and a sample's target {tuple(of_sample)}: an "
            f"output of shape {tuple(output.shape)}, a target of {tuple(target.shape)}",
            why="It would be broadcast over the samples of a batch",
            fix=Fix("a weight for each element of a sample; weights of samples are a field: ", Argument("weight", "w")),
        )


def _wrong_dtype(loss: NamedLoss, output: Tensor, target: Tensor, wanted: str, fix: str) -> UsageError:
    shapes = f"for an output of shape {tuple(output.shape)} and a target of {tuple(target.shape)}"
    return UsageError(f"{shapes}, {loss.name} needs {wanted}; the target is {dtype_name(target.dtype)}", fix=fix)


def _wrong_shape(loss: NamedLoss, output: Tensor, target: Tensor, wanted: str) -> UsageError:
    return UsageError(
        f"{loss.name} cannot compare an output of shape {tuple(output.shape)} with a target of {tuple(target.shape)}",
        why="Broadcasting one against the other would train on a wrong loss",
        fix=f"give the model {wanted}",
    )


def _unfit(loss: NamedLoss, output: Tensor, target: Tensor) -> UsageError:
    return UsageError(
        f"{loss.name} cannot compare an output of shape {tuple(output.shape)} with a target of {tuple(target.shape)}",
        why="It takes more than one of each, or has weights of its own, which no optimizer here trains",
        fix="a function (output, target) -> each sample's loss, (B,), that calls it with all it takes",
    )


def dtype_name(dtype: torch.dtype | str) -> str:
    """A dtype, or its name, without its library's name."""
    return str(dtype).removeprefix("torch.")
