"""The first pass over a table: what every column holds, so that the second can promise to fit.

Nothing is kept of the rows but counts, extremes, the first few places of what is missing, and the distinct
texts of the label column up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.sources.arrow import arrow, first_refused, is_text, missing_in, numbers_in, parsed

MAX_CLASSES: Final = 100_000

_N_PLACES: Final = 5
_INT64: Final = np.dtype(np.int64)
_FLOAT64: Final = np.dtype(np.float64)
_EXACT_FLOAT64: Final = 2.0**53


@dataclass(slots=True, kw_only=True)
class Column:
    """What has been seen of a column so far.

    Parameters
    ----------
    name : str
        The column's name.
    is_label : bool
        Whether it becomes field ``y``; only then may it hold text.
    dtype : numpy.dtype or None
        The narrowest that holds all values; None for text.
    smallest, largest : int
        Extremes of the whole numbers in it.
    n_missing, missing_rows : int, list of int
        How many values are empty, NaN or infinite, and the first rows of them.
    classes : set of str or None
        The distinct texts of a label; None above ``MAX_CLASSES``.
    """

    name: str
    is_label: bool
    dtype: np.dtype[Any] | None = _INT64
    smallest: int = 0
    largest: int = 0
    n_missing: int = 0
    missing_rows: list[int] = field(default_factory=list)
    classes: set[str] | None = field(default_factory=set)


def add_typed(column: Column, values: Any, first_row: int) -> None:
    """Take in a run of a column whose type the file declares."""
    _note_nulls(column, values, first_row)
    if is_text(values):
        column.dtype = None
        _note_classes(column, values)
    else:
        _add_numbers(column, numbers_in(values), first_row)


def add_text(column: Column, text: Any, first_row: int, place: Callable[[int], str]) -> None:
    """Take in a run of a column whose type is to be found: whole numbers, else floats, else (labels) text."""
    _note_nulls(column, text, first_row)
    if column.is_label:
        _note_classes(column, text)
    values = _inferred(column, text)
    if values is not None:
        if column.dtype == _FLOAT64:
            _check_exact(column, text, values, first_row, place)
        _add_numbers(column, numbers_in(values), first_row)
    elif not column.is_label:
        row = first_refused(text, _FLOAT64)
        raise InputError(
            f"column {column.name!r} holds {text[row].as_py()!r}, which is not a number",
            where=place(first_row + row),
            why="Features are numbers",
            fix="correct the value, or leave the column out by naming the others: columns=...",
        )


def _inferred(column: Column, text: Any) -> Any | None:
    """The numbers in the text as the column's dtype, which widens until they can be read."""
    while column.dtype is not None:
        values = parsed(text, column.dtype)
        if values is not None:
            return values
        column.dtype = _FLOAT64 if column.dtype == _INT64 else None
    return None


def _add_numbers(column: Column, values: npt.NDArray[Any], first_row: int) -> None:
    column.dtype = values.dtype
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            _note_missing(column, ~finite, first_row)
    elif len(values):
        column.smallest = min(column.smallest, int(values.min()))
        column.largest = max(column.largest, int(values.max()))


def _check_exact(column: Column, text: Any, values: Any, first_row: int, place: Callable[[int], str]) -> None:
    """A whole number among floats must survive; only those of 2**53 and more can fail to."""
    for row in np.flatnonzero(np.abs(numbers_in(values)) >= _EXACT_FLOAT64).tolist():
        literal = text[row].as_py().strip()
        if literal.lstrip("+-").isdigit() and int(literal) != int(float(literal)):
            raise InputError(
                f"column {column.name!r} holds {literal}, which float64 rounds to {int(float(literal))}",
                where=place(first_row + row),
                why="Beside fractions whole numbers are exact up to 2**53",
                fix="leave the column out, or split the number over two columns",
            )


def _note_nulls(column: Column, values: Any, first_row: int) -> None:
    if values.null_count:
        _note_missing(column, missing_in(values), first_row)


def _note_missing(column: Column, missing: npt.NDArray[np.bool_], first_row: int) -> None:
    rows = np.flatnonzero(missing)
    column.n_missing += len(rows)
    room = _N_PLACES - len(column.missing_rows)
    column.missing_rows += [first_row + int(row) for row in rows[:room]]


def _note_classes(column: Column, text: Any) -> None:
    if column.classes is not None:
        column.classes.update(arrow("pyarrow.compute").unique(text).drop_null().to_pylist())
        if len(column.classes) > MAX_CLASSES:
            column.classes = None


def check_complete(columns: Sequence[Column], places: Callable[[list[int]], list[str]]) -> None:
    """Refuse a table with values missing, with how many and the first places.

    Parameters
    ----------
    columns : sequence of Column
        After the whole pass.
    places : callable
        Where rows come from, given in order.
    """
    bad = [column for column in columns if column.n_missing]
    if not bad:
        return
    column = next((column for column in bad if column.is_label), bad[0])
    what = "labels" if column.is_label else "values"
    others = f"; {len(bad) - 1} more columns have some too" if len(bad) > 1 else ""
    shown = ", ".join(places(column.missing_rows)) + (", ..." if column.n_missing > len(column.missing_rows) else "")
    raise InputError(
        f"{column.n_missing:,} {what} are empty, NaN or infinite in column {column.name!r}{others}",
        where=shown,
        why="Nothing is imputed",
        fix="fill them in or drop their rows in the source",
    )


def class_names(column: Column, where: str) -> tuple[str, ...]:
    """The sorted texts of a label column.

    Raises
    ------
    InputError
        There are too many for them to be classes.
    """
    if column.classes is None:
        raise InputError(
            f"label column {column.name!r} holds more than {MAX_CLASSES:,} distinct texts",
            where=where,
            why="Text labels are the names of classes",
            fix="name another label column",
        )
    return tuple(sorted(column.classes))
