"""The runs of a comparison: where they end, which weights their paths keep, what they are charged with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare_cases import N, ingested, line
from torch import nn

import streamtrain as st
from streamtrain.comparison import compare as contest_room
from streamtrain.comparison.compare import compare
from streamtrain.comparison.report import comparison_page, write_comparison
from streamtrain.comparison.results import Comparison
from streamtrain.comparison.run import TimedStream
from streamtrain.comparison.surface import Snapshot, principal_plane
from streamtrain.comparison.variance import UpdateVariance
from streamtrain.errors import ResourceError, UsageError
from streamtrain.system.units import format_figure, format_number

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    return ingested(tmp_path_factory.mktemp("data"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3, dtype=torch.float64), nn.Tanh(), nn.Linear(3, 1, dtype=torch.float64))


def setting(**given: object) -> dict[str, Any]:
    return {"max_epochs": 2, "batch_size": 20, "memory": "16MB", "optimizers": ("sgd",), **given}


def test_the_clock_of_a_run_stands_while_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    now = beside = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def watch() -> None:
        nonlocal now, beside
        now, beside = now + 1000.0, beside + 1000.0

    watched = TimedStream(range(10), watch, lambda: beside)  # type: ignore[arg-type]
    watched.seconds_left = 3.0
    taken = []
    for batch in watched:
        taken.append(batch)
        now += 1.0
    assert taken == [0, 1, 2]
    assert watched.ran_out_of_time


def test_only_the_last_epoch_of_a_run_is_cut(data: st.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = UpdateVariance.stepped

    def slowly(self: UpdateVariance) -> None:
        stepped(self)
        time.sleep(0.004)
        self.seconds += 0.004

    monkeypatch.setattr(UpdateVariance, "stepped", slowly)
    found = compare(line(), data, **setting(rules=("batch",), max_epochs=None, seconds=0.01), loss="mse")
    epochs = [point.epochs for point in found.runs[0].points]
    assert all(each.is_integer() for each in epochs[:-1]), epochs


def test_of_a_run_that_diverged_the_path_ends_where_it_was_measured(data: st.Dataset) -> None:
    given = setting(rules=("epoch", "batch"), lr={"epoch:sgd": 1e200, "batch:sgd": 1e-3}, grid=2)
    found = compare(network(), data, **given, loss="mse")
    epoch, batch = found
    assert epoch.diverged is not None
    assert batch.diverged is None
    assert found.surface is not None
    assert [path.n_steps for path in found.surface.paths] == [(0,), tuple(range(11))]
    assert np.abs(found.surface.xs).max() < 100
    assert np.isfinite(found.surface.loss).all()
    assert "The error surface" in comparison_page(found)


def test_a_surface_that_cannot_be_measured_costs_no_comparison(
    data: st.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("linalg.eigh: <no>")

    monkeypatch.setattr(contest_room, "measure_surface", fail)
    before: list[Comparison] = []
    said: list[str] = []
    given = setting(rules=("batch",), grid=2)
    found = compare(line(), data, **given, loss="mse", on_runs=before.append, say=said.append)
    assert [each.surface for each in (*before, found)] == [None, None]
    assert before[0].runs == found.runs
    assert said[-1] == "surface: not measured: linalg.eigh: <no>"
    page, _ = write_comparison(found, tmp_path)
    assert "The error surface was not measured: linalg.eigh: &lt;no&gt;" in page.read_text()


@pytest.mark.parametrize("size", [1e200, 1.0, 1e-200])
def test_a_plane_holds_paths_of_any_size(size: float) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4))
    plane = principal_plane((), [Snapshot(n_steps=i, weights=torch.tensor(row * size)) for i, row in enumerate(rows)])
    directions = plane.directions
    assert torch.allclose(directions @ directions.T, torch.eye(2, dtype=torch.float64))
    expected = principal_plane((), [Snapshot(n_steps=i, weights=torch.tensor(row)) for i, row in enumerate(rows)])
    assert torch.allclose(directions, expected.directions)
    assert plane.shares == expected.shares


@pytest.mark.parametrize(("optimizer", "n_epochs"), [("sgd", 4), ("lbfgs", 12), ("cg", 12)])
def test_the_path_under_the_epoch_rule_is_where_the_run_was(data: st.Dataset, optimizer: str, n_epochs: int) -> None:
    given = setting(rules=("epoch",), optimizers=(optimizer,), max_epochs=n_epochs, lr={}, grid=2)
    found = compare(line(), data, **given, loss="mse")
    assert found.surface is not None
    path = found.surface.paths[0]
    assert list(path.n_steps) == sorted({point.n_steps for point in found.runs[0].points}), "each once"
    by_steps = {point.n_steps: point.train.loss for point in found.runs[0].points}
    rows = data[0:N]
    for n_steps, place in zip(path.n_steps, path.places, strict=True):
        assert np.square(rows["x"] @ place - rows["y"]).mean() == pytest.approx(by_steps[n_steps], rel=1e-9)


def test_an_optimizer_that_finds_no_further_step_ends_its_run(data: st.Dataset) -> None:
    given = setting(rules=("epoch",), optimizers=("lbfgs",), max_epochs=300)
    run = compare(line(), data, **given, loss="mse").runs[0]
    assert run.last.epochs < 300
    assert run.diverged is None


def test_a_surface_of_one_weight_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 20)[:, None]
    data = st.ingest({"x": x, "y": x[:, 0]}, tmp_path / "d.zarr", progress=False)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    told: list[object] = []
    with pytest.raises(UsageError, match="a surface lies over two weights at the least, and trained are 1"):
        compare(model, data, **setting(grid=2), loss="mse", on_point=lambda run, point: told.append(run))
    assert told == []
    assert len(compare(model, data, **setting(rules=("batch",)), loss="mse")) == 1


def test_a_loss_below_zero_has_a_target_below_it(data: st.Dataset) -> None:
    def below(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.flatten() - target).square().mean() - 1000.0

    found = compare(line(), data, **setting(rules=("batch",)), loss=below)
    first = found.runs[0].points[0].train.loss
    assert first < 0
    assert found.target_loss == 1.5 * first
    assert found.runs[0].first_at(found.target_loss) is None
    page = comparison_page(found)
    assert "target -1" in page
    for target in (-500.0, 0.0):
        assert compare(line(), data, **setting(rules=("batch",), target_loss=target), loss="mse").target_loss == target


def test_an_epoch_of_one_step_has_a_window_over_epochs_under_every_rule(data: st.Dataset) -> None:
    given = setting(rules=("batch", "epoch"), batch_size=N, max_epochs=3)
    for run in compare(line(), data, **given, loss="mse"):
        assert [point.n_window for point in run.points] == [0, 1, 2, 3]
        assert [point.variance is None for point in run.points] == [True, True, False, False]


def test_what_is_measured_has_the_loaders_that_measure_in_it(data: st.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1_000_000_000, 1_100_000_000])
    monkeypatch.setattr(contest_room, "held_bytes", lambda: next(held))
    found = compare(line(), data, **setting(), loss="mse")
    assert all(run.memory["measured"] > 90_000_000 for run in found)


def test_the_folder_is_made_before_anything_is_trained(data: st.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[object] = []
    with pytest.raises(ResourceError, match="something else is in its place"):
        compare(line(), data, **setting(), loss="mse", out=tmp_path / "file" / "c", on_point=lambda *_: told.append(1))
    assert told == []


def test_a_comparison_that_could_not_be_saved_resumes_once_the_disk_is_mended(
    data: st.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = setting(rules=("batch",))
    compare(line(), data, **few, loss="mse", out=tmp_path / "c")
    with pytest.raises(UsageError, match="Fix: another out=, or remove it"):
        compare(line(), data, **few, loss="mse", out=tmp_path / "c" / "batch-sgd")

    def fail(*_: object) -> None:
        raise ResourceError("cannot write: no space left", fix="free some space")

    with monkeypatch.context() as patched:
        patched.setattr("streamtrain.training.run.run_folder.write_checkpoint", fail)
        with pytest.raises(ResourceError, match="Fix: free some space, then the same with resume='auto'"):
            compare(line(), data, **few, loss="mse", out=tmp_path / "full")
    found = compare(line(), data, **few, loss="mse", out=tmp_path / "full", resume="auto")
    assert [point.n_steps for point in found.runs[0].points] == [0, 5, 10]


def test_numbers_of_a_table_are_short_and_whole_ones_in_full() -> None:
    assert [format_number(float(epochs)) for epochs in (3, 1101, 1102, 1500)] == ["3", "1,101", "1,102", "1,500"]
    texts = ["1,101.5", "0.2222", "142,857", "1e+20"]
    assert [format_number(value) for value in (1101.5, 2 / 9, 1e6 / 7, 1e20)] == texts
    texts = ["0.2500", "99,999.0", "-99,999.0", "123,456.0"]
    assert [format_figure(loss) for loss in (0.25, 99_999.0, -99_999.0, 123_456.0)] == texts


def test_names_that_no_encoding_knows_cost_no_comparison(data: st.Dataset, tmp_path: Path) -> None:
    found = compare(line(), data, **setting(rules=("batch",)), loss="mse", about={"dataset": "d\udcff.zarr"})
    page, figures = write_comparison(found, tmp_path)
    assert r"d\udcff.zarr" in page.read_text(encoding="utf-8")
    assert figures.is_file()
