"""The best epoch of a killed training: a few calls of every kind under every kill."""

from __future__ import annotations

import os

import pytest
from run_script import results_of, run_script

from scripts.faults.best_epoch import FAULTS, KINDS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness ends processes of its own at a chosen call")
def test_a_few_kills_of_every_kind() -> None:
    done = run_script("faults/best_epoch.py", "--every", "300", "--first", "250", timeout=600)
    results = results_of(done)
    assert [(result["stage"], result["fault"]) for result in results] == [
        (f"the best epoch, {kind}", fault) for kind in KINDS for fault in FAULTS
    ]
    assert all(result["cases"] and not result["wrong"] for result in results), done.stdout
    assert all(0 < result["best"] < 7 for result in results), "a best one that is not the last has to be kept"
