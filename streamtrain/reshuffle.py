"""What a full random reshuffle of some labels gives: the reference that an order is held against. Pure, numpy only.

A *population* is all that it depends on: the number of samples and the share of each class, or numbers of mean 0 and
standard deviation 1.

- The variance of a batch has a closed form, that of drawing without replacement (W. Cochran, *Sampling techniques*,
  1977, chapter 2).
- The largest drift has none over several classes, so it is simulated. Sums of draws without replacement tend to
  Brownian bridges (B. Rosén, *Limit theorems for sampling from finite populations*, 1964); their steps, tied over
  classes, come from counted random words, so the figure is a function of the population. It costs the same for any
  number of samples. Real reshuffles of 1,000,000 samples in 10 and in 1,000 classes came within 1 % of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.random_words import key, words

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

_STEPS: Final = 512
_VALUES: Final = 1 << 20
_LEAST_BRIDGES: Final = 4
_MOST_BRIDGES: Final = 64
_REMEMBERED: Final = 16
"""Simulated drifts; many orders of the same labels are held against one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Population:
    """What a full reshuffle's batches depend on.

    Attributes
    ----------
    n_samples : int
        Samples of the dataset.
    shares : (n_classes,) float64, optional
        The part of the samples that is of each class; None where labels are numbers, in standard deviations.
    """

    n_samples: int
    shares: F64 | None = None

    @property
    def n_classes(self) -> int:
        """How many sums are followed: one per class, or one."""
        return 1 if self.shares is None else len(self.shares)

    @property
    def sample_variance(self) -> float:
        """One sample's part of a batch's variance, summed over classes; 0 where all labels are equal."""
        return 1.0 if self.shares is None else max(0.0, 1.0 - float(self.shares @ self.shares))

    def batch_variance(self, batch_size: int) -> float:
        """The variance of a batch drawn without replacement, summed over classes.

        Examples
        --------
        >>> Population(n_samples=101, shares=np.array([0.5, 0.5])).batch_variance(10)
        4.55
        """
        n = self.n_samples
        return batch_size * self.sample_variance * (n - batch_size) / (n - 1) if n > 1 else 0.0

    def variance_error(self, batch_size: int, n_batches: int) -> float:
        """The standard error of a reshuffle's mean batch variance over so many batches, relative to its expectation.

        That of a sum over pairs of samples with replacement (W. Hoeffding, *A class of statistics with asymptotically
        normal distribution*, 1948), which is a little more than without; numbers are taken as normal.
        """
        if self.sample_variance <= 0 or not n_batches:
            return 0.0
        if self.shares is None:
            return math.sqrt(2 / n_batches)
        second, third = (float((self.shares**power).sum()) for power in (2, 3))
        pairs = second - 2 * third + second**2
        singles = third - second**2
        relative = (2 * (batch_size - 1) * pairs + 4 * singles) / batch_size / self.sample_variance**2
        return math.sqrt(relative / n_batches)

    def drift(self, n_samples: int) -> float:
        """The mean largest drift over the first ``n_samples`` of a reshuffle, in samples of the worst class."""
        if self.sample_variance <= 0 or not n_samples:
            return 0.0
        return math.sqrt(self.n_samples) * _mean_largest(self, n_samples / self.n_samples)


@lru_cache(maxsize=_REMEMBERED)
def _mean_largest(population: Population, part: float) -> float:
    """The mean largest value of simulated bridges over [0, part]."""
    n_classes = population.n_classes
    n_steps = max(1, min(_STEPS, _VALUES // n_classes))
    n_bridges = min(_MOST_BRIDGES, max(_LEAST_BRIDGES, _VALUES // (n_steps * n_classes)))
    bridges = (_normals(key(0, bridge), n_steps + 1, n_classes) for bridge in range(n_bridges))
    return float(np.mean([_largest(normals, population.shares, part) for normals in bridges]))


def _largest(steps: F64, shares: F64 | None, part: float) -> float:
    """The largest value of a bridge over [0, part], from normal deviates for its steps and, last, for the rest."""
    if shares is not None:
        # What is drawn of one class is not drawn of the others: the classes' steps sum to nothing.
        steps = steps * np.sqrt(shares)
        steps -= shares * steps.sum(axis=1, keepdims=True)
    n_steps = len(steps) - 1
    walk = np.cumsum(steps[:-1], axis=0) * math.sqrt(part / n_steps)
    end = walk[-1] + steps[-1] * math.sqrt(1 - part)
    walk -= np.linspace(part / n_steps, part, n_steps)[:, None] * end
    return float(np.abs(walk).max())


def _normals(key: int, *shape: int) -> F64:
    """Normal deviates from counted words (G. Box, M. Muller, *Generation of random normal deviates*, 1958)."""
    n = math.prod(shape)
    uniform = (words(key, np.arange(2 * n)) >> np.uint64(11)) * 2.0**-53
    normals: F64 = np.sqrt(-2 * np.log1p(-uniform[:n])) * np.cos(2 * np.pi * uniform[n:])
    return normals.reshape(shape)


def populate(labels: Array) -> tuple[Population, Array]:
    """Describe labels that are in memory, and put them into the form that `measure` takes.

    Parameters
    ----------
    labels : (n,) integers, bools or floats
        Integers and bools are classes, floats are numbers; what is not finite counts as the mean.

    Returns
    -------
    Population
    (n,) unsigned integers or float32

    Examples
    --------
    >>> population, classes = populate(np.array([7, 7, 3, 7]))
    >>> population.shares.tolist(), classes.tolist()
    ([0.25, 0.75], [1, 1, 0, 1])
    """
    if labels.dtype.kind == "f":
        finite = labels[np.isfinite(labels)].astype(np.float64)
        mean, std = (float(finite.mean()), float(finite.std())) if len(finite) else (0.0, 0.0)
        return Population(n_samples=len(labels)), standardized(labels, mean, std)
    values, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return Population(n_samples=len(labels), shares=counts / len(labels)), classes.astype(class_dtype(len(values)))


def class_dtype(n_classes: int) -> np.dtype[Any]:
    """The smallest type that numbers so many classes.

    Examples
    --------
    >>> class_dtype(256), class_dtype(257)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.min_scalar_type(max(0, n_classes - 1))


def standardized(labels: Array, mean: float, std: float) -> npt.NDArray[np.float32]:
    """Deviations from the mean in standard deviations; 0 for what is not finite, and where all are equal."""
    deviations = (labels.astype(np.float64) - mean) / (std if std > 0 else math.inf)
    return np.nan_to_num(deviations, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
