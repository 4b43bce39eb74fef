"""Scores of classes: accuracy alone, or all of them from a confusion matrix or each class's counts."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.training.metrics.auc import Ranking
from streamtrain.training.metrics.multilabel import label_scores
from streamtrain.training.metrics.sums import Bins, Total
from streamtrain.training.metrics.tasks import FEW_CLASSES

MOST_IN_CONFUSION: Final = 1000
"""Of more classes only the counts of each are kept."""
_TOP: Final = 5


def largest(output: Tensor) -> Tensor:
    """Return the class (N,) of the largest output of (N, K), of equal ones the first; NaN counts as the largest."""
    if output.shape[1] != 2:
        return output.max(1).indices
    # In a tenth of the time.
    first, second = output.unbind(1)
    return ((second > first) | (second.isnan() & ~first.isnan())).long()


class AccuracyTally:
    """The targets that were met, and all; on their device, since reading them would wait for it at every batch."""

    def __init__(self) -> None:
        self._hits, self._of = Total(), Total()

    def add(self, met: Tensor, counted: Tensor | None, weights: Tensor | None) -> None:
        """Add targets (N,): whether each was met, whether it counts, and its float64 weight."""
        if weights is None:
            self._hits.add(met.count_nonzero())
            self._of.add(torch.tensor(met.numel()) if counted is None else counted.count_nonzero())
        else:
            self._hits.add((weights * met.to(weights.device)).sum())
            self._of.add((weights if counted is None else weights * counted.to(weights.device)).sum())

    def merge(self, other: AccuracyTally) -> None:
        """Add the counts over other samples."""
        self._hits.merge(other._hits)
        self._of.merge(other._of)

    def accuracy(self) -> float:
        """Return the share of the targets that were met; NaN of none."""
        of = float(self._of.value)
        return float(self._hits.value) / of if of else math.nan

    def numbers(self) -> tuple[float, float, dict[str, Any] | None]:
        """Return the counts as numbers, and their ``state`` where weights have left rounding errors."""
        hits, of = float(self._hits.value), float(self._of.value)
        return hits, of, None if self._hits.is_exact and self._of.is_exact else self.state()

    def state(self) -> dict[str, Any]:
        """Return the counts, from which they are made again."""
        return {"hits": self._hits.state(), "of": self._of.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state``."""
        self._hits, self._of = Total(*state["hits"]), Total(*state["of"])


