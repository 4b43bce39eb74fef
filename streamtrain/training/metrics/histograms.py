"""Counts in even bins, whose width doubles until all fit: of errors by their size, of predictions by what was true."""

from __future__ import annotations

import copy
import math
from typing import Final

import torch
from torch import Tensor

_N_BINS: Final = 32
_HALF: Final = _N_BINS // 2
_LEAST_POWER: Final = -1000
_N_SIDE: Final = 40
_EXACT_BITS: Final = 50
"""Numbers of bins have so many at the most, and are exact in float64."""


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


class PairHistogram:
    """Weights of the samples of one target by what was true and what was predicted; both in the same bins.

    A bin begins at a whole multiple of its width, a power of 2, so the counts are the same whatever the order of the
    samples and their shares. Those of which either is not finite are left out.
    """

    def __init__(self) -> None:
        self._ends: tuple[float, float] | None = None
        # The number of the first bin, in widths from zero.
        self._power, self._first = _LEAST_POWER, 0
        self.counts = torch.zeros(_N_SIDE, _N_SIDE, dtype=torch.float64)

    def add(self, predicted: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add samples (N,) with weights (N,)."""
        pairs = torch.stack([target, predicted]).cpu()
        is_finite = pairs.isfinite().all(0)
        pairs = pairs[:, is_finite]
        if not pairs.numel():
            return
        self._widen(float(pairs.min()), float(pairs.max()))
        true, of_predicted = ((pairs * 2.0**-self._power).floor().long() - self._first).clamp(0, _N_SIDE - 1)
        weight = None if weights is None else weights.cpu()[is_finite]
        self.counts += torch.bincount(true * _N_SIDE + of_predicted, weight, minlength=_N_SIDE**2).view(_N_SIDE, -1)

    def _widen(self, low: float, high: float) -> None:
        """Let the bins reach from the least to the most, several of them into one where they have to."""
        before, self._ends = self._ends, (low, high) if self._ends is None else _wider(self._ends, (low, high))
        power, first = _window(*self._ends)
        if before is not None and (power, first) != (self._power, self._first):
            numbers = [((self._first + i) >> (power - self._power)) - first for i in range(_N_SIDE)]
            places = torch.tensor(numbers).clamp(0, _N_SIDE - 1)
            for axis in (0, 1):
                self.counts = torch.zeros_like(self.counts).index_add_(axis, places, self.counts)
        self._power, self._first = power, first

    def merge(self, other: PairHistogram) -> None:
        """Add other samples."""
        if other._ends is None:
            return
        theirs = copy.deepcopy(other)
        self._widen(*other._ends)
        assert self._ends is not None
        theirs._widen(*self._ends)
        self.counts += theirs.counts

    def facts(self) -> dict[str, object]:
        """Return where the bins begin, their width and number, and the weights by (true, predicted) that are not 0."""
        if self._ends is None:
            return {}
        width = 2.0**self._power
        n_bins = math.floor(self._ends[1] / width) - self._first + 1
        cells = [[i, j, _whole(float(self.counts[i, j]))] for i, j in self.counts.nonzero().tolist()]
        return {"low": self._first * width, "width": width, "bins": n_bins, "cells": cells}


def _wider(ends: tuple[float, float], more: tuple[float, float]) -> tuple[float, float]:
    return min(ends[0], more[0]), max(ends[1], more[1])


def _window(low: float, high: float) -> tuple[int, int]:
    """Return the power of the narrowest bins that reach from low to high, and the number of the first."""
    power = max(math.frexp(max(abs(low), abs(high)))[1] - _EXACT_BITS, _LEAST_POWER)
    # Half of the span, which is finite.
    if half := high / 2 - low / 2:
        power = max(power, math.frexp(half)[1] - _N_SIDE.bit_length())
    while math.floor(high * 2.0**-power) - math.floor(low * 2.0**-power) >= _N_SIDE:
        power += 1
    return power, math.floor(low * 2.0**-power)


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value
