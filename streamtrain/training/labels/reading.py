"""Labels as a training reads them: the task, the loss that goes with it, and classes numbered beside the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.models.losses import Loss, LossFunction, resolve_loss
from streamtrain.store.dataset import Dataset
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.task import (
    Labels,
    LabelTask,
    TaskName,
    check_task,
    check_told,
    describe_labels,
    undecided,
)
from streamtrain.system.arguments import is_int

DEFAULT_LOSSES: Final[dict[TaskName, str]] = {
    "classification": "cross_entropy",
    "multilabel": "bce_with_logits",
    "regression": "mse",
}

TASKS_OF_LOSSES: Final[dict[str, tuple[TaskName, ...]]] = {
    "cross_entropy": ("classification",),
    "nll": ("classification",),
    "bce_with_logits": ("multilabel", "classification"),
    "mse": ("regression",),
    "l1": ("regression",),
    "huber": ("regression",),
    "poisson": ("regression",),
}
"""The tasks that a loss by name is of, the first one by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReading:
    """What the loss is given in place of stored labels: class numbers, floats, or the labels themselves."""

    values: tuple[int | float, ...] | None = None  # the stored labels of classes 0, 1, ...
    ignored: int | None = None
    as_float: bool = False

    def __call__(self, target: Tensor) -> Tensor:
        """Read the labels of a batch."""
        if self.values is not None:
            return self._numbered(target, self.values)
        is_float = target.dtype.is_floating_point or target.is_complex()
        return target.to(torch.get_default_dtype()) if self.as_float and not is_float else target

    def _numbered(self, target: Tensor, values: tuple[int | float, ...]) -> Tensor:
        known = torch.tensor(values, dtype=target.dtype, device=target.device)
        numbers = torch.searchsorted(known, target.contiguous()).clamp(max=len(values) - 1)
        is_known = known[numbers] == target
        if self.ignored is not None:
            is_ignored = target == self.ignored
            numbers = numbers.masked_fill(is_ignored, self.ignored)
            is_known |= is_ignored
        if not bool(is_known.all()):
            raise InputError(
                f"label {target[~is_known][0].item():g} is none of the {len(values):,} classes of the training data",
                fix="divide the samples so that every class is in both, or leave those out",
            )
        return numbers


AS_STORED: Final = LabelReading()


def reading_config(reading: LabelReading) -> dict[str, object]:
    """Return what a run's configuration keeps of a reading; nothing of labels that are taken as they are stored."""
    if reading.values is not None:
        return {"class_values": list(reading.values), "ignored_label": reading.ignored}
    return {"labels_as_float": True} if reading.as_float else {}


def reading_of_config(config: Mapping[str, Any]) -> LabelReading:
    """Return the reading that a run's configuration keeps."""
    values = config.get("class_values")
    return LabelReading(
        values=None if values is None else tuple(values),
        ignored=config.get("ignored_label"),
        as_float=config.get("labels_as_float", False),
    )


def label_reading(data: object, target: str, loss: Loss, task: str | None = None) -> LabelReading:
    """Choose how the labels of training data are read for a loss."""
    if loss.kind == "classes" and target == TARGET and isinstance(data, Dataset):
        values = data.class_values(loss.ignored)
        if values is not None:
            kept = tuple(values.tolist())
            ignored = loss.ignored if _holds(data, loss.ignored) else None
            _check_ignored(ignored, len(kept))
            return LabelReading(values=kept, ignored=ignored)
    return LabelReading(as_float=loss.kind in ("values", "logits") and task is not None)


def _holds(data: Dataset, value: int | None) -> bool:
    histogram = data.label_histogram
    return value is not None and histogram is not None and bool(np.isin(value, histogram.values))


def _check_ignored(ignored: int | None, n_classes: int) -> None:
    if ignored is not None and 0 <= ignored < n_classes:
        raise UsageError(
            f"the ignored label {ignored} would be the number of a class, of which there are {n_classes:,}",
            fix="store another number, such as -1, for what is ignored",
        )


def settled(
    dataset: Dataset,
    target: str,
    loss: str | LossFunction | Loss | None,
    task: str | None = None,
    *,
    ignore_label: int | None = None,
) -> tuple[Loss, TaskName | None]:
    """Return the loss and the task of a training: each as given, by the other, or by the dataset's labels."""
    told, where = check_task(task), str(dataset.path)
    check_ignored_label(ignore_label)
    found = dataset.label_task(target)
    if loss is None:
        # What ignores a label has classes.
        of_classes = told or (None if ignore_label is None else "classification")
        return _by_task(found, of_classes, where, ignore_label)
    resolved = resolve_loss(loss, ignore_index=ignore_label)
    check_ignoring(resolved, ignore_label)
    fitting = TASKS_OF_LOSSES.get(resolved.name)
    if fitting is None or found is None:
        return resolved, told
    if told is not None and told not in fitting:
        fix = Fix(Argument("loss", DEFAULT_LOSSES[told]), ", or ", Argument("task", fitting[0]))
        raise UsageError(f"loss {resolved.name} is one of {' or '.join(fitting)}, and the task {told}", fix=fix)
    name = told or (found.name if found.name in fitting else fitting[0])
    if name == "regression":
        check_told(found.labels, name, where)
    if resolved.kind == "logits" and name == "classification" and not _are_two(found.labels):
        what = f"loss {resolved.name} of {describe_labels(found.labels)}"
        why = "One output tells two classes apart, numbered 0 and 1"
        raise UsageError(what, where=where, why=why, fix=Fix(Argument("loss", "cross_entropy")))
    return resolved, name


def _are_two(labels: Labels) -> bool:
    return not labels.shape and labels.values is not None and set(labels.values) <= {0, 1}


def check_ignored_label(ignore_label: object) -> None:
    """Refuse what is no label to ignore."""
    if ignore_label is not None and not is_int(ignore_label):
        what = f"ignore_label is {ignore_label!r:.80}; it is a whole number"
        raise UsageError(what, fix=Fix(Argument("ignore_label", -1), ", say"))


def check_ignoring(loss: Loss, ignore_label: int | None) -> None:
    """Refuse a label that is to be ignored by a loss that ignores none, or another one."""
    if ignore_label is None or loss.ignored == ignore_label:
        return
    why = "Only a loss of classes ignores one" if loss.ignored is None else f"It ignores {loss.ignored}"
    raise UsageError(
        f"ignore_label is {ignore_label} with the loss {loss.name}",
        why=why,
        fix=Fix(Argument("loss", "cross_entropy"), ", or leave ", Argument("ignore_label"), " out"),
    )


def n_ignored(dataset: Dataset, target: str, loss: Loss) -> int:
    """Count the labels that a loss ignores."""
    counted = dataset.histogram(target)
    return 0 if counted is None else int(counted.counts[counted.values == loss.ignored].sum())


def _by_task(
    found: LabelTask | None, told: TaskName | None, where: str, ignore_label: int | None
) -> tuple[Loss, TaskName]:
    if found is None:
        raise UsageError("the dataset has no labels", where=where, fix="ingest them as field y")
    name = told or found.name
    if name is None:
        raise undecided(found, where)
    check_told(found.labels, name, where)
    loss = resolve_loss(DEFAULT_LOSSES[name], ignore_index=ignore_label)
    check_ignoring(loss, ignore_label)
    return loss, name
