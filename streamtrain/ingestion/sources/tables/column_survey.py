"""The survey of a table: each column's type, extremes, missing values and classes, found in a first pass.

It records counts, extremes, the first few places of missing values, and the distinct texts of the label column up to a
limit; so the second pass can promise to fit.

A label that is empty or blank is missing, as an empty number is. NA, null and the like are missing among numbers; as
text in quotes, or named as a class, they are names. Blanks around a name belong to it, as in pandas.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    counted_texts,
    distinct_texts,
    first_refused,
    is_text,
    missing_in,
    numbers_in,
    parsed,
    stacked,
    without_dictionary,
)
from streamtrain.ingestion.sources.tables.foreign_forms import TextForms
from streamtrain.system.units import counted, format_bytes

MAX_CLASSES: Final = 100_000

MISSING_MARKS: Final = (
    *("NA", "N/A", "n/a", "#N/A", "#NA", "#N/A N/A", "NULL", "null", "NaN", "nan", "-NaN", "-nan"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
"""Marks that programs write for a missing value; an empty one is missing, too."""

_N_PLACES: Final = 5
_INT64: Final = np.dtype(np.int64)
_FLOAT64: Final = np.dtype(np.float64)
_EXACT_FLOAT64: Final = 2.0**53


class UnfitColumns(InputError):
    """Columns hold what a table's features and labels cannot be as they are; another option would take them."""


@dataclass(slots=True, kw_only=True)
class ColumnSurvey:
    """What has been seen of a column so far."""

    name: str
    is_label: bool  # only then may it hold text
    dtype: np.dtype[Any] | None = _INT64  # the narrowest that holds all values; None for text
    smallest: int = 0  # of the whole numbers in it
    largest: int = 0
    n_missing: int = 0  # empty, NaN or infinite; and the first rows of them
    missing_rows: list[int] = field(default_factory=list)
    classes: set[str] | None = None  # the distinct texts of a label; None above MAX_CLASSES
    known: frozenset[str] = frozenset()
    is_told: bool = False  # what its classes are
    n_name_chars: int = 0  # in the distinct texts, all together
    memory: int | None = None  # where the texts cannot fit in it, long ones stand in ``classes`` by their digests
    n_marks: int = 0  # labels like NA, which are missing beside numbers and names beside names
    mark_rows: list[int] = field(default_factory=list)
    forms: TextForms = field(default_factory=TextForms)


_CLASS_COPIES: Final = 8
_CLASS_BYTES: Final = 300


def class_bytes(names: Collection[str]) -> int:
    """Project the memory of the names of classes: in sets, arrays and JSON, up to the commit."""
    return _bytes_of(sum(map(len, names)), len(names))


def _bytes_of(n_chars: int, n_names: int) -> int:
    return _CLASS_COPIES * n_chars + _CLASS_BYTES * n_names


def surveys_of(
    names: Sequence[str],
    label: str | None,
    classes: Collection[str] | None,
    memory: int | None,
    marks: Sequence[str] = (),
) -> tuple[ColumnSurvey, ...]:
    """Make an empty survey of each column; the names of classes may be known, and marks that are names here."""
    known = frozenset((*(classes or ()), *marks))
    return tuple(
        ColumnSurvey(name=name, is_label=True, classes=set(), known=known, is_told=bool(classes), memory=memory)
        if name == label
        else ColumnSurvey(name=name, is_label=False)
        for name in names
    )


def add_typed(column: ColumnSurvey, values: Any, first_row: int) -> None:
    """Take in a run of a column whose type the file declares."""
    if is_text(values):
        column.dtype = None
        _note_nulls(column, values, first_row)
        _note_names(column, values, first_row)
    else:
        numbers = without_dictionary(values)
        _note_nulls(column, numbers, first_row)
        _add_numbers(column, numbers_in(numbers), first_row)


def add_typed_batch(columns: Sequence[ColumnSurvey], batch: Any, first_row: int) -> None:
    """Take in a run of columns whose types the file declares, all at once where that can be."""
    values = stacked(batch)
    if values is None or not values.size or not np.isfinite(values).all():
        for column, own in zip(columns, batch.columns, strict=True):
            add_typed(column, own, first_row)
        return
    for column in columns:
        column.dtype = values.dtype
    if values.dtype.kind != "f":
        for column, least, most in zip(columns, values.min(axis=1).tolist(), values.max(axis=1).tolist(), strict=True):
            column.smallest, column.largest = min(column.smallest, least), max(column.largest, most)


