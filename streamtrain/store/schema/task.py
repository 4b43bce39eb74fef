"""The task of labels: how they are read, told or by a rule over their statistics.

Storage is lossless and says nothing of the task, so it can be changed without another ingest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.store.statistics import MOST_VALUES
from streamtrain.system.arguments import check_choice

TaskName = Literal["classification", "multilabel", "regression"]
TASKS: Final = ("classification", "multilabel", "regression")

_MOST_OF_COLUMN: Final = 20
_MOST_OF_ARRAY: Final = 1000
_FULL: Final = 0.9
_SPARSE: Final = 0.5
_ROWS_A_CLASS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the rule needs to know of labels; None is what the statistics do not say."""

    kind: str  # of the dtype: b, i, u or f
    shape: tuple[int, ...]
    n_samples: int
    # Distinct values: of whole numbers, where there are at most 65,536.
    values: Sequence[float] | None = None
    min: float | None = None
    max: float | None = None
    is_column: bool = False  # of a table
    is_named: bool = False  # text, or classes that were given
    is_whole: bool | None = None
    is_binary: bool | None = None  # a matrix of 0 and 1 alone
    is_one_hot: bool | None = None  # exactly one 1 a row
    name: str = "y"

    @property
    def span(self) -> float:
        """The number of whole numbers from the smallest to the largest."""
        assert self.min is not None
        assert self.max is not None
        return self.max - self.min + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTask:
    """The task of labels, None if undecided, and where it comes from."""

    name: TaskName | None
    by: Literal["told", "rule"]
    labels: Labels

    def named(self) -> dict[str, object]:
        """Return it by name, for machines."""
        labels = self.labels
        n_values = None if labels.values is None else len(labels.values)
        return {"name": self.name, "by": self.by, "values": n_values, "min": labels.min, "max": labels.max}


def check_task(task: object) -> TaskName | None:
    """Refuse the name of a task that there is not."""
    if task is not None:
        check_choice(task, "task", TASKS)
    return task  # type: ignore[return-value]


def task_of(labels: Labels, told: TaskName | None = None) -> LabelTask:
    """Return the task of labels: the one that was told, else by the rule."""
    return LabelTask(name=told or task_by_rule(labels), by="told" if told else "rule", labels=labels)


def task_by_rule(labels: Labels) -> TaskName | None:
    """Say which task labels are of, by what they hold; None where that decides nothing."""
    if labels.is_named:
        return "classification"
    if labels.shape:
        return _of_matrix(labels)
    if labels.kind == "b":
        return "classification"
    if labels.kind == "f":
        return _of_floats(labels)
    if labels.min is None or labels.max is None:
        return None
    return _of_whole_numbers(labels)


def _of_matrix(labels: Labels) -> TaskName | None:
    if len(labels.shape) > 1:
        return "regression" if labels.kind == "f" else "classification"
    if labels.is_binary is None:
        return _of_unknown_matrix(labels)
    if labels.is_binary:
        return None if labels.is_one_hot else "multilabel"
    return "regression" if labels.kind == "f" else None


def _of_unknown_matrix(labels: Labels) -> TaskName | None:
    """Decide by the extremes alone: of 0 and 1 alone there may still be none in between."""
    is_outside = labels.min is not None and labels.max is not None and (labels.min < 0 or labels.max > 1)
    return "regression" if labels.kind == "f" and is_outside else None


def _of_floats(labels: Labels) -> TaskName | None:
    if labels.is_whole is False or any(end is not None and end != int(end) for end in (labels.min, labels.max)):
        return "regression"
    if labels.is_whole and labels.values is not None and len(labels.values) <= 2:
        return "classification"
    return None


def _of_whole_numbers(labels: Labels) -> TaskName | None:
    if is_class_like(labels):
        return "classification"
    return "regression" if labels.is_column and _is_quantity(labels) else None


def is_class_like(labels: Labels) -> bool:
    """Whether whole numbers are few, and from 0 or 1 on nearly all of them are there."""
    n_values = None if labels.values is None else len(labels.values)
    if n_values is None:
        return False
    most = _MOST_OF_COLUMN if labels.is_column else _MOST_OF_ARRAY
    return n_values <= 2 or (labels.min in (0, 1) and n_values <= most and n_values >= _FULL * labels.span)


def _is_quantity(labels: Labels) -> bool:
    assert labels.min is not None
    if labels.values is None:
        # There are more than 65,536 of them, and no more than samples.
        is_few = labels.n_samples < _ROWS_A_CLASS * (MOST_VALUES + 1)
        return labels.min < 0 or is_few or labels.n_samples < _SPARSE * labels.span
    n_values = len(labels.values)
    if n_values <= _MOST_OF_COLUMN:
        return False
    return labels.min < 0 or n_values < _SPARSE * labels.span or labels.n_samples < _ROWS_A_CLASS * n_values


def describe_labels(labels: Labels) -> str:
    """Say in a few words what labels are."""
    if labels.is_named:
        return "classes with names" if labels.values is None else f"{_counted(labels)} classes"
    if labels.shape:
        return _described_matrix(labels)
    if labels.min is None or labels.max is None:
        return "numbers"
    if labels.kind == "f" and labels.is_whole is not True:
        kind = "numbers with fractions" if task_by_rule(labels) == "regression" else "numbers"
        return f"{kind} from {labels.min:g} to {labels.max:g}"
    return f"{_counted(labels)} whole numbers from {labels.min:.0f} to {labels.max:.0f}"


