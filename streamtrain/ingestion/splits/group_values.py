"""The values that rows are grouped by: a column of a table, or a field of one number a sample, run by run.

A column that is in the dataset anyway is read from there, another one in a pass of its own over the tables.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.request import run_bytes
from streamtrain.ingestion.sources.base import Source, rows_within
from streamtrain.ingestion.sources.combine import ClassCheckedSource, Concatenation, LabelledSource, name_of
from streamtrain.ingestion.sources.tables.arrow import arrow, is_text, missing_in, returning_memory, without_dictionary
from streamtrain.ingestion.sources.tables.roles.role_table import RoleTable
from streamtrain.ingestion.sources.tables.table_columns import ChosenColumns, TableDtypes, TableSource
from streamtrain.ingestion.splits.rule import Value, plain_value, read_cell
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, TARGET, schema_of

T = TypeVar("T", bound=Source)

_PIECE_BYTES: Final = 1 << 20
_N_LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRun:
    """A run of rows: the distinct values among them, and which of these each row has."""

    values: Sequence[Value]
    codes: npt.NDArray[np.int64]


def group_values(source: Source, given: Source, by: str, *, memory: int) -> Iterator[GroupRun]:
    """Yield the values of all rows; ``source`` reads any range of what ``given`` gives."""
    if with_roles := _tables_of(RoleTable, given):
        return _of_roles(with_roles, by)
    tables = _tables_of(TableSource, given)
    numbers = {field.name: field for field in source.fields if field.row_bytes == field.dtype.itemsize}
    columns = schema_of(source.fields, source.provenance, classes=source.classes).columns.get(INPUT, ())
    labels = {table.chosen.label for table in tables}
    if tables and by not in columns and labels != {by}:
        return _of_tables(tables, by, memory)
    if by in columns:
        x = next(field for field in source.fields if field.name == INPUT)
        return _of_rows(source, x, columns.index(by), None)
    if tables:
        y = next(field for field in source.fields if field.name == TARGET)
        return _of_rows(source, y, 0, source.classes)
    if by not in numbers:
        raise _unknown(by, [*numbers, *columns], name_of(given))
    return _of_rows(source, numbers[by], 0, source.classes if by == TARGET else None)


def _tables_of(kind: type[T], source: Source) -> list[T]:
    if isinstance(source, kind):
        return [source]
    match source:
        case Concatenation():
            return [table for part in source.parts for table in _tables_of(kind, part)]
        case ClassCheckedSource():
            return _tables_of(kind, source.source)
        case LabelledSource():
            return _tables_of(kind, source.features) or _tables_of(kind, source.labels)
    return []


def _of_rows(source: Source, field: Field, column: int, classes: Sequence[str] | None) -> Iterator[GroupRun]:
    n_piece = rows_within(_PIECE_BYTES, source.fields)
    assert source.n_samples is not None, "which reading any range takes"
    for start in range(0, source.n_samples, n_piece):
        stop = min(start + n_piece, source.n_samples)
        values = source.read(start, stop)[field.name].reshape(stop - start, -1)[:, column]
        _check_numbers(values, partial(_shifted, source.where, start))
        distinct, codes = np.unique(values, return_inverse=True)
        named = [classes[value] if classes else plain_value(value) for value in distinct.tolist()]
        yield GroupRun(values=named, codes=codes.reshape(-1))


def _of_roles(tables: Sequence[RoleTable], by: str) -> Iterator[GroupRun]:
    for table in tables:
        if by not in table.reader.header:
            raise _unknown(by, table.reader.header, str(table.reader.path))
    with returning_memory():
        for table in tables:
            for rows, column in table.column(by):
                yield _of_column(column, partial(_place_of, table, rows), is_cells=table.reader.types is None)


def _place_of(table: RoleTable, rows: npt.NDArray[np.intp], row: int) -> str:
    return table.reader.place(int(rows[row]))


def _of_tables(tables: Sequence[TableSource], by: str, memory: int) -> Iterator[GroupRun]:
    chosen, dtypes = ChosenColumns(features=(), label=by), TableDtypes(features=None, label=None)
    for table in tables:
        if by not in (header := table.header()):
            raise _unknown(by, header, str(table.path))
    with returning_memory():
        for table in tables:
            is_cells = table.provenance[0]["format"] == "csv"
            n_done = 0
            for run in table.runs(run_bytes(memory), chosen, dtypes):
                yield _of_column(run.label, partial(_shifted, table.where, n_done), is_cells=is_cells)
                n_done += run.n_rows


def _shifted(place: Callable[[int], str], first_row: int, row: int) -> str:
    return place(first_row + row)


def _of_column(column: Any, place: Callable[[int], str], *, is_cells: bool) -> GroupRun:
    if column.null_count:
        raise _missing(place(int(missing_in(column).argmax())))
    column = _comparable(without_dictionary(column))
    if arrow("pyarrow.types").is_floating(column.type):
        _check_numbers(column.to_numpy(zero_copy_only=False), place)
    encoded = column.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    values = [read_cell(value) for value in found] if is_cells else [plain_value(value) for value in found]
    if is_cells and not all(value.strip() for value in found):
        blank = next(number for number, value in enumerate(found) if not value.strip())
        raise _missing(place(encoded.indices.to_pylist().index(blank)))
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return GroupRun(values=values, codes=codes)


def _comparable(column: Any) -> Any:
    """Make text of what is neither a number nor text: dates and times in an order that text has, too."""
    types = arrow("pyarrow.types")
    if is_text(column) or types.is_integer(column.type) or types.is_floating(column.type):
        return column
    return column.cast(arrow().int8() if types.is_boolean(column.type) else arrow().string())


def _check_numbers(values: npt.NDArray[Any], place: Callable[[int], str]) -> None:
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise _missing(place(int(np.isnan(values).argmax())))


def _missing(where: str) -> InputError:
    return InputError(
        "a value of the column that splits are made by is missing",
        where=where,
        why="Rows that belong together would come into different splits",
        fix=Fix("fill it in, drop the row in the source, or name another column: ", Argument("split_by")),
    )


def _unknown(by: str, known: Sequence[str], where: str) -> InputError:
    near = difflib.get_close_matches(by, known, n=1)
    fix = Fix("did you mean ", Argument("split_by", near[0]), "?") if near else Fix("name one of these")
    more = ", ..." if len(known) > _N_LISTED else ""
    why = f"There are {', '.join(known[:_N_LISTED])}{more}" if known else "No field has one number a sample"
    return InputError(f"no column or field {by!r} to split by", where=where, why=why, fix=fix)
