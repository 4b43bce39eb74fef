"""The benchmark of the epoch rule at small size: its gradients agree, and its sums are as exact as it says."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    data = ["--models", "mlp", "--samples", "150", "--batch-size", "64", "--folder", str(tmp_path / "new")]
    small = ["--repeats", "1", "--passes", "1", "--gradients", "300", "--threads", "1"]
    done = run_script("bench/epoch_rule.py", *data, *small)
    results = results_of(done)
    costs, sums = results[:3], results[3:]
    assert [result["grad_sum_dtype"] for result in costs] == ["float64", "compensated", "float32"]
    for result in costs:
        assert result["ratio_to_bare"] > 0
        assert result["error_of_gradient"] <= 1e-4
    assert [result["gradients"] for result in sums] == ["network", "drawn", "cancelling"]
    for result in sums:
        assert result["components_held"] > 0
        assert result["compensated_ulp"] <= result["bars"]["compensated_ulp"]
    assert not list((tmp_path / "new").iterdir())
