"""Errors of a regression, of each target in its own unit: rmse, mae, r2, largest error."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.training.metrics.histograms import ErrorHistogram, PairHistogram
from streamtrain.training.metrics.sums import Total

MOST_TARGETS: Final = 1000
"""A sample of more targets, or of several axes, is so many samples of one."""
MOST_COUNTED: Final = 16
"""Of more targets the errors are not counted by their size."""
_ALIKE: Final = 1e-3


def by_target(values: Tensor) -> Tensor:
    """Return numbers (N, ...) as (N, k), a column for each target."""
    if values.ndim == 2 and values.shape[1] <= MOST_TARGETS:
        return values
    return values.reshape(-1, 1)


class RegressionTally:
    """Sums over predictions and targets, float64 of shape (N, k); with ``full`` those of all metrics."""

    def __init__(self, *, full: bool = False, constant: Tensor | None = None) -> None:
        self._full = full
        # What the baseline answers to every sample, (k,).
        self._constant = constant
        self.n_samples = 0
        self._weight, self._squares, self._errors, self._of_constant = Total(), Total(), Total(), Total()
        self._largest: Tensor | None = None
        self._largest_of_constant: Tensor | None = None
        self.histograms: list[ErrorHistogram] = []
        self.pairs: list[PairHistogram] = []
        # Of the targets: the sum of weights, mean and squared deviations, least and most, (k,) each.
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None
        self._ends: tuple[Tensor, Tensor] | None = None
        self._ends_of_predicted: tuple[Tensor, Tensor] | None = None

    def add(self, predicted: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add samples with weights (N,)."""
        self.n_samples += len(target)
        errors = predicted - target
        self._weight.add(_total(torch.ones_like(target[:, :1]), weights))
        self._squares.add(_total(errors.square(), weights))
        if self._full:
            self._count(errors, predicted, target, weights)
            self._add_further(errors.abs(), target, weights)
            self._ends_of_predicted = _wider(self._ends_of_predicted, (predicted.amin(0), predicted.amax(0)))

    def _count(self, errors: Tensor, predicted: Tensor, target: Tensor, weights: Tensor | None) -> None:
        if errors.shape[1] <= MOST_COUNTED:
            self.histograms = self.histograms or [ErrorHistogram() for _ in range(errors.shape[1])]
            self.pairs = self.pairs or [PairHistogram() for _ in range(errors.shape[1])]
            for i, (histogram, pairs) in enumerate(zip(self.histograms, self.pairs, strict=True)):
                histogram.add(errors[:, i], weights)
                pairs.add(predicted[:, i], target[:, i], weights)

    def _add_further(self, errors: Tensor, target: Tensor, weights: Tensor | None) -> None:
        self._errors.add(_total(errors, weights))
        self._largest = _larger(self._largest, errors)
        if self._constant is not None:
            of_constant = (target - self._constant.to(target.device)).abs()
            self._of_constant.add(_total(of_constant, weights))
            self._largest_of_constant = _larger(self._largest_of_constant, of_constant)
        weight = _total(torch.ones_like(target), weights)
        mean = torch.where(weight > 0, _total(target, weights) / weight, 0.0)
        self._merge_moments((weight, mean, _total((target - mean).square(), weights)), (target.amin(0), target.amax(0)))

    def _merge_moments(self, moments: tuple[Tensor, Tensor, Tensor], ends: tuple[Tensor, Tensor]) -> None:
        """Merge the moments of more targets (Chan, Golub & LeVeque, 1983)."""
        if self._moments is None or self._ends is None:
            self._moments, self._ends = moments, ends
            return
        weight, mean, squares = self._moments
        more, other, others = moments
        whole = weight + more
        share = torch.where(whole > 0, more / whole, 0.0)
        delta = other - mean
        self._moments = whole, mean + delta * share, squares + others + delta.square() * weight * share
        self._ends = _wider(self._ends, ends)

    def merge(self, other: RegressionTally) -> None:
        """Add the sums over other samples."""
        self.n_samples += other.n_samples
        for name in ("_weight", "_squares", "_errors", "_of_constant"):
            getattr(self, name).merge(getattr(other, name))
        for mine, theirs in zip(self.histograms, other.histograms, strict=False):
            mine.merge(theirs)
        self.histograms = self.histograms or other.histograms
        for of_mine, of_theirs in zip(self.pairs, other.pairs, strict=False):
            of_mine.merge(of_theirs)
        self.pairs = self.pairs or other.pairs
        if other._moments is not None and other._ends is not None:
            self._merge_moments(other._moments, other._ends)
        for name in ("_largest", "_largest_of_constant"):
            if (theirs := getattr(other, name)) is not None:
                setattr(self, name, _larger(getattr(self, name), theirs[None]))

        if other._ends_of_predicted is not None:
            self._ends_of_predicted = _wider(self._ends_of_predicted, other._ends_of_predicted)

    def is_alike(self) -> bool:
        """Whether all predictions are the same, beside the targets' range."""
        if self._ends is None or self._ends_of_predicted is None:
            return False
        least, most = self._ends_of_predicted
        return bool((most - least <= _ALIKE * (self._ends[1] - self._ends[0])).all())

    def rmse(self) -> float:
        """Return the root of the mean squared error, the mean of those of several targets; NaN of nothing."""
        return float((self._squares.value / self._weight.value).sqrt().mean())

    def by_target(self) -> dict[str, Tensor]:
        """Return rmse, mae, r2 and the largest error of each target, float64 (k,)."""
        assert self._moments is not None
        return self._measured(self._squares.value, self._errors.value, self._largest)

    def of_constant(self) -> dict[str, Tensor] | None:
        """Return the same of the answer that is always given; None where there is none."""
        if self._constant is None or self._moments is None:
            return None
        weight, mean, squares = self._moments
        squares = squares + weight * (mean - self._constant.to(mean.device)).square()
        return self._measured(squares, self._of_constant.value, self._largest_of_constant)

    def _measured(self, squares: Tensor, errors: Tensor, largest: Tensor | None) -> dict[str, Tensor]:
        assert self._moments is not None
        assert self._ends is not None
        assert largest is not None
        weight, _, spread = self._moments
        # Of a constant, rounding may have left a spread. Its r2 is that of scikit-learn.
        spread = torch.where(self._ends[0] == self._ends[1], 0.0, spread)
        r2 = torch.where(spread > 0, 1 - squares / spread, (squares == 0).double())
        r2 = torch.where(squares.isnan() | spread.isnan(), torch.nan, r2)
        if self.n_samples < 2:
            r2 = torch.full_like(r2, torch.nan)
        found = {"rmse": (squares / weight).sqrt(), "mae": errors / weight, "r2": r2, "max_error": largest}
        return {name: values.cpu() for name, values in found.items()}

    def state(self) -> dict[str, Any]:
        """Return the sums of each epoch, from which they are made again."""
        return {"n": self.n_samples, "weight": self._weight.state(), "squares": self._squares.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state``."""
        self.n_samples = state["n"]
        self._weight, self._squares = Total(*state["weight"]), Total(*state["squares"])


def _total(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum the weighted values of the samples, (N, k) to (k,)."""
    return values.sum(0) if weights is None else weights @ values


def _wider(ends: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return more if ends is None else (torch.minimum(ends[0], more[0]), torch.maximum(ends[1], more[1]))


def _larger(largest: Tensor | None, errors: Tensor) -> Tensor:
    found = errors.amax(0)
    return found if largest is None else torch.maximum(largest, found)
