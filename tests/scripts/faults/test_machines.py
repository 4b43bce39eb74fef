"""Stand-ins for other machines: a few ends of every stage on each, some races, and a few passing errors."""

from __future__ import annotations

import os

import pytest
from run_script import results_of, run_script

from scripts.faults.stand_ins import MACHINES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness ends processes of its own")


@pytest.mark.parametrize("machine", MACHINES)
def test_a_few_ends_of_every_stage(machine: str) -> None:
    done = run_script("faults/machines.py", "--machine", machine, "--every", "300", timeout=300)
    results = results_of(done)
    assert results
    assert all(result["cases"] and not result["wrong"] for result in results), done.stdout


def test_some_races_have_one_winner_each() -> None:
    results = results_of(run_script("faults/races.py", "--rounds", "5", timeout=120))
    assert len(results) >= 4
    assert not any(result["wrong"] for result in results)


def test_a_training_with_a_few_passing_errors() -> None:
    done = run_script("faults/passing_errors.py", "--every", "300", "--first", "70", timeout=300)
    results = results_of(done)
    assert len(results) == 8
    assert all(result["cases"] and not result["wrong"] for result in results), done.stdout
