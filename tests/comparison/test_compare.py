"""A comparison: every run as if it had been made alone, measured alike, and its page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from compare_cases import N, ingested, line
from torch import nn

import streamtrain as st
from streamtrain.comparison.compare import compare
from streamtrain.comparison.report import comparison_page, write_comparison
from streamtrain.diagnostics.run_reader import read_run
from streamtrain.errors import UnknownName, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

HOSTILE = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    return ingested(tmp_path_factory.mktemp("data"))


def setting(**given: object) -> dict[str, Any]:
    return {"max_epochs": 2, "batch_size": 20, "memory": "16MB", **given}


def test_every_rule_runs_with_every_optimizer(data: st.Dataset, tmp_path: Path) -> None:
    model = line()
    told = []
    found = compare(
        model,
        data,
        **setting(),
        loss="mse",
        val=data,
        out=tmp_path / "c",
        on_point=lambda run, point: told.append(point),
    )
    assert [(run.rule, run.optimizer) for run in found] == [
        *(("sample", "sgd"), ("batch", "sgd"), ("epoch", "sgd")),
        *(("sample", "adam"), ("batch", "adam"), ("epoch", "adam")),
    ]
    assert torch.equal(model.weight, line().weight), "the model given is not trained itself"
    assert [run.last.n_steps for run in found] == 2 * [2 * N, 2 * 5, 2]
    assert len(told) == 6 * 3
    for run in found:
        assert [point.epochs for point in run.points] == [0, 1, 2]
        assert run.points[0] == found.runs[0].points[0], "all begin alike"
        assert run.last.val == run.last.train, "the same data"
        assert run.last.train.loss < run.points[0].train.loss
        assert 0 < run.points[1].seconds < run.last.seconds
        assert 0 < run.memory["projected"] <= run.memory["budget"] == 16_000_000
        assert run.memory["process"] > 1_000_000
        assert run.diverged is None
        assert run.folder == tmp_path / "c" / f"{run.rule}-{run.optimizer}"
        kept = read_run(run.folder)
        assert kept.config["update"] == run.rule
        assert kept.config.get("sample_path") == ("fast" if run.rule == "sample" else None)
        assert [measured["loss"] for measured in kept.measured] == [point.train.loss for point in run.points]
        assert [epoch["val_loss"] for epoch in kept.epochs] == [point.val.loss for point in run.points[1:]]
        assert kept.memory.keys() == {"budget", "projected", "measured", "process", "above", "terms"}
    assert found.target_loss == found.runs[0].points[0].train.loss / 2
    windows = [[point.n_window for point in run.points[1:]] for run in found.runs[:3]]
    assert windows == [[90, 90], [5, 5], [1, 2]]
    assert [run.points[1].variance is None for run in found.runs[:3]] == [False, False, True], "a lone step has none"
    assert all(run.last.variance is not None for run in found)


def test_a_run_is_what_it_is_alone(data: st.Dataset) -> None:
    found = compare(line(), data, **setting(rules=("batch", "sample"), optimizers=("adam",)), loss="mse")
    for run in found:
        trainer = st.Trainer(line(), loss="mse", optimizer="adam", update=run.rule)
        with (
            st.StreamLoader(data, batch_size=20, memory="12MB", seed=0) as loader,
            st.StreamLoader(data, batch_size=20, memory="4MB", shuffle=False) as ordered,
        ):
            trainer.fit(loader, max_epochs=2)
            assert trainer.evaluate(ordered).loss == run.last.train.loss


def test_time_ends_a_run_but_the_epoch_rule_ends_its_pass(data: st.Dataset) -> None:
    found = compare(line(), data, **setting(optimizers=("sgd",), max_epochs=None, seconds=1e-9), loss="mse")
    assert [run.last.n_steps for run in found] == [20, 1, 1]
    assert [run.last.epochs for run in found] == [20 / N, 20 / N, 1.0]
    assert all(len(run.points) == 2 for run in found)
    many = compare(
        line(), data, **setting(rules=("epoch",), optimizers=("sgd",), max_epochs=3, seconds=1e6), loss="mse"
    )
    assert many.runs[0].last.n_steps == 3


def test_a_run_that_diverges_ends_and_the_others_go_on(data: st.Dataset, tmp_path: Path) -> None:
    rates = {"batch:sgd": 1e200}
    found = compare(line(), data, **setting(optimizers=("sgd",), lr=rates), loss="mse", out=tmp_path / "c")
    sample, batch, epoch = found.runs
    assert batch.diverged is not None
    assert "the loss is" in batch.diverged
    assert len(batch.points) == 1
    assert (len(sample.points), len(epoch.points)) == (3, 3)
    page = comparison_page(found)
    assert "batch, sgd diverged: " in page
    assert batch.diverged.startswith(
        "epoch 1, step 2: the loss is inf. The run diverged at a learning rate of 1e+200. "
    )
    assert "Fix: a lower learning rate: lr={'batch:sgd': 0.1}." in batch.diverged
    assert json.loads(write_comparison(found, tmp_path / "c")[1].read_text())["runs"][1]["diverged"] == batch.diverged


def test_what_cannot_run_is_refused_before_anything_is_trained(data: st.Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown optimizer 'adm'"):
        compare(line(), data, **setting(optimizers=("sgd", "adm")), loss="mse", out=tmp_path / "c")
    with pytest.raises(UsageError, match="does not fit the data"):
        compare(nn.Linear(3, 1, dtype=torch.float64), data, **setting(), loss="mse", out=tmp_path / "c")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="the run folder is taken"):
        compare(line(), data, **setting(), loss="mse", out=tmp_path / "taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_the_surface_of_two_weights_is_exact(data: st.Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    given = setting(rules=("sample", "batch"), optimizers=("sgd",), grid=4)
    found = compare(line(), data, **given, loss="mse", out=tmp_path / "c", say=said.append)
    assert said[0].startswith(f"surface: 16 passes over {N} samples, about ")
    surface = found.surface
    assert surface is not None
    assert surface.labels == ("weight[0,0]", "weight[0,1]")
    rows = data[0:N]
    for j, w2 in enumerate(surface.ys):
        for i, w1 in enumerate(surface.xs):
            exact = np.square(rows["x"] @ [w1, w2] - rows["y"]).mean()
            assert surface.loss[j, i] == pytest.approx(exact, rel=1e-12)
    for run, path in zip(found, surface.paths, strict=True):
        assert path.label == run.label
        assert path.places[0] == (-0.5, 1.0)
        assert (path.n_steps[0], path.n_steps[-1]) == (0, run.last.n_steps)
        at_end = np.square(rows["x"] @ path.places[-1] - rows["y"]).mean()
        assert at_end == pytest.approx(run.last.train.loss, rel=1e-12)
    assert "Both weights of the model are drawn" in comparison_page(found)


def test_the_surface_of_more_weights_is_a_plane(data: st.Dataset) -> None:
    model = nn.Sequential(nn.Linear(2, 3, dtype=torch.float64), nn.Tanh(), nn.Linear(3, 1, dtype=torch.float64))
    found = compare(model, data, **setting(rules=("batch",), grid=3), loss="mse")
    assert found.surface is not None
    assert found.surface.shares is not None
    assert 0.8 < sum(found.surface.shares) <= 1 + 1e-6
    assert found.surface.loss.shape == (3, 3)
    assert np.isfinite(found.surface.loss).all()
    assert "through the mean of the weights" in comparison_page(found)


def test_a_target_is_reached_or_it_is_said(data: st.Dataset) -> None:
    found = compare(line(), data, **setting(optimizers=("sgd",), target_loss=1e-9), loss="mse")
    assert [run.first_at(found.target_loss) for run in found] == 3 * [None]
    assert found.named()["runs"][0]["epochs_to_target"] is None
    reached = found.runs[0].first_at(math.inf)
    assert reached is not None
    assert reached.epochs == 0


def test_the_page_is_whole_and_escapes_names(data: st.Dataset, tmp_path: Path) -> None:
    about = {"model": HOSTILE, "dataset": HOSTILE}
    found = compare(line(), data, **setting(rules=("batch",), grid=3), loss="mse", about=about)
    page, figures = write_comparison(found, tmp_path)
    text = page.read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 2
    assert "default-src 'none'" in text
    drawings = [part.split("</svg>")[0] for part in text.split("<svg")[1:]]
    for drawing in drawings:
        ElementTree.fromstring(f"<svg{drawing}</svg>")
    assert len(drawings) == 8
    kept = json.loads(figures.read_text())
    assert kept["about"]["model"] == HOSTILE
    assert [run["optimizer"] for run in kept["runs"]] == ["sgd", "adam"]
    assert len(kept["surface"]["loss"]) == 3


def test_a_path_stands_for_its_dataset(data: st.Dataset) -> None:
    given: dict[str, Any] = {
        "rules": ("batch",),
        "optimizers": ("sgd",),
        "max_epochs": 1,
        "batch_size": 20,
        "loss": "mse",
    }
    found, expected = (compare(line(), each, val=each, **given) for each in (str(data.path), data))
    assert [run.last.val for run in found] == [run.last.val for run in expected]
    assert found.about["dataset"] == expected.about["dataset"]
