"""Killed training goes on bit for bit; the whole proof at its smallest."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from run_script import results_of, run_script

from scripts.runner import memory_folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks its runs")
def test_killed_runs_end_as_the_others_do() -> None:
    small = ["--kills", "1", "--rules", "batch", "epoch", "--optimizers", "adam"]
    # Each run flushes many checkpoints, on which a busy disk would spend minutes.
    with TemporaryDirectory(dir=memory_folder()) as folder:
        results = results_of(run_script("proofs/resume.py", *small, "--folder", folder, timeout=600))
        assert not list(Path(folder).iterdir()), "nothing is left"
    assert [(result["rule"], result["kills"], result["different"]) for result in results] == [
        ("batch", 1, 0),
        ("epoch", 1, 0),
    ]
    assert all(result["least_resumed_from"] > 0 for result in results)
