"""Columns of a table as features ``x`` and label ``y``, surveyed in a first pass.

CSV and Parquet differ in how batches come out of a file; how a batch becomes fields is the same and stands here. The
first pass records counts, extremes, the first few places of missing values, and the distinct texts of the label column
up to a limit; so the second pass can promise to fit.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import (
    Rows,
    Source,
    SourceOptions,
    as_field,
    field_of,
    pieces,
    rows_within,
)
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    columns_of,
    first_refused,
    is_text,
    missing_in,
    numbers_in,
    parsed,
    without_dictionary,
)
from streamtrain.store.layout import Field
from streamtrain.store.schema.matching import names_difference, option

MAX_CLASSES: Final = 100_000

_N_PLACES: Final = 5
_INT64: Final = np.dtype(np.int64)
_FLOAT64: Final = np.dtype(np.float64)
_EXACT_FLOAT64: Final = 2.0**53


@dataclass(slots=True, kw_only=True)
class ColumnSurvey:
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


def add_typed(column: ColumnSurvey, values: Any, first_row: int) -> None:
    """Take in a run of a column whose type the file declares."""
    _note_nulls(column, values, first_row)
    if is_text(values):
        column.dtype = None
        _note_classes(column, values)
    else:
        _add_numbers(column, numbers_in(values), first_row)


def add_text(column: ColumnSurvey, text: Any, first_row: int, place: Callable[[int], str]) -> None:
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


def _inferred(column: ColumnSurvey, text: Any) -> Any | None:
    """The numbers in the text as the column's dtype, which widens until they can be read."""
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


def _check_exact(column: ColumnSurvey, text: Any, values: Any, first_row: int, place: Callable[[int], str]) -> None:
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


def _note_nulls(column: ColumnSurvey, values: Any, first_row: int) -> None:
    if values.null_count:
        _note_missing(column, missing_in(values), first_row)


def _note_missing(column: ColumnSurvey, missing: npt.NDArray[np.bool_], first_row: int) -> None:
    rows = np.flatnonzero(missing)
    column.n_missing += len(rows)
    room = _N_PLACES - len(column.missing_rows)
    column.missing_rows += [first_row + int(row) for row in rows[:room]]


def _note_classes(column: ColumnSurvey, text: Any) -> None:
    if column.classes is not None:
        column.classes.update(arrow("pyarrow.compute").unique(text).drop_null().to_pylist())
        if len(column.classes) > MAX_CLASSES:
            column.classes = None


