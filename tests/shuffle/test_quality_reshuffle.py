"""The closed forms and the simulation of a full reshuffle, compared with full reshuffles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.shuffle.quality import LabelPopulation, label_population, standardized

REPEATS = 300


def drawn(labels: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of many reshuffles: Σ over classes of (n - expected)² in the first batch, and the largest drift."""
    one_hot = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
    one_hot -= one_hot.mean(0)
    rng = np.random.default_rng(0)
    prefixes = [np.cumsum(one_hot[rng.permutation(len(labels))], axis=0) for _ in range(REPEATS)]
    return (
        np.array([np.square(prefix[batch_size - 1]).sum() for prefix in prefixes]),
        np.array([np.abs(prefix).max() for prefix in prefixes]),
    )


@pytest.mark.parametrize("counts", [(500, 500), (700, 200, 60, 40), (50,) * 20])
def test_the_figures_are_those_of_real_reshuffles(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    population, _ = label_population(labels)
    variances, drifts = drawn(labels, 40)
    error = variances.std() / math.sqrt(REPEATS)
    assert abs(variances.mean() - population.batch_variance(40)) < 4 * error
    # One batch of each reshuffle: their spread is what the standard error of one batch says.
    assert variances.std() / variances.mean() == pytest.approx(population.variance_error(40, 1), rel=0.2)
    assert drifts.mean() == pytest.approx(population.drift(len(labels)), rel=0.08)


def test_one_bridge_drifts_as_its_law_says() -> None:
    # The mean of Kolmogorov's distribution is sqrt(pi / 2) ln 2.
    expected = math.sqrt(math.pi / 2) * math.log(2) * math.sqrt(10_000)
    assert LabelPopulation(n_samples=10_000).drift(10_000) == pytest.approx(expected, rel=0.08)
    two = LabelPopulation(n_samples=10_000, shares=np.array([0.5, 0.5]))
    assert two.drift(10_000) == pytest.approx(expected / 2, rel=0.08)


def test_the_variance_of_a_batch_is_that_of_drawing_without_replacement() -> None:
    # 10 samples of variance 1/2, times (101 - 10) / (101 - 1).
    assert LabelPopulation(n_samples=101, shares=np.array([0.5, 0.5])).batch_variance(10) == pytest.approx(4.55)


def test_less_of_an_epoch_drifts_less() -> None:
    population = LabelPopulation(n_samples=10**9, shares=np.full(10, 0.1))
    drifts = [population.drift(n) for n in (10**5, 10**7, 10**8, 10**9)]
    assert drifts == sorted(drifts)
    # A short beginning is a plain walk, whose largest value grows with the root.
    assert drifts[1] / drifts[0] == pytest.approx(10, rel=0.1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_nothing_is_negative_and_a_batch_of_all_has_no_variance(counts: list[int], batch_size: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    population, classes = label_population(labels)
    assert population.shares is not None
    assert np.array_equal(classes, labels)
    assert population.shares.sum() == pytest.approx(1)
    assert population.batch_variance(min(batch_size, len(labels))) >= 0
    assert population.batch_variance(len(labels)) == 0
    assert population.variance_error(batch_size, 10) >= 0
    assert (population.drift(len(labels)) > 0) == (len(counts) > 1)


def test_labels_of_one_value_leave_nothing_to_mix() -> None:
    population, _ = label_population(np.full(100, 7))
    assert population.batch_variance(10) == population.drift(100) == population.variance_error(10, 5) == 0
    assert standardized(np.full(3, 2.5), 2.5, 0.0).tolist() == [0, 0, 0]


def test_numbers_are_deviations_and_what_is_not_finite_is_the_mean() -> None:
    population, numbers = label_population(np.array([1.0, 3.0, np.nan, np.inf, -np.inf]))
    assert population.shares is None
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [-1, 1, 0, 0, 0]


@pytest.mark.parametrize(("n_classes", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (70_000, "uint32")])
def test_classes_are_held_in_few_bytes(n_classes: int, dtype: str) -> None:
    assert label_population(np.arange(n_classes))[1].dtype == dtype