def add_text(
    column: ColumnSurvey, text: Any, first_row: int, place: Callable[[int], str], features: Mapping[str, Any]
) -> None:
    """Take in a run of a column whose type is to be found: whole numbers, else floats, else labels.

    ``features`` is the same run of all feature columns: where this one is no number, a message names those that are.
    """
    _note_nulls(column, text, first_row)
    if column.is_label:
        text = _without_marks(column, _note_names(column, text, first_row), first_row)
    values = _inferred(column, text)
    if values is None and (not column.is_label or column.classes is None):
        # Only in quotes, or where a class has its name: elsewhere Arrow has made it a null.
        text = _nulled(column, text, ("", *MISSING_MARKS), first_row)
        values = parsed(text, _FLOAT64)
        column.dtype = None if values is None else _FLOAT64
    if values is not None:
        if column.dtype == _FLOAT64:
            for row in _not_exact(text, numbers_in(values)):
                raise _rounded(column.name, text[row], place(first_row + row))
        _add_numbers(column, numbers_in(values), first_row)
    elif not column.is_label:
        row = first_refused(text, _FLOAT64)
        numbers = [name for name in features if parsed(features[name], _FLOAT64) is not None]
        raise _not_a_number(column.name, text[row], place(first_row + row), numbers)


def _not_a_number(name: str, text: Any, where: str, numbers: Sequence[str]) -> UnfitColumns:
    value = text.as_py()
    # A quote that is never closed makes one cell of the lines after it.
    correct = "close the quote, or correct the value" if "\n" in value else "correct the value"
    return UnfitColumns(
        f"column {name!r} holds {value!r:.80}, which is not a number",
        where=where,
        why="Features are numbers",
        fix=leaving_out(correct, numbers),
    )


_MOST_NAMED: Final = 50


def leaving_out(otherwise: str, names: Sequence[str]) -> Fix:
    """Say how a column that cannot be read is left out: by naming those that can be."""
    if not names:
        return Fix(otherwise)
    named = Argument("columns", list(names) if len(names) <= _MOST_NAMED else None)
    return Fix(otherwise, ", or leave the column out by naming those of numbers: ", named)


class FeatureSurvey:
    """What has been seen of the features of a wide table, all of one dtype: figures by feature, not objects."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.dtype: np.dtype[Any] = _INT64
        self._smallest = np.zeros(len(names), np.int64)
        self._largest = np.zeros(len(names), np.int64)
        self._n_missing = np.zeros(len(names), np.int64)
        self._missing_rows: dict[int, list[int]] = {}

    def add_text(self, text: Any, first_row: int, place: Callable[[int], str]) -> None:
        """Take in the cells of a run of rows, one row after another: whole numbers, else floats."""
        n_features = len(self.names)
        if text.null_count:
            self._note_missing(missing_in(text), first_row)
        values = parsed(text, self.dtype)
        if values is None:
            self.dtype = _FLOAT64
            values = parsed(text, _FLOAT64)
        if values is None:
            is_missing = is_one_of(_trimmed(text), ("", *MISSING_MARKS))
            self._note_missing(is_missing, first_row)
            text = with_nulls(text, is_missing)
            values = parsed(text, _FLOAT64)
        if values is None:
            cell = first_refused(text, _FLOAT64)
            of_numbers = [
                name for i, name in enumerate(self.names) if parsed(text[i::n_features], _FLOAT64) is not None
            ]
            where = place(first_row + cell // n_features)
            raise _not_a_number(self.names[cell % n_features], text[cell], where, of_numbers)
        numbers = numbers_in(values)
        if self.dtype == _FLOAT64:
            for cell in _not_exact(text, numbers):
                raise _rounded(self.names[cell % n_features], text[cell], place(first_row + cell // n_features))
            self._note_missing(~np.isfinite(numbers), first_row)
        else:
            rows = numbers.reshape(-1, n_features)
            np.minimum(self._smallest, rows.min(axis=0), out=self._smallest)
            np.maximum(self._largest, rows.max(axis=0), out=self._largest)

    def columns(self) -> tuple[ColumnSurvey, ...]:
        """Return what has been seen, by column."""
        figures = zip(
            self.names, self._smallest.tolist(), self._largest.tolist(), self._n_missing.tolist(), strict=True
        )
        return tuple(
            ColumnSurvey(
                name=name,
                is_label=False,
                dtype=self.dtype,
                smallest=smallest,
                largest=largest,
                n_missing=n_missing,
                missing_rows=self._missing_rows.get(number, []),
            )
            for number, (name, smallest, largest, n_missing) in enumerate(figures)
        )

    def _note_missing(self, is_missing: npt.NDArray[np.bool_], first_row: int) -> None:
        if not is_missing.any():
            return
        by_feature = is_missing.reshape(-1, len(self.names))
        for number in np.flatnonzero(by_feature.any(axis=0)).tolist():
            rows = np.flatnonzero(by_feature[:, number])
            self._n_missing[number] += len(rows)
            _note_rows(self._missing_rows.setdefault(number, []), rows, first_row)


def _inferred(column: ColumnSurvey, text: Any) -> Any | None:
    """Read the text as numbers of the column's dtype, which widens until they can be read."""
    while column.dtype is not None:
        values = parsed(text, column.dtype)
        if values is not None:
            return values
        column.dtype = _FLOAT64 if column.dtype == _INT64 else None
    return None


