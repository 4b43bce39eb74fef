"""The benchmark of metrics at small size: every call of theirs is timed, and nothing stays replaced."""

from __future__ import annotations

from pathlib import Path

import torch
from run_script import results_of, run_script

from scripts.bench import metrics as bench
from streamtrain.models.losses import resolve_loss
from streamtrain.training.metrics.running import RunningMetrics


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_script("bench/metrics.py", "--samples", "600", "--repeats", "2", "--folder", str(tmp_path))
    results = results_of(done)
    assert [result["task"] for result in results] == list(bench.TASKS)
    for result in results:
        assert len(result["shares"]) == result["rounds"] == 2
        assert 0 < min(result["shares"]) <= max(result["shares"]) < 1
    assert [result["samples"] for result in results] == [600, 600, 600, 30]
    assert not list(tmp_path.iterdir())


def test_watching_changes_no_figure() -> None:
    before = RunningMetrics.add, RunningMetrics.mean
    running = RunningMetrics(resolve_loss("mse"))
    with bench.watched() as seconds:
        for target in (torch.zeros(2), torch.ones(2)):
            running.add(0.5, torch.ones(2), target)
        assert running.mean().scores == {"rmse": 0.5**0.5}
    assert len(seconds) == 3
    assert (RunningMetrics.add, RunningMetrics.mean) == before
