"""Worlds of calls in Python: unknown arguments, arrays where a dataset is meant, batches of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import streamtrain as st
from tests.advice.world import World, X, Y, world

_NAMES = "system/calls/argument_names.py:"
_GIVEN = "training/inference/given_batches.py:"


def fit(data: object, **given: Any) -> None:
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    trainer.fit(data, **{"max_epochs": 1, "progress": False, "memory": "16MB"} | given)  # type: ignore[arg-type]


@world(
    f"{_NAMES}unknown_argument: leave it out",
    f"{_NAMES}unknown_argument: give {{}} to {{}}",
    f"{_NAMES}unknown_argument: did you mean {{}}?",
    f"{_NAMES}unknown_argument: use one of the known argument names",
    f"{_NAMES}_renamed: it is {{}} here",
    f"{_GIVEN}arrays_given: name the second: val=",
    f"{_NAMES}surplus_argument: leave the others out",
    f"{_NAMES}surplus_argument: name the others: {{}}, say",
)
def arguments(w: World) -> None:
    data = w.dataset()
    assert w.refused(st.StreamLoader, data, num_workers=2) == "leave it out"
    assert w.refused(fit, data, lr=0.1) == "give lr=0.1 to Trainer"
    assert w.refused(fit, data, max_epoch=1) == "did you mean 'max_epochs'?"
    assert w.refused(fit, data, qqq=1) == "use one of the known argument names"
    assert w.refused(fit, data, validation_data=data) == "it is 'val' here"
    assert w.refused(st.StreamLoader, data, 32) == "name the others: batch_size=32, say"
    assert w.refused(st.Batch.__getitem__, (1,), 1, 2) == "leave the others out"
    st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu", lr=0.1)
    fit(data, val=data, memory="64MB")
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    assert w.refused(trainer.fit, data, "d.zarr", max_epochs=1) == "name the second: val="
    assert w.refused(st.plot, trainer.history, "x.png") == "name the others: path='x.png', say"
    assert w.refused(st.plot, trainer.history, out="x.png") == "path='x.png'"
    st.plot(trainer.history, path="x.png")
    assert w.refused(st.ingest, {"x": X}, "n.zarr", val_split=0.5) == "split={'val': 0.5}"
    assert w.refused(fit, data, verbose=1) == "progress=True"
    st.StreamLoader(data, batch_size=32, memory="16MB").close()


@world(
    "loader/stream_loader.py:StreamLoader.__getitem__: iterate it, without a DataLoader around it; next(iter(loader)) is a "
    "batch, {}"
)
def a_loader_by_index(w: World) -> None:
    with st.StreamLoader(w.dataset(), memory="16MB") as loader:
        w.refused(lambda: loader[0])
        assert loader.dataset[0]["x"].shape == (4,)
        assert len(next(iter(loader)).x) == 60


@world("training/batch_stream.py:missing_field: Trainer(inputs={}, target={}, ...)")
def fields_of_other_names(w: World) -> None:
    data = st.ingest({"images": X, "labels": Y}, "d.zarr", progress=False)
    assert w.refused(fit, data) == "Trainer(inputs='images', target='labels', ...)"
    model = nn.Linear(4, 3)
    named = st.Trainer(model, loss="cross_entropy", device="cpu", inputs="images", target="labels")
    named.fit(data, max_epochs=1, progress=False, memory="16MB")


@world("training/run/run_folder.py:_no_such_run: did you mean {}?")
def a_run_of_another_name(w: World) -> None:
    data = w.dataset()
    fit(data, checkpoint="runs/first")
    assert w.refused(st.load, "runs/fist", model=nn.Linear(4, 3)) == "did you mean 'runs/first'?"
    st.load("runs/first", model=nn.Linear(4, 3))


@world(
    f"{_GIVEN}fields_by_name: give tensors or arrays, numpy.asarray(x) of a list, for {{}}; or a dict of them",
    f"{_GIVEN}GivenBatches.__init__: {{{{}}}}",
    f"{_GIVEN}GivenBatches.__init__: at least one; an iterator is used up once it was read",
)
def given_batches(w: World) -> None:
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    for wrong in (iter(["a"]), X, iter(())):
        w.refused(trainer.evaluate, wrong)
    for right in (iter([(X, Y)]), {"x": X, "y": Y}, [{"x": torch.from_numpy(X), "y": np.asarray(Y)}]):
        assert trainer.evaluate(right).n_samples == 60


@world(f"{_NAMES}missing_argument: {{}}: {{}}")
def calls_without_what_they_need(w: World) -> None:
    w.refused(st.open)
    w.dataset()
    st.open("d.zarr")


@world(
    "comparison/compare.py:_check_places: compare(trainer.model, dataset), with its loss and options as arguments",
    "comparison/compare.py:_check_places: compare(model, dataset)",
)
def comparisons_of_what_stands_elsewhere(w: World) -> None:
    data, model = w.dataset(), nn.Linear(4, 3)
    how: dict[str, Any] = {"rules": ("batch",), "optimizers": ("sgd",), "max_epochs": 1, "memory": "16MB"}
    w.refused(st.compare, data, model, **how)
    st.compare(model, data, **how)
    trainer = st.Trainer(model, loss="cross_entropy", device="cpu")
    w.refused(st.compare, trainer, data, **how)
    st.compare(trainer.model, data, loss="cross_entropy", **how)
