"""Killed training goes on bit for bit; the whole proof at its smallest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "prove_resume.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks its runs")
def test_killed_runs_end_as_the_others_do(tmp_path: Path) -> None:
    small = ["--kills", "1", "--rules", "batch", "epoch", "--optimizers", "adam", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(result["rule"], result["kills"], result["different"]) for result in results] == [
        ("batch", 1, 0),
        ("epoch", 1, 0),
    ]
    assert all(result["least_resumed_from"] > 0 for result in results)
    assert not list(tmp_path.iterdir()), "nothing is left"
