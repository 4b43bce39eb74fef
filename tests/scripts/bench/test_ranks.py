"""The benchmark of ranks at small size: every figure comes, and nothing stays."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--size", "2MB", "--memory", "16MB", "--repeats", "1", "--ranks", "2", "--folder", str(tmp_path)]
    done = run_script("bench/ranks.py", *small, "--ways", "read", "computed")
    shared, *computed = results_of(done)
    assert (shared["ranks"], shared["samples_s"] > 0, 0 <= shared["waits"] <= 1) == (2, True, True)
    assert [each["ranks"] for each in computed] == [1, 8, 64, 64, 1000]
    # Ten times the data on ten times the ranks takes each the same, but for the edges of its groups.
    assert computed[3]["reads"] > 10 * computed[2]["reads"] * 0.9
    assert computed[4]["order_bytes"] < computed[3]["order_bytes"]
    assert not list(tmp_path.iterdir())
