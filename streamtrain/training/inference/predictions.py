"""From a model's outputs to predictions: classes and their probabilities, labels, or numbers in the data's units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import UsageError
from streamtrain.models.alignment import LossKind
from streamtrain.models.losses import Loss
from streamtrain.store.schema.columns import TARGET, Schema
from streamtrain.training.inference.saved_run import SavedRun, class_names
from streamtrain.training.labels.facts import MOST_CLASSES, task_of_loss
from streamtrain.training.labels.reading import LabelReading
from streamtrain.training.metrics.classification import largest
from streamtrain.training.metrics.running import bad_rows

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Predictions for consecutive rows."""

    first_row: int
    prediction: Array  # the stored label of a class, 0 or 1 a label, numbers; (n,) or (n, k)
    probabilities: Array | None = None  # of each class, (n, K), or of each label, (n, k): float32
    class_numbers: Array | None = None  # of classification: of the class that is predicted, (n,)
    n_classes: int | None = None
    id: Array | None = None
    unseen: Mapping[str, int] | None = None
    bad_rows: Array | None = None  # the numbers of those whose prediction is no finite number, where there are some
    files: tuple[str, ...] | None = None  # of all rows, by their numbers

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def rows(self) -> Array:
        """The numbers of the rows, from 0."""
        return np.arange(self.first_row, self.first_row + len(self))

    @property
    def probability(self) -> Array | None:
        """The probability of the class that is predicted, (n,)."""
        if self.probabilities is None or self.class_numbers is None:
            return None
        numbers = self.class_numbers[:, None]
        chosen: Array = np.take_along_axis(self.probabilities, numbers, axis=1)[:, 0]
        return chosen

    def between(self, start: int, stop: int | None) -> Part:
        """Return those of rows [start, stop)."""
        first = max(0, start - self.first_row)
        last = len(self) if stop is None else max(first, min(len(self), stop - self.first_row))

        def cut(values: Array | None) -> Array | None:
            return None if values is None else values[first:last]

        return replace(
            self,
            first_row=self.first_row + first,
            prediction=self.prediction[first:last],
            probabilities=cut(self.probabilities),
            class_numbers=cut(self.class_numbers),
            id=cut(self.id),
            bad_rows=self._bad_between(self.first_row + first, self.first_row + last),
        )

    def _bad_between(self, start: int, stop: int) -> Array | None:
        return None if self.bad_rows is None else self.bad_rows[(self.bad_rows >= start) & (self.bad_rows < stop)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionForm:
    """What the outputs of a model are: its task, its classes, the names of its targets."""

    task: str | None
    classes: tuple[str, ...] | None = None
    values: tuple[int | float, ...] | None = None  # the stored labels of classes 0, 1, ...
    targets: tuple[str, ...] = ()
    label: str = TARGET  # what is predicted, in words
    has_one_target: bool = False
    has_output_per_class: bool = False  # else one output may tell two classes apart

    def class_name(self, number: int) -> str:
        """Return the name of a class."""
        return str(number) if self.classes is None or number >= len(self.classes) else self.classes[number]

    def part(self, output: Tensor, first_row: int, id_: Array | None, *, probabilities: bool = True) -> Part:
        """Make predictions of outputs (n, ...), with the probabilities of classes and labels or without."""
        part = self._part(output, first_row, id_, probabilities=probabilities)
        bad = bad_rows(output)
        return replace(part, bad_rows=first_row + bad) if len(bad) else part

    def _part(self, output: Tensor, first_row: int, id_: Array | None, *, probabilities: bool) -> Part:
        if self.task == "classification":
            by_two = _of_two_classes(output) if self._tells_two(output) else None
            # Of the outputs, as an evaluation counts: in the probabilities, rounding makes ties.
            numbers = (largest(output) if by_two is None else by_two.argmax(1)).cpu().numpy()
            told = torch.softmax(output, 1) if by_two is None and probabilities else by_two
            return Part(
                first_row=first_row,
                prediction=self._labels(numbers),
                probabilities=None if told is None else told.float().cpu().numpy(),
                class_numbers=numbers,
                n_classes=2 if by_two is not None else output.shape[1],
                id=id_,
            )
        if self.task == "multilabel":
            of_labels = torch.sigmoid(output.float()).cpu().numpy() if probabilities else None
            prediction = (output > 0).to(torch.int64).cpu().numpy()
            return Part(first_row=first_row, prediction=prediction, probabilities=of_labels, id=id_)
        values = output[:, 0] if output.ndim == 2 and output.shape[1] == 1 and self.has_one_target else output
        values = values.float() if values.dtype == torch.bfloat16 else values
        return Part(first_row=first_row, prediction=values.cpu().numpy(), id=id_)

    def is_by_batch(self, output: Tensor) -> bool:
        """Whether a prediction depends on its place among the others, in its last bit: a sigmoid's does."""
        return self.task == "multilabel" or (self.task == "classification" and self._tells_two(output))

    def _tells_two(self, output: Tensor) -> bool:
        return not self.has_output_per_class and (output.ndim == 1 or output.shape[1] == 1)

    def _labels(self, numbers: Array) -> Array:
        if self.values is None:
            return numbers
        stored = np.asarray(self.values)
        if stored.dtype.kind == "f" and (stored == np.floor(stored)).all():
            stored = stored.astype(np.int64)
        labels: Array = stored[numbers]
        return labels


def _of_two_classes(output: Tensor) -> Tensor:
    second = torch.sigmoid(output.reshape(len(output)))
    return torch.stack([1 - second, second], dim=1)


def form_of_run(run: SavedRun) -> PredictionForm:
    """Return the form of a run's predictions."""
    values = run.config.get("class_values")
    return _form(
        run.task,
        run.loss_kind,
        class_names(run),
        None if values is None else tuple(values),
        run.schema,
        run.config["target"],
    )


def form_of_loss(loss: Loss, reading: LabelReading, schema: Schema, target: str) -> PredictionForm:
    """Return the form of the predictions of a model that was trained with a loss."""
    field = schema.field(target)
    task = task_of_loss(loss.name, loss.kind, None if field is None else field.shape)
    classes = schema.classes if task == "classification" else None
    if reading.values is not None:
        classes = tuple(f"{value:.0f}" for value in reading.values)
    return _form(task, loss.kind, classes, reading.values, schema, target)


def _form(
    task: str | None,
    kind: LossKind,
    classes: tuple[str, ...] | None,
    values: tuple[int | float, ...] | None,
    schema: Schema,
    target: str,
) -> PredictionForm:
    field, named = schema.field(target), schema.columns.get(target, ())
    return PredictionForm(
        task=task,
        classes=classes,
        values=values,
        targets=schema.targets,
        label=named[0] if len(named) == 1 else target,
        has_one_target=field is None or not field.shape,
        has_output_per_class=kind == "classes",
    )


def check_probabilities(form: PredictionForm, n_classes: int) -> None:
    """Refuse to write the probabilities of more classes than a table has columns for."""
    if form.task == "classification" and n_classes > MOST_CLASSES:
        what = f"probabilities of {n_classes:,} classes, and at most {MOST_CLASSES:,} are written"
        raise UsageError(what, fix="leave it out, for the probability of the predicted class")
