"""Local lock-in at small size: the loss stays where batches stay, and falls where they are formed anew."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_fixed_batches_stay_and_batches_formed_anew_fall(tmp_path: Path) -> None:
    small = ["--pairs", "128", "--epochs", "4", "--folder", str(tmp_path / "new" / "folder")]
    done = run_script("proofs/lock_in.py", *small)
    fixed, anew = results_of(done)
    assert (fixed["reshuffle"], anew["reshuffle"]) == ("never", "epoch")
    assert fixed["losses"] == [1.0] * 5
    assert anew["losses"][:2] == [1.0, 1.0], "epoch 0 has the same batches"
    assert anew["losses"][-1] < 0.2
    assert "batches formed anew: loss" in done.stderr
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_a_plot_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    words = ["--pairs", "128", "--folder", str(tmp_path), "--plot", str(tmp_path / "none" / "x.png")]
    done = run_script("proofs/lock_in.py", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no folder {tmp_path / 'none'}" in done.stderr
    assert not list(tmp_path.iterdir())
