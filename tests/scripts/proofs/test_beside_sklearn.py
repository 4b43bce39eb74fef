"""scikit-learn beside streamtrain, on the smallest data."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_both_are_measured(tmp_path: Path) -> None:
    words = ("--data", "flights", "--flights", "3000", "--seeds", "1", "--folder", str(tmp_path))
    done = run_script("proofs/beside_sklearn.py", *words)
    (result,) = results_of(done)
    assert result["figure"] == "rmse"
    assert len(result["streamtrain"]) == len(result["scikit_learn"]) == 1
    assert abs(result["off"]) < 0.2
    assert not list(tmp_path.iterdir()), "nothing is left"
