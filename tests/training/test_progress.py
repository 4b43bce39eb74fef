"""The end of a run: totals, its length, and early stopping."""

from __future__ import annotations

import math

import pytest

from streamtrain.optim.schedules import RunLength
from streamtrain.training.progress import Counts, EarlyStopping, Totals, run_length


@pytest.mark.parametrize(
    ("totals", "n_epochs", "n_steps"),
    [
        ({"max_epochs": 10, "max_steps": 25}, 3, 25),
        ({"max_epochs": 2, "max_steps": 25}, 2, 20),
        ({"max_epochs": 2}, 2, 20),
        ({"max_steps": 20}, 2, 20),
    ],
)
def test_a_run_is_as_long_as_the_total_that_comes_first(totals, n_epochs, n_steps):
    assert run_length(Totals(**totals), 10) == RunLength(n_epochs=n_epochs, n_steps=n_steps)


@pytest.mark.parametrize(
    ("counts", "is_reached", "name"),
    [
        ({"n_epochs": 2, "n_steps": 7}, True, "steps"),
        ({"n_epochs": 3, "n_steps": 6}, True, "epochs"),
        ({"n_epochs": 2, "n_steps": 6}, False, "epochs"),
    ],
)
def test_the_total_that_is_reached_has_a_name(counts, is_reached, name):
    totals, counts = Totals(max_epochs=3, max_steps=7), Counts(**counts)
    assert (totals.reached_by(counts), totals.name_reached_by(counts)) == (is_reached, name)


@pytest.mark.parametrize(
    ("losses", "reason", "reached"),
    [
        ((0.5, 0.4, 0.4), None, False),
        ((0.5, 0.4, 0.4, 0.6), "patience", False),
        ((0.5, math.nan, math.nan), "patience", False),
        ((math.nan, 0.5, 0.4), None, False),
        ((0.5, 0.1), "until_loss", True),
    ],
)
def test_a_run_stops_early_at_a_loss_or_after_epochs_in_vain(losses, reason, reached):
    stopping = EarlyStopping(until_loss=0.1, patience=2)
    for loss in losses:
        stopping.look(loss)
    assert (stopping.reason, stopping.reached) == (reason, reached)
    assert EarlyStopping(patience=2).reached is None
