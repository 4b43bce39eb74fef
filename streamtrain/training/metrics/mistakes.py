"""The samples of the largest losses: a few, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from streamtrain.models.alignment import drop_last_axis
from streamtrain.models.losses import Loss
from streamtrain.training.metrics.tasks import scored_as, threshold

MOST_MISTAKES: Final = 10
_MOST_NUMBERS: Final = 16
"""Of a sample with more targets only its row and its loss are told."""
_MOST_OUTPUTS: Final = 65_536
"""Likewise."""

Rows = Callable[[], Sequence[int]]
"""The rows in the dataset of a batch's samples, which take a while to find."""


class Mistakes:
    """Up to `MOST_MISTAKES` samples with the largest losses so far, the largest first, of equal ones the first row."""

    def __init__(self) -> None:
        # Loss, row, target and output of each.
        self._kept: list[tuple[float, int, Tensor, Tensor]] = []

    @property
    def least(self) -> float:
        """The loss that a sample must exceed to be kept."""
        return self._kept[-1][0] if len(self._kept) == MOST_MISTAKES else float("-inf")

    def add(self, losses: Tensor, output: Tensor, target: Tensor, rows: Rows) -> None:
        """Add samples by their losses (B,), of which NaN counts as the largest; an ignored one's is -inf."""
        losses = losses.detach().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        order = losses.argsort(descending=True, stable=True)[:MOST_MISTAKES].cpu()
        found = [(loss, i) for loss, i in zip(losses[order].tolist(), order.tolist(), strict=True) if loss > self.least]
        if not found:
            return
        numbers, output = rows(), output.reshape(len(target), *output.shape[1:])
        is_told = target[0].numel() <= _MOST_NUMBERS and output[0].numel() <= _MOST_OUTPUTS
        # Of masks and images, which take as much memory as they like, nothing is kept.
        target, output = (target, output) if is_told else (target[:, None][:, :0], output[:, None][:, :0])
        self._keep([(loss, int(numbers[i]), target[i].cpu().clone(), output[i].cpu().clone()) for loss, i in found])

    def _keep(self, more: Sequence[tuple[float, int, Tensor, Tensor]]) -> None:
        self._kept = sorted([*self._kept, *more], key=lambda each: (-each[0], each[1]))[:MOST_MISTAKES]

    def merge(self, other: Mistakes) -> None:
        """Add the samples of another pass."""
        self._keep(other._kept)

    def facts(
        self, loss: Loss, in_units: Callable[[Tensor], Tensor], names: Sequence[str] | None
    ) -> list[dict[str, object]]:
        """Return row, truth, prediction and loss of each, with the names of classes and labels."""
        found: list[dict[str, object]] = []
        for of_sample, row, target, output in self._kept:
            told = _told(loss, output[None], target[None], in_units, names) if target.numel() else {}
            found.append({"row": row, **told, "loss": of_sample})
        return found


def losses_of_samples(losses: Tensor | None, loss: Loss, target: Tensor) -> Tensor | None:
    """Return the mean loss (B,) of each sample, of ignored ones -inf; None where the losses are not of samples."""
    if losses is None or losses.ndim == 0 or len(losses) != len(target) or not losses.numel():
        return None
    losses = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    is_ignored = loss.kind == "classes" and target.ndim == 1
    return losses.where(loss.counted(target), -torch.inf) if is_ignored else losses


def _told(
    loss: Loss, output: Tensor, target: Tensor, in_units: Callable[[Tensor], Tensor], names: Sequence[str] | None
) -> dict[str, object]:
    """Say what was true and what was predicted of one sample, a batch of 1."""
    match scored_as(loss, tuple(target.shape[1:])):
        case "classification" if target.numel() == 1 and loss.kind == "classes":
            return {"true": _name(names, int(target)), "predicted": _name(names, int(output.reshape(-1).argmax()))}
        case "classification" if target.numel() == 1 and output.numel() == 1:
            marks = int(target > 0.5), int(output > threshold(loss))
            return {"true": _name(names, marks[0]), "predicted": _name(names, marks[1])}
        case "multilabel":
            output, target = drop_last_axis(output, target)
            return {"true": _marked(target[0] > 0.5, names), "predicted": _marked(output[0] > threshold(loss), names)}
        case "regression" if not (target.is_complex() or output.is_complex()):
            predicted, target = drop_last_axis(in_units(output), target)
            return {"true": _numbers(target[0]), "predicted": _numbers(predicted[0])}
    return {}


def _name(names: Sequence[str] | None, number: int) -> str:
    return names[number] if names is not None and 0 <= number < len(names) else str(number)


def _marked(marks: Tensor, names: Sequence[str] | None) -> list[str]:
    return [_name(names, i) for i in marks.nonzero().reshape(-1).tolist()]


def _numbers(values: Tensor) -> object:
    found = values.double().reshape(-1).tolist()
    return found[0] if len(found) == 1 else found
