"""What a model is built from and held against: the fields of a dataset, and the width its labels ask for."""

from __future__ import annotations

import math
from typing import Final

from streamtrain.errors import UsageError, unknown_name
from streamtrain.layout import Field
from streamtrain.losses import Loss
from streamtrain.store import Dataset

INPUT: Final = "x"
TARGET: Final = "y"


def field_of(dataset: Dataset, name: str) -> Field:
    """A field by its name.

    Raises
    ------
    UnknownName
        The dataset has none of that name.
    """
    for field in dataset.fields:
        if field.name == name:
            return field
    raise unknown_name("field", name, (field.name for field in dataset.fields))


def check_alike(dataset: Dataset, val: Dataset, weight: str | None = None) -> None:
    """Refuse validation data whose fields, that of the samples' weights among them, are not those of the training data.

    Raises
    ------
    UsageError
        A dtype or a shape differs.
    """
    for name in (INPUT, TARGET, *([weight] if weight else [])):
        ours, theirs = field_of(dataset, name), field_of(val, name)
        if ours != theirs:
            raise UsageError(
                f"field {name} is {theirs.dtype} {theirs.shape}; in the training data {ours.dtype} {ours.shape}",
                where=f"--val {val.path}",
                fix="ingest both in the same way",
            )


def n_outputs(dataset: Dataset, loss: Loss, y: Field) -> int:
    """How wide a model's output has to be.

    Raises
    ------
    UsageError
        The loss needs class labels, and there are none.
    """
    if loss.kind != "classes":
        return math.prod(y.shape)
    if dataset.n_classes is None:
        raise UsageError(
            f"{loss.name} needs class labels 0, 1, ...; field {y.name} is {y.dtype.name}",
            where=str(dataset.path),
            fix="--loss mse, or ingest the labels as integers from 0",
        )
    return dataset.n_classes
