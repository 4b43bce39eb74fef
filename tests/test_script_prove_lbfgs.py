"""The proof of L-BFGS at its smallest: made data, and without the peer that a network is needed for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "prove_lbfgs.py"


@pytest.mark.parametrize("optimizer", ["lbfgs", "cg"])
def test_a_minimum_is_found_and_measured(tmp_path: Path, optimizer: str) -> None:
    small = ["--samples", "300", "--peer", "none", "--optimizer", optimizer, "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *small], capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(line) for line in done.stdout.splitlines())
    assert result["ok"]
    assert result["streamtrain"]["stopped_by"] == "grad_tolerance"
    assert result["streamtrain"]["grad_norm"] <= 1.001e-6
    assert 0 < result["streamtrain"]["objective"] < 2.3
    assert not list(tmp_path.iterdir()), "nothing is left"
