"""The best epoch of a run: kept on the disk, found again by every resume, and put in where it is asked for."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import CheckpointError, ResourceError, UsageError
from streamtrain.optim.schedules import Schedule
from streamtrain.system.files import Files
from streamtrain.system.signals import Interrupted
from streamtrain.training.best import chosen_checkpoint
from streamtrain.training.best.chosen_checkpoint import checkpoint_of
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.run import run_folder
from streamtrain.training.run.checkpoint import MODEL, newest_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCH_BATCHES = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    return st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, tmp_path_factory.mktemp("data") / "d", block=320)


def make(losses: Sequence[float] = (), **options: Any) -> st.Trainer:
    """Make a trainer that measures these losses on validation data, an epoch each, and 0.5 as its accuracy."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    trainer = st.Trainer(model, loss="cross_entropy", device="cpu", **{"optimizer": "sgd", "lr": 0.1} | options)

    def evaluate(_: Any) -> Metrics:
        n_epochs = max(trainer.counts.n_epochs, 1)
        return Metrics(loss=losses[n_epochs - 1], scores={"accuracy": 0.5}, n_samples=120)

    if losses:
        trainer.evaluate = evaluate  # type: ignore[method-assign, assignment]
    return trainer


@pytest.fixture
def loader(dataset: st.Dataset) -> Iterator[st.StreamLoader]:
    with st.StreamLoader(dataset, batch_size=20, memory="8MB", seed=5) as made:
        yield made


@pytest.fixture
def val(dataset: st.Dataset) -> Iterator[st.StreamLoader]:
    with st.StreamLoader(dataset, batch_size=20, memory="8MB", shuffle=False) as made:
        yield made


def folders(run: Path) -> list[int]:
    return sorted(int(path.name) // EPOCH_BATCHES for path in (run / "checkpoints").iterdir())


def weights(model: nn.Module) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def saved(run: Path, which: str = "best") -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in checkpoint_of(run, which).checkpoint.tensors(MODEL).items()}


LOSSES = (0.9, 0.7, 0.8, 0.7, 0.6, 0.65, 0.6, 0.61)


@pytest.mark.parametrize(
    ("losses", "epoch", "kept"),
    [
        (LOSSES, 5, [5, 7, 8]),
        ((0.5, 0.5, 0.5, 0.5), 1, [1, 3, 4]),
        ((0.5, 0.4, 0.3), 3, [2, 3]),
        ((0.5, 0.4, 0.6, 0.3), 4, [2, 3, 4]),
        ((math.nan, 0.4, math.nan), 2, [2, 3]),
        ((math.nan, math.nan, math.nan), None, [2, 3]),
    ],
)
def test_the_newest_two_are_kept_and_what_either_calls_the_best(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader, losses: Sequence[float], epoch: int, kept: list[int]
) -> None:
    run, seen = tmp_path / "run", dict[int, Any]()
    trainer = make(losses)
    history = trainer.fit(
        loader,
        val=val,
        max_epochs=len(losses),
        checkpoint=run,
        progress=False,
        on_epoch=lambda summary: seen.update({summary.number: weights(trainer.model)}),
    )
    assert (history.best and history.best.epoch) == epoch
    assert folders(run) == kept
    assert saved(run) == seen[epoch or len(losses)]
    assert saved(run, "last") == weights(trainer.model) == seen[len(losses)], "the model has the last weights"
    if history.best is not None:
        assert (history.best.monitor, history.best.value) == ("val_loss", losses[epoch - 1])
        assert history.best.checkpoint == run / "checkpoints" / f"{epoch * EPOCH_BATCHES:08d}"
        assert history.best.figures == {"val_loss": losses[epoch - 1], "val_accuracy": 0.5}


def test_min_delta_is_of_patience_alone(loader: st.StreamLoader, val: st.StreamLoader) -> None:
    losses = (0.9, 0.85, 0.84, 0.83, 0.82, 0.81)
    history = make(losses).fit(loader, val=val, max_epochs=6, patience=3, min_delta=0.1, progress=False)
    assert (history.stopped_by, history.counts.n_epochs, history.best and history.best.epoch) == ("patience", 4, 4)
    # Small changes that add up to more are one.
    history = make(losses).fit(loader, val=val, max_epochs=6, patience=3, min_delta=0.055, progress=False)
    assert (history.stopped_by, history.counts.n_epochs) == ("patience", 6)


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 6])
def test_a_resumed_run_knows_the_best_and_how_long_it_has_waited(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader, cut: int
) -> None:
    how: dict[str, Any] = {"val": val, "patience": 3, "progress": False}
    whole = make(LOSSES).fit(loader, max_epochs=8, checkpoint=tmp_path / "whole", **how)
    run = tmp_path / "run"
    make(LOSSES).fit(loader, max_epochs=cut, checkpoint=run, **how)
    resumed = make(LOSSES).fit(loader, max_epochs=8, checkpoint=run, resume="auto", **how)
    assert whole.best is not None
    assert resumed.best is not None
    assert resumed.best == replace(whole.best, checkpoint=run / "checkpoints" / whole.best.checkpoint.name)  # type: ignore[union-attr]
    assert (resumed.stopped_by, resumed.counts) == (whole.stopped_by, whole.counts) == ("patience", resumed.counts)
    assert (saved(run), folders(run)) == (saved(tmp_path / "whole"), folders(tmp_path / "whole"))
    # A run without anything left still names it, and with more patience goes on.
    again = make(LOSSES).fit(loader, max_epochs=8, checkpoint=run, resume="auto", **how)
    assert (len(again), again.best) == (0, resumed.best)
    assert len(make(LOSSES).fit(loader, max_epochs=8, checkpoint=run, resume="auto", **how | {"patience": 9})) == 0


