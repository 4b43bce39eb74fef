"""Headspace: kept batches against the loader's, and a loader that is slow on purpose."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.diagnostics.headspace import headspace


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((600, 8)).astype(np.float32)
    return st.ingest({"x": x, "y": generator.integers(0, 3, 600)}, tmp_path / "d.zarr")


class Clock:
    """A clock that stands still but where a loader waits and a model computes, whatever the machine does beside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class SlowLoader(st.StreamLoader):
    """Waits 10 ms before every batch, and says so."""

    clock: Clock

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.clock.now += 0.01
            self.wait_seconds += 0.01
            yield batch


class TimedLinear(nn.Linear):
    """Takes 0.1 ms a sample."""

    clock: Clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += len(x) / 10_000
        return super().forward(x)


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_a_slow_loader_leaves_room(dataset: Any, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = TimedLinear(8, 3), Clock(monkeypatch)
    model.clock = clock
    trainer = st.Trainer(model, loss="cross_entropy", optimizer="sgd", lr=0.01, update=update)
    with SlowLoader(dataset, batch_size=40, memory="16MB", shuffle=update != "epoch") as loader:
        loader.clock = clock
        found = headspace(trainer, loader, seconds=0.1)
    # 40 samples take 4 ms, and their batch 10 ms more.
    assert found.ratio > 2
    assert found.perfect.samples_per_second > 2 * found.loader.samples_per_second
    assert 0.5 < found.loader.stall_fraction <= 1
    assert found.perfect.wait_seconds == 0
    assert found.named()["ratio"] == found.ratio


def test_batches_are_kept_once_and_belong_to_nobody_else(dataset: Any) -> None:
    seen: list[int] = []

    class Watched(st.StreamLoader):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                seen.append(len(batch.y))
                yield batch

    trainer = st.Trainer(nn.Linear(8, 3), loss="cross_entropy")
    with Watched(dataset, batch_size=500, memory="16MB") as loader:
        found = headspace(trainer, loader, seconds=0.01)
        assert len(loader) == 2
    # Two are kept, whose first is trained on before the clock counts; each of the eleven rounds takes at least one.
    assert seen[:2] == [500, 100]
    assert len(seen) >= 2 + 11
    assert 0 < found.loader.n_samples <= sum(seen[2:])
    assert found.ratio == found.perfect.samples_per_second / found.loader.samples_per_second


def test_batches_may_be_mappings(dataset: Any) -> None:
    trainer = st.Trainer(nn.Linear(8, 3), loss="cross_entropy")
    with st.StreamLoader(dataset, batch_size=500, memory="16MB", transform=lambda batch: batch._asdict()) as loader:
        assert headspace(trainer, loader, seconds=0.01).ratio > 0


def test_train_tells_it_after_the_run(
    dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtrain.cli.train.headspace", partial(headspace, seconds=0.05))
    args = ["train", str(dataset.path), "--model", "linear", "--epochs", "1", "--memory", "16MB", "--headspace"]
    assert main([*args, "--out", str(tmp_path / "a"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["headspace"]["ratio"] > 0
    assert result["steps"] == 3, "what the headspace trains is no part of the run"
    assert main([*args, "--out", str(tmp_path / "b")]) == 0
    assert "\nheadspace " in capsys.readouterr().out


@pytest.mark.parametrize("error", [st.errors.DivergedError("the loss is nan"), KeyboardInterrupt()])
def test_whatever_ends_it_the_runs_result_is_told(
    error: BaseException,
    dataset: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("streamtrain.cli.train.headspace", fail)
    args = ["train", str(dataset.path), "--model", "linear", "--epochs", "1", "--memory", "16MB", "--headspace"]
    code = main([*args, "--out", str(tmp_path / "a"), "--json"])
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["steps"], result["headspace"]) == (3, None)
    told = [line for line in err.splitlines() if not line.startswith("hint: ")]
    if isinstance(error, KeyboardInterrupt):
        assert (code, told[0]) == (130, "error: interrupted")
    else:
        assert (code, told) == (0, ["warning: the headspace was not measured: the loss is nan"])
