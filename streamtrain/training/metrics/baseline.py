"""The baseline: what an answer without inputs would be, from the training data's frequencies or mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamtrain.models.losses import Loss
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.label_task import histogram_of
from streamtrain.system.arguments import is_number
from streamtrain.training.labels.reading import LabelReading
from streamtrain.training.metrics.regression import MOST_TARGETS
from streamtrain.training.metrics.tasks import scored_as


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The answer that is always given: a class, a mark for each label, or a number for each target; and its name."""

    answer: tuple[float, ...]
    told: str
    # What it comes to on the training data, where samples weigh the same; not kept with a run.
    score: float | None = None

    def config(self) -> dict[str, object]:
        """Return it as a run keeps it."""
        return {"answer": list(self.answer), "told": self.told}


def parse_baseline(value: object) -> Baseline | None:
    """Return the baseline of a value that a run keeps; None of nothing."""
    if value is None:
        return None
    answer, told = (value.get("answer"), value.get("told")) if isinstance(value, dict) else (None, None)
    if not (isinstance(told, str) and isinstance(answer, list) and answer and all(map(is_number, answer))):
        raise ValueError(f"the baseline is {value!r:.80}")
    return Baseline(answer=tuple(answer), told=told)


def class_frequencies(data: Any, target: str, loss: Loss, reading: LabelReading) -> dict[int, int] | None:
    """Return how often each class occurs in training data, by its number; None where that is not known."""
    if isinstance(data, Dataset):
        histogram = histogram_of(data.manifest, target)
    else:
        # A dataset written by the user need not know its labels.
        ask = getattr(data, "histogram", None)
        histogram = None if ask is None else ask(target)
    if histogram is None:
        return None
    pairs = zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True)
    found = {value: count for value, count in pairs if value != loss.ignored}
    if reading.values is not None:
        return {number: found.get(value, 0) for number, value in enumerate(reading.values)}
    return {int(value): count for value, count in found.items()}


def class_name(data: Any, target: str, reading: LabelReading, number: int) -> str:
    """Name a class as the data does."""
    classes = getattr(data, "classes", None) if target == TARGET else None
    if classes and number < len(classes):
        return str(classes[number])
    return f"{reading.values[number]:g}" if reading.values and number < len(reading.values) else str(number)


def baseline_of(data: Any, field: Field | None, loss: Loss, reading: LabelReading) -> Baseline | None:
    """Make the baseline of training data; None where its statistics, or the loss, do not say."""
    if field is None:
        return None
    kind = scored_as(loss, field.shape)
    if kind == "classification":
        counts = class_frequencies(data, field.name, loss, reading)
        if not counts or min(counts) < 0:
            return None
        most = max(counts, key=lambda number: (counts[number], -number))
        told = class_name(data, field.name, reading, most)
        return Baseline(answer=(most,), told=told, score=counts[most] / sum(counts.values()))
    if kind is None or not hasattr(data, "stats"):
        return None
    statistics = data.stats(field.name)
    is_by_target = len(field.shape) <= 1 and np.prod(field.shape) <= MOST_TARGETS
    mean = np.array((statistics if is_by_target else statistics.overall).mean, np.float64).reshape(-1)
    if not np.isfinite(mean).all():
        return None
    answer = mean if kind == "regression" else mean > 0.5
    std = np.array((statistics if is_by_target else statistics.overall).std, np.float64)
    score = float(std.mean()) if kind == "regression" else None
    return Baseline(answer=tuple(map(float, answer)), told=_told(answer, kind), score=score)


def _told(answer: Any, kind: str) -> str:
    if len(answer) == 1:
        return short_number(answer[0])
    return "the mean of each" if kind == "regression" else "what is most frequent of each"


def short_number(value: float) -> str:
    """Write a number in at most three digits after those that it needs: 6.9, 1,234, 0.00012."""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.4g}"
    return f"{value:.3g}"
