"""The sum of predictions: how often each class comes, or mean and spread, beside the labels of the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.system.display.notebook_html import clipped
from streamtrain.system.units import counted, format_figure
from streamtrain.training.inference.predictions import Part, PredictionForm

_CLEAR_SHARE: Final = 0.2
_CLEAR_MEAN: Final = 0.5
_ENOUGH_ROWS: Final = 50
_N_SHOWN: Final = 10


@dataclass(slots=True, kw_only=True)
class PredictionSummary:
    """What is counted of predictions as they come.

    Attributes
    ----------
    n_rows : int
        The rows that were predicted.
    counts : dict of str to int
        How often each class, or each label, was predicted.
    mean, std : list of float
        Of the predicted numbers, a target each.
    labels : mapping
        The same of the labels of the training, as far as the run knows it.
    """

    form: PredictionForm
    labels: Mapping[str, Any] = field(default_factory=dict)
    is_weighted: bool = False  # whether the classes had weights in the loss, and so others' shares in the predictions
    n_rows: int = 0
    _counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _mean: npt.NDArray[np.float64] | None = None
    _squares: npt.NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return f"PredictionSummary({clipped('; '.join([counted(self.n_rows, 'row'), *self._told()]), 81)})"

    def _told(self) -> Iterator[str]:
        if len(self._counts):
            most = np.argsort(-self._counts, kind="stable")[:_N_SHOWN].tolist()
            yield ", ".join(f"{self.form.class_name(n)} {self._counts[n]:,}" for n in most if self._counts[n])
        for n, (mean, std) in enumerate(list(zip(self.mean, self.std, strict=True))[:_N_SHOWN]):
            yield f"{self._target(n)} mean {format_figure(mean)}, std {format_figure(std)}"

    def add(self, part: Part) -> None:
        """Count a part."""
        n_new = len(part)
        if not n_new:
            return
        if part.class_numbers is not None and part.class_numbers.ndim == 1:
            found = np.bincount(part.class_numbers, minlength=max(part.n_classes or 0, len(self._counts)))
            found[: len(self._counts)] += self._counts
            self._counts = found
        elif part.class_numbers is None:
            self._add_numbers(part.prediction.reshape(n_new, -1).astype(np.float64), n_new)
        self.n_rows += n_new

    def _add_numbers(self, values: npt.NDArray[np.float64], n_new: int) -> None:
        mean, squares = values.mean(0), ((values - values.mean(0)) ** 2).sum(0)
        if self._mean is None or self._squares is None:
            self._mean, self._squares = mean, squares
            return
        n = self.n_rows + n_new
        apart = mean - self._mean
        self._squares = self._squares + squares + apart**2 * self.n_rows * n_new / n
        self._mean = self._mean + apart * n_new / n

    @property
    def counts(self) -> dict[str, int]:
        """How often each class was predicted."""
        return {self.form.class_name(n): count for n, count in enumerate(self._counts.tolist())}

    @property
    def mean(self) -> list[float]:
        """The mean of each target's predictions, or the share of each label."""
        return [] if self._mean is None else self._mean.tolist()

    @property
    def std(self) -> list[float]:
        """The standard deviation of each target's predictions."""
        return [] if self._squares is None else np.sqrt(self._squares / max(1, self.n_rows)).tolist()

    def named(self) -> dict[str, object]:
        """Return it by name, for machines."""
        told = {"counts": self.counts} if len(self._counts) else {"mean": self.mean, "std": self.std}
        return {"rows": self.n_rows, **told, "labels": dict(self.labels)}

    def lines(self) -> Iterator[str]:
        """Write it for people."""
        shares = self._shares()
        if len(self._counts) and self.n_rows:
            largest = sorted(range(len(self._counts)), key=lambda n: -int(self._counts[n]))[:_N_SHOWN]
            told = ", ".join(self._share(n, shares) for n in sorted(largest))
            yield f"share   {told}" + (f", and {len(self._counts) - _N_SHOWN} more" * (len(self._counts) > _N_SHOWN))
        for n, (mean, std) in enumerate(list(zip(self.mean, self.std, strict=True))[:_N_SHOWN]):
            name = self._target(n)
            found = [f"{format_figure(value)}{self._before(kind, n)}" for kind, value in (("mean", mean), ("std", std))]
            yield f"mean    {name} {', std '.join(found)}"

    def hint(self) -> str | None:
        """Say where predictions differ clearly from the labels of the training; None where they do not."""
        if self.n_rows < _ENOUGH_ROWS:
            return None
        shares = self._shares()
        if shares is not None and not self.is_weighted:
            apart = self._counts / self.n_rows - shares
            n = int(np.abs(apart).argmax())
            if abs(apart[n]) > _CLEAR_SHARE:
                return (
                    f"class {self.form.class_name(n)} is {self._counts[n] / self.n_rows:.0%} of the predictions and "
                    f"{shares[n]:.0%} of the training's labels: other data, or a model that has not learned it"
                )
        for n, (mean, before, std) in enumerate(
            zip(self.mean, self.labels.get("mean", ()), self.labels.get("std", ()), strict=False)
        ):
            if abs(mean - before) > _CLEAR_MEAN * std > 0:
                here, there = format_figure(mean), format_figure(before)
                return (
                    f"the mean of {self._target(n)} is {here} here and {there} in the training's labels: "
                    "other data, or a model that has not learned it"
                )
        return None

    def _shares(self) -> npt.NDArray[np.float64] | None:
        known = np.asarray(self.labels.get("counts", ()), np.float64)
        return known / known.sum() if len(known) == len(self._counts) and known.sum() > 0 else None

    def _share(self, n: int, shares: npt.NDArray[np.float64] | None) -> str:
        before = "" if shares is None else f" ({shares[n]:.3f} in training)"
        return f"{self.form.class_name(n)}: {self._counts[n] / self.n_rows:.3f}{before}"

    def _target(self, n: int) -> str:
        return self.form.targets[n] if n < len(self.form.targets) else self.form.label

    def _before(self, name: str, n: int) -> str:
        known = self.labels.get(name, ())
        return f" ({format_figure(known[n])} in training)" if n < len(known) else ""
