"""scikit-learn beside streamtrain, on data too small for both to end alike."""

from __future__ import annotations

import json
from pathlib import Path

from run_script import run_script


def test_both_are_measured(tmp_path: Path) -> None:
    words = ("--data", "flights", "--flights", "3000", "--seeds", "1", "--folder", str(tmp_path))
    done = run_script("proofs/beside_sklearn.py", *words)
    result = json.loads(done.stdout)
    assert result["figure"] == "rmse"
    assert len(result["streamtrain"]) == len(result["scikit_learn"]) == 1
    assert done.returncode == (0 if result["within"] else 1), done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left"
