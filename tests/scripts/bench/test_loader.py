"""The loader benchmark at small size: floor and loader, warm and cold."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--size", "3MB", "--memory", "16MB", "--repeats", "1", "--caches", "warm", "cold"]
    results = results_of(run_script("bench/loader.py", *small, "--folder", tmp_path))
    assert [(result["codec"], result["cache"]) for result in results] == [
        (codec, cache) for codec in ("none", "lz4") for cache in ("warm", "cold")
    ]
    assert all(result["ratio_to_read"] > 0 for result in results)
    assert all(result["ratio_to_floor"] > 0 for result in results if result["cache"] == "warm")
    assert not list(tmp_path.iterdir())
