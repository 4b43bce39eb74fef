"""The monitor of a run: its name and mode, what is an improvement, and the record of the best epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from streamtrain.errors import CheckpointError, UnknownName, UsageError
from streamtrain.training.best.monitor import (
    BestEpoch,
    Monitor,
    best_of,
    best_record,
    changed_monitor,
    choose_monitor,
    parse_best,
)
from streamtrain.training.progress import EarlyStopping

MEASURED = ("loss", "accuracy", "mine")


def choose(
    name: str | None = None, mode: str | None = None, *, has_val: bool = False, **needing: Any
) -> Monitor | None:
    return choose_monitor(name, mode, measured=MEASURED, on_val=MEASURED if has_val else None, needing=needing)


@pytest.mark.parametrize(
    ("name", "mode", "has_val", "chosen"),
    [
        (None, None, True, ("val_loss", "min")),
        ("loss", None, False, ("loss", "min")),
        ("loss", None, True, ("loss", "min")),
        ("val_accuracy", None, True, ("val_accuracy", "max")),
        ("val_mine", "max", True, ("val_mine", "max")),
        ("accuracy", "min", False, ("accuracy", "min")),
        (None, "max", True, ("val_loss", "max")),
    ],
)
def test_it_is_the_validation_loss_or_the_one_named(
    name: str | None, mode: str | None, has_val: bool, chosen: tuple[str, str]
) -> None:
    found = choose(name, mode, has_val=has_val)
    assert found is not None
    assert (found.name, found.mode) == chosen


def test_without_validation_data_there_is_none() -> None:
    assert choose() is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"patience": 3}, r"patience without validation data or a monitor.*monitor='loss'"),
        ({"restore_best": True}, "restore_best without validation data or a monitor"),
        ({"mode": "min"}, "monitor_mode without validation data or a monitor"),
        ({"name": "val_loss"}, r"'val_loss', and there is no validation data. Fix: monitor='loss'"),
        ({"name": "mine"}, r"whether mine is best at its smallest or its largest.*monitor_mode='max'"),
        ({"name": ["loss"]}, "it must be the name of a metric"),
    ],
)
def test_what_says_nothing_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(**given)


def test_an_unknown_one_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'val_loss'"):
        choose("val_los", has_val=True)
    with pytest.raises(UnknownName, match="monitor_mode"):
        choose("loss", "smallest")


values = hs.floats(allow_nan=True, allow_infinity=True)


@given(hs.lists(values, max_size=12), hs.sampled_from(["min", "max"]))
def test_the_best_is_the_first_of_the_least_or_the_greatest(seen: list[float], mode: str) -> None:
    monitor, best, place = Monitor(name="loss", mode=mode), None, None
    for i, value in enumerate(seen):
        if monitor.improves(value, monitor.worst if best is None else best):
            best, place = value, i
    known = [value for value in seen if not math.isnan(value) and value != monitor.worst]
    expected = (min if mode == "min" else max)(known, default=None)
    assert best == expected
    assert place == (None if expected is None else seen.index(expected))


@given(hs.lists(hs.floats(0, 1), min_size=1, max_size=12), hs.floats(0, 0.5))
def test_patience_counts_epochs_since_a_change_of_more_than_min_delta(seen: list[float], min_delta: float) -> None:
    falls, rises = EarlyStopping(patience=3, min_delta=min_delta), EarlyStopping(patience=3, min_delta=min_delta)
    rises.monitor_by(Monitor(name="accuracy", mode="max"))
    reference, in_vain = math.inf, 0
    for value in seen:
        falls.look(value)
        rises.look(math.nan, -value)
        in_vain = 0 if reference - value > min_delta else in_vain + 1
        reference = value if not in_vain else reference
        assert falls.reason == rises.reason == ("patience" if in_vain >= 3 else None)


BEST = BestEpoch(
    epoch=5, step=60, n_batches=1175, monitor="val_loss", value=0.5, checkpoint=Path("checkpoints/00001175")
)
MONITOR = Monitor(name="val_loss", mode="min")


@pytest.mark.parametrize("value", [0.5, math.inf, -math.inf, 3])
@pytest.mark.parametrize("figures", [{}, {"val_loss": 0.5, "val_accuracy": math.nan}])
def test_a_record_is_read_as_it_was_written(value: float, figures: dict[str, float]) -> None:
    best = BestEpoch(**{**BEST.named(), "value": value, "figures": figures})  # type: ignore[arg-type]
    record = json.loads(json.dumps(best_record(MONITOR, best)))
    monitor, found = parse_best(record, Path("checkpoints"))
    assert (monitor, repr(found)) == (MONITOR, repr(best))
    assert parse_best(best_record(MONITOR, None), Path("checkpoints")) == (MONITOR, None)
    assert parse_best(best_record(None, None), Path("checkpoints")) == (None, None)


RECORD: dict[str, Any] = best_record(MONITOR, BEST) or {}


@pytest.mark.parametrize(
    "changed",
    [
        {"checkpoint": "../../elsewhere"},
        {"checkpoint": ".."},
        {"checkpoint": ""},
        {"checkpoint": 1175},
        {"epoch": -1},
        {"epoch": True},
        {"step": 1.5},
        {"value": "0.5"},
        {"value": None},
        {"value": math.nan},
        {"value": 10**400},
        {"figures": []},
        {"figures": {"val_loss": {}}},
        {"monitor": 3},
        {"mode": "least"},
    ],
)
def test_a_record_that_no_run_has_written_is_damage(changed: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        best_of({"best": RECORD | changed}, Path("checkpoints/00001180"))
    with pytest.raises(CheckpointError, match="is damaged"):
        best_of({"best": "val_loss"}, Path("checkpoints/00001180"))
    with pytest.raises(CheckpointError, match="is damaged"):
        best_of({"best": {key: RECORD[key] for key in RECORD if key != "epoch"}}, Path("checkpoints/00001180"))


def test_another_monitor_is_a_difference_and_none_is_not() -> None:
    assert changed_monitor(MONITOR, Monitor(name="loss", mode="min")) == ["monitor: 'val_loss' there, 'loss' here"]
    assert changed_monitor(MONITOR, Monitor(name="val_loss", mode="max")) == ["monitor_mode: 'min' there, 'max' here"]
    assert changed_monitor(None, MONITOR) == changed_monitor(MONITOR, None) == changed_monitor(MONITOR, MONITOR) == []


def test_the_monitor_is_told_first() -> None:
    figures = {"val_loss": 0.27731, "val_accuracy": 0.912}
    best = BestEpoch(epoch=5, step=60, n_batches=12, monitor="val_accuracy", value=0.912, figures=figures)
    assert best.told() == "val_accuracy 0.9120, val_loss 0.2773"
