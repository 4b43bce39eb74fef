"""The memory script at a small size: a process for each case, lines, a picture, and nothing left."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from run_script import results_of, run_script

from scripts.proofs import memory as script


def test_it_measures_each_case_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    small = ["--sizes", "3MB", "--budgets", "16MB", "1KB", "--codecs", "lz4", "--row-bytes", "3072"]
    small += ["--folder", str(data)]
    run = run_script("proofs/memory.py", *small, "--png", tmp_path / "memory.png")
    fits, refused = results_of(run)
    assert fits["measured_bytes"] > 1_000_000, "a loader takes something"
    assert fits["measured_bytes"] <= fits["budget_bytes"] == 16_000_000
    assert fits["ratio"] == round(fits["measured_bytes"] / 16_000_000, 4)
    assert sum(fits["terms"].values()) == fits["projected_bytes"]
    assert refused["ratio"] is None
    assert "memory is 1.0 KB" in refused["refused"]
    assert "measured/budget" in run.stderr
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert not list(data.iterdir())


def test_a_case_over_its_budget_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    over = {
        "budget_bytes": 100,
        "projected_bytes": 99,
        "measured_bytes": 101,
        "ratio": 1.01,
        "ratio_to_projected": 1.02,
    }
    monkeypatch.setattr(script, "in_a_fresh_process", lambda *_: over)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "x",
            "--sizes",
            "1MB",
            "--budgets",
            "16MB",
            "--codecs",
            "none",
            "--row-bytes",
            "64",
            "--folder",
            str(tmp_path),
        ],
    )
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    assert "over the budget: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_training_is_measured_by_each_rule_and_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "in_a_fresh_process", lambda *_: {"ratio": None, "refused": "not this time"})
    words = ["--sizes", "1MB", "--budgets", "32MB", "--codecs", "zstd", "--row-bytes", "784", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["x", *words, "--rules", "sample", "--model", "linear", "--max-steps", "20"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    trained = json.loads(out.splitlines()[1])
    assert (trained["bench"], trained["rule"], trained["model"]) == ("memory of train", "sample", "linear")
    assert 0 < trained["measured_bytes"] <= trained["budget_bytes"] == 32_000_000
    assert "linear by sample" in err
    assert not list(tmp_path.iterdir())
