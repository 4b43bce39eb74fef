"""Facts of the labels of a training that its run keeps: the task, how labels are read, and how they are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from streamtrain.models.losses import Loss, has_settings
from streamtrain.models.target_normalization import counts_events, takes_logarithms
from streamtrain.store.dataset import Dataset
from streamtrain.store.schema.task import TaskName
from streamtrain.training.labels.reading import TASKS_OF_LOSSES, LabelReading, reading_config

MOST_CLASSES: Final = 1000
"""Classes whose shares are kept, and whose probabilities are written."""


def label_config(
    data: object, target: str, loss: Loss, reading: LabelReading, task: TaskName | None = None
) -> dict[str, object]:
    """Return what a run's configuration keeps of the labels it is trained on."""
    fields = data.fields if isinstance(data, Dataset) else ()
    shape = next((field.shape for field in fields if field.name == target), None)
    found = task or task_of_loss(loss.name, loss.kind, shape)
    spread = _spread(data, target, reading, found) if isinstance(data, Dataset) and shape is not None else None
    units = {"log_output": takes_logarithms(loss)} if counts_events(loss) else {}
    own = {"loss_has_settings": True} if has_settings(loss) else {}
    return {**reading_config(reading), "task": found, **units, **own, **({"labels": spread} if spread else {})}


def task_of_loss(name: str, kind: str, shape: tuple[int, ...] | None) -> TaskName | None:
    """Say what a loss learns of targets of a shape; None where nobody knows."""
    if kind == "classes":
        return "classification"
    if name == "bce_with_logits":
        return "classification" if shape == () else "multilabel"
    return next(iter(TASKS_OF_LOSSES.get(name, ())), None)


def _spread(data: Dataset, target: str, reading: LabelReading, task: TaskName | None) -> Mapping[str, Any] | None:
    """Return how often each class occurs, or mean and standard deviation of each target."""
    if task == "classification":
        return _counts(data, target, reading)
    stats = data.stats(target)
    mean, std = stats.mean.reshape(-1).tolist(), stats.std.reshape(-1).tolist()
    if not all(map(math.isfinite, (*mean, *std))) or len(mean) > MOST_CLASSES:
        return None
    return {"mean": mean, "std": std}


def _counts(data: Dataset, target: str, reading: LabelReading) -> Mapping[str, Any] | None:
    histogram = data.histogram(target)
    if histogram is None:
        return None
    known = np.asarray(reading.values if reading.values is not None else np.arange(_n_classes(histogram.values)))
    if len(known) > MOST_CLASSES:
        return None
    by_value = dict(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    return {"counts": [by_value.get(value, 0) for value in known.tolist()]}


def _n_classes(values: Any) -> int:
    inside = values[(values >= 0) & (values <= MOST_CLASSES)]
    return int(inside.max()) + 1 if len(inside) else 0