def test_the_monitor_of_a_run_stays(tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader) -> None:
    run = tmp_path / "run"

    def fit(**how: Any) -> st.History:
        how = {"max_epochs": 2, "checkpoint": run, "resume": "auto", "progress": False} | how
        return make((0.5, 0.6, 0.7)).fit(loader, **how)

    fit(val=val)
    for other in ({"monitor": "val_accuracy"}, {"monitor": "loss"}, {"monitor_mode": "max"}):
        with pytest.raises(CheckpointError, match=r"monitor(_mode)?: '\w+' there, '\w+' here") as caught:
            fit(val=val, max_epochs=3, **other)
        assert caught.value.exit_code == 6
    assert fit(val=val, max_epochs=3, monitor="val_loss", patience=7, min_delta=0.1).best.epoch == 1  # type: ignore[union-attr]
    # Validation data is free to change: without it there is no new best, and the one there was is kept.
    assert fit(max_epochs=5).best.epoch == 1  # type: ignore[union-attr]
    assert folders(run) == [1, 4, 5]


def test_a_run_without_a_monitor_may_get_one(tmp_path: Path, loader: st.StreamLoader) -> None:
    how: dict[str, Any] = {"checkpoint": tmp_path / "run", "progress": False}
    assert make().fit(loader, max_epochs=2, **how).best is None
    assert "best" not in newest_checkpoint(tmp_path / "run").state
    assert make().fit(loader, max_epochs=4, monitor="loss", resume="auto", **how).best is not None


# Damage ---------------------------------------------------------------------------------------------------------------


def damage(run: Path, *epochs: int) -> None:
    for epoch in epochs:
        file = run / "checkpoints" / f"{epoch * EPOCH_BATCHES:08d}" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture
def run(tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader) -> Path:
    """A run whose best epoch is 5 of 8; its sixth is in no checkpoint any more."""
    path = tmp_path / "run"
    make(LOSSES).fit(loader, val=val, max_epochs=8, checkpoint=path, progress=False)
    return path


def test_the_one_before_a_damaged_newest_says_which_is_best(run: Path) -> None:
    damage(run, 8)
    found = checkpoint_of(run)
    assert (found.epoch, found.is_best, found.last.state["counts"]["n_epochs"]) == (5, True, 7)


@pytest.mark.parametrize("how", ["damaged", "removed"])
def test_a_best_one_that_is_gone_is_the_last_and_said(run: Path, how: str) -> None:
    damage(run, 5) if how == "damaged" else shutil.rmtree(run / "checkpoints" / "00000030")
    found = checkpoint_of(run)
    assert (found.epoch, found.is_best, found.is_last) == (8, False, True)
    assert "00000030" in (found.doubt or "")
    assert found.told() == "weights of epoch 8, the last: the best, epoch 5, cannot be read"


def test_both_newest_damaged_are_refused_and_the_best_is_read_by_its_number(
    run: Path, loader: st.StreamLoader, val: st.StreamLoader
) -> None:
    damage(run, 7, 8)
    for which in ("best", "last"):
        with pytest.raises(CheckpointError, match="no whole checkpoint") as caught:
            checkpoint_of(run, which)
        assert caught.value.exit_code == 6
    with pytest.raises(CheckpointError, match="no whole checkpoint to resume from"):
        make(LOSSES).fit(loader, val=val, max_epochs=9, checkpoint=run, resume="auto", progress=False)
    found = checkpoint_of(run, 30)
    assert (found.epoch, found.told()) == (5, "weights of epoch 5")


