"""The page of a comparison: its runs in order, its target explained, and of its surface what was measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from streamtrain.comparison.report import comparison_page, summary_rows
from streamtrain.comparison.results import ComparedRun, Comparison, Divergence, LearningCurvePoint
from streamtrain.comparison.surface import LossSurface, WeightPath
from streamtrain.training.metrics.results import Metrics


def run_of(rule: str, losses: tuple[float, float], val: tuple[float, float] | None = None) -> ComparedRun:
    points = tuple(
        LearningCurvePoint(
            epochs=float(i),
            n_steps=10 * i,
            seconds=0.25 * i,
            train=Metrics(loss=loss, n_samples=9),
            val=None if val is None else Metrics(loss=val[i], n_samples=9),
        )
        for i, loss in enumerate(losses)
    )
    return ComparedRun(rule=rule, optimizer="adam", lr=0.01, points=points, memory={"above": 2_000_000})


def comparison(*runs: ComparedRun, target: float = 1.0) -> Comparison:
    about = {"dataset": "d.zarr", "command": "streamtrain compare d.zarr --rules batch"}
    return Comparison(runs=runs, target_loss=target, n_samples=9, n_weights=2, about=about)


def diverged(run: ComparedRun) -> ComparedRun:
    return replace(run, diverged="epoch 1: the loss is inf", divergence=Divergence(how="inf", next_lr=0.003))


def names(found: Comparison) -> list[str]:
    return [row[0] for row in summary_rows(found)[1:]]


def test_the_best_comes_first_and_what_diverged_last() -> None:
    runs = run_of("sample", (2.0, 0.5)), diverged(run_of("batch", (2.0, 0.1))), run_of("epoch", (2.0, 0.25))
    found = comparison(*runs, run_of("late", (2.0, math.nan)))
    assert names(found) == ["epoch, adam", "sample, adam", "late, adam", "batch, adam (diverged)"]
    assert [run.rule for run in found] == ["sample", "batch", "epoch", "late"], (
        "the file keeps the order they were asked in"
    )
    page = comparison_page(found)
    assert "Best first, by the training loss after the last epoch." in page
    bars = re.search(r'aria-label="Training time of an epoch: ([^"]*)"', page)
    assert bars is not None
    assert [bar.partition(",")[0] for bar in bars[1].split("; ")] == ["epoch", "sample", "late", "batch"]


def test_the_order_is_that_of_the_validation_data_where_there_is_some() -> None:
    found = comparison(run_of("batch", (2.0, 0.1), (2.0, 0.9)), run_of("epoch", (2.0, 0.5), (2.0, 0.6)))
    assert names(found) == ["epoch, adam", "batch, adam"]
    assert "Best first, by the validation loss" in comparison_page(found)


@pytest.mark.parametrize(
    ("first", "target", "whence"),
    [
        (2.0, 1.0, "1.0000, half of the loss that every run begins with"),
        (2.0, 0.3, "0.3000, the one that was asked for"),
        (-2.0, -3.0, "-3.0000, the loss that every run begins with, less half of its size"),
    ],
)
def test_the_target_is_explained(first: float, target: float, whence: str) -> None:
    found = comparison(run_of("batch", (first, target - 0.1)), run_of("epoch", (first, first)), target=target)
    assert f"The target is a training loss of {whence}: epochs and time are those until" in comparison_page(found)
    head, *rows = summary_rows(found)
    reached = [(row[head.index("epochs to target")], row[head.index("time to target")]) for row in rows]
    assert reached == [("1", "250 ms"), ("–", "–")]


def test_a_surface_has_a_cell_for_each_measured_point_and_a_cross_where_a_run_diverged() -> None:
    runs = run_of("batch", (2.0, 0.1)), diverged(run_of("epoch", (2.0, 9.0)))
    places = ((0.0, 0.0), (1.0, 1.0))
    surface = LossSurface(
        labels=("a", "b"),
        shares=None,
        xs=np.arange(3.0),
        ys=np.arange(3.0),
        loss=np.arange(9.0).reshape(3, 3),
        paths=tuple(WeightPath(label=run.label, n_steps=(0, 1), places=places) for run in runs),
    )
    page = comparison_page(replace(comparison(*runs), surface=surface))
    assert "Each of the 9 cells is one value of J, measured at its middle" in page
    assert "a cross the last point that was measured of a run that diverged." in page
    assert "epoch, adam (diverged)</text>" in page
    whole = comparison_page(replace(comparison(runs[0]), surface=replace(surface, paths=surface.paths[:1])))
    assert "A black point is the beginning." in whole
    assert "a cross" not in whole


def test_the_command_stands_to_be_copied() -> None:
    page = comparison_page(comparison(run_of("batch", (2.0, 0.1))))
    assert "<pre>streamtrain compare d.zarr --rules batch</pre>" in page
    assert "<td>command</td>" not in page


def test_what_all_runs_share_is_folded() -> None:
    found = replace(comparison(run_of("batch", (2.0, 0.1))), about={"dataset": "d.zarr", "model": "mlp:8", "seed": "7"})
    shown, _, folded = comparison_page(found).partition("<details>")
    assert "mlp:8 on d.zarr, 9 samples; 2 weights" in shown
    assert "<td>seed</td>" not in shown
    assert "<td>seed</td><td>7</td>" in folded.partition("</details>")[0]
