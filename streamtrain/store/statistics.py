"""Mergeable statistics of a field: moments, label histogram, and the intra-block label correlation ρ.

A `FieldTally` counts one run of rows; tallies merge by Chan's update (Chan, Golub & LeVeque, 1983). The result depends
on how the rows were cut and in which order the tallies merged, never on threads: merging in row order gives the same
bits every time. Integers of one byte are summed exactly.

ρ says how far the stored order is from random: 1 where each block holds one class, about 0 where rows are shuffled.
Classes (integers of at most 65,536 values): the chance that two samples of one block agree, compared with that of any
two. Other values: the intraclass correlation of a one-way analysis of variance with the block as the factor (Fisher,
1925).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.store.layout import Field
from streamtrain.store.media.channels import N_CHANNELS, ImageTally
from streamtrain.store.media.encoded import ImageFacts
from streamtrain.store.moments import MOST_LOST, ColumnGroups, IntegerSums, Moments, Summary, sums_of
from streamtrain.store.schema.columns import TARGET
from streamtrain.system.units import format_value

Array = npt.NDArray[Any]

MOST_VALUES: Final = 2**16
"""A field of more distinct values than this has no histogram."""


_WHOLE: Final = 2.0**53
"""Up to here float64 holds every whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The distinct values of a field, ascending, and their counts."""

    values: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]


class ValueCounts:
    """Running counts of the distinct values of a field, up to a limit."""

    def __init__(self) -> None:
        self.too_many = False
        self._runs: list[tuple[Array, Array]] = []
        self._n_runs = 0

    def add(self, values: Array, counts: Array) -> None:
        """Add values and how often each occurs; a value may occur in several calls."""
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
            if len(values) > MOST_VALUES:
                self.give_up()
            else:
                self._runs, self._n_runs = [(values, counts)], len(values)

    def give_up(self) -> None:
        """Count no further."""
        self.too_many, self._runs, self._n_runs = True, [], 0

    def merge(self, other: ValueCounts) -> None:
        """Add the counts of other rows."""
        if other.too_many:
            self.give_up()
        for values, counts in other._runs:
            self.add(values, counts)

    def histogram(self) -> Histogram | None:
        """Return the histogram; None above the limit."""
        if not self.too_many:
            self._condense()
        return None if self.too_many or not self._runs else Histogram(values=self._runs[0][0], counts=self._runs[0][1])


class LabelTally:
    """The running histogram and block figures of a scalar field."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.is_integer = dtype.kind in "biu"
        self.n_samples = 0
        self.n_blocks = 0
        self.n_pairs = 0  # ordered pairs of samples inside a block
        self.n_equal_pairs = 0
        self.sum_squared_rows = 0  # Σ n_b²
        self.m2_within = 0.0  # Σ over blocks of the squared deviations from the block's mean
        self._counts = ValueCounts()

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
            self.m2_within += _m2_within(blocks)
        if self.is_integer:
            self._add_runs(np.sort(blocks, axis=1))

    def _add_runs(self, blocks: Array) -> None:
        """Cut sorted blocks into runs of equal values."""
        starts_run = np.ones(blocks.shape, np.bool_)
        np.not_equal(blocks[:, 1:], blocks[:, :-1], out=starts_run[:, 1:])
        starts = np.flatnonzero(starts_run)
        lengths = np.diff(starts, append=blocks.size)
        self.n_equal_pairs += int((lengths * (lengths - 1)).sum())
        self._counts.add(blocks.ravel()[starts], lengths)

    def merge(self, other: LabelTally) -> None:
        """Add the tally of later rows, which start at a block's edge."""
        for name in ("n_samples", "n_blocks", "n_pairs", "n_equal_pairs", "sum_squared_rows", "m2_within"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._counts.merge(other._counts)

    def histogram(self) -> Histogram | None:
        """Return the histogram; None for floats and above 65,536 values."""
        return self._counts.histogram()

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


def _m2_within(blocks: Array) -> float:
    """Sum the squared deviations of blocks of shape (n, n_rows), each from its own mean."""
    # What leaves float64's range is infinite, and then there is no correlation.
    with np.errstate(over="ignore", invalid="ignore"):
        values = blocks.astype(np.float64)
        means = values.mean(axis=1, keepdims=True)
        values -= means
        m2 = float(np.square(values, out=values).sum())
        if not blocks.shape[1] * float(np.square(means).sum()) > MOST_LOST * m2:
            return m2
        if blocks.dtype.kind == "f":
            values = blocks.astype(np.float64) - blocks[:, :1]
        else:
            wide = blocks.astype(np.uint64)
            values = (wide - wide[:, :1]).view(np.int64).astype(np.float64)
        values -= values.mean(axis=1, keepdims=True)
        return float(np.square(values, out=values).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """What else is known of labels that are floats or matrices; None where it has no meaning."""

    is_whole: bool | None = None  # of floats, one a sample: none has a fraction
    whole: Histogram | None = None  # their values, if they are whole, up to 65,536
    is_binary: bool | None = None  # of a matrix: all are 0 or 1
    is_one_hot: bool | None = None  # and exactly one in each row is 1


class LabelFactsTally:
    """The running facts of a label field."""

    def __init__(self, field: Field) -> None:
        self._is_float, self._is_matrix = _is_float_label(field), len(field.shape) == 1
        self._is_whole = self._is_binary = self._is_one_hot = True
        self._counts = ValueCounts()

    def add(self, rows: Array) -> None:
        """Look at rows; what has been refuted is not looked at again."""
        if self._is_float and self._is_whole:
            self._is_whole = bool((np.abs(rows) < _WHOLE).all() and (rows == np.floor(rows)).all())
            if self._is_whole:
                self._counts.add(*np.unique(rows.astype(np.float64) + 0.0, return_counts=True))
            else:
                self._counts.give_up()
        if self._is_matrix and self._is_binary:
            self._is_binary = bool(((rows == 0) | (rows == 1)).all())
            self._is_one_hot &= self._is_binary and bool((np.count_nonzero(rows, axis=1) == 1).all())

    def merge(self, other: LabelFactsTally) -> None:
        """Add the facts of other rows."""
        self._is_whole &= other._is_whole
        self._is_binary &= other._is_binary
        self._is_one_hot &= other._is_one_hot
        self._counts.merge(other._counts)

    def finish(self) -> LabelFacts:
        """Return the facts of all rows so far."""
        if self._is_float:
            return LabelFacts(is_whole=self._is_whole, whole=self._counts.histogram() if self._is_whole else None)
        return LabelFacts(is_binary=self._is_binary, is_one_hot=self._is_one_hot)


def _is_float_label(field: Field) -> bool:
    return field.name == TARGET and field.shape == () and field.dtype.kind == "f"


def has_facts(field: Field) -> bool:
    """Whether a field is one of labels whose histogram does not say all."""
    return _is_float_label(field) or (field.name == TARGET and len(field.shape) == 1)


_WIDE: Final = 2**16
"""A sample of more features than this is counted group by group of them."""

_WIDE_WORK: Final = (7 * 10**6, 17 * 10**6)  # bytes for a group, of float64 near its limits more
_FINISHED: Final = 80  # bytes: 48 of a feature's figures, and what the C library keeps of freed groups, as measured
_FINISHING: Final = 100  # for the moment, of one field
_SETTLED: Final = 2**14  # features that are settled at once

MOST_FEATURES: Final = 2**18
"""A sample of more features than this gets one figure for the whole field."""

NONFINITE_ROWS: Final = 5
"""Number of rows with NaN or infinity that are remembered, the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldStats:
    """The statistics of a field's values: of each feature by name, and over the whole field."""

    # Mean, std, min, max, NaN count and infinity count, each in the shape of one sample, or () above 262,144 features.
    features: npt.NDArray[np.float64]
    overall: Summary
    histogram: Histogram | None  # of integer scalars, up to 65,536 values
    rho: float | None  # how alike two values of one block are, from -1 to 1; None if no block has two or all are equal
    facts: LabelFacts | None = None  # of labels that are floats or a matrix
    images: ImageFacts | None = None  # of an encoded field, whose features are the channels of its images

    def __repr__(self) -> str:
        size, whole = math.prod(self.features.shape[1:]), self.overall
        figures = ", ".join(f"{name} {format_value(getattr(whole, name))}" for name in ("mean", "std", "min", "max"))
        missing = f", {whole.n_nan:,} NaN" * (whole.n_nan > 0) + f", {whole.n_inf:,} infinite" * (whole.n_inf > 0)
        return f"FieldStats({size:,} feature{'s' * (size != 1)}: {figures}{missing})"

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """The mean of each feature's finite values."""
        return self.features[0, ...]

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """The standard deviation of each feature's finite values, divided by their number."""
        return self.features[1, ...]

    @property
    def min(self) -> npt.NDArray[np.float64]:
        """The smallest finite value of each feature."""
        return self.features[2, ...]

    @property
    def max(self) -> npt.NDArray[np.float64]:
        """The largest finite value of each feature."""
        return self.features[3, ...]

    @property
    def n_nan(self) -> npt.NDArray[np.float64]:
        """How many values of each feature are NaN."""
        return self.features[4, ...]

    @property
    def n_inf(self) -> npt.NDArray[np.float64]:
        """How many values of each feature are infinite."""
        return self.features[5, ...]


_ROUNDINGS: Final = 4
"""A spread of so many roundings of the mean is that of a constant which was computed in more than one way."""


def settle_features(features: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Hold the mean and std of features against their extremes: of a constant they are its value and 0."""
    # Earlier versions stored the rounding of their sums as the std of a constant. The extremes of an integer above
    # 2**53 are rounded themselves, so nothing is compared with them.
    mean, std, least, most = features[:4]
    with np.errstate(over="ignore", invalid="ignore"):
        range_ = most - least
        half = np.where(np.isfinite(range_), range_ / 2, most / 2 - least / 2)
        largest = np.maximum(np.abs(least), np.abs(most))
        is_known = (dtype.kind == "f") | (largest <= _WHOLE)
        is_rounding = (dtype.kind == "f") & (std <= _ROUNDINGS * np.finfo(np.float64).eps * np.abs(mean))
        # Whole numbers that lie around that limit, or below it, differ because they were meant to.
        is_rounding &= (largest > 2 * _WHOLE) | (range_ < 1)
    settled = features.copy()
    settled[0] = np.where(is_known, np.clip(mean, least, most), mean)
    settled[1] = np.where(is_rounding, 0, np.where(is_known, np.minimum(std, half), std))
    return settled


def settle_summary(summary: Summary, dtype: np.dtype[Any]) -> Summary:
    """Do the same to the figures of a whole field."""
    features = np.array([summary.mean, summary.std, summary.min, summary.max, summary.n_nan, summary.n_inf], np.float64)
    mean, std = settle_features(features, dtype)[:2].tolist()
    return replace(summary, mean=mean, std=std)


class FieldTally:
    """The running statistics of one field over some rows."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nonfinite_rows: tuple[int, ...] = ()
        self._moments: Any = _moments(field)
        self._labels = LabelTally(field.dtype) if field.shape == () else None
        self._facts = LabelFactsTally(field) if has_facts(field) else None

    def merge(self, other: FieldTally) -> None:
        """Add the tally of later rows, which start at a block's edge."""
        self._moments.merge(other._moments)
        self.nonfinite_rows = (self.nonfinite_rows + other.nonfinite_rows)[:NONFINITE_ROWS]
        if self._labels is not None and other._labels is not None:
            self._labels.merge(other._labels)
        if self._facts is not None and other._facts is not None:
            self._facts.merge(other._facts)

    def add(self, rows: Array, *, first_row: int, block_rows: int) -> None:
        """Count rows that start at a block's edge; see `tally_rows`."""
        if self.field.encoded:
            self._moments.add(rows)
            return
        flat = rows.reshape(-1, count_features(self.field))
        if is_wide(self.field):
            self._remember(first_row + self._moments.add_part(flat))
            if self._facts is not None:
                self._facts.add(rows)
            return
        step = max(1, self._moments.PIECE_ELEMENTS // flat.shape[1])
        for start in range(0, len(flat), step):
            nonfinite = self._moments.add(flat[start : start + step])
            self._remember(first_row + (start + nonfinite) * len(rows) // len(flat))
        if self._labels is not None:
            self._labels.add(rows, block_rows)
        if self._facts is not None:
            self._facts.add(rows)

    def add_part(self, rows: Array, *, first_row: int, block_rows: int) -> None:
        """Count rows as the tally of a part that is merged."""
        if is_wide(self.field):
            self.add(rows, first_row=first_row, block_rows=block_rows)
        else:
            self.merge(tally_rows(rows, self.field, first_row=first_row, block_rows=block_rows))

    def _remember(self, rows: Array) -> None:
        known = dict.fromkeys((*self.nonfinite_rows, *rows.tolist()))
        self.nonfinite_rows = tuple(known)[:NONFINITE_ROWS]

    def finish(self) -> FieldStats:
        """Return the statistics of all rows so far."""
        moments: Moments | ColumnGroups = self._moments.finish()
        overall = moments.over_columns()
        features = moments.features()
        for start in range(0, features.shape[1], _SETTLED):
            piece = features[:, start : start + _SETTLED]
            piece[...] = settle_features(piece, self.field.dtype)
        return FieldStats(
            features=features.reshape(6, *stats_shape(self.field)),
            overall=settle_summary(overall.summary(), self.field.dtype),
            histogram=self._labels.histogram() if self._labels else None,
            rho=self._labels.rho(overall.unscaled_m2()) if self._labels else None,
            facts=self._facts.finish() if self._facts else None,
            images=self._moments.images if self.field.encoded else None,
        )


def tally_rows(rows: Array, field: Field, *, first_row: int, block_rows: int) -> FieldTally:
    """Count a run of rows that starts at a block's edge."""
    tally = FieldTally(field)
    tally.add(rows, first_row=first_row, block_rows=block_rows)
    return tally


def count_features(field: Field) -> int:
    """Count the figures of each kind for a field: one per feature, or one in all if there are too many."""
    if field.encoded:
        return N_CHANNELS
    n_features = math.prod(field.shape)
    return n_features if n_features <= MOST_FEATURES else 1


def stats_shape(field: Field) -> tuple[int, ...]:
    """Return the shape of a field's per-feature arrays: that of a sample, or () if it has too many features."""
    if field.encoded:
        return (N_CHANNELS,)
    return field.shape if count_features(field) == math.prod(field.shape) else ()


def is_wide(field: Field) -> bool:
    """Whether a field's features are counted group by group, part after part into one tally."""
    return not field.encoded and count_features(field) > _WIDE


def tally_bytes(field: Field, n_rows: int) -> int:
    """Bound the memory of a field's tally of ``n_rows`` rows."""
    n_counted = (field.shape == ()) + _is_float_label(field)
    each = 64 if not is_wide(field) else _sum_bytes(field)
    return each * count_features(field) + 16 * min(n_rows, 2 * MOST_VALUES) * n_counted


def _sum_bytes(field: Field) -> int:
    """Bound what a feature's sums take: two of one byte; or mean, spread, extremes, an offset, counts, an exponent."""
    if _is_small(field):
        return 18
    return 40 + (12 if field.dtype.kind == "f" else 0) + (8 if field.dtype.char == "d" else 0)


def finish_bytes(fields: Sequence[Field], n_rows: int) -> int:
    """Bound what is made of the tallies of ``n_rows`` rows at the end, and written."""
    wide = [count_features(field) for field in fields if is_wide(field)]
    narrow = sum(tally_bytes(field, n_rows) for field in fields if not is_wide(field))
    return 3 * narrow + _FINISHED * sum(wide) + _FINISHING * max(wide, default=0)


def work_bytes(field: Field, n_rows: int) -> int:
    """Bound the temporary memory of counting ``n_rows`` rows of a field; decoded images are the source's."""
    if field.encoded:
        return 0
    if is_wide(field):
        return _WIDE_WORK[field.dtype.char == "d"]
    kind = IntegerSums if _is_small(field) else Moments
    n_elements = min(kind.PIECE_ELEMENTS, n_rows * math.prod(field.shape))
    return kind.WORK_BYTES * n_elements + (64 * min(n_rows, 2 * MOST_VALUES) if field.shape == () else 0)


def _moments(field: Field) -> IntegerSums | Moments | ColumnGroups | ImageTally:
    if field.encoded:
        return ImageTally(field.encoded)
    n_columns = count_features(field)
    return ColumnGroups(field.dtype, n_columns) if is_wide(field) else sums_of(field.dtype, n_columns)


def _is_small(field: Field) -> bool:
    return field.dtype.kind in "biu" and field.dtype.itemsize == 1
