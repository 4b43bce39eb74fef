"""A budget in parts: the least total with which no part is too small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.loader.budget_shares import eval_loader_bytes, smallest_shared_budget_bytes, train_loader_bytes


@given(training=st.integers(1, 10**9), measuring=st.lists(st.integers(1, 10**9), max_size=2))
def test_every_part_of_the_least_total_is_enough(training: int, measuring: list[int]) -> None:
    total = smallest_shared_budget_bytes(training, measuring)
    assert train_loader_bytes(total, len(measuring)) >= training
    assert all(eval_loader_bytes(total) >= least for least in measuring)
    less = total - 4
    assert train_loader_bytes(less, len(measuring)) < training or any(
        eval_loader_bytes(less) < each for each in measuring
    )


@pytest.mark.parametrize(("measuring", "total"), [([10], 120), ([10, 100], 400), ([], 90)])
def test_the_least_total_by_numbers(measuring: list[int], total: int) -> None:
    assert smallest_shared_budget_bytes(90, measuring) == total


def test_a_loader_that_measures_has_a_quarter() -> None:
    assert (eval_loader_bytes(103), train_loader_bytes(103, 2)) == (25, 53)


@given(memory=st.integers(0, 10**12), n_measuring=st.integers(0, 2))
def test_the_parts_are_the_whole(memory: int, n_measuring: int) -> None:
    assert train_loader_bytes(memory, n_measuring) + n_measuring * eval_loader_bytes(memory) == memory
