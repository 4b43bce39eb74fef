"""Errors by their size, predictions by what was true: counted whatever their order and shares, in bins that fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.training.metrics.histograms import ErrorHistogram, PairHistogram

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


def pairs(parts: list[list[tuple[float, float]]], weights: list[list[float]] | None = None) -> PairHistogram:
    found = PairHistogram()
    for part, weight in itertools.zip_longest(parts, weights or []):
        true, predicted = torch.tensor(part, dtype=torch.float64).reshape(-1, 2).T
        found.add(predicted, true, None if weight is None else torch.tensor(weight, dtype=torch.float64))
    return found


@settings(max_examples=80, deadline=None)
@given(numbers=NUMBERS, cut=st.integers(0, 40), shift=st.sampled_from([0.0, 1e6, -1e12]))
def test_pairs_are_counted_whatever_the_batches_and_shares(numbers: list[float], cut: int, shift: float) -> None:
    both = [(a + shift, b + shift) for a, b in zip(numbers, numbers[::-1], strict=True)]
    merged = pairs([both[cut:]])
    merged.merge(pairs([both[:cut]]))
    facts = pairs([both]).facts()
    assert facts == pairs([both[:cut], both[cut:]]).facts() == merged.facts()
    low, width, n_bins, cells = (facts[name] for name in ("low", "width", "bins", "cells"))
    edges = np.array([low + width * i for i in range(n_bins + 1)])
    assert 1 <= n_bins <= 40
    assert edges[0] <= min(map(min, both)) < edges[1]
    assert edges[-2] <= max(map(max, both)) < edges[-1]
    places = np.searchsorted(edges, np.array(both), side="right") - 1
    expected = {(i, j): int((places == (i, j)).all(1).sum()) for i, j in places.tolist()}
    assert {(i, j): n for i, j, n in cells} == expected


def test_bins_of_pairs_are_as_narrow_as_they_fit() -> None:
    facts = pairs([[(1e6 + i, 1e6 + i + 0.5) for i in range(20)]]).facts()
    assert (facts["low"], facts["width"], facts["bins"]) == (1e6, 0.5, 40)
    assert len(facts["cells"]) == 20


@pytest.mark.parametrize("number", [0.0, 5e-324, 1.7e308, -1.7e308, 1e-300])
def test_pairs_of_any_size_are_counted(number: float) -> None:
    found = pairs([[(number, number)], [(number, -number), (np.nan, 1.0), (1.0, np.inf)]], [[2.0], [0.5, 9.0, 9.0]])
    assert found.counts.sum() == 2.5
    assert pairs([[]]).facts() == pairs([[(np.nan, np.nan)]]).facts() == {}
