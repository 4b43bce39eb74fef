"""Checks that dataset, validation data and model fit together, and warnings about settings that train badly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from streamtrain.cli.output import note
from streamtrain.errors import InputError, UsageError, unknown_name
from streamtrain.loader.decode.image_dataset import decode_to_measure, with_images
from streamtrain.models.factory import is_code
from streamtrain.models.losses import IGNORED, Loss
from streamtrain.models.model_data import category_sizes, default_inputs
from streamtrain.models.table_inputs import CATEGORIES
from streamtrain.store.dataset import Dataset, open_dataset, open_preferred
from streamtrain.store.layout import Field
from streamtrain.store.schema.arrangement import Arrangement, arrange
from streamtrain.store.schema.columns import INPUT, TARGET, column_lists
from streamtrain.store.schema.matching import listed
from streamtrain.store.schema.task import TaskName
from streamtrain.store.split_root import VAL, chosen_split
from streamtrain.system.files import local_path
from streamtrain.system.units import counted
from streamtrain.training.labels.reading import LabelReading, label_reading, settled

_N_SHOWN: Final = 5
_FEW_LANES: Final = 16
_POOR_EFFECT: Final = 2.0


def find_field(dataset: Dataset, name: str) -> Field:
    """Return a field by its name; refuse a name that the dataset does not have."""
    for field in dataset.fields:
        if field.name == name:
            return field
    error = unknown_name("field", name, (field.name for field in dataset.fields))
    labels = [field.name for field in dataset.fields if not field.shape and field.name != INPUT]
    inputs = [field.name for field in dataset.fields if field.name not in labels]
    if name == TARGET and not labels:
        error.what = f"the dataset has no labels: there is no field {TARGET}"
        error.fix = "ingest it again with --labels FILE, or of a table with --label-column NAME"
    elif name in (INPUT, TARGET):
        x, y = (inputs or labels)[0], labels[0] if labels else "..."
        error.fix = (
            f"--inputs and --target name the fields to learn from: --inputs {x} --target {y}; "
            f"or ingest with --fields x={x},y={y}"
        )
    raise error


def chosen_inputs(
    dataset: Dataset, names: tuple[str, ...] | None, model: str, target: str, weight: str | None = None
) -> tuple[str, ...]:
    """Return the fields that a model takes: as named, else by default; refuse names that the dataset lacks."""
    if names is None:
        takes = None if is_code(model) else not model.startswith("cnn")
        names = default_inputs(dataset, takes_fields=takes, target=target, weight=weight)
    if not names:
        raise UsageError("--inputs names no field", fix="--inputs x, say")
    for name in names:
        find_field(dataset, name)
    return names


def chosen_target(
    dataset: Dataset, name: str, loss: str | None, task: str | None, ignore_label: int | None = None
) -> tuple[Field, Loss, LabelReading, TaskName | None]:
    """Return the field to learn, its loss, how its labels are read, and as what; refuse a target that no loss fits."""
    y = find_field(dataset, name)
    if y.dtype.kind in "biu" and y.dtype != np.int64 and loss is None and len(y.shape) != 1:
        raise UsageError(
            f"no loss fits the target {name}, which is {y.dtype.name}, by default",
            where=str(dataset.path),
            fix=f"ingest it as y, which makes class labels of it: --fields x=...,y={name}; or as a float",
        )
    resolved, of = settled(dataset, name, loss, task, ignore_label=ignore_label)
    return y, resolved, label_reading(dataset, name, resolved, of), of


_NO_VAL: Final = Path("none")


def validation_data(dest: Path, val: Path | None, dataset: Dataset) -> Dataset | None:
    """Open the validation data: what was named, else split val of the training data; None where there is none.

    Its images are decoded like those of the training data, but cropped in the middle.
    """
    if val is None:
        found = open_dataset(dest, split=VAL) if chosen_split(local_path(dest), VAL) == VAL else None
    else:
        found = None if val == _NO_VAL else open_preferred(val, VAL)
    return None if found is None else with_images(found, decode_to_measure(getattr(dataset, "decode", None)))


def check_alike(
    dataset: Dataset, val: Dataset, weight: str | None = None, *, fields: tuple[str, ...] = (INPUT, TARGET)
) -> None:
    """Refuse validation data that lacks fields or columns, or has other classes; the target is the last of fields."""
    named = (*fields, *([weight] if weight else []))
    for name in named:
        find_field(dataset, name)
        find_field(val, name)
    where = f"--val {val.path}"
    arrangement = arrange(dataset.schema, val.schema, fields=named, of="the training data", where=where)
    say_matched(arrangement)
    if CATEGORIES in fields:
        check_categories(category_sizes(dataset), val, where, arrangement)
    _check_labels(dataset, val, fields[-1])


def check_categories(known: tuple[int, ...], data: Dataset, where: str, arrangement: Arrangement) -> None:
    """Refuse data with codes of categories above those that a model was made for."""
    theirs = arrangement.of_columns(CATEGORIES, category_sizes(data))
    if len(known) != len(theirs) or any(has > size for has, size in zip(theirs, known, strict=False)):
        raise InputError(
            f"{CATEGORIES} has columns of {', '.join(map(str, theirs))} codes; the training data's have "
            f"{', '.join(map(str, known))}",
            where=where,
            fix="code it by the categories of the training data",
        )


def say_matched(arrangement: Arrangement) -> None:
    """Say on stderr how columns were matched, where that is worth a look."""
    for text in arrangement.told:
        note(f"warning: {text}")


def _check_labels(dataset: Dataset, val: Dataset, target: str) -> None:
    ours, theirs = dataset.histogram(target), val.histogram(target)
    if ours is None or theirs is None or (target == TARGET and dataset.n_classes is None):
        return
    is_new = ~np.isin(theirs.values, [*ours.values, IGNORED])
    if is_new.any():
        listed = ", ".join(map(str, theirs.values[is_new][:_N_SHOWN].tolist()))
        samples = counted(int(theirs.counts[is_new].sum()), "sample has", "samples have")
        raise InputError(
            f"{samples} labels that the training data lacks: {listed}",
            where=f"--val {val.path}",
            fix="divide the samples so that every class is in both, or leave those out",
        )


def training_warnings(dataset: Dataset, batch_size: int) -> Iterator[str]:
    """Warn, in sentences, about data and settings that are allowed but train badly."""
    labels = dataset.label_histogram
    if labels is not None and len(labels.values) == 1:
        yield f"every label is {labels.values[0]}: nothing can be learned from one class"
    orders = list(dict.fromkeys(column_lists(dataset.manifest.sources).get(INPUT, ())))
    if len(orders) > 1:
        one, other, *_ = orders
        yield (
            f"its sources do not agree on the columns of {INPUT}: {listed(one)}, then {listed(other)}: an earlier "
            "version appended them without comparing their names; ingest all sources again"
        )
    if batch_size > len(dataset):
        are = "is" if len(dataset) == 1 else "are"
        there = f"there {are} {counted(len(dataset), 'sample')}"
        yield f"batch_size is {batch_size:,}, and {there}: each epoch is one batch"


def poor_shuffle(dataset: Dataset, batch_size: int, lanes: int) -> str | None:
    """Warn, in a sentence, about too few lanes for well-mixed batches; None where there are enough.

    The figure is the design effect 1 + (m - 1)ρ of m samples of a block in a batch (L. Kish, Survey Sampling, 1965,
    section 5.4), an upper bound here: lanes that lie evenly over the dataset make it less.
    """
    effect = 1 + (batch_size / lanes - 1) * max(0.0, dataset.rho or 0.0)
    if lanes >= _FEW_LANES or effect < _POOR_EFFECT or dataset.layout.block_rows == 1:
        return None
    return (
        f"with {counted(lanes, 'lane')} the labels of a batch vary up to {effect:.1f} times as much as if drawn at "
        "random: more --memory or --lanes shuffle better, and `streamtrain plan` measures how well"
    )
