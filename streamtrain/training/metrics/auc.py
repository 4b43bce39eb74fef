"""The area under the ROC curve of two classes: exact up to a million samples, above that from bins, with its bound.

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

_Floats = npt.NDArray[np.float64]


class Ranking:
    """The scores of samples of two classes, on the CPU."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._n_kept = 0
        self._bins: tuple[Bins, Bins] | None = None
        self._has_nan = False
        # Sorting all scores takes longer than all other metrics, and several figures ask for the area.
        self._area: tuple[float, float] | None = None

    def add(self, scores: Tensor, is_positive: Tensor, weights: Tensor | None) -> None:
        """Add float64 scores (N,), whether each is of the positive class, and float64 weights."""
        self._area = None
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
        self._area = None
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
        if self._bins is not None:
            negative, positive = (bins.value.double().numpy() for bins in self._bins)
            return _area(negative, positive), _inside(negative, positive)
        scores = torch.cat([part[0] for part in self._kept]).numpy()
        is_positive = torch.cat([part[1] for part in self._kept]).numpy()
        if all(part[2] is None for part in self._kept):
            return _area_of_scores(scores[~is_positive], scores[is_positive]), 0.0
        _, places = np.unique(scores, return_inverse=True)
        weighs = (torch.ones_like(of) if w is None else w for of, _, w in self._kept)
        weights = torch.cat(list(weighs)).numpy()
        negative, positive = (
            np.bincount(places, np.where(some, weights, 0.0)).astype(np.float64) for some in (~is_positive, is_positive)
        )
        return _area(negative, positive), 0.0


def _places(scores: Tensor) -> Tensor:
    """Number float32 scores by their first bits, in the order of the numbers."""
    # A zero has two signs.
    bits = (scores.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() + (1 << 31)) >> (32 - _BITS)


def _area_of_scores(negative: _Floats, positive: _Floats) -> float:
    """Return the area of scores that weigh the same: in whole numbers, so exact up to the division."""
    pairs = len(negative) * len(positive)
    # A sorted list is searched for a sorted one at about the price of a merge, and numbers are sorted without places.
    negative.sort()
    positive.sort()
    below, up_to = (int(np.searchsorted(negative, positive, side).sum()) for side in ("left", "right"))
    return (below + up_to) / (2 * pairs) if pairs else math.nan


def _area(negative: _Floats, positive: _Floats) -> float:
    """Return the area of weights by score, ascending."""
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else math.nan


def _inside(negative: _Floats, positive: _Floats) -> float:
    pairs = negative.sum() * positive.sum()
    return float((negative * positive).sum() / 2 / pairs) if pairs else 0.0