def test_a_run_that_skips_a_damaged_newest_comes_to_the_same_best(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader
) -> None:
    losses, path = (0.9, 0.5, 0.6, 0.4, 0.7), tmp_path / "run"
    how: dict[str, Any] = {"val": val, "checkpoint": path, "resume": "auto", "progress": False}
    make(losses).fit(loader, max_epochs=4, **how)
    before = saved(path)
    damage(path, 4)
    with pytest.warns(st.StreamtrainWarning, match="damaged checkpoints were skipped"):
        history = make(losses).fit(loader, max_epochs=5, **how)
    assert history.best is not None
    assert (history.best.epoch, saved(path), folders(path)) == (4, before, [4, 5])


def test_a_best_whose_checkpoint_could_not_be_written_is_none(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = run_folder.write_checkpoint, [0]

    def write(files: Files, run: Path, n_batches: int, *rest: Any) -> Path:
        left[0] += 1
        if n_batches == 3 * EPOCH_BATCHES:
            raise ResourceError("no room")
        return real(files, run, n_batches, *rest)

    monkeypatch.setattr(run_folder, "write_checkpoint", write)
    path = tmp_path / "run"
    how: dict[str, Any] = {"val": val, "checkpoint": path, "on_checkpoint_failure": "warn", "progress": False}
    with pytest.warns(st.StreamtrainWarning, match="no room"):
        history = make((0.9, 0.5, 0.4, 0.45)).fit(loader, max_epochs=4, **how)
    assert history.best is not None
    assert (history.best.epoch, checkpoint_of(path).epoch) == (4, 4), "the third epoch's weights are nowhere"


def test_a_cut_inside_the_next_batch_leaves_the_best_its_place(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader
) -> None:
    path, losses = tmp_path / "run", (0.9, 0.5, 0.6)
    how: dict[str, Any] = {"val": val, "checkpoint": path, "resume": "auto", "progress": False}
    make(losses, update="sample").fit(loader, max_epochs=2, **how)
    before = saved(path)
    history = make(losses, update="sample").fit(loader, max_steps=245, **how)
    assert (history.counts.n_batches, history.last and history.last.partial) == (12, True)
    found = checkpoint_of(path)
    assert (saved(path), found.epoch, found.last.state["counts"]["n_samples"]) == (before, 2, 245)
    assert found.told().endswith("which='last' for batch 12, inside epoch 3")
    whole, pieces = make(losses, update="sample"), make(losses, update="sample")
    whole.fit(loader, val=val, max_epochs=3, progress=False)
    pieces.fit(loader, max_epochs=3, **how)
    assert weights(pieces.model) == weights(whole.model)


# In Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_folder", [True, False])
@pytest.mark.parametrize("end", ["epochs", "patience", "signal", "diverged"])
def test_the_best_is_put_in_whatever_ends_the_run(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader, has_folder: bool, end: str
) -> None:
    trainer, best = make((0.9, 0.5, 0.6, 0.7, 0.8)), dict[str, Any]()

    def on_epoch(summary: Any) -> None:
        if summary.number == 2:
            best.update(weights(trainer.model))
        if summary.number == 4 and end == "signal":
            raise Interrupted(2)
        if summary.number == 4 and end == "diverged":
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.nan)

    how: dict[str, Any] = {"val": val, "progress": False, "checkpoint": tmp_path / "run" if has_folder else None}
    how |= {"max_epochs": 5, "restore_best": True, "on_epoch": on_epoch, "patience": 2 if end == "patience" else None}
    if end in ("epochs", "patience"):
        history = trainer.fit(loader, **how)
        assert (history.stopped_by, history.best and history.best.epoch) == (end, 2)
    else:
        with pytest.raises(Interrupted if end == "signal" else st.DivergedError):
            trainer.fit(loader, **how)
    assert weights(trainer.model) == best
    with pytest.raises(UsageError, match=r"weights of epoch 2, and the optimizer is at epoch \d.*resume='auto'"):
        trainer.fit(loader, **how)
    if has_folder and end in ("epochs", "patience"):
        how |= {"resume": "auto", "restore_best": False, "on_epoch": None, "patience": None}
        assert trainer.fit(loader, **how).counts.n_epochs == 5
        assert weights(trainer.model) != best


def test_where_the_last_is_the_best_the_trainer_goes_on(loader: st.StreamLoader, val: st.StreamLoader) -> None:
    trainer, whole = make((0.9, 0.5, 0.4)), make((0.9, 0.5, 0.4))
    for n_epochs in (2, 3):
        history = trainer.fit(loader, val=val, max_epochs=n_epochs, restore_best=True, progress=False)
        assert history.best is not None
        assert history.best.epoch == n_epochs
    whole.fit(loader, val=val, max_epochs=3, progress=False)
    assert weights(trainer.model) == weights(whole.model)


