"""Shuffle quality on real labels: batch variance, prefix drift and block-pair coincidence, against a reshuffle.

Each figure is a ratio to that of a full random reshuffle of the same labels: 1 is as good as random, less is better.

- *Batch variance*: how far the batches' labels are from the dataset's. For classes the sum over classes of (samples in
  the batch - expected)², for numbers the squared sum of deviations; the mean over whole batches.
- *Drift*: the farthest that any prefix of the order is from the dataset: the largest |samples of a class so far
  - expected|, for numbers |the sum of deviations so far|.
- *Coincidence*: given two samples of different blocks in one batch, how often others of the same two blocks are in it
  too. Only some hundred blocks, drawn at random, are followed.

The order and its labels come in pieces, so the memory needed is that of a piece.

The reference, a full reshuffle, depends only on a *population*: the number of samples and the share of each class, or
numbers of mean 0 and standard deviation 1. The variance of a batch has a closed form, that of drawing without
replacement (W. Cochran, *Sampling techniques*, 1977, chapter 2). The largest drift has none over several classes, so it
is simulated. Sums of draws without replacement tend to Brownian bridges (B. Rosén, *Limit theorems for sampling from
finite populations*, 1964); their steps, tied over classes, come from counted random words, so the figure is a function
of the population and costs the same for any number of samples. Real reshuffles of 1,000,000 samples in 10 and in 1,000
classes came within 1 % of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import iter_positions
from streamtrain.system.counter_rng import random_key, words

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

_STEPS: Final = 512
_VALUES: Final = 1 << 20
_LEAST_BRIDGES: Final = 4
_MOST_BRIDGES: Final = 64
_REMEMBERED: Final = 16  # simulated drifts; many orders of the same labels are compared with one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelPopulation:
    """The properties of labels that a full reshuffle's batches depend on."""

    n_samples: int
    shares: F64 | None = None  # (n_classes,) part of each class; None where labels are numbers

    @property
    def n_classes(self) -> int:
        """The number of sums that are followed: one per class, or one."""
        return 1 if self.shares is None else len(self.shares)

    @property
    def sample_variance(self) -> float:
        """One sample's part of a batch's variance, summed over classes; 0 where all labels are equal."""
        return 1.0 if self.shares is None else max(0.0, 1.0 - float(self.shares @ self.shares))

    def batch_variance(self, batch_size: int) -> float:
        """Compute the variance of a batch drawn without replacement, summed over classes."""
        n = self.n_samples
        return batch_size * self.sample_variance * (n - batch_size) / (n - 1) if n > 1 else 0.0

    def variance_error(self, batch_size: int, n_batches: int) -> float:
        """Compute the relative standard error of a reshuffle's mean batch variance over ``n_batches``.

        That of a sum over pairs of samples with replacement (W. Hoeffding, *A class of statistics with asymptotically
        normal distribution*, 1948), which is a little more than without; numbers are taken as normal.
        """
        if self.sample_variance <= 0 or not n_batches:
            return 0.0
        if self.shares is None:
            return math.sqrt(2 * self._tied(batch_size, n_batches) / n_batches)
        second, third = (float((self.shares**power).sum()) for power in (2, 3))
        pairs = max(0.0, second - 2 * third + second**2)
        # The variance of the shares themselves, in a form that rounding cannot make negative where they are equal.
        singles = float(self.shares @ (self.shares - second) ** 2)
        relative = (2 * (batch_size - 1) * pairs + 4 * singles) / batch_size / self.sample_variance**2
        return math.sqrt(relative * self._tied(batch_size, n_batches) / n_batches)

    def _tied(self, batch_size: int, n_batches: int) -> float:
        """Compute how much more the mean of some batches varies because what is in one is in no other."""
        left = self.n_samples - batch_size
        return 1 + (n_batches - 1) * min(1.0, batch_size / left) ** 2 if left > 0 else 1.0

    def drift(self, n_samples: int) -> float:
        """Estimate the mean largest drift of a reshuffle's first ``n_samples``, in samples of the worst class."""
        if self.sample_variance <= 0 or not n_samples:
            return 0.0
        return math.sqrt(self.n_samples) * _mean_largest(self, n_samples / self.n_samples)


