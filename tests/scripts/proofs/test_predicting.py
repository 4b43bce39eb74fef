"""The proof of predict's memory at small size, in a real cgroup where one can be made."""

from __future__ import annotations

from pathlib import Path

from memory_groups import can_limit
from run_script import results_of, run_script


def test_each_kind_of_file_is_right_and_within(tmp_path: Path) -> None:
    limit = [] if can_limit(2**30) else ["--no-limit"]
    words = ["--rows", "3000", "--files", "npy", "zarr", "--memory", "32MB", "--folder", tmp_path, *limit]
    results = results_of(run_script("proofs/predicting.py", *words))
    assert [result["file"] for result in results] == ["npy", "zarr"]
    for result in results:
        assert result["finished"]
        assert result["largest_difference"] <= 1e-6
        assert 0 < result["measured_bytes"] <= result["memory_bytes"] == 32_000_000
        assert (result["limit_bytes"] is None) is bool(limit)
    assert not list(tmp_path.iterdir())
