"""Counts of errors in even bins around zero, whose width doubles until all of them fit."""

from __future__ import annotations

import copy
import math
from typing import Final

import torch
from torch import Tensor

_N_BINS: Final = 32
_HALF: Final = _N_BINS // 2
_LEAST_POWER: Final = -1000


class ErrorHistogram:
    """Weights of the errors of one target in bins of width 2 ** ``power``; those that are not finite are left out."""

    def __init__(self) -> None:
        self.power = _LEAST_POWER
        self.counts = torch.zeros(_N_BINS, dtype=torch.float64)

    def add(self, errors: Tensor, weights: Tensor | None) -> None:
        """Add errors (N,) with weights (N,)."""
        is_finite = errors.isfinite()
        errors = errors[is_finite]
        if not len(errors):
            return
        largest = float(errors.abs().max())
        # At the upper end of a bin an error is in the next one.
        self._widen(math.floor(math.log2(largest)) - _HALF.bit_length() + 2 if largest else _LEAST_POWER)
        bins = ((errors / 2.0**self.power).floor().long() + _HALF).clamp(0, _N_BINS - 1)
        weight = None if weights is None else weights[is_finite].cpu()
        self.counts += torch.bincount(bins.cpu(), weight, minlength=_N_BINS)

    def _widen(self, power: int) -> None:
        """Double the width of the bins up to a power, two of them into one each time."""
        for _ in range(min(max(power - self.power, 0), _N_BINS)):
            pairs = self.counts.reshape(_HALF, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_HALF // 2 : _HALF // 2 + _HALF] = pairs
        self.power = max(self.power, power)

    def merge(self, other: ErrorHistogram) -> None:
        """Add the errors of other samples."""
        theirs = copy.deepcopy(other)
        theirs._widen(self.power)
        self._widen(theirs.power)
        self.counts += theirs.counts

    def facts(self) -> dict[str, object]:
        """Return the edges of the bins from the first that holds some to the last, and their weights."""
        held = self.counts.nonzero().reshape(-1).tolist()
        if not held:
            return {"edges": [], "counts": []}
        first, last = held[0], held[-1] + 1
        edges = [(i - _HALF) * 2.0**self.power for i in range(first, last + 1)]
        return {"edges": edges, "counts": self.counts[first:last].tolist()}