@lru_cache(maxsize=_REMEMBERED)
def _mean_largest(population: LabelPopulation, part: float) -> float:
    """Average the largest values of simulated bridges over [0, part]."""
    n_classes = population.n_classes
    n_steps = max(1, min(_STEPS, _VALUES // n_classes))
    n_bridges = min(_MOST_BRIDGES, max(_LEAST_BRIDGES, _VALUES // (n_steps * n_classes)))
    bridges = (_normals(random_key(0, bridge), n_steps + 1, n_classes) for bridge in range(n_bridges))
    return float(np.mean([_largest(normals, population.shares, part) for normals in bridges]))


def _largest(steps: F64, shares: F64 | None, part: float) -> float:
    """Find a bridge's largest value over [0, part], from normal deviates for its steps and, last, for the rest."""
    if shares is not None:
        # A sample drawn from one class is not drawn from another: the classes' steps sum to zero.
        steps = steps * np.sqrt(shares)
        steps -= shares * steps.sum(axis=1, keepdims=True)
    n_steps = len(steps) - 1
    walk = np.cumsum(steps[:-1], axis=0) * math.sqrt(part / n_steps)
    end = walk[-1] + steps[-1] * math.sqrt(1 - part)
    walk -= np.linspace(part / n_steps, part, n_steps)[:, None] * end
    return float(np.abs(walk).max())


def _normals(key: int, *shape: int) -> F64:
    """Draw normal deviates (G. Box, M. Muller, *Generation of random normal deviates*, 1958)."""
    n = math.prod(shape)
    uniform = (words(key, np.arange(2 * n)) >> np.uint64(11)) * 2.0**-53
    normals: F64 = np.sqrt(-2 * np.log1p(-uniform[:n])) * np.cos(2 * np.pi * uniform[n:])
    return normals.reshape(shape)


def label_population(labels: Array) -> tuple[LabelPopulation, Array]:
    """Describe labels in memory, floats as numbers and others as classes, in the form that `measure_quality` takes."""
    if labels.dtype.kind == "f":
        finite = labels[np.isfinite(labels)].astype(np.float64)
        mean, std = (float(finite.mean()), float(finite.std())) if len(finite) else (0.0, 0.0)
        return LabelPopulation(n_samples=len(labels)), standardized(labels, mean, std)
    values, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return LabelPopulation(n_samples=len(labels), shares=counts / len(labels)), classes.astype(class_dtype(len(values)))


def class_dtype(n_classes: int) -> np.dtype[Any]:
    """Find the smallest dtype that numbers ``n_classes`` classes."""
    return np.min_scalar_type(max(0, n_classes - 1))


def standardized(labels: Array, mean: float, std: float) -> npt.NDArray[np.float32]:
    """Give deviations from the mean in standard deviations; 0 where not finite, and where all are equal."""
    deviations = (labels.astype(np.float64) - mean) / (std if std > 0 else math.inf)
    return np.nan_to_num(deviations, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


LabelsOf = Callable[[I64], Array]
"""The labels of some samples: class numbers 0, 1, ..., or deviations from the mean in standard deviations."""

_FOLLOWED_BLOCKS: Final = 512
_PIECE_SAMPLES: Final = 1 << 17
_CLASSES_PER_SAMPLE: Final = 16
"""Prefixes are checked so rarely that at most this many classes are summed for each sample."""


AS_GOOD: Final = 1.05
"""A ratio to a full reshuffle below which it is called as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleQuality:
    """The quality of an order, as ratios to a full reshuffle; 1 where there is nothing to mix."""

    n_samples: int  # measured, of each epoch
    n_batches: int  # whole batches in them
    variance: float
    variance_error: float  # standard error of a reshuffle's own ratio over as many batches
    drift: float
    coincidence: float | None  # None where not requested, not all was measured, or no followed blocks met
    n_epochs: int = 1

    @property
    def is_random(self) -> bool:
        """Whether batches vary no more than a full reshuffle's, but for 5 % or three standard errors."""
        return self.variance < AS_GOOD or self.variance <= 1 + 3 * self.variance_error


def mean_quality(epochs: Sequence[ShuffleQuality]) -> ShuffleQuality:
    """Average the quality of several epochs, each measured alike."""
    first, n = epochs[0], len(epochs)
    met = [each.coincidence for each in epochs if each.coincidence is not None]
    return replace(
        first,
        variance=sum(each.variance for each in epochs) / n,
        variance_error=first.variance_error / math.sqrt(n),
        drift=sum(each.drift for each in epochs) / n,
        coincidence=sum(met) / len(met) if met else None,
        n_epochs=n,
    )


def pieces_of(order: EpochOrder, start: int = 0, stop: int | None = None) -> Iterator[I64]:
    """Yield the samples at positions [start, stop) of an epoch, to its end by default, piece by piece."""
    left = (order.n_samples if stop is None else min(stop, order.n_samples)) - start
    for piece in iter_positions(order, start) if left > 0 else ():
        found = (order.run_first[piece.visits] + piece.rows)[:left]
        yield found
        left -= len(found)
        if not left:
            return


def measure_quality(
    pieces: Iterable[I64],
    labels_of: LabelsOf,
    population: LabelPopulation,
    *,
    batch_size: int,
    block_rows: int | None = None,
) -> ShuffleQuality:
    """Measure an order, or a stretch of one: any stretch of a full reshuffle has the same expectations."""
    n_samples = 0
    variance = _Variance(population, batch_size)
    drift = _Drift(population, batch_size)
    coincidence = _Coincidence(population, batch_size, block_rows) if block_rows else None
    for some in _batches(pieces, batch_size):
        n_samples += len(some)
        labels = labels_of(some)
        variance.add(labels)
        drift.add(labels)
        if coincidence:
            coincidence.add(some)
    whole = n_samples == population.n_samples
    return ShuffleQuality(
        n_samples=n_samples,
        n_batches=variance.n_batches,
        variance=variance.ratio(),
        variance_error=population.variance_error(batch_size, variance.n_batches),
        drift=drift.ratio(),
        coincidence=coincidence.ratio() if coincidence and whole else None,
    )


def _batches(pieces: Iterable[I64], batch_size: int) -> Iterator[I64]:
    """Regroup the samples into pieces of whole batches, of a bounded size; the last one is the rest."""
    waiting: list[I64] = []
    n_waiting = 0
    cuts = (piece[at : at + _PIECE_SAMPLES] for piece in pieces for at in range(0, len(piece), _PIECE_SAMPLES))
    for piece in cuts:
        waiting.append(piece)
        n_waiting += len(piece)
        if n_waiting >= batch_size:
            joined = np.concatenate(waiting)
            n_whole = n_waiting // batch_size * batch_size
            yield joined[:n_whole]
            waiting, n_waiting = [joined[n_whole:]], n_waiting - n_whole
    if n_waiting:
        yield np.concatenate(waiting)


class _Variance:
    """The running batch variance."""

    def __init__(self, population: LabelPopulation, batch_size: int) -> None:
        self._population = population
        self._batch_size = batch_size
        self._sum = 0.0
        self.n_batches = 0

    def add(self, labels: Array) -> None:
        n_batches = len(labels) // self._batch_size
        batches = labels[: n_batches * self._batch_size].reshape(n_batches, self._batch_size)
        shares = self._population.shares
        if shares is None:
            self._sum += float(np.square(batches.sum(axis=1, dtype=np.float64)).sum())
        elif n_batches:
            # Σ_c (n_c - b p_c)² = Σ_c n_c² - 2b Σ_i p(label i) + b² Σ_c p_c², which needs no table of all classes.
            expected = float(shares.take(batches).sum())
            constant = n_batches * self._batch_size**2 * float(shares @ shares)
            found = _equal_pairs(np.sort(batches, axis=1)) - 2 * self._batch_size * expected + constant
            self._sum += max(0.0, found)
        self.n_batches += n_batches

    def ratio(self) -> float:
        random = self.n_batches * self._population.batch_variance(self._batch_size)
        return self._sum / random if random > 0 else 1.0


def _equal_pairs(batches: Array) -> float:
    """Count ordered pairs of equal labels inside sorted batches, each sample with itself included."""
    begins = np.ones(batches.shape, np.bool_)
    np.not_equal(batches[:, 1:], batches[:, :-1], out=begins[:, 1:])
    lengths = np.diff(np.flatnonzero(begins), append=batches.size).astype(np.float64)
    return float(lengths @ lengths)


class _Drift:
    """The running largest discrepancy of a prefix, taken after every batch, or less often with many classes."""

    def __init__(self, population: LabelPopulation, batch_size: int) -> None:
        self._population = population
        self._step = max(1, population.n_classes // (_CLASSES_PER_SAMPLE * batch_size)) * batch_size
        self._so_far = np.zeros(population.n_classes)
        self._n_samples = 0
        self._largest = 0.0

    def add(self, labels: Array) -> None:
        n_rows = -(-len(labels) // self._step)
        row = np.arange(len(labels)) // self._step
        shares, n_classes = self._population.shares, self._population.n_classes
        sums: Array
        if shares is None:
            sums = np.bincount(row, weights=labels, minlength=n_rows)[:, None]
        else:
            counts = np.bincount(row * n_classes + labels, minlength=n_rows * n_classes).reshape(n_rows, n_classes)
            sums = counts - np.bincount(row, minlength=n_rows)[:, None] * shares
        prefixes = self._so_far + np.cumsum(sums, axis=0)
        self._largest = max(self._largest, float(np.abs(prefixes).max()))
        self._so_far = prefixes[-1]
        self._n_samples += len(labels)

    def ratio(self) -> float:
        random = self._population.drift(self._n_samples)
        return self._largest / random if random > 0 else 1.0


class _Coincidence:
    """The running coincidence of block pairs, for blocks drawn at random."""

    def __init__(self, population: LabelPopulation, batch_size: int, block_rows: int) -> None:
        self._population = population
        self._batch_size = batch_size
        self._block_rows = block_rows
        n_blocks = -(-population.n_samples // block_rows)
        drawn = np.argsort(words(random_key(0), np.arange(n_blocks)), kind="stable")[:_FOLLOWED_BLOCKS]
        self._place = np.full(n_blocks, -1, np.int64)
        self._place[drawn] = np.arange(len(drawn))
        self._rows = np.minimum(block_rows, population.n_samples - drawn * block_rows).astype(np.float64)
        self._met = np.zeros(len(drawn) ** 2, np.int64)

    def add(self, samples: I64) -> None:
        place = self._place.take(samples // self._block_rows)
        followed = np.flatnonzero(place >= 0)
        place, batch = place[followed], followed // self._batch_size
        for ahead in itertools.count(1):
            together = np.flatnonzero(batch[ahead:] == batch[:-ahead])
            if not len(together):
                return
            one, other = place[together], place[together + ahead]
            # A pair of blocks is counted at one place whichever sample comes first.
            np.add.at(self._met, np.minimum(one, other) * len(self._rows) + np.maximum(one, other), 1)

    def ratio(self) -> float | None:
        n_blocks, n = len(self._rows), self._population.n_samples
        met = self._met.reshape(n_blocks, n_blocks)[np.triu_indices(n_blocks, 1)].astype(np.float64)
        others = np.outer(self._rows, self._rows)[np.triu_indices(n_blocks, 1)] - 1
        random = float(met @ others) * (self._batch_size - 1) / max(1, n - 1)
        return float(met @ (met - 1)) / random if random > 0 else None
