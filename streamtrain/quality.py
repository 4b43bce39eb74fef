"""How good an order is, on real labels: batch variance, prefix drift and block-pair coincidence. Pure, numpy only.

Each figure is a ratio to what a full random reshuffle of the same labels gives (see `reshuffle`): 1 is as good as
random, less is better.

- *Batch variance*: how far the batches' labels are from the dataset's. For classes the sum over classes of (samples in
  the batch - expected)², for numbers the squared sum of deviations; the mean over whole batches.
- *Drift*: how far any beginning of the order is from the dataset, at its worst: the largest |samples of a class so far
  - expected|, for numbers |the sum of deviations so far|.
- *Coincidence*: where two samples of different blocks are in one batch, how often others of the same two blocks are,
  too. Only some hundred blocks, drawn at random, are followed.

The order comes in pieces and the labels are asked for piece by piece, so the memory needed is that of a piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from streamtrain.order import I64, EpochOrder
from streamtrain.picks import picks
from streamtrain.random_words import key, words
from streamtrain.reshuffle import Array, Population

LabelsOf = Callable[[I64], Array]
"""The labels of some samples: class numbers 0, 1, ..., or deviations from the mean in standard deviations."""

_FOLLOWED_BLOCKS: Final = 512
_PIECE_SAMPLES: Final = 1 << 17
_CLASSES_PER_SAMPLE: Final = 16
"""Prefixes are looked at so often that this many classes are for every sample, at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good an order is; ratios to a full reshuffle, 1 where there is nothing to mix.

    Attributes
    ----------
    n_samples, n_batches : int
        How much of the order was measured: samples, and whole batches in them.
    variance : float
        Batch variance ratio.
    variance_error : float
        Standard error of a full reshuffle's own variance ratio over as many batches.
    drift : float
        Prefix drift ratio, over what was measured.
    coincidence : float or None
        Block-pair coincidence; None where it was not asked for, not all was measured, or no followed blocks met.
    """

    n_samples: int
    n_batches: int
    variance: float
    variance_error: float
    drift: float
    coincidence: float | None

    @property
    def is_random(self) -> bool:
        """Whether batches vary no more than a full reshuffle's, within three standard errors of one."""
        return self.variance <= 1 + 3 * self.variance_error


def pieces_of(order: EpochOrder, start: int = 0, stop: int | None = None) -> Iterator[I64]:
    """The samples at positions [start, stop) of an epoch, to its end by default, piece by piece."""
    left = (order.n_samples if stop is None else min(stop, order.n_samples)) - start
    for piece in picks(order, start) if left > 0 else ():
        found = (order.run_first[piece.runs] + piece.rows)[:left]
        yield found
        left -= len(found)
        if not left:
            return


def measure(
    pieces: Iterable[I64],
    labels_of: LabelsOf,
    population: Population,
    *,
    batch_size: int,
    block_rows: int | None = None,
) -> Quality:
    """Measure an order, or a stretch of one: any stretch of a full reshuffle has the same expectations.

    Parameters
    ----------
    pieces : iterable of int64 arrays
        The samples at consecutive positions, in one piece or many.
    labels_of : callable
        Gives the labels of some samples; ``labels.take`` for an array.
    population : Population
        Of all labels, as from `populate`.
    batch_size : int
        Samples of a batch.
    block_rows : int, optional
        Samples of a block, for the coincidence of blocks.

    Examples
    --------
    >>> from streamtrain.order import Shuffle, shuffled_order
    >>> from streamtrain.reshuffle import populate
    >>> population, classes = populate(np.arange(100_000) // 10_000)
    >>> found = measure([np.arange(100_000)], classes.take, population, batch_size=100)
    >>> round(found.variance, 1), found.drift > 50
    (100.1, True)
    >>> order = shuffled_order(Shuffle(n_samples=100_000, block_rows=50, lanes=100), seed=0, epoch=0)
    >>> found = measure(pieces_of(order), classes.take, population, batch_size=100)
    >>> found.variance < 0.2, found.drift < 2
    (True, True)
    """
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
    return Quality(
        n_samples=n_samples,
        n_batches=variance.n_batches,
        variance=variance.ratio(),
        variance_error=population.variance_error(batch_size, variance.n_batches),
        drift=drift.ratio(),
        coincidence=coincidence.ratio() if coincidence and whole else None,
    )


def _batches(pieces: Iterable[I64], batch_size: int) -> Iterator[I64]:
    """The same samples in pieces of whole batches, of a bounded size; the last one is what is left."""
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

    def __init__(self, population: Population, batch_size: int) -> None:
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
    """Ordered pairs of equal labels inside sorted batches, those of a sample with itself included."""
    begins = np.ones(batches.shape, np.bool_)
    np.not_equal(batches[:, 1:], batches[:, :-1], out=begins[:, 1:])
    lengths = np.diff(np.flatnonzero(begins), append=batches.size).astype(np.float64)
    return float(lengths @ lengths)


class _Drift:
    """The running largest discrepancy of a prefix, looked at after every batch, or every so many with many classes."""

    def __init__(self, population: Population, batch_size: int) -> None:
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
    """How often samples of the same two blocks meet, of blocks drawn to be followed."""

    def __init__(self, population: Population, batch_size: int, block_rows: int) -> None:
        self._population = population
        self._batch_size = batch_size
        self._block_rows = block_rows
        n_blocks = -(-population.n_samples // block_rows)
        drawn = np.argsort(words(key(0), np.arange(n_blocks)), kind="stable")[:_FOLLOWED_BLOCKS]
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