def _add_numbers(column: ColumnSurvey, values: npt.NDArray[Any], first_row: int) -> None:
    column.dtype = values.dtype
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            _note_missing(column, ~finite, first_row)
    elif len(values):
        column.smallest = min(column.smallest, int(values.min()))
        column.largest = max(column.largest, int(values.max()))


def _not_exact(text: Any, values: npt.NDArray[Any]) -> Iterator[int]:
    """Yield where a whole number among floats is one that float64 rounds; only those of 2**53 and more can be."""
    for place in np.flatnonzero(np.abs(values) >= _EXACT_FLOAT64).tolist():
        literal = text[place].as_py().strip()
        if literal.lstrip("+-").isdigit() and int(literal) != int(float(literal)):
            yield place


def _rounded(name: str, text: Any, where: str) -> InputError:
    literal = text.as_py().strip()
    return InputError(
        f"column {name!r} holds {literal}, which float64 rounds to {int(float(literal))}",
        where=where,
        why="In a column with fractions, whole numbers are exact only up to 2**53",
        fix="leave the column out, or split the number over two columns",
    )


def _note_nulls(column: ColumnSurvey, values: Any, first_row: int) -> None:
    if values.null_count:
        _note_missing(column, missing_in(values), first_row)


def _note_missing(column: ColumnSurvey, missing: npt.NDArray[np.bool_], first_row: int) -> None:
    rows = np.flatnonzero(missing)
    column.n_missing += len(rows)
    _note_rows(column.missing_rows, rows, first_row)


def _note_rows(noted: list[int], rows: npt.NDArray[np.intp], first_row: int) -> None:
    noted += [first_row + int(row) for row in rows[: _N_PLACES - len(noted)]]


def _note_names(column: ColumnSurvey, text: Any, first_row: int) -> Any:
    """Remember the distinct texts of a label; return it with those that are blank as nulls."""
    if column.forms.is_open:
        column.forms.add({name: n for name, n in counted_texts(text).items() if name.strip()})
    if column.classes is None:
        return text
    names = distinct_texts(text)
    blank = sorted(name for name in names if not name.strip() and name not in column.known)
    _add_classes(column, names.difference(blank))
    return _nulled(column, without_dictionary(text), blank, first_row) if blank else text


def _add_classes(column: ColumnSurvey, names: set[str]) -> None:
    assert column.classes is not None
    was_folded = _is_folded(column)
    new = [name for name in names if (_folded(name) if was_folded else name) not in column.classes]
    column.n_name_chars += sum(map(len, new))
    column.classes.update(map(_folded, new) if was_folded else new)
    if len(column.classes) > MAX_CLASSES:
        column.classes = None
    elif not was_folded and _is_folded(column):
        # They are counted to the end all the same: the refusal says how much memory would do.
        column.classes = set(map(_folded, column.classes))


def _is_folded(column: ColumnSurvey) -> bool:
    n_names = len(column.classes or ())
    return column.memory is not None and _bytes_of(column.n_name_chars, n_names) > column.memory


_DIGEST_BYTES: Final = 16