def _described_matrix(labels: Labels) -> str:
    n = " × ".join(map(str, labels.shape))
    if labels.is_binary:
        return f"{n} columns of 0 and 1" + (", one 1 in each row" if labels.is_one_hot else "")
    kind = "numbers" if labels.kind == "f" else "whole numbers"
    if len(labels.shape) > 1:
        return f"{n} {kind} a sample"
    return f"{n} {kind} a sample" if labels.shape != (1,) else f"one of {kind} a sample"


def _counted(labels: Labels) -> str:
    return f"more than {MOST_VALUES:,}" if labels.values is None else f"{len(labels.values):,}"


def other_way(task: LabelTask) -> TaskName | None:
    """Name the task that labels could be of as well; None where there is no second."""
    labels = task.labels
    match task.name:
        case "classification":
            return None if labels.is_named else "regression"
        case "regression":
            is_whole = labels.kind != "f" or labels.is_whole is True
            return "classification" if is_whole and not labels.shape and labels.values is not None else None
        case "multilabel":
            return "regression"
        case _:
            return None


def sentence(task: LabelTask) -> tuple[str, ...]:
    """Say which task labels are of and why: the label and the sentence without, then with its way out."""
    labels, held = task.labels, describe_labels(task.labels)
    what = _MEANINGS.get(task.name or "", "")
    if task.name is None:
        return (f"{labels.name}: {held}: {_QUESTIONS[_other_reading(labels)]} Undecided; train asks for ", "")
    if task.by == "told":
        return (f"{labels.name}: {held}: {task.name}, as given", "")
    if task.name == "classification":
        return (_of_classes(labels, held), " if they are quantities")
    return (f"{labels.name}: {held}: {what}, so {task.name}", _WAYS[task.name])


_MEANINGS: Final = {"regression": "a quantity", "multilabel": "any number of labels per sample"}
_WAYS: Final = {"regression": " makes each a class", "multilabel": " if they are quantities"}
_QUESTIONS: Final = {
    "multilabel": "a class, or labels?",
    "regression": "quantities or labels?",
    "classification": "classes or a quantity?",
}


def _of_classes(labels: Labels, held: str) -> str:
    if labels.is_named or labels.values is None or labels.min is None or labels.max is None:
        return f"{labels.name}: {held}"
    if len(labels.values) == 1:
        return f"{labels.name}: one class, {labels.min:.0f}"
    return f"{labels.name}: {len(labels.values):,} classes, {labels.min:.0f} to {labels.max:.0f}"


def _other_reading(labels: Labels) -> TaskName:
    """Name the first task to choose from where the rule decides none."""
    if not labels.shape:
        return "classification"
    return "multilabel" if labels.is_one_hot else "regression"


def label_line(task: LabelTask) -> Fix:
    """Return the sentence that ingest, info and a training's heading print, with the way out in it."""
    told, after = sentence(task)
    if task.name is None:
        return Fix(told, Argument("task"))
    other = other_way(task)
    return Fix(told) if other is None or not after else Fix(f"{told} (", Argument("task", other), f"{after})")


def readings(labels: Labels) -> tuple[TaskName, ...]:
    """List the tasks that labels can be of."""
    return tuple(task for task in TASKS if _misfit(labels, task) is None)


def undecided(task: LabelTask, where: str) -> UsageError:
    """Make the error for training on labels whose task nobody has told, with the ways to tell it."""
    told, _ = sentence(task)
    ways: list[str | Argument] = []
    for way in readings(task.labels):
        ways += [Argument("task", way), ", or "]
    what = told.removesuffix(" Undecided; train asks for ")
    return UsageError(f"the task is undecided: {what.removesuffix('?')}", where=where, fix=Fix(*ways[:-1]))


def check_told(labels: Labels, task: TaskName, where: str) -> None:
    """Refuse a task that labels cannot be of."""
    if (misfit := _misfit(labels, task)) is None:
        return
    raise UsageError(
        f"{task} of {labels.name}, which holds {describe_labels(labels)}",
        where=where,
        why=misfit,
        fix=Fix(Argument("task", readings(labels)[0])),
    )


def _misfit(labels: Labels, task: TaskName) -> str | None:
    """Say why labels cannot be of a task; None where they can, or nobody knows."""
    if task == "multilabel":
        return None if len(labels.shape) == 1 and labels.is_binary is not False else _NO_LABELS
    if task == "regression":
        return _NAMED if labels.is_named else None
    if labels.is_named:
        return None
    if labels.is_one_hot or (labels.kind == "f" and labels.shape):
        return _ONE_HOT if labels.is_one_hot else _MATRIX
    if labels.shape:
        return None if len(labels.shape) > 1 or labels.shape == (1,) else _MATRIX
    if labels.kind == "f" and (labels.is_whole is False or task_by_rule(labels) == "regression"):
        return _FRACTIONS
    if labels.values is None and labels.min is not None and labels.kind != "f":
        return f"There can be {MOST_VALUES:,} classes, and there are more values"
    if labels.kind != "f" and not labels.is_column and labels.max is not None and labels.max >= MOST_VALUES:
        return f"Classes are numbered from 0 to {MOST_VALUES - 1:,}"
    return None


_NO_LABELS: Final = "Labels are a matrix of 0 and 1, a column each"
_NAMED: Final = "Classes are not quantities"
_FRACTIONS: Final = "Classes are whole numbers"
_MATRIX: Final = "A class is one number a sample"
_ONE_HOT: Final = "A class is one number a sample: of one-hot rows {'y': y.argmax(1)}"