def check_no_missing(columns: Sequence[ColumnSurvey], places: Callable[[list[int]], list[str]]) -> None:
    """Refuse a table with values missing, with how many and the first places.

    Parameters
    ----------
    columns : sequence of ColumnSurvey
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


def class_names(column: ColumnSurvey, where: str) -> tuple[str, ...]:
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


Batches = Callable[[int, Mapping[str, np.dtype[Any]]], Iterator[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenColumns:
    """The columns that are read.

    Parameters
    ----------
    features : tuple of str
        Those stacked into ``x``, in this order.
    label : str or None
        The one that becomes ``y``.
    """

    features: tuple[str, ...]
    label: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.features if self.label is None else (*self.features, self.label)


def choose_columns(header: Sequence[str], options: SourceOptions, where: str) -> ChosenColumns:
    """Choose feature and label columns by name.

    With ``columns=()`` only the label is read; without a name for it, it is the table's only column.

    Raises
    ------
    InputError
        A column is absent or there twice.
    UsageError
        The label is among the features, or nothing would be read.

    Examples
    --------
    >>> choose_columns(["a", "b", "kind"], SourceOptions(label_column="kind"), "t.csv")
    ChosenColumns(features=('a', 'b'), label='kind')
    """
    _check_header(header, where)
    label = options.label_column
    if options.columns == () and label is None:
        label = _only_column(header, where)
    features = tuple(name for name in header if name != label) if options.columns is None else options.columns
    chosen = ChosenColumns(features=features, label=label)
    _check_chosen(chosen, header, where)
    return chosen


def _check_header(header: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"the header names column {twice[0]!r} twice", where=where, fix="rename one of them")
    if any(not name.strip() for name in header):
        number = next(number for number, name in enumerate(header, 1) if not name.strip())
        raise InputError(f"column {number} has no name in the header", where=where, fix="name it")


def _only_column(header: Sequence[str], where: str) -> str:
    if len(header) > 1:
        listed = ", ".join(header)
        fix = f"label_column={header[-1]!r}, say"
        raise UsageError("which column holds the labels is not said", where=where, why=f"It has {listed}", fix=fix)
    return header[0]


def _check_chosen(chosen: ChosenColumns, header: Sequence[str], where: str) -> None:
    known = frozenset(header)
    for name in chosen.names:
        if name not in known:
            near = difflib.get_close_matches(name, header, n=1)
            kind = "label column" if name == chosen.label else "column"
            fix = f"did you mean {near[0]!r}?" if near else "name one of these"
            raise InputError(f"no {kind} {name!r}", where=where, why=f"It has {', '.join(header)}", fix=fix)
    if chosen.label in chosen.features:
        fix = "take it out of columns"
        raise UsageError(f"column {chosen.label!r} is both label and feature", where=where, fix=fix)
    twice = [name for name, count in Counter(chosen.features).items() if count > 1]
    if twice:
        raise UsageError(f"column {twice[0]!r} is chosen twice", where=where, fix="name it once")
    if not chosen.names:
        raise UsageError("no column is left to read", where=where, fix="name columns or a label column")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """A table that was surveyed, read in order.

    Parameters
    ----------
    path : Path
        The file.
    chosen : ChosenColumns
        The columns read.
    columns : tuple of ColumnSurvey
        What the survey found in them, in the same order.
    n_samples : int
        Rows counted.
    classes : tuple of str or None
        Names of text labels.
    provenance : tuple of dict
        Of the file, with the columns.
    fields : tuple of Field
        ``x`` if there are features, ``y`` if there is a label.
    batches : callable
        Gives the chosen columns as Arrow record batches of about so many bytes; where the file has no types of its
        own, number columns in the dtypes named.
    where : callable
        Where a row came from.
    """

    path: Path
    chosen: ChosenColumns
    columns: tuple[ColumnSurvey, ...]
    n_samples: int
    classes: tuple[str, ...] | None
    provenance: tuple[dict[str, Any], ...]
    fields: tuple[Field, ...]
    batches: Batches
    where: Callable[[int], str]

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order.

        Raises
        ------
        InputError
            The file is no longer what the survey found.
        """
        n_rows = rows_within(max_bytes, self.fields)
        n_done = 0
        for batch in self.batches(max_bytes, self._dtypes()):
            columns = {name: without_dictionary(column) for name, column in columns_of(batch).items()}
            rows = {field.name: self._field(field, columns, n_done) for field in self.fields}
            yield from pieces(rows, n_rows)
            n_done += batch.num_rows
        if n_done != self.n_samples:
            raise self._changed(f"{n_done:,} rows now, {self.n_samples:,} when it was opened")

    def _dtypes(self) -> dict[str, np.dtype[Any]]:
        of_field = {field.name: field.dtype for field in self.fields}
        numbers = [column for column in self.columns if column.dtype is not None]
        return {column.name: of_field["y" if column.is_label else "x"] for column in numbers}

    def _field(self, field: Field, columns: Mapping[str, Any], first_row: int) -> npt.NDArray[Any]:
        if field.name == "y":
            return self._label(field, columns[str(self.chosen.label)], first_row)
        out = np.empty((len(next(iter(columns.values()))), *field.shape), field.dtype)
        for number, name in enumerate(self.chosen.features):
            out[:, number] = self._numbers(name, columns[name])
        return out

    def _label(self, field: Field, column: Any, first_row: int) -> npt.NDArray[Any]:
        name = str(self.chosen.label)
        if self.classes is None:
            values = self._numbers(name, column)
            return as_field(values, field, lambda row: self.where(first_row + row))
        indices = arrow("pyarrow.compute").index_in(column, value_set=arrow().array(self.classes))
        if indices.null_count:
            raise self._changed(f"column {name!r} has a label it did not have")
        return numbers_in(indices).astype(np.int64)

    def _numbers(self, name: str, column: Any) -> npt.NDArray[Any]:
        if column.null_count:
            raise self._changed(f"column {name!r} has values missing that were there")
        return numbers_in(column)

    def _changed(self, what: str) -> InputError:
        fix = "ingest again when nothing writes to it"
        return InputError(f"changed while it was read: {what}", where=str(self.path), fix=fix)


