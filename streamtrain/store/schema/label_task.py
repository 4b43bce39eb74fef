"""The labels of a dataset as the task rule takes them, and the classes that a table's column of numbers holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.store.layout import Field
from streamtrain.store.manifest import AUTO, Manifest
from streamtrain.store.schema.columns import TARGET, column_lists
from streamtrain.store.schema.task import Labels, LabelTask, check_task, task_of
from streamtrain.store.statistics import Histogram

Array = npt.NDArray[Any]


def labels_of(manifest: Manifest, field: Field) -> Labels:
    """Collect what a manifest says of a field of labels."""
    summary, options = manifest.statistics[field.name], manifest.options
    values = histogram_of(manifest, field.name)
    least, most = summary.overall.min, summary.overall.max
    if values is not None:
        # Exact, where the extremes are float64.
        least, most = values.values[0].item(), values.values[-1].item()
    are_named = manifest.classes is not None or options.get("classes", AUTO) != AUTO
    is_target, facts = field.name == TARGET, summary.facts
    return Labels(
        kind=field.dtype.kind,
        shape=field.shape,
        n_samples=manifest.layout.n_samples,
        values=None if values is None else values.values.tolist(),
        min=_known(least),
        max=_known(most),
        is_column=is_target and is_column(manifest),
        is_named=is_target and not field.shape and are_named,
        is_whole=facts.is_whole if facts else None,
        is_binary=facts.is_binary if facts else None,
        is_one_hot=facts.is_one_hot if facts else None,
        name=_name(manifest.sources) if is_target else field.name,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _name(sources: tuple[Mapping[str, Any], ...]) -> str:
    named = {name for (name,) in column_lists(sources).get(TARGET, ())}
    return named.pop() if len(named) == 1 else TARGET


def is_column(manifest: Manifest) -> bool:
    """Whether the labels are a column of a table, read with its features, or are to be taken as one."""
    of_tables = (source.get("label_column") is not None and "field" not in source for source in manifest.sources)
    return manifest.options.get("classes") == AUTO or any(of_tables)


def histogram_of(manifest: Manifest, field: str) -> Histogram | None:
    """Return how often each value of a field occurs, where it holds whole numbers, as floats too."""
    summary = manifest.statistics.get(field)
    if summary is None:
        return None
    return summary.histogram or (summary.facts.whole if summary.facts else None)


def label_task(manifest: Manifest, field: Field) -> LabelTask:
    """Return the task of a field of labels: that of the target may have been told at the ingest."""
    options = manifest.options if field.name == TARGET else {}
    told = "classification" if options.get("classes") == AUTO else None
    return task_of(labels_of(manifest, field), check_task(options.get("task", told)))


def class_values(manifest: Manifest, ignored: int | None = None) -> Array | None:
    """Return the stored labels that classes 0, 1, ... stand for; None where a label is its class's number."""
    counted = histogram_of(manifest, TARGET)
    told = manifest.options.get("classes")
    if counted is None or manifest.classes is not None or isinstance(told, int):
        return None
    kept = counted.values[counted.values != ignored]
    is_numbered = len(kept) == 0 or np.array_equal(kept, np.arange(len(kept)))
    if kept.dtype.kind == "f":
        return kept if len(kept) else None
    return None if is_numbered or not is_column(manifest) else kept
