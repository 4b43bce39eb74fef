"""Worlds of tasks: labels that could be read in more than one way, and ones that cannot be read as told."""

from __future__ import annotations

import numpy as np
from torch import nn

import streamtrain as st
from streamtrain.training.labels.reading import settled
from tests.advice.training import fit, net
from tests.advice.world import World, X, Y, world
from tests.support.in_memory import Arrays, Batches

_INGEST = "ingestion/ingest.py:"
_READING = "training/labels/reading.py:"
_TRAIN = "train d.zarr --model linear --epochs 1"


@world("ingestion/opening.py:_check_has_labels: give labels, or leave {} out")
def a_task_without_labels(w: World) -> None:
    w.refused(st.ingest, {"x": X}, "d.zarr", task="regression")
    st.ingest({"x": X}, "a.zarr")
    st.ingest({"x": X, "y": Y}, "b.zarr", task="regression")


@world(f"{_INGEST}_check_same_task: leave it out, and give it to the training")
def another_task_of_appended_rows(w: World) -> None:
    w.dataset()
    w.refused(st.ingest, {"x": X, "y": Y}, "d.zarr", task="regression", append=True)
    st.ingest({"x": X, "y": Y}, "d.zarr", append=True)
    w.works(f"{_TRAIN} --task regression")


@world(f"{_INGEST}_tell_other_task: task={{}}")
def an_append_that_leaves_the_task_open(w: World) -> None:
    w.dataset()
    w.warned(st.ingest, {"x": X, "y": Y + 7}, "d.zarr", append=True)
    w.works(f"{_TRAIN} --task classification")


@world(f"{_READING}settled: loss={{}}, or task={{}}")
def a_loss_of_another_task(w: World) -> None:
    w.dataset()
    w.typed(f"{_TRAIN} --loss mse --task classification")


@world(f"{_READING}check_ignoring: loss='cross_entropy', or leave ignore_label= out")
def an_ignored_label_without_classes(w: World) -> None:
    w.dataset()
    w.refuses(f"{_TRAIN} --loss mse --ignore-label 2")
    w.works(f"{_TRAIN} --loss cross_entropy --ignore-label 2")
    w.works(f"{_TRAIN} --loss mse")


@world(
    "training/labels/from_data.py:is_known: leave model_args= out, or name the model by text",
    f"{_READING}check_ignored_label: ignore_label=-1, say",
    "training/labels/from_data.py:build_from_data: a model that is ready, and loss='cross_entropy', say, without task=",
    "training/labels/from_data.py:build_from_data: fit first, or give a model that is ready",
    "training/labels/from_data.py:build_from_data: target= names another",
)
def trainers_that_wait_for_their_data(w: World) -> None:
    data, model_args = w.dataset(), {"width": 4}
    w.refused(st.Trainer, net(), model_args=model_args)
    st.Trainer(net())
    w.refused(st.Trainer, "linear", ignore_label="-1")
    st.Trainer("linear", ignore_label=-1)
    trainer = st.Trainer("linear")
    w.refused(trainer.evaluate, data)
    trainer.fit(data, max_epochs=1, batch_size=20, memory="16MB", progress=False)
    trainer.evaluate(data)
    w.refused(st.Trainer("linear", loss="mse", target="z").fit, data, max_epochs=1, progress=False)
    stream = Batches(Arrays(x=X.astype("f4"), y=Y.astype(np.int64)))
    w.refused(st.Trainer(net()).evaluate, stream)
    st.Trainer(net(), loss="cross_entropy").evaluate(stream)


@world(f"{_READING}_by_task: ingest them as field y")
def a_task_of_no_field(w: World) -> None:
    data = st.ingest({"x": X}, "d.zarr")
    w.refused(settled, data, "y", None)
    settled(w.dataset("e.zarr"), "y", None)


@world(
    f"{_READING}LabelReading._numbered: divide the samples so that every class is in both, or leave those out",
)
def a_class_that_training_lacks(w: World) -> None:
    data = st.ingest({"x": X, "y": Y - 1}, "d.zarr", classes="auto")
    more = st.ingest({"x": X, "y": Y + 4}, "e.zarr", classes="auto")
    trainer = fit(data)
    w.refused(trainer.evaluate, more)
    trainer.evaluate(data)


@world(f"{_READING}_check_ignored: store another number, such as -1, for what is ignored")
def an_ignored_label_that_is_a_class(w: World) -> None:
    data = st.ingest({"x": X, "y": Y + 1}, "d.zarr", classes="auto")
    w.refused(fit, data, loss=nn.CrossEntropyLoss(ignore_index=1))
    other = st.ingest({"x": X, "y": np.where(Y == 0, -1, Y)}, "e.zarr", classes="auto")
    fit(other, net(2), loss=nn.CrossEntropyLoss(ignore_index=-1))


@world("store/schema/task.py:check_told: task={}")
def a_task_that_labels_cannot_be_of(w: World) -> None:
    w.dataset(y=Y * 1.5)
    w.typed(f"{_TRAIN} --task classification")


@world(f"{_READING}settled: loss='cross_entropy'")
def a_loss_for_two_classes(w: World) -> None:
    w.dataset()
    w.typed(f"{_TRAIN} --loss bce_with_logits")
