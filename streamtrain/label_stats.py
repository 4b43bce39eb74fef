"""Statistics of scalar fields: how often each value occurs, and how alike the values inside a block are.

The intra-block correlation ρ says how far the stored order is from random: 1 where each block holds one class, about
0 where rows are shuffled. Classes (integers of at most 65,536 values): the chance that two samples of one block
agree, against that of any two. Other values: the intraclass correlation of a one-way analysis of variance with the
block as the factor (Fisher, 1925).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MOST_VALUES: Final = 2**16
"""A field of more distinct values than this has no histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often each value of an integer field occurs.

    Parameters
    ----------
    values : ndarray of int
        The distinct values, ascending.
    counts : ndarray of int64
        How often each occurs.
    """

    values: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]


class LabelTally:
    """The running histogram and block figures of a scalar field.

    Parameters
    ----------
    dtype : numpy.dtype
        The field's type; only integers and bool get a histogram.

    Examples
    --------
    >>> tally = LabelTally(np.dtype("int64"))
    >>> tally.add(np.array([0, 0, 1, 1, 1]), block_rows=2)
    >>> tally.histogram().counts.tolist(), tally.n_pairs, tally.n_equal_pairs
    ([2, 3], 4, 4)
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.is_integer = dtype.kind in "biu"
        self.too_many = not self.is_integer
        self.n_samples = 0
        self.n_blocks = 0
        self.n_pairs = 0  # ordered pairs of samples inside a block
        self.n_equal_pairs = 0
        self.sum_squared_rows = 0  # Σ n_b²
        self.m2_within = 0.0  # Σ over blocks of the squared deviations from the block's mean
        self._runs: list[tuple[Array, Array]] = []
        self._n_runs = 0

    def add(self, rows: Array, block_rows: int) -> None:
        """Add rows that start at a block's edge; only the last block may be short."""
        n_whole = len(rows) // block_rows * block_rows
        for part in (rows[:n_whole].reshape(-1, block_rows), rows[n_whole:].reshape(1, -1)):
            if part.size:
                self._add_blocks(part)

    def _add_blocks(self, blocks: Array) -> None:
        n_blocks, n_rows = blocks.shape
        self.n_samples += blocks.size
        self.n_blocks += n_blocks
        self.n_pairs += n_blocks * n_rows * (n_rows - 1)
        self.sum_squared_rows += n_blocks * n_rows**2
        if n_rows > 1:
            values = blocks.astype(np.float64)
            values -= values.mean(axis=1, keepdims=True)
            self.m2_within += float(np.square(values, out=values).sum())
        if self.is_integer:
            self._add_runs(np.sort(blocks, axis=1))

    def _add_runs(self, blocks: Array) -> None:
        """Cut sorted blocks into runs of equal values."""
        starts_run = np.ones(blocks.shape, np.bool_)
        np.not_equal(blocks[:, 1:], blocks[:, :-1], out=starts_run[:, 1:])
        starts = np.flatnonzero(starts_run)
        lengths = np.diff(starts, append=blocks.size)
        self.n_equal_pairs += int((lengths * (lengths - 1)).sum())
        self._count(blocks.ravel()[starts], lengths)

    def _count(self, values: Array, counts: Array) -> None:
        if not self.too_many:
            self._runs.append((values, counts))
            self._n_runs += len(values)
            if self._n_runs > 2 * MOST_VALUES:
                self._condense()

    def _condense(self) -> None:
        """Merge what was counted so far; give up above the limit, which no order of merging can change."""
        if self._runs:
            values, places = np.unique(np.concatenate([values for values, _ in self._runs]), return_inverse=True)
            counts = np.zeros(len(values), np.int64)
            np.add.at(counts, places, np.concatenate([counts for _, counts in self._runs]))
            self.too_many = len(values) > MOST_VALUES
            self._runs = [] if self.too_many else [(values, counts)]
            self._n_runs = 0 if self.too_many else len(values)

    def merge(self, other: LabelTally) -> None:
        """Add the tally of later rows, which start at a block's edge."""
        for name in ("n_samples", "n_blocks", "n_pairs", "n_equal_pairs", "sum_squared_rows", "m2_within"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.too_many:
            self.too_many, self._runs, self._n_runs = True, [], 0
        for values, counts in other._runs:
            self._count(values, counts)

    def histogram(self) -> Histogram | None:
        """The histogram; None for floats and above 65,536 values."""
        if not self.too_many:
            self._condense()
        return None if self.too_many or not self._runs else Histogram(values=self._runs[0][0], counts=self._runs[0][1])

    def rho(self, m2: float) -> float | None:
        """The intra-block correlation, from -1 to 1; ``m2`` is the sum of squared deviations over all rows.

        None where no block has two rows, or all rows are equal.
        """
        histogram = self.histogram()
        rho = self._class_rho(histogram) if histogram else self._intraclass_rho(m2)
        return None if rho is None or not np.isfinite(rho) else min(1.0, max(-1.0, rho))

    def _class_rho(self, histogram: Histogram) -> float | None:
        chance = float(np.square(histogram.counts / self.n_samples).sum())
        if not self.n_pairs or len(histogram.values) < 2:
            return None
        return (self.n_equal_pairs / self.n_pairs - chance) / (1 - chance)

    def _intraclass_rho(self, m2: float) -> float | None:
        n_samples, n_blocks = self.n_samples, self.n_blocks
        if not self.n_pairs or n_blocks < 2 or m2 == 0:
            return None
        between = max(0.0, m2 - self.m2_within) / (n_blocks - 1)
        within = self.m2_within / (n_samples - n_blocks)
        rows = (n_samples - self.sum_squared_rows / n_samples) / (n_blocks - 1)
        return (between - within) / (between + (rows - 1) * within)
