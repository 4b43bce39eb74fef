"""The benchmark of tables at small size: every figure comes, and nothing stays."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--size", "200KB", "--memory", "96MB", "--repeats", "1", "--rows", "500", "--folder", str(tmp_path)]
    done = run_script("bench/tables.py", *small)
    clicks, *splits, wide = results_of(done)
    assert clicks["mb_s"] > 0
    assert [(each["source"], each["ratio"] > 0, each["bar"]) for each in splits] == [
        (name, True, 1.5) for name in ("csv", "npy", "idx")
    ]
    assert (wide["rows"], wide["peak_bytes"] < wide["bar"]) == (500, True)
    assert "above idle" in done.stderr
    assert not list(tmp_path.iterdir())
