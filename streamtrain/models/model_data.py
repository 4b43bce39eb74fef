"""Facts of a dataset that a model is made by: shapes, outputs, classes, task, sizes of categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from streamtrain.errors import InputError
from streamtrain.models.losses import Loss
from streamtrain.models.table_inputs import CATEGORIES, FIELDS, holds_categories
from streamtrain.store.layout import Field

Shape = tuple[int, ...]
_NO_INPUTS: Final = frozenset({"y", "id", "weight"})
_MOST_CODE: Final = 2**31 - 1
_IMAGE_AXES: Final = 3


class DescribedDataset(Protocol):
    """What is asked of a dataset."""

    @property
    def fields(self) -> tuple[Field, ...]: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    def stats(self, field: str, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelData:
    """What a model is told about the data that it learns from."""

    # Of a sample, by input, in the order in which they are handed over.
    shapes: Mapping[str, Shape]
    n_outputs: int
    # Of the columns of field ``cat``: codes are below these.
    category_sizes: tuple[int, ...] = ()
    classes: tuple[str, ...] | None = None
    task: str | None = None
    dataset: object = None

    @property
    def input_shape(self) -> Shape:
        """The shape of a sample of the first input."""
        return next(iter(self.shapes.values()))

    def offered(self) -> dict[str, object]:
        """List what a factory may take by name."""
        return {
            "dataset": self.dataset,
            "input_shape": self.input_shape,
            "n_outputs": self.n_outputs,
            "num_classes": self.n_outputs,
            "classes": self.classes,
            "task": self.task,
            "category_sizes": self.category_sizes,
        }

    def config(self) -> dict[str, object]:
        """What a run's configuration says of it, from which a built-in model is built again."""
        sizes = {"category_sizes": list(self.category_sizes)} if self.category_sizes else {}
        shapes = {"input_shapes": [list(shape) for shape in self.shapes.values()]} if len(self.shapes) > 1 else {}
        return {"input_shape": list(self.input_shape), "n_outputs": self.n_outputs, **shapes, **sizes}


def describe_data(
    dataset: DescribedDataset, inputs: Sequence[str], n_outputs: int, loss: Loss, *, task: str | None = None
) -> ModelData:
    """Collect what a model for some fields of a dataset is told."""
    shapes = {field.name: field.shape for field in dataset.fields}
    return ModelData(
        shapes={name: shapes[name] for name in inputs},
        n_outputs=n_outputs,
        category_sizes=category_sizes(dataset),
        classes=dataset.classes,
        task=task or _task_of(loss),
        dataset=dataset,
    )


def _task_of(loss: Loss) -> str | None:
    if loss.kind in ("classes", "custom"):
        return "classification" if loss.kind == "classes" else None
    return "multilabel" if loss.name == "bce_with_logits" else "regression"


def default_inputs(
    dataset: DescribedDataset, *, takes_fields: bool | None, target: str, weight: str | None = None
) -> tuple[str, ...]:
    """List the fields handed over where none are named: all but labels, ids and weights.

    A built-in model gets of them what it takes: the fields of a table where ``takes_fields``, else ``x`` alone; or, if
    there is none of these, the only field of images.
    """
    others = [field.name for field in dataset.fields if field.name not in {*_NO_INPUTS, target, weight}]
    if takes_fields is None:
        return tuple(others) or ("x",)
    taken = tuple(name for name in (FIELDS if takes_fields else FIELDS[:1]) if name in others)
    images = tuple(field.name for field in dataset.fields if field.name in others and len(field.shape) == _IMAGE_AXES)
    return taken or (images if images == tuple(others) and len(images) == 1 else FIELDS[:1])


def category_sizes(dataset: DescribedDataset) -> tuple[int, ...]:
    """Return how many codes each column of field ``cat`` has; empty where there is no such field.

    The dataset's own categories say so, or else the largest code that is stored.
    """
    found = [field for field in dataset.fields if holds_categories(field)]
    if not found:
        return ()
    named: Mapping[str, Any] = getattr(dataset, "categories", None) or {}
    if named:
        return tuple(int(category.size) for category in named.values())
    stats = dataset.stats(CATEGORIES)
    least, most = float(stats.min.min()), stats.max.reshape(-1)
    if least < 0 or float(most.max()) > _MOST_CODE:
        raise InputError(
            f"field {CATEGORIES} has codes from {least:.0f} to {most.max():.0f}",
            why="Its columns are codes of categories, 0, 1, ...",
            fix="number the categories from 0, or give the field another name",
        )
    return tuple(int(code) + 1 for code in most)
