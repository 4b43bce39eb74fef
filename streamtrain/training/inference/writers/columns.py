"""The columns of a table of predictions: their names, and the values of a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import UsageError
from streamtrain.training.inference.predictions import Part, PredictionForm

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedValues:
    """A column of names, by their numbers."""

    numbers: Array
    names: tuple[str, ...]

    def tolist(self) -> list[str]:
        """Return the names."""
        return [self.names[number] for number in self.numbers.tolist()]


def columns_of(part: Part, form: PredictionForm, *, probabilities: bool) -> dict[str, Array | NamedValues]:
    """Return a part as columns by name, each of one value a row; classes by their names."""
    if part.prediction.ndim > 2 or (form.task == "classification" and part.prediction.ndim > 1):
        what = f"a prediction is an array of shape {part.prediction.shape[1:]}, and a table has one value a cell"
        raise UsageError(what, fix="a file of arrays: .npy or .zarr")
    columns: dict[str, Array | NamedValues] = {"row": part.rows}
    if part.files is not None:
        columns["file"] = NamedValues(numbers=part.rows, names=part.files)
    if part.id is not None:
        columns["id"] = part.id
    if part.prediction.ndim == 2:
        names = target_names(form, part.prediction.shape[1])
        columns |= {f"prediction_{name}": part.prediction[:, n] for n, name in enumerate(names)}
    elif part.class_numbers is not None and part.probabilities is not None and form.classes is not None:
        names = tuple(form.class_name(number) for number in range(part.probabilities.shape[1]))
        columns["prediction"] = NamedValues(numbers=part.class_numbers, names=names)
    else:
        columns["prediction"] = part.prediction
    if (probability := part.probability) is not None:
        columns["probability"] = probability
    if probabilities and part.probabilities is not None:
        each = part.probabilities.reshape(len(part), -1)
        columns |= {f"p_{name}": each[:, n] for n, name in enumerate(_names(form, part, each.shape[1]))}
    return columns


def target_names(form: PredictionForm, n_targets: int) -> Sequence[str]:
    """Return the names of the targets or labels, or their numbers."""
    return form.targets if len(form.targets) == n_targets else [str(n) for n in range(n_targets)]


def _names(form: PredictionForm, part: Part, n: int) -> Sequence[str]:
    if part.class_numbers is not None:
        return [form.class_name(number) for number in range(n)]
    return target_names(form, n) if part.prediction.ndim == 2 else [form.label]


def array_of(part: Part, *, probabilities: bool) -> Array:
    """Return a part as one array: predictions, or the probabilities of all classes."""
    if probabilities:
        if part.probabilities is None:
            raise no_probabilities()
        return part.probabilities
    return np.ascontiguousarray(part.prediction)


def no_probabilities() -> UsageError:
    """Make the error for probabilities of what has none."""
    return UsageError("probabilities of numbers that are predicted", fix="leave it out: only classes have them")
