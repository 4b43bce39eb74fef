"""The proof of L-BFGS at its smallest: made data, and without the peer that a network is needed for."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_script import results_of, run_script


@pytest.mark.parametrize("optimizer", ["lbfgs", "cg"])
def test_a_minimum_is_found_and_measured(tmp_path: Path, optimizer: str) -> None:
    small = ["--samples", "300", "--peer", "none", "--optimizer", optimizer, "--folder", str(tmp_path)]
    done = run_script("proofs/lbfgs.py", *small, timeout=600)
    (result,) = results_of(done)
    assert result["ok"]
    assert result["streamtrain"]["stopped_by"] == "grad_tolerance"
    assert result["streamtrain"]["grad_norm"] <= 1.001e-6
    assert 0 < result["streamtrain"]["objective"] < 2.3
    assert not list(tmp_path.iterdir()), "nothing is left"
