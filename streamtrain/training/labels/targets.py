"""Facts of the targets, learnt from the data's statistics: their units, the weights of classes, the baseline.

They are learnt once, with the first data, and kept with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.models.losses import Loss
from streamtrain.models.target_normalization import (
    TargetNormalization,
    counts_events,
    is_target_normalization,
    normalize_target,
    takes_normalized_target,
)
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import TARGET, Schema
from streamtrain.system.arguments import is_number
from streamtrain.training.labels.class_weights import (
    ClassWeight,
    balanced,
    check_class_weight,
    check_one_class_a_sample,
    told,
)
from streamtrain.training.labels.reading import LabelReading
from streamtrain.training.metrics.baseline import (
    Baseline,
    baseline_of,
    class_frequencies,
    class_name,
)
from streamtrain.training.metrics.tasks import scored_as


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """What is learnt of the targets."""

    normalization: TargetNormalization | None = None
    # Whether the loss is one whose targets may be rescaled.
    is_of_differences: bool = False
    # By class number, float64.
    class_weights: Tensor | None = None
    baseline: Baseline | None = None

    def config(self) -> dict[str, object]:
        """Return what identifies a run, as its configuration keeps it."""
        found: dict[str, object] = {}
        if self.is_of_differences:
            normalization = self.normalization
            found["normalize_target"] = UNSCALED if normalization is None else normalization.config()
        if self.class_weights is not None:
            found["class_weight"] = self.class_weights.tolist()
        return found


UNSCALED: Final = {"mean": None, "std": None}
NOT_TOLD: Final = {"class_weight": None, "normalize_target.mean": None, "normalize_target.std": None}
"""Meaning of an identity that says nothing of it, with flattened names."""


def targets_of_config(config: Mapping[str, Any], baseline: Baseline | None) -> TargetSettings:
    """Return what a run's configuration keeps, of a run of an earlier version nothing, and the baseline beside it."""
    weights = config.get("class_weight")
    return TargetSettings(
        normalization=TargetNormalization.of_config(config.get("normalize_target")),
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        baseline=baseline,
    )


def is_class_weights(value: object) -> bool:
    """Whether a value of a file is the weights of classes by their number."""
    return value is None or (isinstance(value, list) and all(is_number(each) and each >= 0 for each in value))


CHECKS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "normalize_target": (is_target_normalization, "null, or the mean and std of each target"),
    "class_weight": (is_class_weights, "null, or a list of weights"),
}
"""The values of a run's configuration that are read here: their check, and its name."""


class TargetOptions:
    """What is asked to be learnt of the targets."""

    def __init__(
        self, loss: Loss, normalize: Literal["auto"] | None = None, class_weight: ClassWeight | None = None
    ) -> None:
        if normalize is not None and not (isinstance(normalize, str) and normalize == "auto"):
            raise UsageError(f"normalize_target is {normalize!r:.80}", fix="None or 'auto'")
        check_class_weight(class_weight, loss)
        self._loss = loss
        self._class_weight = class_weight
        self.normalizes = normalize is not None and takes_normalized_target(loss)

    @property
    def needs_statistics(self) -> bool:
        """Whether nothing can be measured before there was training data."""
        return self.normalizes or self._class_weight is not None

    def learn(self, data: Any, target: str, reading: LabelReading) -> TargetSettings:
        """Learn of training data what was asked for, and its baseline."""
        field = next((each for each in data.layout.fields if each.name == target), None)
        if field is not None and counts_events(self._loss):
            _check_counts(data, field)
        return TargetSettings(
            normalization=normalize_target(field, data.stats(target)) if field and self.normalizes else None,
            is_of_differences=takes_normalized_target(self._loss),
            class_weights=self._weights(data, field, reading) if field else None,
            baseline=baseline_of(data, field, self._loss, reading),
        )

    def _weights(self, data: Any, field: Field, reading: LabelReading) -> Tensor | None:
        given = self._class_weight
        if given is None:
            return None
        check_one_class_a_sample(field.shape, field.name)
        counts = class_frequencies(data, field.name, self._loss, reading)
        if not counts or min(counts) < 0:
            raise UsageError(
                f"class_weight, and how often the classes of field {field.name} occur is not known",
                fix="labels of at most 65,536 whole numbers from 0",
            )
        n_classes = max(max(counts) + 1, len(_names(data, field.name) or ()))
        if isinstance(given, str):
            weights = balanced([counts.get(number, 0) for number in range(n_classes)])
        else:
            weights = told(given, [class_name(data, field.name, reading, number) for number in range(n_classes)])
        return torch.tensor(weights, dtype=torch.float64)


def _check_counts(data: Any, field: Field) -> None:
    """Refuse targets that a loss of counts has no meaning for."""
    # A stream of the user's own need not know it.
    least = getattr(data.stats(field.name).overall, "min", 0.0)
    if least < 0:
        raise UsageError(
            f"field {field.name} has targets from {least:g} on, and poisson takes counts of at least 0",
            fix=Fix(Argument("loss", "mse"), ", or ", Argument("loss", "huber")),
        )


def _names(data: Any, target: str) -> tuple[str, ...] | None:
    return getattr(data, "classes", None) if target == TARGET else None


def names_of_rows(data: Any, target: str, loss: Loss, reading: LabelReading) -> tuple[str, ...] | None:
    """Name the classes, labels or targets of data; None where they have numbers alone."""
    if names := _names(data, target):
        return tuple(names)
    if reading.values is not None:
        return tuple(f"{value:g}" for value in reading.values)
    is_of_columns = target == TARGET and scored_as(loss, (2,)) in ("multilabel", "regression")
    schema = getattr(data, "schema", None) if is_of_columns else None
    # Several targets, or the one column that there is.
    return schema.targets or schema.columns.get(TARGET) if isinstance(schema, Schema) else None


def class_number(name: str | int, names: tuple[str, ...] | None) -> int:
    """Return the number of a class by its name or its number; 1 of two by default."""
    known = names or ("0", "1")
    if str(name) in known:
        return known.index(str(name))
    raise UsageError(f"positive is {name!r:.80}, and the classes are {', '.join(known[:8])}", fix="one of the two")
