"""Scores of labels, any number of them a sample: f1, accuracy of the elements, exact matches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamtrain.training.metrics.sums import Total, wide

_NAMES = ("weight", "met", "predicted", "support", "right", "exact")


class MarkTally:
    """Counts over marks of shape (N, L), predicted and true, on their device."""

    def __init__(self) -> None:
        self._totals = {name: Total() for name in _NAMES}

    def add(self, predicted: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add marks of bool, with float64 weights (N,)."""
        right = predicted == target
        found = {
            "weight": torch.ones_like(target[:, 0]),
            "met": predicted & target,
            "predicted": predicted,
            "support": target,
            "right": right,
            "exact": right.all(1),
        }
        for name, marks in found.items():
            self._totals[name].add(marks.sum(0) if weights is None else weights @ wide(marks))

    def merge(self, other: MarkTally) -> None:
        """Add the counts over other samples."""
        for name, total in self._totals.items():
            total.merge(other._totals[name])

    def _values(self) -> list[Tensor]:
        return [self._totals[name].value.cpu() for name in _NAMES]

    def is_alike(self) -> bool:
        """Whether every prediction of each label was the same."""
        weight, _, predicted, *_ = self._values()
        return bool(((predicted == 0) | (predicted == weight)).all())

    def f1(self) -> float:
        """Return the mean f1 of the labels; NaN of nothing."""
        weight, met, predicted, support, *_ = self._values()
        return float(label_scores(met, predicted, support)["f1"].mean()) if weight else torch.nan

    def scores(self) -> dict[str, float]:
        """Return the scores over all labels."""
        weight, _, _, support, right, exact = (values.double() for values in self._values())
        n_elements = weight * support.numel()
        return {"f1": self.f1(), "accuracy": float(right.sum() / n_elements), "exact_match": float(exact / weight)}

    def by_label(self) -> dict[str, Tensor]:
        """Return precision, recall, f1 and support of each label."""
        _, met, predicted, support, *_ = self._values()
        return label_scores(met, predicted, support)

    def of_constant(self, marks: Tensor) -> dict[str, float]:
        """Return the scores of marks (L,) that are always predicted, but for exact matches, which need the samples."""
        weight, _, _, support, *_ = (values.double() for values in self._values())
        of = label_scores(support * marks, weight * marks, support)
        right = torch.where(marks, support, weight - support)
        return {"f1": float(of["f1"].mean()), "accuracy": float(right.sum() / (weight * support.numel()))}

    def state(self) -> dict[str, Any]:
        """Return the counts, from which they are made again."""
        return {name: total.state() for name, total in self._totals.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state``."""
        self._totals = {name: Total(*state[name]) for name in _NAMES}


def label_scores(met: Tensor, predicted: Tensor, support: Tensor) -> dict[str, Tensor]:
    """Compute precision, recall and f1 of classes or labels from sums of weights; 0 where one is of nothing."""

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part.double() / whole, 0.0)

    return {
        "precision": share(met, predicted),
        "recall": share(met, support),
        "f1": share(2 * met, predicted + support),
        "support": support,
    }
