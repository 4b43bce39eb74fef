"""Statistics against numpy's own, and against themselves however the rows are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.store import statistics
from streamtrain.store.layout import Field
from streamtrain.store.statistics import MOST_VALUES, FieldStats, FieldTally, tally_rows

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]


def _counted(rows: npt.NDArray[Any], block_rows: int = 4, cuts: int = 3) -> tuple[FieldTally, FieldStats]:
    field = Field(name="x", dtype=rows.dtype, shape=rows.shape[1:])
    total = FieldTally(field)
    step = max(1, len(rows) // cuts // block_rows) * block_rows
    for start in range(0, len(rows), step):
        total.merge(tally_rows(rows[start : start + step], field, first_row=start, block_rows=block_rows))
    return total, total.finish()


def _rows(dtype: str, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(3.0, 2.0, shape).astype(dtype)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(10**6)), min(info.max, 10**6), shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (300,), (4001, 3), (97, 5, 7), (20, 2000)])
def test_equal_to_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    rows = _rows(dtype, shape)
    _, found = _counted(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, wide.std(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.min, wide.min(axis=0))
    np.testing.assert_array_equal(found.max, wide.max(axis=0))
    assert found.overall.mean == pytest.approx(wide.mean())
    assert found.overall.std == pytest.approx(wide.std())
    assert (found.overall.min, found.overall.max) == (wide.min(), wide.max())
    assert found.features.shape == (6, *shape[1:])


def test_a_large_offset_does_not_cancel() -> None:
    rows = 1e9 + np.random.default_rng(0).normal(0, 1e-3, (5000, 2))
    _, found = _counted(rows)
    np.testing.assert_allclose(found.std, (rows - 1e9).std(axis=0), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_columns", [1, 700])
@pytest.mark.parametrize("mean", [0, 1, 15, 15.9, 16.1, 40, 1e5])
def test_spread_is_as_exact_in_one_pass_as_in_two(dtype: str, n_columns: int, mean: float) -> None:
    rows = (mean + np.random.default_rng(0).normal(0, 1, (3000, n_columns))).astype(dtype)
    _, found = _counted(rows)
    np.testing.assert_allclose(found.std, rows.astype(np.float64).std(axis=0), rtol=1e-11)


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    rows = np.ones((40, 3), np.float32)
    rows[7, 1], rows[21, 1], rows[30, 2], rows[:, 0] = np.nan, np.nan, -np.inf, 5
    tally, found = _counted(rows)
    assert found.n_nan.tolist() == [0, 2, 0]
    assert found.n_inf.tolist() == [0, 0, 1]
    assert found.mean.tolist() == [5, 1, 1]
    assert found.std.tolist() == [0, 0, 0]
    assert tally.nonfinite_rows == (7, 21, 30)
    assert (found.overall.n_nan, found.overall.n_inf, found.overall.max) == (2, 1, 5)


def test_a_feature_without_finite_values_has_no_mean() -> None:
    _, found = _counted(np.full((4, 1), np.nan))
    assert np.isnan([found.mean[0], found.std[0], found.min[0], found.overall.mean]).all()


def test_many_features_get_one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_FEATURES", 10)
    rows = _rows("float32", (30, 11))
    rows[4, 3] = np.nan
    tally, found = _counted(rows)
    assert found.mean.shape == ()
    assert found.mean == pytest.approx(np.nanmean(rows.astype(float)))
    assert found.overall.n_nan == 1
    assert tally.nonfinite_rows == (4,)


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "uint64"])
def test_histogram(dtype: str) -> None:
    rows = _rows(dtype, (1001,)) % 7 if dtype != "bool" else _rows(dtype, (1001,))
    _, found = _counted(rows, block_rows=16)
    values, counts = np.unique(rows, return_counts=True)
    assert found.histogram is not None
    assert found.histogram.values.tolist() == values.tolist()
    assert found.histogram.counts.tolist() == counts.tolist()
    assert found.histogram.values.dtype == rows.dtype


def test_no_histogram_above_the_limit_or_of_floats() -> None:
    assert _counted(np.arange(MOST_VALUES), block_rows=1000)[1].histogram is not None
    assert _counted(np.arange(MOST_VALUES + 1), block_rows=1000)[1].histogram is None
    assert _counted(np.arange(4 * MOST_VALUES), block_rows=1000)[1].histogram is None
    assert _counted(np.arange(5.0))[1].histogram is None


def _brute_rho(labels: list[int], block_rows: int) -> float:
    blocks = [labels[i : i + block_rows] for i in range(0, len(labels), block_rows)]
    pairs = [(a, b) for block in blocks for i, a in enumerate(block) for j, b in enumerate(block) if i != j]
    agree = sum(a == b for a, b in pairs) / len(pairs)
    chance = sum((labels.count(c) / len(labels)) ** 2 for c in set(labels))
    return (agree - chance) / (1 - chance)


@given(labels=st.lists(st.integers(-2, 3), min_size=2, max_size=60), block_rows=st.integers(2, 9))
def test_class_rho_equals_brute_force(labels: list[int], block_rows: int) -> None:
    _, found = _counted(np.array(labels), block_rows=block_rows)
    if len(set(labels)) == 1:
        assert found.rho is None
    else:
        assert found.rho == pytest.approx(max(-1, min(1, _brute_rho(labels, block_rows))))


def test_rho_of_sorted_shuffled_and_single_rows() -> None:
    labels = np.repeat(np.arange(10), 400)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert _counted(labels, block_rows=20)[1].rho == 1.0
    assert _counted(shuffled, block_rows=20)[1].rho == pytest.approx(0, abs=0.02)
    assert _counted(labels, block_rows=1)[1].rho is None
    for scale in (1.0, 1e6):
        assert _counted(labels * scale, block_rows=20)[1].rho == pytest.approx(1.0)
        assert _counted(shuffled * scale, block_rows=20)[1].rho == pytest.approx(0, abs=0.02)


def test_same_cuts_give_the_same_bits() -> None:
    rows = _rows("float32", (500, 33))
    first, second = (_counted(rows)[1] for _ in range(2))
    assert first.features.tobytes() == second.features.tobytes()
    assert first.overall == second.overall
