"""The proof of ``like`` on a few pairs."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_pairs_are_the_same_or_refused(tmp_path: Path) -> None:
    done = run_script("proofs/like_pairs.py", "--pairs", "12", "--folder", str(tmp_path))
    (result,) = results_of(done)
    assert result["same"] + result["refused"] == result["pairs"] == 12
    assert result["same"] > 0
    assert result["refused"] > 0
    assert result["silent"] == 0
    assert not list(tmp_path.iterdir()), "nothing is left"