def test_calls_on_one_trainer_have_one_best(loader: st.StreamLoader, val: st.StreamLoader) -> None:
    trainer = make((0.5, 0.6, 0.7, 0.4, 0.8))
    best = [trainer.fit(loader, val=val, max_epochs=n, progress=False).best for n in (1, 3, 5)]
    assert [each.epoch for each in best if each] == [1, 1, 4]
    assert trainer.fit(loader, monitor="loss", max_epochs=6, progress=False).best.epoch == 6  # type: ignore[union-attr]


def test_nothing_to_put_in_is_said(loader: st.StreamLoader, val: st.StreamLoader) -> None:
    trainer = make((math.nan, math.nan))
    with pytest.warns(st.StreamtrainWarning, match="no epoch has a val_loss that is a number"):
        assert trainer.fit(loader, val=val, max_epochs=2, restore_best=True, progress=False).best is None


def test_a_copy_in_memory_is_a_term_of_the_budget(dataset: st.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.training.best.watch.EpochWatch.copy_bytes", 10**15)
    with pytest.raises(st.BudgetError, match=r"\+ the best weights 1,?000.* TB"):
        make().fit(dataset, max_epochs=1, max_memory="2GB", monitor="loss", restore_best=True, progress=False)


@pytest.mark.parametrize(("monitor", "lr"), [("val_accuracy", 0.05), ("val_loss", 0.1)])
def test_a_plateau_is_one_of_the_monitor(
    loader: st.StreamLoader, val: st.StreamLoader, monitor: str, lr: float
) -> None:
    # The loss falls, and the accuracy stays: only a plateau of the second lowers the rate.
    schedule = Schedule(name="plateau", options={"patience": 0, "factor": 0.5, "threshold": 0.0})
    trainer = make((0.9, 0.8), schedule=schedule)
    trainer.fit(loader, val=val, monitor=monitor, max_epochs=2, progress=False)
    assert trainer.optimizer.param_groups[0]["lr"] == lr


def test_a_plateau_of_the_other_mode_is_refused(loader: st.StreamLoader) -> None:
    schedule = Schedule(name="plateau", options={"mode": "min"})
    with pytest.raises(UsageError, match=r"plateau has the mode 'min'.*best at its max.*'mode': 'max'"):
        make(schedule=schedule).fit(loader, monitor="accuracy", max_epochs=1, progress=False)


@pytest.mark.parametrize("optimizer", ["lbfgs", "cg"])
def test_only_whole_steps_count(dataset: st.Dataset, tmp_path: Path, optimizer: str) -> None:
    trainer = make(update="epoch", optimizer=optimizer, lr=None if optimizer == "cg" else 1.0)
    seen: dict[int, Any] = {}
    with st.StreamLoader(dataset, batch_size=20, memory="8MB", shuffle=False) as loader, warnings.catch_warnings():
        history = trainer.fit(
            loader,
            monitor="loss",
            max_epochs=12,
            checkpoint=tmp_path / "run",
            progress=False,
            on_epoch=lambda summary: seen.update({summary.number: (weights(trainer.model), summary.train.loss)}),
        )
        assert history.best is not None
        at, loss = seen[history.best.epoch]
        assert (saved(tmp_path / "run"), history.best.value) == (at, loss)
        assert loss == min(loss for _, loss in seen.values())
        # The loss is the one at these weights.
        trainer.model.load_state_dict({name: torch.tensor(value) for name, value in at.items()})
        assert trainer.evaluate(loader).loss == pytest.approx(loss, rel=1e-6)


def test_the_record_is_in_every_checkpoint(run: Path) -> None:
    for epoch in (5, 7, 8):
        state = json.loads((run / "checkpoints" / f"{epoch * EPOCH_BATCHES:08d}" / "state.json").read_bytes())
        record = {key: state["best"][key] for key in ("monitor", "mode", "epoch", "step", "value", "checkpoint")}
        assert list(record.values()) == ["val_loss", "min", 5, 30, 0.6, "00000030"]


def test_a_best_that_goes_while_it_is_read_is_the_new_one(
    tmp_path: Path, loader: st.StreamLoader, val: st.StreamLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, path = (0.5, 0.6, 0.7, 0.4, 0.8, 0.9), tmp_path / "run"
    how: dict[str, Any] = {"val": val, "checkpoint": path, "resume": "auto", "progress": False}
    make(losses).fit(loader, max_epochs=3, **how)
    real, left = chosen_checkpoint.read_checkpoint, [1]

    def read(folder: Path) -> Any:
        if left[0]:
            left[0] = 0
            make(losses).fit(loader, max_epochs=6, **how)
            assert not folder.exists()
        return real(folder)

    monkeypatch.setattr(chosen_checkpoint, "read_checkpoint", read)
    found = checkpoint_of(path)
    assert (found.epoch, found.is_best, found.doubt) == (4, True, None)
