"""The options of a trainer's steps: errors name what was given, and a run's folder holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import UsageError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] ** 2 > 0).astype(np.int64)
    return st.ingest({"x": x, "y": y}, tmp_path_factory.mktemp("data") / "d.zarr")


def trainer_of(**options: Any) -> st.Trainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
    return st.Trainer(model, loss="cross_entropy", device="cpu", **options)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"beta1": "linear:0.5"}, "beta1"),
        ({"schedule": "cosine"}, "schedule"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm"),
        ({"clip_grad_value": 1.0}, "clip_grad_value"),
    ],
)
def test_beside_a_line_search_the_option_that_was_given_is_named(given: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} with LBFGS"):
        trainer_of(optimizer="lbfgs", update="epoch", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_path": "fast"}, "sample_path is 'fast' with update='batch'.*Fix: update='sample'"),
        ({"sample_path": "plain", "update": "epoch"}, "sample_path is 'plain' with update='epoch'"),
        ({"grad_sum_dtype": "float32"}, "grad_sum_dtype is 'float32' with update='batch'.*nothing is summed"),
        ({"grad_sum_dtype": "compensated", "update": "sample"}, "with update='sample'"),
    ],
)
def test_what_would_have_no_effect_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        trainer_of(**given)
    assert caught.value.exit_code == 2
    assert "leave it out" in str(caught.value)


def test_what_has_an_effect_is_not() -> None:
    trainer_of(grad_sum_dtype="float32", accumulate_grad_batches=2)
    trainer_of(grad_sum_dtype="float32", update="epoch")
    trainer_of(sample_path="fast", update="sample")


def test_tolerances_are_in_the_runs_configuration_and_free_to_change(dataset: st.Dataset, tmp_path: Path) -> None:
    run, how = tmp_path / "run", {"optimizer": "lbfgs", "update": "epoch", "l2": 1e-2}
    with st.StreamLoader(dataset, batch_size=64, memory="8MB", shuffle=False) as loader:
        first = trainer_of(**how, grad_tolerance=1e-1).fit(loader, max_epochs=50, checkpoint=run)
        config = json.loads((run / "config.json").read_text())
        assert (config["grad_tolerance"], config["loss_tolerance"]) == (1e-1, None)
        again = trainer_of(**how, grad_tolerance=1e-3, loss_tolerance=1e-12)
        second = again.fit(loader, max_epochs=50, checkpoint=run, resume="auto")
    assert (first.stopped_by, second.stopped_by) == ("grad_tolerance", "grad_tolerance")
    assert second.counts.n_steps > first.counts.n_steps
