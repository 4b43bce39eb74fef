"""Mergeable sums behind the statistics: count, mean, spread and extremes of each column of some rows.

Two classes share the methods ``add`` (a piece of at most ``PIECE_ELEMENTS``), ``merge`` and ``finish``: `IntegerSums`
for integers of one byte, `Moments` (Chan's update in float64) for all else. A piece and its intermediate values fit the
cache, and a piece is large enough that threads do not pass the interpreter lock to and fro. Both change in place: for
wide samples these arrays are larger than the rows they describe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_WIDTH: Final = 1024  # a reduction over shorter rows is several times slower, so they are folded to this
_MOST_NARROW: Final = 256  # so many integers of one byte add up in two
_MOST_CANCELLED: Final = 2**8  # eight of float64's 53 bits
_CLEAN: Final = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Many values in six numbers; NaN where nothing finite was counted.

    Parameters
    ----------
    mean, std, min, max : float
        Over all finite values; ``std`` divides by their number.
    n_nan, n_inf : int
        How many values are NaN or infinite.
    """

    mean: float
    std: float
    min: float
    max: float
    n_nan: int
    n_inf: int


class Moments:
    """Count, mean, sum of squared deviations and extremes of the finite values of each column, in float64.

    Parameters
    ----------
    n_columns : int
        How many columns.
    """

    PIECE_ELEMENTS: Final = 2**18
    WORK_BYTES: Final = 20
    """For each element of a piece, for the moment, at the most."""

    def __init__(self, n_columns: int) -> None:
        # The counts are the same for all columns until a NaN or infinity is met.
        self.count: Array = np.zeros(1, np.int64)
        self.n_nan: Array = np.zeros(1, np.int64)
        self.n_inf: Array = np.zeros(1, np.int64)
        self.mean: Array = np.zeros(n_columns)
        self.m2: Array = np.zeros(n_columns)
        self.min: Array = np.full(n_columns, np.inf)
        self.max: Array = np.full(n_columns, -np.inf)

    def add(self, rows: Array) -> Array:
        """Add rows of shape (n, n_columns); return the positions of those with NaN or infinity."""
        # Float32 is widened inside the sums: a copy of twice its size would go through memory once more.
        values = rows if rows.dtype.char in "fd" else rows.astype(np.float64)
        total = reduce_rows(np.add, values, np.dtype(np.float64))
        if not np.isfinite(total).all():
            return self._add_dirty(rows.astype(np.float64))
        piece = Moments.__new__(Moments)
        piece.count, piece.n_nan, piece.n_inf = np.full(1, len(rows)), np.zeros(1, np.int64), np.zeros(1, np.int64)
        piece.mean = total / len(rows)
        piece.m2 = _squared_deviations(values, total)
        piece.min = reduce_rows(np.minimum, rows).astype(np.float64)
        piece.max = reduce_rows(np.maximum, rows).astype(np.float64)
        self.merge(piece)
        return _CLEAN

    def _add_dirty(self, values: Array) -> Array:
        finite = np.isfinite(values)
        piece = Moments(values.shape[1])
        piece.count = finite.sum(axis=0)
        piece.n_nan = np.isnan(values).sum(axis=0)
        piece.n_inf = np.isinf(values).sum(axis=0)
        piece.mean = np.where(finite, values, 0).sum(axis=0) / np.maximum(piece.count, 1)
        piece.m2 = (np.where(finite, values - piece.mean, 0) ** 2).sum(axis=0)
        piece.min = np.where(finite, values, np.inf).min(axis=0)
        piece.max = np.where(finite, values, -np.inf).max(axis=0)
        self.merge(piece)
        return np.flatnonzero(~finite.all(axis=1))

    def merge(self, other: Moments) -> None:
        """Add the moments of later rows (Chan's update)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        self.mean += delta * share
        np.multiply(delta, delta, out=delta)
        delta *= self.count * share
        self.m2 += delta
        self.m2 += other.m2
        np.minimum(self.min, other.min, out=self.min)
        np.maximum(self.max, other.max, out=self.max)
        self.count, self.n_nan, self.n_inf = count, self.n_nan + other.n_nan, self.n_inf + other.n_inf

    def finish(self) -> Moments:
        """These moments."""
        return self

    def features(self) -> npt.NDArray[np.float64]:
        """Six rows of ``n_columns``: mean, std, min, max, NaN count, infinity count."""
        known = np.broadcast_to(self.count > 0, self.mean.shape)
        std = np.sqrt(self.m2 / np.maximum(self.count, 1))
        finite = [np.where(known, values, np.nan) for values in (self.mean, std, self.min, self.max)]
        return np.stack([*finite, *(np.broadcast_to(n, self.mean.shape) for n in (self.n_nan, self.n_inf))])

    def over_columns(self) -> Moments:
        """The moments of all columns together, as one."""
        whole = Moments(1)
        count = np.broadcast_to(self.count, self.mean.shape)
        n_values = int(count.sum())
        whole.count += n_values
        for name in ("n_nan", "n_inf"):
            setattr(whole, name, np.broadcast_to(getattr(self, name), self.mean.shape).sum(keepdims=True))
        whole.mean += (self.mean * count).sum() / max(n_values, 1)
        whole.m2 += self.m2.sum() + (count * (self.mean - whole.mean) ** 2).sum()
        whole.min, whole.max = self.min.min(keepdims=True), self.max.max(keepdims=True)
        return whole

    def summary(self) -> Summary:
        """The first column in six numbers."""
        mean, std, least, most, n_nan, n_inf = (float(row[0]) for row in self.features())
        return Summary(mean=mean, std=std, min=least, max=most, n_nan=int(n_nan), n_inf=int(n_inf))


class IntegerSums:
    """Σx and Σx² of each column of one-byte integers, exact in int64 for 10¹⁴ rows.

    Parameters
    ----------
    dtype : numpy.dtype
        bool, int8 or uint8.
    n_columns : int
        How many columns.
    """

    # So few that sums of squares fit 32 bits: at most 1,024 of them make one.
    PIECE_ELEMENTS: Final = 2**20
    WORK_BYTES: Final = 4

    def __init__(self, dtype: np.dtype[Any], n_columns: int) -> None:
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        limits = np.iinfo(self.dtype)
        self.count = 0
        self.total: Array = np.zeros(n_columns, np.int64)
        self.squares: Array = np.zeros(n_columns, np.int64)
        self.min: Array = np.full(n_columns, limits.max, self.dtype)
        self.max: Array = np.full(n_columns, limits.min, self.dtype)

    def add(self, rows: Array) -> Array:
        """Add rows of shape (n, n_columns); none of them is NaN or infinite."""
        rows = rows.view(self.dtype)
        values = rows.astype(f"{self.dtype.kind}2")
        self.count += len(rows)
        step = _MOST_NARROW * fold_of(rows.shape[1])
        for start in range(0, len(rows), step):
            self.total += reduce_rows(np.add, values[start : start + step], values.dtype)
        np.multiply(values, values, out=values)
        self.squares += reduce_rows(np.add, values, np.dtype(f"{self.dtype.kind}4"))
        np.minimum(self.min, reduce_rows(np.minimum, rows), out=self.min)
        np.maximum(self.max, reduce_rows(np.maximum, rows), out=self.max)
        return _CLEAN

    def merge(self, other: IntegerSums) -> None:
        """Add the sums of other rows."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        np.minimum(self.min, other.min, out=self.min)
        np.maximum(self.max, other.max, out=self.max)

    def finish(self) -> Moments:
        """The moments these sums stand for."""
        moments = Moments(len(self.total))
        if self.count:
            # Σx = n·whole + rest, so Σx² - (Σx)²/n = (Σx² - n·whole² - 2·whole·rest) - rest²/n: large terms stay exact.
            whole, rest = np.divmod(self.total, self.count)
            exact = self.squares - self.count * whole**2 - 2 * whole * rest
            moments.count += self.count
            moments.mean += self.total / self.count
            moments.m2 += exact - rest.astype(np.float64) ** 2 / self.count
            moments.min, moments.max = self.min.astype(np.float64), self.max.astype(np.float64)
        return moments


