"""Output and target lined up for a loss, by what the loss compares; nothing is broadcast.

torch would broadcast an output (B, 1) with a target (B,) to a (B, B) table of differences. Here the extra axis is
dropped where that has a single meaning, and any other mismatch is refused. What fits does not depend on B, so a batch
of one sample is no exception. Floats meet in the wider dtype, as everywhere in torch; no other dtype is converted.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, UsageError

LossKind = Literal["classes", "logits", "values", "numbers", "labels", "label lists", "unfit", "custom"]
"""Kinds of operands that a loss compares: int64 classes with an output (B, C, ...); float logits or values, or numbers
of any dtype, of equal shapes; labels of any dtype, where (B,) means (B, 1); int64 label lists (B, C). Unfit losses take
more than two tensors; custom ones are left alone."""


class NamedLoss(Protocol):
    """The parts of a loss that alignment needs."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> LossKind: ...


def align(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Line output and target up for a loss, or refuse them with both shapes."""
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
    if output.ndim == target.ndim == 2 and output.shape == target.shape and target.shape[1] > 1:
        fix = "store class numbers: of one-hot labels y.argmax(axis=1)"
        raise _wrong_dtype(loss, output, target, "int64 class labels, one a sample", fix)
    if target.dtype != torch.int64:
        fix = Fix(Argument("loss", "mse"), " or ", Argument("loss", "l1"), ", or store the labels as int64")
        raise _wrong_dtype(loss, output, target, "int64 class labels", fix)
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise _wrong_shape(loss, output, target, "an output of shape (B, classes)")
    return output, target


def _align_values(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    takes_any = loss.kind in ("numbers", "labels")
    if not (takes_any or target.dtype.is_floating_point or target.is_complex()):
        fix = Fix(Argument("loss", "cross_entropy"), " for class labels, or store the target as a float")
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
        fix = "store the lists as int64, each padded with -1"
        raise _wrong_dtype(loss, output, target, "int64 lists of labels", fix)
    before = output, target
    output, target = drop_last_axis(output, target)
    if output.shape != target.shape or output.ndim != 2:
        raise _wrong_shape(loss, *before, "an output of shape (B, classes), and as many places in every list")
    return output, target


def drop_last_axis(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the last axis, of length 1, that one of the two has more than the other."""
    if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
        return output[..., 0], target
    if target.ndim == output.ndim + 1 and target.shape[-1] == 1:
        return output, target[..., 0]
    return output, target


def check_element_weight(loss: NamedLoss, weight: Tensor, output: Tensor, target: Tensor) -> None:
    """Refuse a weight inside a loss that does not fit one sample's elements: it would be broadcast over the batch."""
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
    """Name a dtype without its library's prefix."""
    return str(dtype).removeprefix("torch.")
