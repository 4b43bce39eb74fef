"""Moments against exact fractions: constants, offsets up to 2^53, and the extremes of every dtype."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.store.layout import Field
from streamtrain.store.statistics import FieldStats, FieldTally, tally_rows

Rows = npt.NDArray[Any]

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "float32", "float64"]


def counted(rows: Rows, cuts: int) -> FieldStats:
    """The statistics of rows that come in so many parts."""
    field = Field(name="x", dtype=rows.dtype, shape=rows.shape[1:])
    total, step = FieldTally(field), -(-len(rows) // cuts)
    for start in range(0, len(rows), step):
        total.merge(tally_rows(rows[start : start + step], field, first_row=start, block_rows=step))
    return total.finish()


def exact(column: Rows) -> tuple[float, float]:
    """Mean and standard deviation, rounded once."""
    values = [Fraction(value) for value in column.tolist()]
    mean = sum(values, Fraction()) / len(values)
    variance = sum(((value - mean) ** 2 for value in values), Fraction()) / len(values)
    digits = 2**1400  # more than any float64 has behind the point
    return float(mean), float(Fraction(math.isqrt(int(variance * digits**2)), digits))


def assert_exact(column: Rows) -> None:
    """Of a column, beside another one that is its double order, and of the field as a whole."""
    mean, std = exact(column)
    near = max(abs(mean), std) * 1e-14
    for cuts in (1, 3, 8):
        table = counted(np.stack([column, column[::-1]], 1), cuts)
        for found_mean, found_std in (
            *zip(table.mean, table.std, strict=True),
            (table.overall.mean, table.overall.std),
        ):
            assert abs(found_mean - mean) <= near, (cuts, found_mean, mean)
            assert abs(found_std - std) <= 1e-9 * std, (cuts, found_std, std)


def drawn(values: list[float] | list[int], dtype: str, n: int = 40) -> Rows:
    column: Rows = np.random.default_rng(0).choice(np.array(values, dtype), n)
    column[: len(values)] = np.array(values, dtype)
    return column


@pytest.mark.parametrize("power", [0, 10, 23, 24, 31, 40, 49, 50, 51, 52, 53])
@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_an_offset_takes_nothing_from_the_spread(dtype: str, power: int) -> None:
    rng = np.random.default_rng(power)
    for spread in (2, 3, 1000):
        assert_exact((2**power - spread + rng.integers(0, spread, 50)).astype(dtype))
    if dtype == "float64":
        assert_exact(2.0**power + rng.normal(0, 3, 50))


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e-300, 5e-324, 1.7e308, 3e38, 1e15 + 0.125, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_constant_has_no_spread_and_is_its_own_mean(dtype: str, value: float) -> None:
    if not np.isfinite(constant := np.array(value, dtype)):
        return
    for cuts in (1, 4, 50):
        found = counted(np.full((1000, 3), constant), cuts)
        assert found.std.tolist() == [0, 0, 0]
        assert found.mean.tolist() == [float(constant)] * 3
        assert (found.overall.mean, found.overall.std) == (float(constant), 0)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_extremes_of_integers(dtype: str) -> None:
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for values in ([least, most], [most, most - 1], [least, least + 1], [most], [least], [least, 0, most - 3, most]):
        assert_exact(drawn(values, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_extremes_of_floats(dtype: str) -> None:
    kind = np.finfo(dtype)
    most, least, tiny = float(kind.max), float(kind.smallest_subnormal), float(kind.tiny)
    for values in (
        [-most, most],
        [most, most / 2],
        [most, 0.0, 1.0],
        [-most, most / 3, tiny],
        [tiny, -tiny, 3 * tiny],
        [1000 * least, 3000 * least],
        [0.0, 1000 * least],
    ):
        assert_exact(drawn(values, dtype))


def test_bools() -> None:
    for column in (np.ones(9, bool), np.zeros(9, bool), np.arange(10) % 3 == 0):
        assert_exact(column)


def test_a_constant_of_several_parts_that_differ_by_a_rounding_is_one() -> None:
    column = np.tile([0.1 + 0.2, 0.3], 500)
    for cuts in (1, 7, 1000):
        assert counted(column, cuts).overall.std == 0
    assert counted(np.tile([0.3, 0.3000001], 500), 7).overall.std == pytest.approx(5e-8)


def test_whole_numbers_that_differ_by_a_rounding_do_not() -> None:
    assert counted(np.tile([2.0**52, 2.0**52 + 1], 500), 7).overall.std == pytest.approx(0.5, rel=1e-14)


def test_what_is_not_finite_leaves_the_rest_exact() -> None:
    column = np.array([1e15 + 5, 1e15 + 0.25, np.nan, 1e15, np.inf, 1e15 + 0.125] * 5)
    found = counted(np.stack([column, np.where(np.isfinite(column), -1.5e308, column)], 1), 3)
    mean, std = exact(column[np.isfinite(column)])
    assert (found.mean[0], found.std[0]) == (mean, pytest.approx(std, rel=1e-9))
    assert (found.mean[1], found.std[1]) == (-1.5e308, 0)
    assert found.n_nan.tolist() == found.n_inf.tolist() == [5, 5]


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53).map(float),
        min_size=1,
        max_size=30,
    )
)
@settings(deadline=None)
def test_whatever_the_numbers_are(values: list[float]) -> None:
    column = np.array(values)
    mean, std = exact(column)
    for cuts in (1, 3):
        found = counted(column, cuts).overall
        assert abs(found.mean - mean) <= 1e-14 * max(abs(mean), std)
        is_rounding = std <= 4 * np.finfo(float).eps * abs(mean) * (1 + 1e-9)
        assert abs(found.std - std) <= 1e-9 * std + 5e-324 or (is_rounding and found.std == 0)
