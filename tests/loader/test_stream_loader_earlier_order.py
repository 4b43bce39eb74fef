"""States and runs of the order before this one: refused inside a shuffled epoch, resumed everywhere else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.training.run.checkpoint import newest_checkpoint

N, BATCH_SIZE = 300, 20
EPOCH_BATCHES = N // BATCH_SIZE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    fields = {"x": x, "y": (x[:, 0] > 0).astype(np.int64)}
    return st.ingest(fields, tmp_path_factory.mktemp("data") / "d.zarr", block=24 * 5, codec="none")


def loader_of(dataset: st.Dataset, **options: Any) -> st.StreamLoader:
    return st.StreamLoader(dataset, batch_size=BATCH_SIZE, memory="16MB", **options)


def of_order_1(state: dict[str, Any]) -> dict[str, Any]:
    """The same place in a state of the release before."""
    lanes = {"lanes": 14, "groups": 1} if state["shuffle"] else {}
    return {**{name: value for name, value in state.items() if name != "order"}, "version": 1, **lanes}


def labels(loader: st.StreamLoader) -> list[list[int]]:
    return [batch.y.tolist() for batch in loader]


def test_a_state_tells_its_order(dataset: st.Dataset) -> None:
    with loader_of(dataset) as shuffled, loader_of(dataset, shuffle=False) as stored:
        assert (shuffled.order_version, shuffled.state_dict()["order"]) == (3, 3)
        assert (stored.order_version, stored.state_dict()["order"]) == (None, None)
        with pytest.raises(UsageError, match="shuffle: True there, False here"):
            stored.load_state_dict(of_order_1(shuffled.state_dict()))


def test_inside_an_epoch_it_is_refused_with_what_made_it_and_what_to_do(dataset: st.Dataset) -> None:
    with loader_of(dataset) as loader:
        state = of_order_1(loader.state_dict() | {"epoch": 4, "batch": 3})
        with pytest.raises(
            CheckpointError, match="inside epoch 4 of order 1, and this release makes order 3"
        ) as caught:
            loader.load_state_dict(state)
        assert caught.value.exit_code == 6
        assert "streamtrain 0.1.0" in str(caught.value)
        assert "Fix: finish that epoch with the release that began it, or begin a new run" in str(caught.value)
        assert loader.state_dict()["epoch"] == 0, "the loader stands where it stood"


def test_between_epochs_the_next_is_of_this_order_by_its_own_lanes(dataset: st.Dataset) -> None:
    with loader_of(dataset, seed=9) as loader, loader_of(dataset, seed=9) as other:
        loader.load_state_dict(of_order_1(other.state_dict() | {"epoch": 4, "batch": 0}))
        assert (loader.epoch, loader.seed, loader.sizes) == (4, 9, other.sizes)
        other.set_epoch(4)
        assert labels(loader) == labels(other)


def test_epochs_that_are_all_alike_do_not_change_on_the_way(dataset: st.Dataset) -> None:
    with loader_of(dataset, reshuffle="never") as loader:
        state = of_order_1(loader.state_dict())
        loader.load_state_dict(state)
        with pytest.raises(CheckpointError, match="after 2 epochs that are all alike"):
            loader.load_state_dict(state | {"epoch": 2})


def test_the_stored_order_goes_on_from_anywhere(dataset: st.Dataset) -> None:
    with loader_of(dataset, shuffle=False) as loader:
        whole = labels(loader)
        loader.load_state_dict(of_order_1(loader.state_dict() | {"epoch": 4, "batch": 3}))
        assert labels(loader) == whole[3:]


@pytest.mark.parametrize("version", [0, 3, None, "1"])
def test_a_state_of_no_known_version_is_refused(dataset: st.Dataset, version: object) -> None:
    with loader_of(dataset) as loader, pytest.raises(UsageError, match="version: "):
        loader.load_state_dict(loader.state_dict() | {"version": version})


def make_old(run: Path) -> None:
    """Rewrite a run's newest checkpoint and its configuration as the release before wrote them."""
    folder = newest_checkpoint(run).path
    state = json.loads((folder / "state.json").read_text())
    state["stream"] = of_order_1(state["stream"])
    state["identity"].pop("order", None)
    text = json.dumps(state).encode()
    (folder / "state.json").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = json.loads((run / "config.json").read_text())
    config.pop("order", None)
    (run / "config.json").write_text(json.dumps(config))


def fit(dataset: st.Dataset, run: Path, *, update: str = "batch", **how: Any) -> Any:
    torch.manual_seed(0)
    trainer = st.Trainer(nn.Linear(4, 2), loss="cross_entropy", update=update, lr=0.1)
    with loader_of(dataset, shuffle=update != "epoch") as loader:
        return trainer.fit(loader, checkpoint=run, progress=False, **how)


class Enough(Exception):
    """Ends a run inside an epoch."""


def stopped_inside(dataset: st.Dataset, run: Path, update: str) -> None:
    """A run whose newest checkpoint is inside its second epoch, of the order before."""
    seen = 0

    def stop() -> None:
        nonlocal seen
        seen += 1
        if seen == EPOCH_BATCHES + 8:
            raise Enough

    torch.manual_seed(0)
    trainer = st.Trainer(nn.Linear(4, 2), loss="cross_entropy", update=update, lr=0.1, on_step=stop)
    with loader_of(dataset, shuffle=update != "epoch") as loader, pytest.raises(Enough):
        trainer.fit(loader, max_epochs=3, checkpoint=run, checkpoint_every=5, progress=False)
    make_old(run)


def test_a_run_of_the_order_before_is_not_resumed_inside_an_epoch(dataset: st.Dataset, tmp_path: Path) -> None:
    stopped_inside(dataset, tmp_path / "run", "batch")
    with pytest.raises(CheckpointError, match="inside epoch 1 of order 1") as caught:
        fit(dataset, tmp_path / "run", max_epochs=3, checkpoint_every=5, resume="auto")
    assert (caught.value.where or "").endswith("00000020")


def test_what_is_over_stays_over_wherever_its_stream_stood(dataset: st.Dataset, tmp_path: Path) -> None:
    stopped_inside(dataset, tmp_path / "run", "batch")
    history = fit(dataset, tmp_path / "run", max_epochs=3, max_steps=20, checkpoint_every=5, resume="auto")
    assert (len(history), history.resumed_from_batch, history.stopped_by) == (0, 20, "steps")


def test_a_run_between_epochs_goes_on(dataset: st.Dataset, tmp_path: Path) -> None:
    fit(dataset, tmp_path / "run", max_epochs=2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["order"] == 3
    make_old(tmp_path / "run")
    assert len(fit(dataset, tmp_path / "run", max_epochs=2, resume="auto")) == 0
    make_old(tmp_path / "run")
    assert fit(dataset, tmp_path / "run", max_epochs=3, resume="auto").counts.n_epochs == 3


def test_the_epoch_rule_goes_on_inside_a_pass(dataset: st.Dataset, tmp_path: Path) -> None:
    whole = fit(dataset, tmp_path / "whole", update="epoch", max_epochs=3, checkpoint_every=5)
    fit(dataset, tmp_path / "run", update="epoch", max_epochs=2, checkpoint_every=5)
    make_old(tmp_path / "run")
    resumed = fit(dataset, tmp_path / "run", update="epoch", max_epochs=3, checkpoint_every=5, resume="auto")
    assert resumed.epochs[-1].train.loss == whole.epochs[-1].train.loss