def table_source(
    path: Path,
    chosen: ChosenColumns,
    columns: tuple[ColumnSurvey, ...],
    n_samples: int,
    provenance: tuple[dict[str, Any], ...],
    batches: Batches,
    where: Callable[[int], str],
) -> TableSource:
    """Make a source of a surveyed table: the features in their narrowest common dtype, text labels numbered."""
    if not n_samples:
        raise InputError("the table has columns but no rows", where=str(path), fix="leave the file out")
    label = columns[-1] if chosen.label is not None else None
    classes = class_names(label, str(path)) if label is not None and label.dtype is None else None
    source = TableSource(
        path=path,
        chosen=chosen,
        columns=columns,
        n_samples=n_samples,
        classes=classes,
        provenance=provenance,
        fields=(),
        batches=batches,
        where=where,
    )
    features = [column.dtype for column in columns[: len(chosen.features)] if column.dtype is not None]
    dtype = np.result_type(*features) if features else None
    return with_dtypes(source, dtype, label.dtype if label is not None else None)


def in_one_order(parts: Sequence[Source]) -> Sequence[Source]:
    """Tables with their feature columns in the first one's order; other sources as they are.

    Raises
    ------
    InputError
        A table has other columns.
    """
    first = parts[0]
    if not isinstance(first, TableSource):
        return parts
    return [
        in_order(part, first.chosen.features, str(first.path)) if isinstance(part, TableSource) else part
        for part in parts
    ]


def in_order(source: TableSource, names: tuple[str, ...], of: str) -> TableSource:
    """A table with its feature columns in this order, which is that of another one.

    Raises
    ------
    InputError
        It has other columns.
    """
    if source.chosen.features == names:
        return source
    other = names_difference(names, source.chosen.features, of)
    if other is not None:
        fix = f"{option('columns', names)}, if it has them all; or ingest it as a dataset of its own"
        raise InputError(f"its columns are others than those of {of}: {other}", where=str(source.path), fix=fix)
    surveyed = {column.name: column for column in source.columns}
    facts, *more = source.provenance
    return replace(
        source,
        chosen=replace(source.chosen, features=names),
        columns=tuple(surveyed[name] for name in (*names, *source.chosen.names[len(names) :])),
        provenance=({**facts, "columns": list(names)}, *more),
    )


def with_dtypes(source: TableSource, x: np.dtype[Any] | None, y: np.dtype[Any] | None) -> TableSource:
    """The same table with features and number labels in these dtypes, none narrower than its own.

    Raises
    ------
    InputError
        A whole number of the table would be rounded.
    """
    where, n_features = str(source.path), len(source.chosen.features)
    fields = []
    if x is not None:
        fields.append(field_of("x", x, (n_features,), where=where))
    if source.chosen.label is not None:
        fields.append(field_of("y", y if y is not None else np.dtype(np.int64), (), where=where))
    dtypes = {field.name: field.dtype for field in fields}
    for column in source.columns:
        if column.dtype is not None:
            _check_fits(column, dtypes["y" if column.is_label else "x"], where)
    return replace(source, fields=tuple(fields))


def _check_fits(column: ColumnSurvey, dtype: np.dtype[Any], where: str) -> None:
    limit = (
        2 ** (np.finfo(dtype).nmant + 1) if dtype.kind == "f" else int(np.iinfo(dtype).max) if dtype.kind != "b" else 1
    )
    largest = max(column.largest, -column.smallest - (dtype.kind == "i"))
    if largest > limit:
        raise InputError(
            f"column {column.name!r} holds whole numbers up to {largest}, beyond {limit}, the last exact in {dtype}",
            where=where,
            why=f"{dtype} is the narrowest dtype that all columns share",
            fix="leave the column out, or store the other columns as whole numbers",
        )
