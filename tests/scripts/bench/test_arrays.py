"""The benchmark of arrays at small size: every figure comes, and nothing stays."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--size", "1MB", "--memory", "64MB", "--repeats", "1", "--folder", str(tmp_path)]
    done = run_script("bench/arrays.py", *small, "--batch-size", "16", "--workers", "0", "--seconds", "0.05")
    results = results_of(done)
    assert [(result["bench"], result["source"]) for result in results] == [
        ("epoch", "h5py, contiguous"),
        ("epoch", "h5py, gzip"),
        ("epoch", "zarr"),
        ("ingest", "h5py, contiguous"),
        ("threads", "h5py, gzip"),
    ]
    assert all(result["ratio"] > 0 for result in results)
    assert [result["bar"] for result in results] == [5.0, 5.0, 5.0, 0.6, 1.7]
    assert "one by one" in done.stderr
    assert not list(tmp_path.iterdir())
