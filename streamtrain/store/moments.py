"""Mergeable sums behind the statistics: count, mean, spread and extremes of each column of some rows.

Two classes share the methods ``add`` (a piece of at most ``PIECE_ELEMENTS``), ``merge`` and ``finish``: `IntegerSums`
for integers of one byte, `Moments` (Chan's update in float64) for all else. A piece and its intermediate values fit the
cache, and a piece is large enough that threads do not pass the interpreter lock to and fro. Both change in place: of
wide samples, whose columns `ColumnGroups` takes group by group, these arrays are larger than the rows they describe.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_WIDTH: Final = 1024  # a reduction over shorter rows is several times slower, so they are folded to this
_MOST_NARROW: Final = 256  # so many integers of one byte add up in two
_MOST_CANCELLED: Final = 2**8  # eight of float64's 53 bits
MOST_LOST: Final = 2.0**20  # where the mean is a thousand times the spread, its rounding begins to count
_LARGE: Final = 2.0**400  # a sum of squares of such numbers fits float64
_WHOLE: Final = 2.0**53  # all integers below it are float64's
_GROUP: Final = 2**15  # columns of wide samples that are at work together; whole runs of NumPy's buffers
_MOST_NARROW_COUNT: Final = 2**31 - 1
_ROUND_BITS: Final = 11  # the bits that an integer of 64 has more than float64
_CLEAN: Final = np.empty(0, np.int64)
_NO_EXPONENT: Final = np.zeros(1, np.int64)
_NO_OFFSET: Final = np.zeros(1)
for _none in (_CLEAN, _NO_EXPONENT, _NO_OFFSET):
    _none.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Many values in six numbers; NaN where nothing finite was counted."""

    mean: float
    std: float  # divided by the number of finite values
    min: float
    max: float
    n_nan: int
    n_inf: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How the rows of a piece are added: decided over all columns, also where these are added group by group."""

    is_finite: bool = True
    is_constant: bool = False  # every column
    is_exact: bool = False  # the sums of squares cancel little
    is_lost: bool = False  # some column is to be centered


class Moments:
    """Count, mean, sum of squared deviations and extremes of the finite values of each column, in float64.

    Where a column's values lie close together and far from 0, ``mean`` is that of their differences from ``offset``, a
    value among them, so that nothing is rounded that tells them apart. Where squares would leave float64's range,
    ``offset``, ``mean`` and ``m2`` are those of the values divided by two to the power of ``exponent``.
    """

    PIECE_ELEMENTS: Final = 2**18
    WORK_BYTES: Final = 20
    """For each element of a piece, for the moment, at the most."""

    def __init__(self, n_columns: int) -> None:
        # These are one number for all columns until a column asks for its own.
        self.count: Array = np.zeros(1, np.int64)
        self.n_nan: Array = np.zeros(1, np.int64)
        self.n_inf: Array = np.zeros(1, np.int64)
        self.exponent: Array = _NO_EXPONENT
        self.offset: Array = _NO_OFFSET
        self.mean: Array = np.zeros(n_columns)
        self.m2: Array = np.zeros(n_columns)
        self.min: Array = np.full(n_columns, np.inf)
        self.max: Array = np.full(n_columns, -np.inf)

    def add(self, rows: Array, way: _Way | None = None) -> Array:
        """Add rows of shape (n, n_columns); return the positions of those with NaN or infinity."""
        # Float32 is widened inside the sums: a copy of twice its size would go through memory once more.
        values = rows if rows.dtype.char in "fd" else rows.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            total = reduce_rows(np.add, values, np.dtype(np.float64))
        if not (np.isfinite(total).all() if way is None else way.is_finite):
            return self._add_dirty(rows.astype(np.float64))
        piece = Moments(0)
        piece.count = np.full(1, len(rows))
        piece.mean, piece.m2 = total / len(rows), np.zeros(1)
        least, most = reduce_rows(np.minimum, rows), reduce_rows(np.maximum, rows)
        piece.min, piece.max = least.astype(np.float64), most.astype(np.float64)
        is_constant, exponent = _constants(rows.dtype, piece.min, piece.max, least == most)
        if exponent is _NO_EXPONENT and is_constant.all() if way is None else way.is_constant:
            piece.offset, piece.mean = piece.min, np.zeros(1)
        else:
            piece.m2, is_lost = _squared_deviations(values, total, None if way is None else way.is_exact)
            del values
            is_lost = is_lost if exponent is _NO_EXPONENT else is_lost | (exponent != 0)
            if is_lost.any() if way is None else way.is_lost:
                piece._keep_constants(is_constant)
                places = np.flatnonzero(is_lost & ~is_constant)
                if len(places):
                    piece._centre(places, [_around(rows[:, places], least[places], piece.exponent[places])])
        self.merge(piece)
        return _CLEAN

    def _add_dirty(self, values: Array) -> Array:
        """Add float64 with NaN or infinity among it, or whose sum is infinite."""
        finite = np.isfinite(values)
        piece = Moments(0)
        piece.count = finite.sum(axis=0)
        piece.n_nan = np.isnan(values).sum(axis=0)
        piece.n_inf = np.isinf(values).sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            piece.mean = np.where(finite, values, 0).sum(axis=0) / np.maximum(piece.count, 1)
            piece.m2 = (np.where(finite, values - piece.mean, 0) ** 2).sum(axis=0)
            is_lost = ~(piece.count * piece.mean**2 <= MOST_LOST * piece.m2)
        piece.min = np.where(finite, values, np.inf).min(axis=0)
        piece.max = np.where(finite, values, -np.inf).max(axis=0)
        is_constant = piece.min == piece.max
        piece._keep_constants(is_constant)
        places = np.flatnonzero((is_lost | (piece.exponent != 0)) & ~is_constant)
        columns = ((values[finite[:, i], i, np.newaxis], slice(i, i + 1)) for i in places.tolist())
        piece._centre(places, [_around(column, piece.min[i], piece.exponent[i]) for column, i in columns])
        self.merge(piece)
        return np.flatnonzero(~finite.all(axis=1))

    def _keep_constants(self, is_constant: Array) -> None:
        """Give every column an exponent and an offset: constants their value."""
        self.exponent = np.broadcast_to(_exponents(self.min, self.max), self.min.shape)
        value = np.ldexp(self.min, -self.exponent) if self.exponent.any() else self.min
        self.offset = np.where(is_constant, value, 0.0)
        self.mean = np.where(is_constant, 0.0, self.mean)
        self.m2 = np.where(is_constant, 0.0, self.m2)

    def _centre(self, places: Array, found: list[tuple[Array, Array, Array]]) -> None:
        """Take over what `_around` has found of some columns."""
        for values, of_places in zip((self.offset, self.mean, self.m2), zip(*found, strict=True), strict=False):
            values[places] = np.concatenate(of_places)

    def merge(self, other: Moments) -> None:
        """Add the moments of later rows (Chan's update)."""
        least, most = np.minimum(self.min, other.min), np.maximum(self.max, other.max)
        if self._counts_from_zero() and other._counts_from_zero():
            delta, m2 = other.mean - self.mean, other.m2
        else:
            delta, m2 = self._aligned(other, least, most)
        count = np.add(self.count, other.count, dtype=np.int64)
        share = other.count / np.maximum(count, 1)
        self.mean += delta * share
        np.multiply(delta, delta, out=delta)
        delta *= self.count * share
        self.m2 += delta
        self.m2 += m2
        self.min, self.max = least, most
        self.count = _narrow(count)
        self.n_nan = _narrow(np.add(self.n_nan, other.n_nan, dtype=np.int64))
        self.n_inf = _narrow(np.add(self.n_inf, other.n_inf, dtype=np.int64))
        if self.offset is not _NO_OFFSET and self.offset.any():
            self._drop_offset()

    def _counts_from_zero(self) -> bool:
        """Say whether no column has an offset or an exponent; False is possible although none has."""
        return self.offset is _NO_OFFSET and self.exponent is _NO_EXPONENT

    def _aligned(self, other: Moments, least: Array, most: Array) -> tuple[Array, Array]:
        """Come to one offset and exponent with other moments; give by how much their mean is larger, and their m2."""
        self._scale_to(_exponents(least, most) if self.exponent.any() or other.exponent.any() else self.exponent)
        offset, mean, m2 = other._scaled(self.exponent)
        if self.offset.any() or offset.any():
            # Of nothing, the mean may be anywhere.
            self.offset = np.where(self.count == 0, offset, self.offset)
        return (offset - self.offset) + (mean - self.mean), m2

    def _scaled(self, exponent: Array) -> tuple[Array, Array, Array]:
        """Offset, mean and m2 with another exponent."""
        if not (self.exponent.any() or exponent.any()):
            return self.offset, self.mean, self.m2
        shift = self.exponent - exponent
        return np.ldexp(self.offset, shift), np.ldexp(self.mean, shift), np.ldexp(self.m2, 2 * shift)

    def _scale_to(self, exponent: Array) -> None:
        self.offset, self.mean, self.m2 = self._scaled(exponent)
        self.exponent = exponent

    def _drop_offset(self) -> None:
        """Count from 0 again where the values turn out to lie as far apart as from 0."""
        whole = self.offset + self.mean
        is_near = self.count * whole**2 <= MOST_LOST * self.m2
        if is_near.all():
            self.offset, self.mean = _NO_OFFSET, whole
        else:
            self.offset, self.mean = np.where(is_near, 0.0, self.offset), np.where(is_near, whole, self.mean)

    def finish(self) -> Moments:
        """These moments."""
        return self

    def features(self) -> npt.NDArray[np.float64]:
        """Six rows of ``n_columns``: mean, std, min, max, NaN count, infinity count."""
        features = np.empty((6, len(self.mean)))
        features[0] = self.mean
        features[0] += self.offset
        np.divide(self.m2, np.maximum(self.count, 1), out=features[1])
        np.sqrt(features[1], out=features[1])
        np.ldexp(features[:2], self.exponent, out=features[:2])
        features[2:4] = self.min, self.max
        features[:4, np.broadcast_to(self.count == 0, self.mean.shape)] = np.nan
        features[4], features[5] = self.n_nan, self.n_inf
        return features

    def over_columns(self) -> Moments:
        """Merge the moments of all columns into one."""
        whole = Moments(1)
        count = np.broadcast_to(self.count, self.mean.shape)
        n_values = int(count.sum())
        whole.count += n_values
        for name in ("n_nan", "n_inf"):
            setattr(whole, name, np.broadcast_to(getattr(self, name), self.mean.shape).sum(keepdims=True))
        whole.min, whole.max = self.min.min(keepdims=True), self.max.max(keepdims=True)
        whole.exponent = _exponents(whole.min, whole.max) if self.exponent.any() else whole.exponent
        offset, mean, m2 = self._scaled(whole.exponent)
        if offset.any():
            whole.offset = np.broadcast_to(offset, mean.shape)[[np.argmax(count > 0)]]
            mean = (offset - whole.offset) + mean
        whole.mean += (mean * count).sum() / max(n_values, 1)
        whole.m2 += m2.sum() + (count * (mean - whole.mean) ** 2).sum()
        return whole

    def unscaled_m2(self) -> float:
        """Return the first column's sum of squared deviations, infinite where it leaves float64's range."""
        with np.errstate(over="ignore"):
            return float(np.ldexp(self.m2[0], 2 * self.exponent[0]))

    def summary(self) -> Summary:
        """Return the first column in six numbers."""
        mean, std, least, most, n_nan, n_inf = (float(row[0]) for row in self.features())
        return Summary(mean=mean, std=std, min=least, max=most, n_nan=int(n_nan), n_inf=int(n_inf))


class IntegerSums:
    """Σx and Σx² of each column of one-byte integers, exact in int64 for 10¹⁴ rows."""

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

    def add(self, rows: Array, way: _Way | None = None) -> Array:
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
        """Turn the sums into moments."""
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


class ColumnGroups:
    """Sums of wide samples, group by group of their columns: only one group is at work at a time."""

    def __init__(self, dtype: np.dtype[Any], n_columns: int) -> None:
        self.PIECE_ELEMENTS = sums_of(dtype, 0).PIECE_ELEMENTS
        n_groups = max(1, n_columns // _GROUP)
        edges = [*(_GROUP * group for group in range(n_groups)), n_columns]
        self._cuts = [slice(start, stop) for start, stop in pairwise(edges)]
        self._groups = [sums_of(dtype, cut.stop - cut.start) for cut in self._cuts]

    def add_part(self, rows: Array) -> Array:
        """Add rows of shape (n, n_columns) as a part of their own; return the positions of those not finite."""
        step = max(1, self.PIECE_ELEMENTS // rows.shape[1])
        pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
        is_small = isinstance(self._groups[0], IntegerSums)
        ways = [_Way() if is_small else _way_of([piece[:, cut] for cut in self._cuts]) for piece in pieces]
        for cut, group in zip(self._cuts, self._groups, strict=True):
            part = sums_of(rows.dtype, cut.stop - cut.start)
            for piece, way in zip(pieces, ways, strict=True):
                part.add(piece[:, cut], way)
            group.merge(part)  # type: ignore[arg-type]
        dirty = [number for number, way in enumerate(ways) if not way.is_finite]
        found = [step * number + _nonfinite(pieces[number], self._cuts) for number in dirty]
        return np.concatenate([_CLEAN, *found])

    def merge(self, other: ColumnGroups) -> None:
        """Add the sums of later rows."""
        for own, more in zip(self._groups, other._groups, strict=True):
            own.merge(more)  # type: ignore[arg-type]

    def finish(self) -> ColumnGroups:
        """These groups."""
        return self

    def features(self) -> npt.NDArray[np.float64]:
        """Six rows of ``n_columns``, as `Moments` give them."""
        features = np.empty((6, self._cuts[-1].stop))
        for cut, group in zip(self._cuts, self._groups, strict=True):
            features[:, cut] = group.finish().features()
        return features

    def over_columns(self) -> Moments:
        """Merge the moments of all columns into one, as if they had been one group."""
        parts = [group.finish() for group in self._groups]
        whole = Moments(0)
        whole.mean, whole.m2 = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "m2"))
        whole.min, whole.max = (
            np.array([part.min.min() for part in parts]),
            np.array([part.max.max() for part in parts]),
        )
        for name in ("count", "n_nan", "n_inf", "offset", "exponent"):
            values = [getattr(part, name) for part in parts]
            if any(len(one) > 1 or one[0] != values[0][0] for one in values):
                values = [np.broadcast_to(one, part.mean.shape) for one, part in zip(values, parts, strict=True)]
                setattr(whole, name, np.concatenate(values))
            else:
                setattr(whole, name, values[0])
        return whole.over_columns()


def _way_of(groups: list[Array]) -> _Way:
    """Decide how the groups of columns of a piece are added, as one over all of them would."""
    if not all(np.isfinite(_total(group)).all() for group in groups):
        return _Way(is_finite=False)
    is_constant, is_usual, is_scaled = True, True, False
    for group in groups:
        least, most = group.min(axis=0), group.max(axis=0)
        wide = least.astype(np.float64), most.astype(np.float64)
        constants, exponent = _constants(group.dtype, *wide, least == most)
        is_constant &= bool(constants.all())
        is_usual &= exponent is _NO_EXPONENT
        is_scaled |= bool(exponent.any())
    if is_constant and is_usual:
        return _Way(is_constant=True)
    is_exact = all(_cancels_little(*_around_zero(_widened(group), _total(group))) for group in groups)
    if is_exact or is_scaled:
        return _Way(is_exact=is_exact, is_lost=is_scaled)
    lost = (_squared_deviations(_widened(group), _total(group), is_exact=False)[1].any() for group in groups)
    return _Way(is_lost=any(lost))


def _widened(rows: Array) -> Array:
    return rows if rows.dtype.char in "fd" else rows.astype(np.float64)


def _total(rows: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return reduce_rows(np.add, _widened(rows), np.dtype(np.float64))


def _nonfinite(rows: Array, cuts: list[slice]) -> Array:
    """Return the positions of rows with NaN or infinity."""
    return np.flatnonzero(~np.all([np.isfinite(rows[:, cut]).all(axis=1) for cut in cuts], axis=0))


def sums_of(dtype: np.dtype[Any], n_columns: int) -> Moments | IntegerSums:
    """Return the sums that fit a dtype."""
    return IntegerSums(dtype, n_columns) if dtype.kind in "biu" and dtype.itemsize == 1 else Moments(n_columns)


def _narrow(counts: Array) -> Array:
    """Hold counts of columns in 32 bits while they fit, and zeros in one number."""
    if len(counts) > 1 and not counts.any():
        return np.zeros(1, np.int64)
    return counts.astype(np.int32) if len(counts) > 1 and counts.max() <= _MOST_NARROW_COUNT else counts


def fold_of(n_columns: int) -> int:
    """Return how many rows of ``n_columns`` columns are laid side by side before they are reduced."""
    return -(-_WIDTH // n_columns)


def reduce_rows(ufunc: np.ufunc, rows: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """``ufunc.reduce(rows, axis=0)``, narrow rows folded side by side first; ``dtype`` is that of folded integers."""
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


def _constants(dtype: np.dtype[Any], least: Array, most: Array, is_constant: Array) -> tuple[Array, Array]:
    """Say which columns are constants that float64 holds, and by what power of two each column has to be divided."""
    if dtype.kind != "f" and dtype.itemsize == 8:
        # An integer of 64 bits may be none of float64's.
        is_constant = is_constant & (np.abs(least) < _WHOLE)
    # Only float64 itself comes near the limits of float64.
    return is_constant, _exponents(least, most) if dtype.char == "d" else _NO_EXPONENT


def _squared_deviations(rows: Array, total: Array, is_exact: bool | None = None) -> tuple[Array, Array]:
    """Sum each column's squared deviations from its mean, from floats and their sums; say where the result is lost.

    Σx² - (Σx)²/n needs one pass and no room; where that would cancel too many bits, the deviations are made. Where the
    rounding of the mean itself counts beside them, or a square is infinite, that is lost too.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        around_zero, around_mean = _around_zero(rows, total)
        if _cancels_little(around_zero, around_mean) if is_exact is None else is_exact:
            return around_mean, np.zeros(1, np.bool_)
        deviations = rows.astype(np.float64)
        np.subtract(deviations, total / len(rows), out=deviations)
        np.multiply(deviations, deviations, out=deviations)
        around_mean = reduce_rows(np.add, deviations)
        return around_mean, ~(around_zero <= MOST_LOST * around_mean)


def _around_zero(rows: Array, total: Array) -> tuple[Array, Array]:
    """Sum each column's squares, and from them those of its deviations."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = _sum_squares(rows)
        return squares, squares - total * (total / len(rows))


def _cancels_little(around_zero: Array, around_mean: Array) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((around_zero <= _MOST_CANCELLED * around_mean).all())


def _around(rows: Array, least: Array, exponent: Array) -> tuple[Array, Array, Array]:
    """Compute offset, mean and m2 of finite columns from their least values; the rows may be overwritten."""
    if rows.dtype.kind == "f":
        offset = np.ldexp(least.astype(np.float64), -exponent)
        deviations = rows.astype(np.float64, copy=False)
        if exponent.any():
            np.ldexp(deviations, -exponent, out=deviations)
        deviations -= offset
    else:
        wide = f"{rows.dtype.kind}8"
        least = least.astype(wide)
        # Without its last bits an integer of 64 is a float64 too; differences that wrap around fit the unsigned ones.
        rounded = least >> np.array(_ROUND_BITS, wide) << np.array(_ROUND_BITS, wide)
        start = np.where(np.abs(least.astype(np.float64)) < _WHOLE, least, rounded)
        differences = rows.astype(wide, copy=False).view(np.uint64)
        differences -= start.view(np.uint64)
        offset, deviations = start.astype(np.float64), differences.astype(np.float64)
    mean = reduce_rows(np.add, deviations) / len(rows)
    deviations -= mean
    rest = reduce_rows(np.add, deviations)
    m2 = np.maximum(_sum_squares(deviations) - rest * (rest / len(rows)), 0)
    return offset, mean + rest / len(rows), m2


def _exponents(least: Array, most: Array) -> Array:
    """By what power of two each column has to be divided for its squares to stay inside float64's range; mostly 0."""
    with np.errstate(invalid="ignore"):
        largest = np.maximum(np.abs(least), np.abs(most))
    if not largest.size or (largest.max() < _LARGE and largest.min() > 1 / _LARGE):
        return _NO_EXPONENT
    is_usual = (largest == 0) | np.isinf(largest) | ((largest < _LARGE) & (largest > 1 / _LARGE))
    return np.where(is_usual, 0, np.frexp(largest)[1]).astype(np.int64)


def _sum_squares(rows: Array) -> Array:
    n_rows, n_columns = rows.shape
    fold = min(fold_of(n_columns), n_rows)
    n_folds = n_rows // fold
    wide, tail = rows[: n_folds * fold].reshape(n_folds, fold * n_columns), rows[n_folds * fold :]
    squares = np.einsum("ij,ij->j", wide, wide, dtype=np.float64).reshape(fold, n_columns).sum(axis=0)
    return np.asarray(squares + np.einsum("ij,ij->j", tail, tail, dtype=np.float64))
