"""The proof of ingests on a cluster, at its smallest."""

from __future__ import annotations

from pathlib import Path

from run_script import results_of, run_script


def test_whatever_happens_to_workers_the_id_is_that_of_threads(tmp_path: Path) -> None:
    small = ["--size", "5MB", "--memory", "64MB", "--repeats", "1", "--codecs", "lz4", "--every", "9"]
    results = results_of(run_script("proofs/cluster.py", *small, "--folder", tmp_path))
    assert [result["case"] for result in results if result["wrong"]] == []
    assert len(results) == 8
    by_case = {result["case"]: result for result in results}
    assert by_case["killed inside a shard"]["deaths"] == 4
    assert not list(tmp_path.iterdir())
