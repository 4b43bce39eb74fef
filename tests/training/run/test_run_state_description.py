"""The description of a run: whether it was shuffled stands in its configuration, its report, and what it resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.diagnostics.run_reader import read_run
from streamtrain.diagnostics.run_report import run_page
from streamtrain.errors import CheckpointError
from streamtrain.training.run.checkpoint import newest_checkpoint
from streamtrain.training.run.run_description import describe_run

N = 120


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    source = {"x": rng.normal(size=(N, 3)).astype(np.float32), "y": rng.integers(0, 2, N)}
    return st.ingest(source, tmp_path_factory.mktemp("data") / "d.zarr", progress=False)


def fit(dataset: st.Dataset, run: Path, *, shuffle: bool, update: str = "batch", **more: Any) -> st.Trainer:
    torch.manual_seed(0)
    trainer = st.Trainer(nn.Linear(3, 2), loss="cross_entropy", update=update, optimizer="sgd", device="cpu")
    with st.StreamLoader(dataset, batch_size=20, memory="16MB", shuffle=shuffle) as loader:
        trainer.fit(loader, checkpoint=run, progress=False, **more)
    return trainer


def with_dataset(run: Path, dataset: st.Dataset) -> Path:
    """The run, as the command leaves it: it knows where its data is."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dataset": str(dataset.path)}))
    return run


@pytest.mark.parametrize(
    ("shuffle", "update", "is_shuffled", "said"),
    [
        (True, "batch", True, "times a full reshuffle"),
        (False, "batch", False, "None: the run read in stored order, since its loader was made with shuffle=False."),
        (True, "epoch", False, "None: the rule epoch reads in stored order"),
    ],
)
def test_what_was_not_shuffled_is_not_reported_as_shuffled(
    dataset: st.Dataset, tmp_path: Path, shuffle: bool, update: str, is_shuffled: bool, said: str
) -> None:
    fit(dataset, tmp_path / "run", shuffle=shuffle, update=update, max_epochs=1)
    told = read_run(with_dataset(tmp_path / "run", dataset))
    assert told.config["shuffle"] is is_shuffled
    page = run_page(told)
    assert said in page
    assert ("random" in page) == is_shuffled


def test_a_run_goes_on_only_shuffled_as_it_was(dataset: st.Dataset, tmp_path: Path) -> None:
    fit(dataset, tmp_path / "run", shuffle=True, max_epochs=1)
    with pytest.raises(CheckpointError, match="shuffle: True there, False here"):
        fit(dataset, tmp_path / "run", shuffle=False, max_epochs=2, resume="auto")
    assert fit(dataset, tmp_path / "run", shuffle=True, max_epochs=2, resume="auto").counts.n_epochs == 2


@pytest.mark.parametrize(("shuffle", "update"), [(True, "batch"), (False, "batch"), (False, "epoch")])
def test_a_run_of_before_the_shuffle_was_described_goes_on(
    dataset: st.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool, update: str
) -> None:
    def of_before(*given: Any) -> Mapping[str, object]:
        return {name: value for name, value in describe_run(*given).items() if name != "shuffle"}

    with monkeypatch.context() as patch:
        patch.setattr("streamtrain.training.trainer.describe_run", of_before)
        fit(dataset, tmp_path / "run", shuffle=shuffle, update=update, max_epochs=1)
    assert "shuffle" not in read_run(tmp_path / "run").config
    trainer = fit(dataset, tmp_path / "run", shuffle=shuffle, update=update, max_epochs=2, resume="auto")
    assert trainer.counts.n_epochs == 2


def change_state(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state of a run's newest checkpoint, under a manifest that agrees with it."""
    folder = newest_checkpoint(run).path
    state = json.loads((folder / "state.json").read_text())
    change(state)
    data = json.dumps(state).encode()
    (folder / "state.json").write_bytes(data)
    told = json.loads((folder / "manifest.json").read_text())
    told["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(told))


def without_option(name: str, *, told: bool) -> Callable[[dict[str, Any]], None]:
    """Leave out an option of the optimizer; not ``told``, as a version of torch does that has no such option."""

    def change(state: dict[str, Any]) -> None:
        (group,) = dict(dict(state["training"]["dict"])["optimizer"]["dict"])["param_groups"]
        group["dict"] = [pair for pair in group["dict"] if pair[0] != name]
        if not told:
            del state["identity"][f"optimizer.{name}"]

    return change


def test_a_run_of_a_torch_without_an_option_resumes_with_one_that_has_it(dataset: st.Dataset, tmp_path: Path) -> None:
    whole = fit(dataset, tmp_path / "whole", shuffle=True, max_epochs=2)
    fit(dataset, tmp_path / "run", shuffle=True, max_epochs=1)
    change_state(tmp_path / "run", without_option("maximize", told=False))
    resumed = fit(dataset, tmp_path / "run", shuffle=True, max_epochs=2, resume="auto")
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize("name", ["lr", "momentum", "nesterov"])
def test_a_checkpoint_that_lost_an_option_is_refused(dataset: st.Dataset, tmp_path: Path, name: str) -> None:
    fit(dataset, tmp_path / "run", shuffle=True, max_epochs=1)
    change_state(tmp_path / "run", without_option(name, told=True))
    with pytest.raises(CheckpointError, match=f"the optimizer's state has no {name}"):
        fit(dataset, tmp_path / "run", shuffle=True, max_epochs=2, resume="auto")
