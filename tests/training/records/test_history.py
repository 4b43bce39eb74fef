"""A history as a sequence, a table and a drawing; what a trainer remembers of it; and totals that are reached."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

import streamtrain as st
from streamtrain.diagnostics import charts
from streamtrain.training.progress import Counts
from streamtrain.training.records.history import EpochSummary, History

FIT = {"batch_size": 20, "progress": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    return st.ingest({"x": x, "y": (x[:, 0] > 0).astype(int)}, tmp_path_factory.mktemp("d") / "d.zarr")


def make_trainer() -> st.Trainer:
    return st.Trainer(nn.Linear(3, 2), loss="cross_entropy", lr=0.1, device="cpu")


@pytest.fixture(scope="module")
def run(data: st.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "a"


@pytest.fixture(scope="module")
def history(data: st.Dataset, run: Path) -> History:
    return make_trainer().fit(data, max_epochs=3, val=data, checkpoint=run, **FIT)


def test_a_history_is_a_sequence_of_epochs_and_a_table_of_columns(history: History, run: Path) -> None:
    assert len(history) == 3
    assert [epoch.number for epoch in history] == [1, 2, 3]
    assert history[-1] is history.epochs[2]
    assert history[:2] == history.epochs[:2]
    assert history["val_loss"] == [epoch.val.loss for epoch in history]
    assert history["steps"] == [3, 6, 9]
    assert history.best.value == min(history["val_loss"])
    assert history.run == run
    assert list(history.to_dict())[:7] == ["epoch", "steps", "samples", "loss", "accuracy", "val_loss", "val_accuracy"]
    shown = {name: column for name, column in history.to_dict().items() if not name.endswith("_seconds")}
    pd.testing.assert_frame_equal(history.to_frame(), pd.DataFrame(shown))
    assert {"epoch", "loss", "seconds"} <= shown.keys() < history.to_dict().keys()


def test_a_column_that_is_not_there_has_its_nearest_named(history: History) -> None:
    with pytest.raises(st.UnknownName, match="did you mean 'val_loss'"):
        history["val_los"]
    with pytest.raises(IndexError):
        history[3]


def test_a_frame_without_pandas_is_a_sentence(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(st.UsageError, match=r"pandas is not installed.*Fix: pip install pandas, or"):
        history.to_frame()


def test_a_learning_rate_that_changes_is_a_column(history: History, tmp_path: Path) -> None:
    x = np.arange(40, dtype="float32").reshape(20, 2)
    dataset = st.ingest({"x": x, "y": np.arange(20) % 2}, tmp_path / "d", progress=False)
    schedule = st.Schedule(name="step", options={"step_size": 1, "gamma": 0.5})
    trainer = st.Trainer("linear", lr=0.4, schedule=schedule, task="classification", device="cpu")
    where = {"checkpoint": tmp_path / "run", "resume": "auto", "progress": False}
    assert trainer.fit(dataset, max_epochs=2, **where)["lr"] == [0.4, 0.2]
    assert trainer.fit(dataset, max_epochs=3, **where)["lr"] == [0.1]
    assert trainer.history["lr"] == [0.4, 0.2, 0.1]
    assert "lr" not in history.to_dict()


def test_a_history_prints_as_the_table_of_train(history: History) -> None:
    head, *lines = repr(history).splitlines()
    assert " ".join(head.split()) == "epoch steps loss accuracy val loss val accuracy samples/s stall"
    wanted = [[str(each.number), str(each.counts.n_steps), f"{each.train.loss:.4f}"] for each in history]
    assert [line.split()[:3] for line in lines] == wanted
    assert len(repr(History(epochs=history.epochs * 50, counts=history.counts)).splitlines()) == 62
    assert repr(History(epochs=(), counts=Counts())).startswith("epoch")


def test_in_a_notebook_the_best_epoch_is_bold(history: History) -> None:
    page = history._repr_html_()
    assert f'<td align="left"><b>{history.best.epoch}</b></td>' in page
    assert page.count("<b>") == 8, "one row of it"
    assert len(History(epochs=history.epochs * 500, counts=history.counts)._repr_html_()) < 30_000
    assert History(epochs=(), counts=Counts())._repr_html_().startswith("<div>")


def test_a_plot_has_a_chart_a_metric_with_the_best_epoch_marked(history: History, tmp_path: Path) -> None:
    figure = st.plot(history, path=tmp_path / "h.png")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    train, val, best = figure.axes[0].lines
    assert (list(train.get_ydata()), list(val.get_ydata())) == (history["loss"], history["val_loss"])
    assert best.get_xdata()[0] == history.best.epoch
    assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())
    assert (tmp_path / "h.png").read_bytes()[:4] == figure._repr_png_()[:4] == b"\x89PNG"


def test_a_plot_of_little_is_drawn_and_what_is_no_history_refused(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = EpochSummary.of_line({"epoch": 1, "loss": None, "rmse": 1e300})
    for epochs in ((), history.epochs[:1], (lost,)):
        st.plot(History(epochs=epochs, counts=Counts()), path=tmp_path / "one.svg")
    for given, told in ((history.epochs, "plot takes a History, not tuple"), (None, "not NoneType")):
        with pytest.raises(st.UsageError, match=told):
            st.plot(given)
    with pytest.raises(st.UsageError, match=r"cannot be saved as 'h\.txt'"):
        st.plot(history, path="h.txt")
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(st.UsageError, match=r"pip install 'streamtrain\[plot\]'"):
        st.plot(history)


def test_a_trainer_remembers_all_epochs_and_a_resumed_one_those_of_its_run(data: st.Dataset, tmp_path: Path) -> None:
    trainer, folder = make_trainer(), tmp_path / "run"
    assert len(trainer.history) == 0
    given = {"val": data, "checkpoint": folder, **FIT}
    first = trainer.fit(data, max_steps=5, **given)
    assert [epoch.partial for epoch in trainer.history] == [False, True]
    more = trainer.fit(data, max_epochs=3, resume="auto", **given)
    assert [epoch.number for epoch in more] == [2, 3]
    assert [(epoch.number, epoch.partial) for epoch in trainer.history] == [(1, False), (2, False), (3, False)]
    again = make_trainer()
    last = again.fit(data, max_epochs=4, resume="auto", **given)
    assert ([epoch.number for epoch in last], last.run) == ([4], folder)
    assert [epoch.number for epoch in again.history] == [1, 2, 3, 4]
    known, found = trainer.history.to_dict(), again.history.to_dict()
    for name in ("steps", "samples", "loss", "accuracy", "val_loss", "val_accuracy"):
        assert found[name][:3] == known[name], name
    assert [epoch.counts for epoch in again.history][:3] == [epoch.counts for epoch in trainer.history]
    assert again.history.best == last.best
    assert first.epochs[0] == trainer.history[0] or first.epochs[0].number == 1


def test_a_history_is_there_after_an_interrupt(data: st.Dataset) -> None:
    trainer = make_trainer()

    def stop(epoch: EpochSummary) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data, max_epochs=5, on_epoch=stop, **FIT)
    assert trainer.history["epoch"] == [1, 2]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ({"max_epochs": 2}, "max_epochs=2 is a total, and 2 epochs are done. Fix: max_epochs=4, or a new Trainer."),
        ({"max_epochs": 1}, "max_epochs=1 is a total, and 1 epoch is done. Fix: max_epochs=2, or a new Trainer."),
        ({"max_steps": 4}, "max_steps=4 is a total, and 4 steps are done. Fix: max_steps=8, or a new Trainer."),
    ],
)
def test_totals_that_are_reached_are_said(data: st.Dataset, first: dict[str, int], told: str) -> None:
    trainer = make_trainer()
    trainer.fit(data, **first, **FIT)
    with pytest.warns(st.StreamtrainWarning) as said:
        assert len(trainer.fit(data, **first, **FIT)) == 0
    assert [str(each.message) for each in said] == [told]
    assert said[0].filename == __file__, "the user's own line"
    trainer.fit(data, **{name: n + 1 for name, n in first.items()}, **FIT)


def test_a_line_of_metrics_without_numbers_is_an_epoch_of_none() -> None:
    epoch = EpochSummary.of_line({"kind": "epoch", "epoch": "x", "loss": None, "rmse": [1], "val_loss": None})
    assert math.isnan(epoch.train.loss)
    assert math.isnan(epoch.train.scores["rmse"])
    assert epoch.number == 0


def test_the_table_of_a_history_has_the_monitor(data: st.Dataset) -> None:
    history = make_trainer().fit(data, val=data, max_epochs=2, monitor="val_balanced_accuracy", progress=False)
    head, *lines = repr(history).splitlines()
    assert "val accuracy  val balanced_accuracy (max)   samples/s" in head
    best = max(epoch.measured()["val_balanced_accuracy"] for epoch in history)
    assert max(float(line.split()[6]) for line in lines) == pytest.approx(best, abs=1e-4)
    assert '<th align="right">val balanced_accuracy (max)</th>' in history._repr_html_()
    assert history.elapsed is not None
    wall = history.elapsed.wall(history.speed)
    assert sum(wall.values()) == pytest.approx(history.elapsed.seconds)
    assert wall["validation"] > 0
