"""Faults while a dataset is written: a few calls of every stage under every fault."""

from __future__ import annotations

import os

import pytest
from run_script import results_of, run_script

STAGES = ("create", "stream", "overwrite", "overwrite in two renames", "append", "resume", "images", "over disk")
FAULTS = ("kill -9", "kill -9 in a write", "power loss", "ENOSPC", "EIO")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness ends processes of its own at a chosen call")
@pytest.mark.parametrize("stage", STAGES)
def test_a_few_calls_of_every_stage_under_every_fault(stage: str) -> None:
    # The limit is for what hangs; on a busy machine a stage may take a minute.
    every = "200" if stage == "over disk" else "400"  # it makes 235 calls
    done = run_script("faults/writing.py", "--every", every, "--stage", stage, timeout=600)
    results = results_of(done)
    assert [(result["stage"], result["fault"]) for result in results] == [(stage, fault) for fault in FAULTS]
    assert all(result["cases"] and not result["wrong"] for result in results), done.stdout
    assert "stage" in done.stderr
