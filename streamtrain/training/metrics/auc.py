"""The ROC curve of two classes and its area: exact up to a million samples, above that from bins, with its bound.

It is the chance that a sample of the positive class has a higher score than one of the other, a tie counting half
(J. A. Hanley & B. J. McNeil, Radiology 143, 1982). A bin holds the scores that agree in the first 20 bits of their
float32, in the order of the numbers; pairs inside a bin count half, so the area is wrong by at most half their share.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.training.metrics.sums import Bins

MOST_KEPT: Final = 10**6
"""So many scores are kept as they are."""
_BITS: Final = 20
_MOST_POINTS: Final = 129
"""So many points of the curve are kept, evenly spaced along it."""

_Floats = npt.NDArray[np.float64]


class Ranking:
    """The scores of samples of two classes, on the CPU."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._n_kept = 0
        self._bins: tuple[Bins, Bins] | None = None
        self._has_nan = False
        # Made once of what there is, since sorting all scores takes longer than all other metrics: the scores of each
        # class, or their weights by score.
        self._sorted: tuple[_Floats, _Floats] | None = None
        self._are_weights = False
        self._area: tuple[float, float] | None = None

    def add(self, scores: Tensor, is_positive: Tensor, weights: Tensor | None) -> None:
        """Add float64 scores (N,), whether each is of the positive class, and float64 weights."""
        self._sorted = self._area = None
        self._has_nan |= bool(scores.isnan().any())
        if self._bins is None:
            self._kept.append((scores, is_positive, weights))
            self._n_kept += len(scores)
            if self._n_kept <= MOST_KEPT:
                return
            self._bins = Bins(1 << _BITS), Bins(1 << _BITS)
            kept, self._kept = self._kept, []
            for part in kept:
                self._count(*part)
        else:
            self._count(scores, is_positive, weights)

    def _count(self, scores: Tensor, is_positive: Tensor, weights: Tensor | None) -> None:
        assert self._bins is not None
        places = _places(scores)
        for bins, some in zip(self._bins, (~is_positive, is_positive), strict=True):
            bins.add(places[some], None if weights is None else weights[some])

    def merge(self, other: Ranking) -> None:
        """Add the scores of other samples."""
        self._sorted = self._area = None
        self._has_nan |= other._has_nan
        if other._bins is not None:
            if self._bins is None:
                self._bins = Bins(1 << _BITS), Bins(1 << _BITS)
                kept, self._kept = self._kept, []
                for part in kept:
                    self._count(*part)
            for mine, theirs in zip(self._bins, other._bins, strict=True):
                mine.merge(theirs)
        for part in other._kept:
            self.add(*part)

    def area(self) -> tuple[float, float]:
        """Return the area and the bound of its error; NaN where one of the classes has no weight."""
        if self._area is None:
            self._area = self._measured()
        return self._area

    def _measured(self) -> tuple[float, float]:
        if self._has_nan or not (self._kept or self._bins):
            return math.nan, 0.0
        negative, positive = self._by_class()
        if not self._are_weights:
            return _area_of_scores(negative, positive), 0.0
        return _area(negative, positive), 0.0 if self._bins is None else _inside(negative, positive)

    def curve(self) -> dict[str, object] | None:
        """Return points of the curve, and whether all scores are behind it; None where it has no area."""
        if math.isnan(self.area()[0]):
            return None
        find = _points_of_weights if self._are_weights else _points_of_scores
        false, true = (share.round(6).tolist() for share in find(*self._by_class()))
        return {"exact": self._bins is None, "false_positive_rate": false, "true_positive_rate": true}

    def _by_class(self) -> tuple[_Floats, _Floats]:
        """Return of the negative and the positive samples the scores, or the weights by score, ascending."""
        if self._sorted is not None:
            return self._sorted
        self._are_weights = True
        if self._bins is not None:
            negative, positive = (bins.value.double().numpy() for bins in self._bins)
            self._sorted = negative, positive
            return self._sorted
        scores = torch.cat([part[0] for part in self._kept]).numpy()
        is_positive = torch.cat([part[1] for part in self._kept]).numpy()
        if all(part[2] is None for part in self._kept):
            # Numbers alone are sorted sooner than with their places.
            self._sorted, self._are_weights = (np.sort(scores[~is_positive]), np.sort(scores[is_positive])), False
            return self._sorted
        _, places = np.unique(scores, return_inverse=True)
        weighs = (torch.ones_like(of) if w is None else w for of, _, w in self._kept)
        weights = torch.cat(list(weighs)).numpy()
        negative, positive = (
            np.bincount(places, np.where(some, weights, 0.0)).astype(np.float64) for some in (~is_positive, is_positive)
        )
        self._sorted = negative, positive
        return self._sorted


def _places(scores: Tensor) -> Tensor:
    """Number float32 scores by their first bits, in the order of the numbers."""
    # A zero has two signs.
    bits = (scores.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() + (1 << 31)) >> (32 - _BITS)


def _area_of_scores(negative: _Floats, positive: _Floats) -> float:
    """Return the area of ascending scores that weigh the same: in whole numbers, so exact up to the division."""
    pairs = len(negative) * len(positive)
    # A sorted list is searched for a sorted one at about the price of a merge.
    below, up_to = (int(np.searchsorted(negative, positive, side).sum()) for side in ("left", "right"))
    return (below + up_to) / (2 * pairs) if pairs else math.nan


def _points_of_scores(negative: _Floats, positive: _Floats) -> list[_Floats]:
    """Return the shares of each class that are taken for positive, at scores spread evenly over both classes."""
    n_each = _MOST_POINTS // 2
    some = [of[np.linspace(0, len(of) - 1, n_each).astype(np.int64)] for of in (negative, positive)]
    scores = np.unique(np.concatenate(some))[::-1]
    shares = [(len(of) - np.searchsorted(of, scores, "left")) / len(of) for of in (negative, positive)]
    return [np.concatenate(([0.0], share)) for share in shares]


def _points_of_weights(negative: _Floats, positive: _Floats) -> list[_Floats]:
    """Return the same of weights by score, at scores spread evenly along the curve."""
    # From the highest score down.
    shares = [np.concatenate(([0.0], np.cumsum(of[::-1]) / of.sum())) for of in (negative, positive)]
    walked = shares[0] + shares[1]
    places = np.searchsorted(walked, np.linspace(0.0, walked[-1], _MOST_POINTS)).clip(0, len(walked) - 1)
    return [share[np.unique(places)] for share in shares]


def _area(negative: _Floats, positive: _Floats) -> float:
    """Return the area of weights by score, ascending."""
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else math.nan


def _inside(negative: _Floats, positive: _Floats) -> float:
    pairs = negative.sum() * positive.sum()
    return float((negative * positive).sum() / 2 / pairs) if pairs else 0.0