def _folded(name: str) -> str:
    """Return a text as it is, or the digest of a longer one."""
    if len(name) <= 2 * _DIGEST_BYTES:
        return name
    return hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _without_marks(column: ColumnSurvey, text: Any, first_row: int) -> Any:
    """Make marks of missing values nulls, so that numbers can be read beside them; note the marks."""
    marks = [mark for mark in MISSING_MARKS if mark not in column.known and column.classes and mark in column.classes]
    if column.dtype is None or not marks:
        return text
    is_mark = is_one_of(text, marks)
    _note_rows(column.mark_rows, np.flatnonzero(is_mark), first_row)
    column.n_marks += int(is_mark.sum())
    return with_nulls(text, is_mark)


def _nulled(column: ColumnSurvey, text: Any, missing: Sequence[str], first_row: int) -> Any:
    """Make some texts, blanks around them or not, nulls; note them as missing."""
    is_missing = is_one_of(_trimmed(text) if "" in missing else text, missing)
    _note_missing(column, is_missing, first_row)
    return with_nulls(text, is_missing)


def without_names(text: Any, names: Sequence[str], *, but: npt.NDArray[np.bool_]) -> Any:
    """Make some texts nulls, other than where ``but`` says."""
    return with_nulls(text, is_one_of(text, names) & ~but)


def _trimmed(text: Any) -> Any:
    return arrow("pyarrow.compute").utf8_trim_whitespace(text)


def is_one_of(text: Any, values: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return a mask of the texts that are among some."""
    found = arrow("pyarrow.compute").is_in(text, value_set=arrow().array(values, arrow().string()))
    return cast("npt.NDArray[np.bool_]", found.to_numpy(zero_copy_only=False))


def with_nulls(text: Any, where: npt.NDArray[np.bool_]) -> Any:
    """Make the texts of a mask nulls."""
    return arrow("pyarrow.compute").if_else(arrow().array(where), arrow().scalar(None, text.type), text)


def check_no_missing(
    columns: Sequence[ColumnSurvey], places: Callable[[list[int]], list[str]], *, may_be_named: bool = False
) -> None:
    """Refuse a table with values missing, with how many and the first places."""
    for column in columns:
        if column.dtype is not None and column.n_marks:
            # Beside numbers alone, NA is a number that is missing.
            column.n_missing += column.n_marks
            column.missing_rows = sorted((*column.missing_rows, *column.mark_rows))[:_N_PLACES]
    bad = [column for column in columns if column.n_missing]
    if not bad:
        return
    column = next((column for column in bad if column.is_label), bad[0])
    what = counted(column.n_missing, "label" if column.is_label else "value")
    what += " is empty" if column.n_missing == 1 else " are empty"
    others = f"; {counted(len(bad) - 1, 'more column has', 'more columns have')} some too" if len(bad) > 1 else ""
    shown = ", ".join(places(column.missing_rows)) + (", ..." if column.n_missing > len(column.missing_rows) else "")
    raise UnfitColumns(
        f"{what}, NaN or infinite in column {column.name!r}{others}",
        where=shown,
        why="Nothing is imputed",
        fix=Fix(
            "fill them in or drop their rows in the source", _NAMED_SO if may_be_named and column.classes else None
        ),
    )


_NAMED_SO: Final = Fix(
    """; where NA, null or the like is a class, quote it, "NA", or name the classes; or """,
    Argument("na_values", ("",)),
)


def class_names(column: ColumnSurvey, where: str) -> tuple[str, ...]:
    """Return the sorted texts of a label column; refuse more than can be classes, and what is not meant as text."""
    if not column.is_told and (form := column.forms.form()):
        raise UnfitColumns(f"label column {column.name!r} holds {form}", where=where)
    if column.classes is None:
        raise InputError(
            f"label column {column.name!r} holds more than {MAX_CLASSES:,} distinct texts",
            where=where,
            why="Text labels are the names of classes",
            fix="name another label column",
        )
    if column.memory is not None and _is_folded(column):
        n_bytes = _bytes_of(column.n_name_chars, len(column.classes))
        # What is given for all the rest now stays for it.
        enough = math.ceil((n_bytes + column.memory) / 10**6)
        raise BudgetError(
            f"memory is {format_bytes(column.memory)}, and the {len(column.classes):,} distinct texts of label column "
            f"{column.name!r} take {format_bytes(n_bytes)}",
            where=where,
            why="Text labels are the names of classes",
            fix=Fix(Argument("memory", f"{enough}MB"), ", or another label column"),
        )
    return tuple(sorted(column.classes))
