"""Schedules: tried before they are used, tied to the run they were made for, and distinguished by their names."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, ReduceLROnPlateau

import streamtrain as st
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.optim.schedules import OptimizerSchedules, RunLength, Schedule, beta1_of

N, BATCH = 96, 16
RUN = RunLength(n_epochs=5, n_steps=50)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    return st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, tmp_path_factory.mktemp("data") / "d.zarr")


def trainer_of(**options: Any) -> st.Trainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Linear(4, 2)
    return st.Trainer(model, loss="cross_entropy", device="cpu", **options)


def loader_of(dataset: st.Dataset) -> st.StreamLoader:
    return st.StreamLoader(dataset, batch_size=BATCH, memory="8MB")


def sgd(*lrs: float) -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs or (0.1,)]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("step", {"step_size": "x"}, r"step with step_size='x': .*scheduler\.StepLR takes"),
        ("step", {"step_size": 0}, "step with step_size=0: integer"),
        ("cosine", {"T_max": 0}, "cosine with T_max=0: "),
        ("cosine", {"eta_min": None}, "cosine with eta_min=None: "),
        ("exponential", {"gamma": "nan"}, "exponential with gamma='nan': "),
        ("exponential", {"gamma": math.nan}, "the learning rate becomes nan"),
        ("cyclic", {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 0}, "division by zero"),
        ("onecycle", {"pct_start": 2}, "onecycle with pct_start=2: Expected float between 0 and 1"),
        (
            "multistep",
            {"milestones": "x"},
            r"milestones is 'x', which is not a list of integers. Fix: .*'milestones': \[30, 80",
        ),
        ("multistep", {"milestones": [1.5]}, "milestones is .* not a list of integers"),
        ("multistep", {"milestones": 3}, "milestones is 3, which is not a list of integers"),
        ("constant", {"total_iters": "x"}, "total_iters is 'x', which is not a number. Fix: .*'total_iters': 5"),
        ("plateau", {"patience": "x"}, "patience is 'x', which is not a number"),
    ],
)
def test_what_torch_would_trip_over_later_is_refused_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        OptimizerSchedules(sgd(), Schedule(name=name, options=options))
    assert str(caught.value).count("Fix:") == 1


def test_more_than_one_step_is_tried_before_a_run() -> None:
    schedules = OptimizerSchedules(sgd(), Schedule(name="exponential", options={"gamma": 1e300}))
    with pytest.raises(UsageError, match="the learning rate becomes inf"):
        schedules.begin(RUN)


def test_a_schedule_that_ends_before_its_run_is_refused() -> None:
    schedules = OptimizerSchedules(sgd(), Schedule(name="onecycle", options={"total_steps": 49}))
    with pytest.raises(UsageError, match="it ends after 49 of 50 steps"):
        schedules.begin(RUN)
    OptimizerSchedules(sgd(), Schedule(name="onecycle", options={"total_steps": 50})).begin(RUN)


def test_trying_a_schedule_changes_nothing_and_warns_of_nothing() -> None:
    optimizer = torch.optim.Adam([{"params": [nn.Parameter(torch.zeros(1))], "lr": torch.tensor(0.5)}])
    before = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OptimizerSchedules(optimizer, Schedule(name="onecycle", options={"max_lr": 1.0}))
        Schedule(name="exponential", options={"gamma": 0.5}).check(optimizer, RUN)
    assert {name: value for name, value in optimizer.param_groups[0].items() if name != "params"} == before
    assert float(optimizer.param_groups[0]["lr"]) == 0.5
    Schedule(name="onecycle", options={"max_lr": [0.1, 0.2]}).check(sgd(0.1, 0.2), RUN)
    named = torch.optim.SGD(nn.Linear(2, 2).named_parameters(), lr=0.1)
    Schedule(name="cosine").check(named, RUN)
    with pytest.raises(UsageError, match="onecycle with "):
        Schedule(name="onecycle", options={"max_lr": [0.1, 0.2]}).check(sgd(0.1), RUN)


def test_a_run_of_a_single_step_may_have_any_schedule() -> None:
    for name in ("cosine", "onecycle", "linear", "plateau"):
        OptimizerSchedules(sgd(), name).begin(RunLength(n_epochs=1, n_steps=1))


def test_beta1_that_ends_with_the_run_knows_another_end(dataset: st.Dataset, tmp_path: Path) -> None:
    with loader_of(dataset) as loader:
        trainer_of(beta1="linear:0.5").fit(loader, max_epochs=1, checkpoint=tmp_path / "r")
        with pytest.raises(CheckpointError, match="beta1_steps: 6 there, 12 here"):
            trainer_of(beta1="linear:0.5").fit(loader, max_epochs=2, checkpoint=tmp_path / "r", resume="auto")
        same = trainer_of(beta1="linear:0.5").fit(loader, max_epochs=1, checkpoint=tmp_path / "r", resume="auto")
        assert same.counts.n_epochs == 1
        trainer = trainer_of(beta1="linear:0.5")
        trainer.fit(loader, max_epochs=1)
        with pytest.raises(UsageError, match="beta1 was set up for 6 steps; this call has 12"):
            trainer.fit(loader, max_epochs=2)


@pytest.mark.parametrize("beta1", ["exponential:0.9", lambda step: 0.5])
def test_beta1_without_an_end_goes_on(dataset: st.Dataset, tmp_path: Path, beta1: Any) -> None:
    with loader_of(dataset) as loader:
        trainer_of(beta1=beta1).fit(loader, max_epochs=1, checkpoint=tmp_path / "r")
        again = trainer_of(beta1=beta1).fit(loader, max_epochs=2, checkpoint=tmp_path / "r", resume="auto")
    assert again.counts.n_epochs == 2


def cyclic(optimizer: Optimizer) -> CyclicLR:
    return CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=2, cycle_momentum=False)


@pytest.mark.parametrize(
    ("beta1", "expected"),
    [("linear:0.5", {1: 0.9, 3: 0.7, 5: 0.5, 9: 0.5}), ("exponential:0.5", {1: 0.9, 3: 0.225})],
)
def test_beta1_follows_from_its_text(beta1: str, expected: dict[int, float]) -> None:
    function = beta1_of(beta1, 0.9, n_steps=5)
    assert {step: function(step) for step in expected} == pytest.approx(expected)


def test_a_factory_goes_by_epoch_whatever_it_is_called() -> None:
    assert Schedule(name="cyclic", options={"base_lr": 0.01, "max_lr": 0.1}).every_ == "step"
    assert Schedule(name=cyclic).every_ == "epoch"
    assert Schedule(name=cyclic, every="step").every_ == "step"
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    OptimizerSchedules(adam, cyclic, "exponential:0.9").begin(RUN)


def test_a_factory_of_a_plateau_by_step_is_refused() -> None:
    schedules = OptimizerSchedules(sgd(), Schedule(name=lambda optimizer: ReduceLROnPlateau(optimizer), every="step"))
    with pytest.raises(UsageError, match=r"every step\. It watches the loss of epochs\. Fix: every='epoch'"):
        schedules.begin(RUN)
