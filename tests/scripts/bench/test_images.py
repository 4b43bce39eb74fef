"""The benchmark of images at small size."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--samples", "40", "--batch-size", "8", "--repeats", "1", "--memory", "64MB", "--folder", str(tmp_path)]
    first, *stored = results_of(run_script("bench/images.py", *small, "--peers", "none", "--caches", "warm"))
    assert first["samples"] == 40
    assert 60_000 < first["file_bytes"] < 160_000
    assert first["stored_to_files"] < 1.05
    assert first["ratio_to two threads"] > 0.1
    by_name = {result["stored"]: result["image_kb"] for result in stored}
    assert by_name["decoded 256, none"] > 190
    assert by_name["short side 256"] < by_name["encoded"] < by_name["decoded 256, none"]
    assert not any("cache" in result for result in stored)
    assert not list(tmp_path.iterdir())