class ClassTally:
    """Counts over predicted and true classes, on the CPU."""

    def __init__(self, n_classes: int, *, positive: int = 1) -> None:
        self.n_classes = n_classes
        self.positive = positive
        self.n_ignored = 0
        is_small = n_classes <= MOST_IN_CONFUSION
        self._confusion = Bins(n_classes**2) if is_small else None
        # Of each class: met, predicted, true.
        self._of_class = () if is_small else tuple(Bins(n_classes) for _ in range(3))
        self._top = (Total(), Total()) if n_classes > FEW_CLASSES else None
        self._ranking = Ranking() if n_classes == 2 else None

    def add(self, output: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add outputs (N, K), of two classes also (N,), with classes (N,) and float64 weights (N,)."""
        if output.ndim == 1:
            predicted, scores = (output > 0).long(), output.double()
        else:
            predicted = largest(output)
            scores = (output[:, 1].double() - output[:, 0].double()) if self.n_classes == 2 else output
        if self._confusion is not None:
            self._confusion.add(target * self.n_classes + predicted, weights)
        else:
            met = predicted == target
            for bins, (places, of) in zip(
                self._of_class,
                ((target[met], None if weights is None else weights[met]), (predicted, weights), (target, weights)),
                strict=True,
            ):
                bins.add(places, of)
        if self._ranking is not None:
            is_positive = target == self.positive
            self._ranking.add(scores if self.positive == 1 else -scores, is_positive, weights)
        if self._top is not None:
            near = (output.topk(_TOP, dim=1).indices == target[:, None]).any(1)
            for total, marks in zip(self._top, (near, torch.ones_like(near)), strict=True):
                total.add(marks.sum() if weights is None else weights @ marks.double())

    def merge(self, other: ClassTally) -> None:
        """Add the counts over other samples."""
        self.n_ignored += other.n_ignored
        if self._confusion is not None and other._confusion is not None:
            self._confusion.merge(other._confusion)
        for mine, theirs in zip(self._of_class, other._of_class, strict=True):
            mine.merge(theirs)
        for one, more in zip(self._top or (), other._top or (), strict=True):
            one.merge(more)
        if self._ranking is not None and other._ranking is not None:
            self._ranking.merge(other._ranking)

    @property
    def confusion(self) -> Tensor | None:
        """The weight of the samples of each class, by row, that were taken for each, by column."""
        return None if self._confusion is None else self._confusion.value.view(self.n_classes, self.n_classes)

    def _sums(self, *, counted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return of each class the weight, or the number, of those that were met, predicted, and true."""
        if self._confusion is None:
            met, predicted, support = (bins.counts if counted else bins.value for bins in self._of_class)
            return met, predicted, support
        matrix = (self._confusion.counts if counted else self._confusion.value).view(self.n_classes, self.n_classes)
        return matrix.diagonal(), matrix.sum(0), matrix.sum(1)

    def is_alike(self) -> bool:
        """Whether every prediction was the same class."""
        _, predicted, _ = self._sums(counted=True)
        return int((predicted > 0).sum()) == 1

    def scores(self) -> dict[str, float]:
        """Return the scores over all classes; NaN of nothing."""
        _, n_predicted, n_true = self._sums(counted=True)
        met, predicted, support = self._sums()
        found = _over_classes(met, predicted, support, n_predicted + n_true > 0)
        if self._top is not None:
            near, of = (float(total.value) for total in self._top)
            found["top5_accuracy"] = near / of if of else math.nan
        if self._ranking is not None:
            found |= self._of_positive(met, predicted, support)
            found["auc"] = self._ranking.area()[0]
        return found

    def _of_positive(self, met: Tensor, predicted: Tensor, support: Tensor) -> dict[str, float]:
        of = label_scores(met, predicted, support)
        return {name: float(of[name][self.positive]) for name in ("precision", "recall")}

    def bounds(self) -> dict[str, float]:
        """Return the bounds of those scores that are not exact."""
        bound = 0.0 if self._ranking is None else self._ranking.area()[1]
        return {"auc": bound} if bound else {}

    def curve(self) -> dict[str, object] | None:
        """Return the ROC curve of two classes."""
        return None if self._ranking is None else self._ranking.curve()

    def by_class(self) -> dict[str, Tensor]:
        """Return precision, recall, f1 and support of each class."""
        return label_scores(*self._sums())

    def of_constant(self, answer: int) -> dict[str, float]:
        """Return the scores of always answering one class."""
        _, _, n_true = self._sums(counted=True)
        _, _, support = self._sums()
        is_answer = torch.arange(self.n_classes) == answer
        met, predicted = support * is_answer, support.sum() * is_answer
        found = _over_classes(met, predicted, support, (n_true > 0) | is_answer)
        if self._ranking is not None:
            found |= self._of_positive(met, predicted, support) | {"auc": 0.5}
        return found


def _over_classes(met: Tensor, predicted: Tensor, support: Tensor, is_there: Tensor) -> dict[str, float]:
    """Compute the scores over the classes that occur, as scikit-learn does."""
    of, has_weight = label_scores(met, predicted, support), support > 0
    total = support.sum()
    return {
        "accuracy": float(met.sum()) / float(total) if total else math.nan,
        "f1": float(of["f1"][is_there].mean()),
        "balanced_accuracy": float(of["recall"][has_weight].mean()),
    }
