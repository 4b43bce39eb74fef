"""Rows of a table by what its columns become: numbers and dates, categories, labels, weights; and which are dropped."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.tables.arrow import arrow, first_refused, is_text, missing_in, without_dictionary
from streamtrain.ingestion.sources.tables.column_survey import UnfitColumns
from streamtrain.ingestion.sources.tables.dates import DateColumn, DateForm, days_or_seconds
from streamtrain.ingestion.sources.tables.roles.choice import TableRoles, missing_rule
from streamtrain.ingestion.sources.tables.roles.cleaning import cleaned, forms_in, what_they_hold
from streamtrain.ingestion.sources.tables.roles.numbers import (
    FLOAT64,
    INT64,
    Numbers,
    is_number_type,
    is_rounded,
    missing_text,
    read_numbers,
)
from streamtrain.ingestion.sources.tables.roles.reader import NumbersParsed, TableBatch, TableReader

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRun:
    """A run of rows of a table, those that are dropped left out."""

    rows: npt.NDArray[np.intp]  # their places in the run as it was read
    inputs: Numbers  # numbers, then dates
    categories: tuple[Any, ...]  # Arrow arrays
    label: Any = None  # an Arrow array, where there is one label column
    targets: npt.NDArray[Any] | None = None  # of shape (n_rows, n_columns), where there are several
    weight: npt.NDArray[Any] | None = None
    id: npt.NDArray[Any] | None = None
    n_unlabelled: int = 0
    n_dropped: int = 0


@dataclass(slots=True, kw_only=True)
class ColumnTypes:
    """The dtypes that columns are read as, which widen in a first pass, and the forms of dates."""

    numbers: np.dtype[Any] = INT64
    targets: np.dtype[Any] = INT64
    may_widen: bool = True
    forms: dict[str, DateForm] = field(default_factory=dict)


def types_of(roles: TableRoles, reader: TableReader) -> ColumnTypes:
    """Return what the file declares; a text file declares nothing."""
    # Beside dates all are float64, which says what it rounds.
    of_dates = [FLOAT64] if roles.dates else []
    if reader.types is None:
        return ColumnTypes(numbers=np.result_type(INT64, *of_dates))
    numbers = np.result_type(_common(reader, roles.numbers), *of_dates)
    return ColumnTypes(numbers=numbers, targets=_common(reader, roles.labels))


def _common(reader: TableReader, names: tuple[str, ...]) -> np.dtype[Any]:
    types = arrow("pyarrow.types")
    kinds = [(reader.types or {})[name] for name in names]
    plain = [kind.value_type if types.is_dictionary(kind) else kind for kind in kinds]
    numbers = {np.dtype(kind.to_pandas_dtype()) for kind in plain if is_number_type(kind)}
    return np.result_type(*numbers) if numbers else INT64


@dataclass(slots=True, kw_only=True)
class RowReader:
    """Reads a table's batches by the roles of its columns."""

    reader: TableReader
    roles: TableRoles
    options: SourceOptions
    types: ColumnTypes

    def batches(self) -> Generator[TableBatch, None, None]:
        """Yield the table's batches; to be closed."""
        if self.reader.parsed is not None:
            numbers = NumbersParsed(names=self.roles.numbers, dtype=lambda: self.types.numbers)
            yield from self.reader.parsed(self.roles.names, numbers)
        else:
            yield from self.reader.batches(self.roles.names)

    def run(self, batch: TableBatch, first_row: int) -> RoleRun:
        """Read a batch; refuse what is missing or unfit."""
        place = self._places(first_row)
        unlabelled, targets = self._labels(batch, place)
        if unlabelled.any() and not self.options.table.drop_unlabelled:
            row = int(unlabelled.argmax())
            name = ", ".join(map(repr, self.roles.labels))
            raise UnfitColumns(f"{unlabelled.sum():,} labels or more are missing in {name}", where=place(row))
        inputs, missing = self._inputs(batch, place, ~unlabelled)
        dropped = missing & ~unlabelled
        rows = np.flatnonzero(~(dropped | unlabelled))

        def kept(column: Any) -> Any:
            return column if len(rows) == batch.n_rows else _taken(column, rows)

        single = {name: self._single(batch, name, dtype, place, rows) for name, dtype in self._singles()}
        return RoleRun(
            rows=rows,
            inputs=Numbers(values=kept(inputs.values), missing=kept(inputs.missing)),
            categories=tuple(kept(batch.columns[name]) for name in self.roles.categorical),
            label=kept(batch.columns[self.roles.labels[0]]) if len(self.roles.labels) == 1 else None,
            targets=None if targets is None else kept(targets),
            weight=single.get(self.roles.weight or ""),
            id=single.get(self.roles.id or ""),
            n_unlabelled=int(unlabelled.sum()),
            n_dropped=int(dropped.sum()),
        )

    def _singles(self) -> list[tuple[str, np.dtype[Any]]]:
        pairs = ((self.roles.weight, FLOAT64), (self.roles.id, INT64))
        return [(name, dtype) for name, dtype in pairs if name is not None]

    def _places(self, first_row: int) -> Callable[[int], str]:
        return lambda row: self.reader.place(first_row + row)

    def _labels(self, batch: TableBatch, place: Callable[[int], str]) -> tuple[Mask, npt.NDArray[Any] | None]:
        """Find rows without a label; read the labels where there are several."""
        if not self.roles.labels:
            return np.zeros(batch.n_rows, bool), None
        if len(self.roles.labels) == 1:
            return missing_labels(batch.columns[self.roles.labels[0]], self.options.classes or ()), None
        found = self._numbers(batch, self.roles.labels, "targets", place)
        unlabelled: Mask = np.asarray(found.missing.any(axis=1))
        return unlabelled, found.values

    def _inputs(self, batch: TableBatch, place: Callable[[int], str], labelled: Mask) -> tuple[Numbers, Mask]:
        """Read numbers and dates; return with them the rows that are dropped."""
        numbers = self._numbers(batch, self.roles.numbers, "numbers", place)
        if self.roles.dates:
            dates = np.stack([self._dates(batch, name, place) for name in self.roles.dates], axis=1)
            values = np.concatenate([numbers.values, dates], axis=1, dtype=np.result_type(numbers.values, FLOAT64))
            numbers = Numbers(values=values, missing=np.concatenate([numbers.missing, np.isnan(dates)], axis=1))
        rule, _ = missing_rule(self.options.table)
        missing: Mask = np.asarray(numbers.missing.any(axis=1) & labelled)
        if rule == "error" and missing.any():
            row = int(missing.argmax())
            name = self.roles.inputs[int(numbers.missing[row].argmax())]
            raise UnfitColumns(f"values are missing in column {name!r}", where=place(row), why="Nothing is imputed")
        self._check_infinite(numbers, place)
        return numbers, missing if rule == "drop" else np.zeros_like(missing)

    def _check_infinite(self, numbers: Numbers, place: Callable[[int], str]) -> None:
        if self.options.table.nan == "keep" or numbers.values.dtype.kind != "f":
            return
        infinite = ~np.isfinite(numbers.values) & ~numbers.missing
        if infinite.any():
            row = int(infinite.any(axis=1).argmax())
            name = self.roles.inputs[int(infinite[row].argmax())]
            raise UnfitColumns(f"an infinite value is in column {name!r}", where=place(row))

    def _numbers(self, batch: TableBatch, names: tuple[str, ...], kind: str, place: Callable[[int], str]) -> Numbers:
        keep = self.options.table.nan == "keep" and kind == "numbers"
        while True:
            dtype = getattr(self.types, kind)
            found = read_numbers(batch, names, dtype, self.reader.nulls, keep_nan=keep)
            if isinstance(found, Numbers):
                if dtype.kind == "f" and self.reader.types is None:
                    self._check_rounded(batch, names, found, place)
                return found
            if self.types.may_widen and self.reader.types is None and dtype == INT64:
                setattr(self.types, kind, FLOAT64)
                continue
            raise self._unfit(batch, found, dtype, place)

    def _check_rounded(
        self, batch: TableBatch, names: tuple[str, ...], found: Numbers, place: Callable[[int], str]
    ) -> None:
        with np.errstate(invalid="ignore"):
            large = np.abs(found.values) >= 2.0**53
        for number in np.flatnonzero(large.any(axis=0)).tolist():
            text = batch.columns[names[number]]
            row = is_rounded(text, found.values[:, number])
            if row is not None:
                literal = text[row].as_py().strip()
                raise InputError(
                    f"column {names[number]!r} holds {literal}, which {found.values.dtype} rounds",
                    where=place(row),
                    why="In a column with fractions, whole numbers are exact only up to 2**53",
                    fix="leave the column out, or split the number over two columns",
                )

    def _unfit(
        self, batch: TableBatch, name: str, dtype: np.dtype[Any], place: Callable[[int], str]
    ) -> UnfitColumns | InputError:
        column = without_dictionary(batch.columns[name])
        if not is_text(column):
            what = f"column {name!r} is {column.type}, and not all of its values are exact in {dtype}"
            if is_number_type(column.type):
                return InputError(what, where=place(0), fix="store it in the type of the others, or leave it out")
            return UnfitColumns(f"column {name!r} is {column.type}, which is not supported", where=place(0))
        blank = missing_text(column, self.reader.nulls)
        rows = np.flatnonzero(~blank)
        text = column.take(arrow().array(rows))
        wanted = dtype if dtype.kind == "f" else FLOAT64
        at = first_refused(text, dtype)
        row = int(rows[at])
        value = column[row].as_py()
        if wanted != dtype and not self.types.may_widen and read_numbers_at(text, at):
            what = f"column {name!r} holds {value!r:.80}, where the other dataset has {dtype}"
            fix = "round it in the source; or ingest it as a dataset of its own"
            return InputError(what, where=place(row), fix=fix)
        if (foreign := self._foreign(batch, name, place(row))) is not None:
            return foreign
        what = f"column {name!r} holds {value!r:.80}, which is not a number"
        return UnfitColumns(what, where=place(row), why="Features are numbers")

    def _foreign(self, batch: TableBatch, name: str, where: str) -> UnfitColumns | None:
        """Make the error for a column of a foreign form, with all such columns in it; None where it is none."""
        forms = forms_in(batch, (*self.roles.inputs, *self.roles.labels), self.reader.nulls)
        if name not in forms:
            return None
        fix = cleaned(self.reader, forms, codes=self.roles.categorical)
        return UnfitColumns(what_they_hold(forms, self.roles.labels), where=where, fix=fix)

    def _dates(self, batch: TableBatch, name: str, place: Callable[[int], str]) -> npt.NDArray[np.float64]:
        column = batch.columns[name]
        if is_text(column):
            plain = without_dictionary(column)
            column = arrow("pyarrow.compute").if_else(
                arrow().array(missing_text(plain, self.reader.nulls)), arrow().scalar(None, plain.type), plain
            )
        unit: Any = self.roles.dates[name]
        of = DateColumn(name=name, unit=unit, timezone=self.options.table.timezone)
        try:
            found = days_or_seconds(column, of, place, self.types.forms.get(name))
        except InputError as error:
            if (foreign := self._foreign(batch, name, error.where or place(0))) is not None:
                raise foreign from error
            raise
        if found.form is not None:
            self.types.forms[name] = found.form
        return found.values

    def _single(
        self,
        batch: TableBatch,
        name: str,
        dtype: np.dtype[Any],
        place: Callable[[int], str],
        rows: npt.NDArray[np.intp],
    ) -> npt.NDArray[Any]:
        """Read a column of weights or ids, which are whole, and nothing of which is missing in a row that is kept."""
        what = "weight" if dtype == FLOAT64 else "id"
        found = read_numbers(batch, [name], dtype, self.reader.nulls, keep_nan=False)
        if isinstance(found, str):
            raise self._no_single(without_dictionary(batch.columns[name]), name, what, dtype, place)
        values: npt.NDArray[Any] = found.values[rows, 0]
        missing = found.missing[rows, 0]
        bad = missing | ((values < 0) | ~np.isfinite(values) if what == "weight" else False)
        if bad.any():
            row = int(bad.argmax())
            held = "nothing" if missing[row] else str(values[row])
            raise InputError(
                f"{what} column {name!r} holds {held}",
                where=place(int(rows[row])),
                why="A weight is 0 or more, an id a whole number, and neither is missing",
                fix="correct it, or leave the row out of the source",
            )
        return values

    def _no_single(
        self, column: Any, name: str, what: str, dtype: np.dtype[Any], place: Callable[[int], str]
    ) -> InputError:
        """Make the error for a weight that is no number, or an id that is no whole one."""
        row, held = 0, f"values of type {column.type}"
        if is_text(column):
            rows = np.flatnonzero(~missing_text(column, self.reader.nulls))
            row = int(rows[first_refused(column.take(arrow().array(rows)), dtype)])
            held = f"{column[row].as_py()!r:.80}"
        if what == "weight":
            told = f"weight column {name!r} holds {held}, and a weight is a number"
            return InputError(told, where=place(row), fix=Fix("another ", Argument("weight_column"), ", or none"))
        told = f"id column {name!r} holds {held}, and an id is a whole number of at most 64 bits"
        joins = ", or none: predict numbers the rows in its column row, by which predictions join their source"
        return InputError(told, where=place(row), fix=Fix("another ", Argument("id_column"), joins))


def _taken(column: Any, rows: npt.NDArray[np.intp]) -> Any:
    return column[rows] if isinstance(column, np.ndarray) else column.take(arrow().array(rows))


def read_numbers_at(text: Any, at: int) -> bool:
    """Say whether a text is a number, with a fraction or without."""
    try:
        float(text[at].as_py())
    except ValueError:
        return False
    return True


_BLANK: Final = ""


def missing_labels(column: Any, classes: tuple[str, ...]) -> Mask:
    """Return a mask of labels that are not there: null, blank, or NaN."""
    plain = without_dictionary(column)
    missing = missing_in(plain)
    if is_text(plain):
        blank = arrow("pyarrow.compute").equal(arrow("pyarrow.compute").utf8_trim_whitespace(plain), _BLANK)
        is_blank: Mask = blank.fill_null(True).to_numpy(zero_copy_only=False)
        if classes:
            is_blank = is_blank & np.array([text not in classes for text in plain.to_pylist()])
        return missing | is_blank
    if arrow("pyarrow.types").is_floating(plain.type):
        is_nan: Mask = arrow("pyarrow.compute").is_nan(plain).fill_null(True).to_numpy(zero_copy_only=False)
        return missing | is_nan
    return missing