def fold_of(n_columns: int) -> int:
    """How many rows of so many columns are laid side by side before they are reduced."""
    return -(-_WIDTH // n_columns)


def reduce_rows(ufunc: np.ufunc, rows: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """``ufunc.reduce(rows, axis=0)``, with narrow rows folded side by side first.

    Parameters
    ----------
    ufunc : numpy.ufunc
        An addition, or an extreme.
    rows : ndarray of shape (n, n_columns)
        Not empty.
    dtype : numpy.dtype, optional
        What sums are made in; for integers those of folded rows only, and sums over folds have 64 bits.

    Examples
    --------
    >>> reduce_rows(np.add, np.arange(6000).reshape(3000, 2)).tolist()
    [8997000, 9000000]
    """
    n_rows, n_columns = rows.shape
    fold = fold_of(n_columns)
    n_folds = n_rows // fold
    room = np.dtype(np.int64) if ufunc is np.add and rows.dtype.kind in "iu" else dtype
    if n_folds < 2:
        return np.asarray(ufunc.reduce(rows, axis=0, dtype=room))
    wide = ufunc.reduce(rows[: n_folds * fold].reshape(n_folds, fold * n_columns), axis=0, dtype=dtype)
    result = ufunc.reduce(wide.reshape(fold, n_columns), axis=0, dtype=room)
    tail = rows[n_folds * fold :]
    return np.asarray(ufunc(result, ufunc.reduce(tail, axis=0, dtype=room)) if len(tail) else result)


def _squared_deviations(rows: Array, total: Array) -> Array:
    """Each column's sum of squared deviations from its mean, in float64, from floats and their sums.

    Σx² - (Σx)²/n needs one pass and no room; where that would cancel too many bits, the deviations are made.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        around_zero = _sum_squares(rows)
        around_mean = around_zero - total * (total / len(rows))
        if (around_zero <= _MOST_CANCELLED * around_mean).all():
            return around_mean
    deviations = rows.astype(np.float64)
    np.subtract(deviations, total / len(rows), out=deviations)
    np.multiply(deviations, deviations, out=deviations)
    return reduce_rows(np.add, deviations)


def _sum_squares(rows: Array) -> Array:
    n_rows, n_columns = rows.shape
    fold = min(fold_of(n_columns), n_rows)
    n_folds = n_rows // fold
    wide, tail = rows[: n_folds * fold].reshape(n_folds, fold * n_columns), rows[n_folds * fold :]
    squares = np.einsum("ij,ij->j", wide, wide, dtype=np.float64).reshape(fold, n_columns).sum(axis=0)
    return np.asarray(squares + np.einsum("ij,ij->j", tail, tail, dtype=np.float64))
