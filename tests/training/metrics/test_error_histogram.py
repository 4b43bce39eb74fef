"""Errors by their size: counted exactly whatever their order and shares, in bins that fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.training.metrics.error_histogram import ErrorHistogram

NUMBERS = st.lists(st.floats(-1e12, 1e12) | st.sampled_from([0.0, -0.0, 1.0, -16.0, 16.0]), min_size=1, max_size=40)


def histogram(parts: list[list[float]], weights: list[list[float]] | None = None) -> ErrorHistogram:
    found = ErrorHistogram()
    for part, weight in itertools.zip_longest(parts, weights or []):
        given = None if weight is None else torch.tensor(weight, dtype=torch.float64)
        found.add(torch.tensor(part, dtype=torch.float64), given)
    return found


@settings(max_examples=60, deadline=None)
@given(errors=NUMBERS, cut=st.integers(0, 40))
def test_all_are_counted_whatever_the_batches_and_shares(errors: list[float], cut: int) -> None:
    whole, parts = histogram([errors]), histogram([errors[:cut], errors[cut:]])
    merged = histogram([errors[cut:]])
    merged.merge(histogram([errors[:cut]]))
    assert whole.facts() == parts.facts() == merged.facts()
    facts = whole.facts()
    expected, _ = np.histogram(errors, bins=[*facts["edges"][:-1], np.inf])
    assert facts["counts"] == expected.tolist()
    assert facts["edges"][-1] > max(errors)
    assert sum(facts["counts"]) == len(errors)


def test_weights_count_and_what_is_not_finite_does_not() -> None:
    found = histogram([[1.0, -1.0, np.nan, np.inf]], [[2.0, 0.5, 9.0, 9.0]]).facts()
    assert sum(found["counts"]) == 2.5
    assert histogram([[np.nan]]).facts() == histogram([[]]).facts() == {"edges": [], "counts": []}


@pytest.mark.parametrize("errors", [[0.0, 0.0], [5e-324], [1.7e308, -1.7e308], [1e-300, 1e300]])
def test_errors_of_any_size_are_counted(errors: list[float]) -> None:
    assert sum(histogram([errors, errors]).facts()["counts"]) == 2 * len(errors)
