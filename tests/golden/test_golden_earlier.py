"""Runs that were shuffled by the order of version 0.1.0: all but what the order decides goes on working."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import golden
import golden_runs
import pytest

from streamtrain.cli.main import main

EARLIER = golden.GOLDEN / "earlier"
# What version 0.1.0 measured on them.
FIGURES = {
    "batch": (0.7621266746520996, 0.606),
    "sample": (1.0681260538101196, 0.42),
    "epoch": (1.0478534889221192, None),
}
every_run = pytest.mark.parametrize("name", sorted(FIGURES))


def copied(name: str, kind: str) -> Path:
    return Path(shutil.copytree(EARLIER / name / kind, "run"))


@every_run
def test_it_evaluates_to_its_figures(name: str) -> None:
    told = golden_runs.evaluate(name, str(copied(name, "whole")))
    loss, accuracy = FIGURES[name]
    assert told["loss"] == pytest.approx(loss, rel=1e-5)
    assert accuracy in (None, told["accuracy"])


@every_run
def test_it_has_a_report(name: str) -> None:
    golden.run_command("report", str(copied(name, "whole")))


@every_run
def test_a_finished_one_has_nothing_left(name: str) -> None:
    assert golden_runs.train(name, str(copied(name, "whole")))["epochs"] == []


def test_inside_a_pass_in_stored_order_it_goes_on() -> None:
    run = copied("epoch", "stopped")
    told = golden_runs.train("epoch", str(run))
    assert told["resumed_from_batch"] == golden_runs.RUNS["epoch"].stop_after
    made, whole = (golden_runs.metrics(one)[-1]["loss"] for one in (run, EARLIER / "epoch" / "whole"))
    assert made == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ["batch", "sample"])
def test_inside_a_shuffled_epoch_it_is_refused_and_left_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(name, "stopped")
    assert json.loads((golden_runs.checkpoints(run)[-1] / "state.json").read_bytes())["stream"]["batch"] > 0
    before = golden.tree(run)
    words = ("train", "datasets/lz4.zarr", *golden_runs.RUNS[name].options, "--out", str(run), "--resume")
    assert main(words) == 6
    assert "order" in capsys.readouterr().err
    assert golden.tree(run) == before
