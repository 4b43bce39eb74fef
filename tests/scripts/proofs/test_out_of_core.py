"""The proof at small size, in a real cgroup where one can be made; where not, that it says so."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from memory_groups import can_limit

import streamtrain as st
from scripts.proofs import cgroup, out_of_core

LIMIT = 2**30


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Any:
    # The machine's whole page cache is no test's to empty.
    monkeypatch.setattr(out_of_core, "drop_caches", lambda paths: "not dropped")
    return out_of_core


def run(proof: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["out_of_core.py", *map(str, words)])
    try:
        proof.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_an_epoch_under_a_limit(proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    limited = can_limit(LIMIT)
    words = ["--sizes", "3MB", "--memory", "32MB", "--repeats", 1, "--no-naive", "--folder", tmp_path]
    code = run(proof, monkeypatch, *words, *(["--limit", "1GiB"] if limited else ["--no-limit"]))
    out, errors = capfd.readouterr()
    assert code == 0, errors
    (result,) = (json.loads(line) for line in out.splitlines())
    assert (result["finished"], result["exit_status"], result["killed_for_memory"]) == (True, 0, False)
    assert result["decoded_bytes"] == 3080 * (3_000_000 // 3080)
    assert result["limit_bytes"] == (LIMIT if limited else None)
    assert result["cgroup_version"] in ((1, 2) if limited else (None,))
    assert result["loader_projected_bytes"] <= 32e6
    if limited and result["cgroup_peak_bytes"] is not None:
        assert 0 < result["cgroup_peak_bytes"] <= LIMIT
    assert ("proves nothing about memory" in errors) is not limited
    assert "first batch" in errors
    assert not list(tmp_path.iterdir())


def test_without_a_group_nothing_is_made(
    proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(proof, "memory_group", lambda limit: cgroup.memory_group(limit, root=tmp_path / "nowhere"))
    assert run(proof, monkeypatch, "--folder", tmp_path) == 5
    said = capsys.readouterr().err
    assert "error: no cgroup with a memory limit" in said
    assert "Fix: run it as root" in said
    assert "--no-limit" in said
    assert not list(tmp_path.iterdir())


def test_data_that_is_kept_is_used_again(
    proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["--keep", tmp_path / "data", "--sizes", "1MB", "2MB", "--make-only", "--no-limit"]
    assert run(proof, monkeypatch, *words) == 0
    assert capsys.readouterr().err.count("made ") == 2
    made = sorted((tmp_path / "data").iterdir())
    assert sorted(len(st.open(path)) for path in made) == [1_000_000 // 3080, 2_000_000 // 3080]
    assert run(proof, monkeypatch, *words) == 0
    assert "made " not in capsys.readouterr().err
    assert run(proof, monkeypatch, *words, "--compressibility", 10) == 0
    assert len(list((tmp_path / "data").iterdir())) == 4, "other rows are other data"
    (made[0] / "zarr.json").unlink()
    assert run(proof, monkeypatch, *words) == 4
    assert str(made[0]) in capsys.readouterr().err


def test_the_two_ways_of_training(proof: Any, tmp_path: Path) -> None:
    arguments = argparse.Namespace(row_bytes=100, compressibility=4.0, codec="lz4", memory="16MB", batch_size=64)
    arguments.dataset = proof.make(tmp_path, proof.recipe_of(500_000, arguments), arguments)
    streamed, naive = proof.stream(arguments), proof.naive(arguments)
    assert streamed["accuracy"] > 0.5, "the classes can be told by their first features"
    assert 0 < streamed["first_batch_s"] <= streamed["seconds"] + 1
    assert streamed["loader_projected_bytes"] <= 16e6
    assert min(streamed["seconds"], naive["seconds"], naive["anonymous_peak_bytes"]) > 0


def test_one_that_was_killed_or_failed_is_told(proof: Any) -> None:
    about = {"decoded_bytes": 10**11, "loader": "naive", "cgroup_peak_bytes": None, "limit_bytes": 2**31}
    killed = {**about, "finished": False, "killed_for_memory": True, "error": ""}
    assert "killed for its memory" in proof.describe(killed)
    assert "failed: no room" in proof.describe({**killed, "killed_for_memory": False, "error": "no room"})


def test_the_summary_compares_the_largest_with_the_smallest(proof: Any, capsys: Any) -> None:
    common = {"finished": True, "limit_bytes": 2**31, "open_s": 0.1, "first_batch_s": 0.5}
    streams = [{**common, "decoded_bytes": 10**n, "mb_s": rate} for n, rate in ((9, 2000), (11, 1960), (10, 1000))]
    proof.summarize([*streams, {**common, "finished": False, "decoded_bytes": 10**12}])
    result = json.loads(capsys.readouterr().out)
    assert result["ratio_largest_to_smallest"] == 0.98
    assert (result["smallest_bytes"], result["largest_bytes"]) == (10**9, 10**11)
    proof.summarize(streams[:1])
    assert not capsys.readouterr().out


def test_the_figures_are_medians_and_the_peaks_the_largest(proof: Any) -> None:
    figures = {"seconds": 1.0, "open_s": 0.1, "first_batch_s": 0.1, "stall_fraction": 0.0, "finished": True}
    runs = [{**figures, "mb_s": rate, "cgroup_peak_bytes": 10 * rate} for rate in (3, 1, 2)]
    typical = proof.medians(runs)
    assert (typical["mb_s"], typical["cgroup_peak_bytes"], typical["finished"]) == (2, 30, True)
    assert proof.medians([*runs, {"finished": False}])["finished"] is False
    assert proof.medians([{"finished": False}]) == {}
