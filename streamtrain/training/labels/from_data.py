"""Parts of a training that follow from its data: the task and its loss, a model by name and the fields it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.loader.world import OfOneProcess
from streamtrain.models.factory import check_model_name, is_code, make_model
from streamtrain.models.forward import check_model
from streamtrain.models.losses import Loss, resolve_loss
from streamtrain.models.model_data import default_inputs, describe_data
from streamtrain.models.normalization import awaits_statistics
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field
from streamtrain.store.schema.task import check_task
from streamtrain.store.statistics import MOST_VALUES
from streamtrain.training.batch_stream import class_counts
from streamtrain.training.labels.learned import LearnedData
from streamtrain.training.labels.reading import (
    LabelReading,
    check_ignored_label,
    check_ignoring,
    label_reading,
    reading_config,
    settled,
)

_BUILT: Final = ("model", "loss", "optimizer", "counts", "inputs", "way", "reads_in_order")
_USED: Final = ("learned", "_epoch_loop", "_rule", "_learner", "_normalized_model", "_options")
"""Parts of a trainer that its methods need, there once it is built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltFromData:
    """What a trainer's arguments are, once its data is known."""

    arguments: Mapping[str, Any]
    reading: LabelReading
    # What a run's configuration says of a model by name.
    about: Mapping[str, object]


def is_known(given: Mapping[str, Any]) -> bool:
    """Check the arguments of a trainer; say whether all of it can be built before there is data."""
    model, loss = given["model"], given["loss"]
    if isinstance(model, str):
        check_model_name(model)
    else:
        check_model(model)
        if given["model_args"]:
            what = "model_args are given together with a ready model"
            raise UsageError(what, fix=Fix("leave ", Argument("model_args"), " out, or name the model by text"))
    check_task(given["task"])
    awaits_statistics(given["normalize"])  # or refuses what is neither
    ignored = given["ignore_label"]
    check_ignored_label(ignored)
    if loss is not None:
        check_ignoring(resolve_loss(loss, ignore_index=ignored), ignored)
    return not isinstance(model, str) and loss is not None and given["task"] is None


def build_from_data(given: Mapping[str, Any], data: object, seed: int | None) -> BuiltFromData:
    """Make what follows from data; without a seed there is none to make a model by."""
    if not isinstance(data, Dataset):
        what = "the data does not say what its labels are"
        fix = Fix("a model that is ready, and ", Argument("loss", "cross_entropy"), ", say, without ", Argument("task"))
        raise UsageError(what, why="Only a dataset that was ingested says it", fix=fix)
    target, weight, model = given["target"], given["weight"], given["model"]
    described = next((field for field in data.fields if field.name == target), None)
    loss, task = settled(data, target, given["loss"], given["task"], ignore_label=given["ignore_label"])
    reading = label_reading(data, target, loss, task)
    arguments, about = {**given, "loss": loss, "task": None, "ignore_label": None}, {}
    if isinstance(model, str):
        if seed is None:
            what = f"model {model} is made for its training data, and there was none yet"
            raise UsageError(what, fix="fit first, or give a model that is ready")
        if described is None:
            raise UsageError(
                f"no field {target!r}", where=str(data.path), fix=Fix(Argument("target"), " names another")
            )
        takes = None if is_code(model) else not model.startswith("cnn")
        named = given["inputs"]
        inputs = default_inputs(data, takes_fields=takes, target=target, weight=weight) if named is None else named
        facts = describe_data(data, inputs, n_outputs(data, loss, described), loss, task=task)
        built = make_model(model, facts, seed=seed, model_args=given["model_args"])
        arguments |= {"model": built.module, "model_args": None, "inputs": inputs}
        about = {**built.config(), **facts.config(), **reading_config(reading)}
    return BuiltFromData(arguments=arguments, reading=reading, about=about)


def n_outputs(dataset: Dataset, loss: Loss, y: Field) -> int:
    """Return the width that a model's output needs; refuse a loss of class labels where there are none."""
    if loss.kind != "classes":
        return math.prod(y.shape)
    n_classes = class_counts(dataset, y.name, loss)
    if n_classes is None and y.dtype == np.int64:
        what = f"{loss.name} takes class labels from 0 to {MOST_VALUES - 1:,}; field {y.name} holds others"
        hole = _lone_negative(dataset, y)
        if hole is not None:
            fix = Fix(Argument("ignore_label", hole), " if it is not a class; or number the classes from 0")
            raise UsageError(what, where=str(dataset.path), why=f"One of them is {hole}", fix=fix)
        fix = Fix("number the classes from 0, without gaps; store quantities as floats")
        raise UsageError(what, where=str(dataset.path), fix=fix)
    if n_classes is None:
        raise UsageError(
            f"{loss.name} needs class labels 0, 1, ...; field {y.name} is {y.dtype.name}",
            where=str(dataset.path),
            fix=Fix(Argument("loss", "mse"), ", or ingest the labels as integers from 0"),
        )
    return n_classes.start


def _lone_negative(dataset: Dataset, y: Field) -> int | None:
    """Return the only label below 0, which may stand for no class."""
    counted = dataset.histogram(y.name)
    negative = [] if counted is None else counted.values[counted.values < 0].tolist()
    return negative[0] if len(negative) == 1 else None


class BuiltLater(OfOneProcess):
    """A trainer that is built when its data is there, where its model, loss or task follow from that."""

    target: str
    loss: Loss
    learned: LearnedData
    # The arguments of a trainer that is not built yet.
    _given: Mapping[str, Any] | None = None
    _about: Mapping[str, object] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say of what is not there yet when it is: this is called for what is missing alone."""
            if name in _BUILT and self._given is not None:
                raise AttributeError(f"the trainer has no {name} yet: it follows from the data, and fit makes it")
            if name in _USED and self._given is not None:
                raise AttributeError(str(self._not_built()))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def check_built(self) -> None:
        """Refuse what needs all of the trainer, where parts of it wait for the data."""
        if self._given is not None:
            raise self._not_built()

    def _not_built(self) -> UsageError:
        model = self._given and self._given["model"]
        made = f"model {model} is made" if isinstance(model, str) else "its loss is chosen"
        return UsageError(f"the trainer is not complete yet: {made} for its training data", fix="fit first")

    def _build_from(self, data: object, seed: int | None) -> None:
        """Build what has waited for the data."""
        if self._given is not None:
            is_dataset = isinstance(data, Dataset)
            of_loader = seed if is_dataset or seed is None else getattr(data, "seed", seed)
            built = build_from_data(self._given, data if is_dataset else getattr(data, "dataset", None), of_loader)
            self._build(built.arguments)
            self._given, self._about = None, built.about
            self.read_labels(built.reading)

    def _build(self, given: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def read_labels(self, reading: LabelReading) -> None:
        """Give the loss what is read of the labels in this way, in training and evaluation."""
        self.learned.read_as(reading)
