"""CSV and TSV: delimited text, a record per line, with a header line or names in its place.

A first bounded pass counts the rows, finds every column's type and checks every value; the second reads. Places are
lines of the file: Arrow counts records, so a line is looked up again when an error needs it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError
from streamtrain.ingestion.sources.base import ReadingMemory, SourceOptions
from streamtrain.ingestion.sources.input_files import provenance_of, refuse_options
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    arrow_type,
    columns_of,
    first_refused,
    missing_in,
    numbers_in,
    parsed,
    returning_memory,
)
from streamtrain.ingestion.sources.tables.column_survey import (
    MISSING_MARKS,
    ColumnSurvey,
    FeatureSurvey,
    add_text,
    check_no_missing,
    surveys_of,
    without_names,
)
from streamtrain.ingestion.sources.tables.records import Cells, RaggedRecord, cells_of, record_runs
from streamtrain.ingestion.sources.tables.roles.reader import (
    NO_NUMBERS,
    CellColumns,
    NumbersParsed,
    ParsedColumns,
    TableBatch,
    TableReader,
    read_ahead,
)
from streamtrain.ingestion.sources.tables.table_columns import (
    COLUMN_BYTES,
    ChosenColumns,
    TableDtypes,
    TableRun,
    TableSource,
    ValuesMissing,
    choose_columns,
    facts_of,
    run_of,
    table_source,
)
from streamtrain.ingestion.sources.tables.text.encoded_text import UTF_8, unreadable_text
from streamtrain.ingestion.sources.tables.text.text_form import (
    MAX_LINE_BYTES,
    form_of,
    open_lines,
    other_delimiter,
    own_delimiter,
)
from streamtrain.system.units import format_bytes

_MIN_RUN_BYTES: Final = 1 << 18
_MAX_RUN_BYTES: Final = 1 << 20
_MAX_ROLE_RUN_BYTES: Final = 1 << 22
_MEMORY_PER_RUN: Final = 128  # at least, of a table whose columns have roles
_MEMORY_PER_RECORD: Final = 16  # at least, for the copies of it that are held at once
_MEMORY_FOR_ANY_RECORD: Final = f"{_MEMORY_PER_RECORD * MAX_LINE_BYTES // 10**6 + 1}MB"
_WIDE: Final = 100
"""Columns from which on cells are parsed as one array, and not column by column."""

_COPIES: Final = 4
_CELL_BYTES: Final = 44
"""Memory of a run of records, measured: of its text, and of each of its cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelimitedText:
    """A delimited file whose header has been read."""

    path: Path
    delimiter: str
    header: tuple[str, ...]
    run_bytes: int
    most_bytes: int  # of a record
    nulls: tuple[str, ...]  # a missing value, where it is not in quotes
    has_own_nulls: bool = False  # not those that no number looks like
    encoding: str = UTF_8
    has_header: bool = True


def probe(path: Path, options: SourceOptions) -> TableSource:
    """Open a CSV or TSV file: read through it once, hold nothing."""
    arrow()
    with returning_memory():
        return _probe(path, options)


def _probe(path: Path, options: SourceOptions) -> TableSource:
    refuse_options(path, "CSV", options, "dtype", "shape")
    provenance = provenance_of(path, "csv")
    text = _open_text(path, options)
    _check_delimiter(text, options)
    chosen = choose_columns(text.header, options, f"{path}:1")
    columns, n_rows, longest = _survey(text, chosen, options)
    facts = ({**provenance[0], **facts_of(chosen), **_facts_of_text(text)},)
    reading = ReadingMemory(
        lasting_bytes=2 * COLUMN_BYTES * len(text.header),
        working_bytes=_COPIES * longest + _CELL_BYTES * longest // 2,
    )
    runs, place = partial(_runs, text), partial(place_of, text)
    return table_source(path, chosen, columns, n_rows, facts, runs, place, reading, lambda: text.header)


def reader(path: Path, options: SourceOptions) -> TableReader:
    """Open a CSV or TSV file for columns of any role: read its header."""
    arrow()
    refuse_options(path, "CSV", options, "dtype", "shape")
    text = _open_text(path, options)
    _check_delimiter(text, options)
    if options.memory is not None and len(text.header) < _WIDE:
        share = options.memory // _MEMORY_PER_RUN
        text = replace(text, run_bytes=max(text.run_bytes, min(share, _MAX_ROLE_RUN_BYTES)))
    return TableReader(
        path=path,
        header=text.header,
        types=None,
        batches=lambda names: _column_batches(text, frozenset(options.table.categorical), names),
        parsed=lambda names, numbers: read_ahead(
            _column_batches(text, frozenset(options.table.categorical), names, numbers)
        ),
        place=partial(place_of, text),
        provenance=({**provenance_of(path, "csv")[0], **_facts_of_text(text)},),
        nulls=text.nulls,
        has_own_nulls=text.has_own_nulls,
        has_header=text.has_header,
        reading=ReadingMemory(lasting_bytes=2 * COLUMN_BYTES * len(text.header)),
    )


def _column_batches(
    text: DelimitedText, categorical: frozenset[str], names: Sequence[str], numbers: NumbersParsed = NO_NUMBERS
) -> Generator[TableBatch, None, None]:
    """Read columns as text, in runs of records; categories as dictionaries, numbers as such where they are."""
    n_rows = 0
    chosen = ChosenColumns(features=tuple(names), label=None)
    parser = _RunParser(text=text, chosen=chosen, categorical=categorical, numbers=numbers)
    for run in _record_runs(text):
        if len(text.header) < _WIDE:
            found = parser.batch(run, n_rows)
        else:
            cells = _cells(text, run, n_rows)
            columns = CellColumns(text.header, cells, partial(_without_marks, text))
            found = TableBatch(n_rows=cells.n_rows, columns=columns, n_bytes=len(run))
        yield found
        n_rows += found.n_rows
        del found


_PARSED: Final = (np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(slots=True, kw_only=True)
class _RunParser:
    """Parses runs of records: numbers as such, until one is not, or is asked for as text."""

    text: DelimitedText
    chosen: ChosenColumns
    categorical: frozenset[str]
    numbers: NumbersParsed
    given_up: set[np.dtype[Any]] = field(default_factory=set)

    def batch(self, run: bytes, first_row: int) -> TableBatch:
        """Parse a run."""
        dtype = self.numbers.dtype()
        if self.numbers.names and dtype in _PARSED and dtype not in self.given_up:
            dtypes = dict.fromkeys(self.numbers.names, dtype)
            try:
                batch = _parsed_run(self.text, self.chosen, run, dtypes, self.categorical)
            except arrow().ArrowInvalid:
                self.given_up.add(dtype)
            else:
                as_text = partial(self._as_text, run, first_row)
                columns = ParsedColumns(columns_of(batch), self.numbers.names, as_text)
                return TableBatch(n_rows=batch.num_rows, columns=columns, n_bytes=len(run))
        batch = _batch(self.text, self.chosen, run, first_row, {}, self.categorical)
        return TableBatch(n_rows=batch.num_rows, columns=columns_of(batch), n_bytes=len(run))

    def _as_text(self, run: bytes, first_row: int) -> Mapping[str, Any]:
        # Those of the next run will be asked for, too.
        self.given_up.update(_PARSED)
        return columns_of(_batch(self.text, self.chosen, run, first_row, {}, self.categorical))


def _without_marks(text: DelimitedText, column: Any, quoted: npt.NDArray[np.bool_]) -> Any:
    return without_names(column, text.nulls, but=quoted)


def _open_text(path: Path, options: SourceOptions) -> DelimitedText:
    table = options.table
    form = form_of(path, table, _wanted(options))
    header = form.header
    n_header = sum(len(name) + 1 for name in header)
    # Some hundred records make a run worth its while, if that is not too much.
    run_bytes = max(_MIN_RUN_BYTES, min(256 * n_header, _MAX_RUN_BYTES)) if len(header) < _WIDE else _MIN_RUN_BYTES
    most_bytes = MAX_LINE_BYTES if options.memory is None else options.memory // _MEMORY_PER_RECORD
    marks = MISSING_MARKS if table.na_values is None else table.na_values
    nulls = ("", *(mark for mark in marks if mark and mark not in (options.classes or ())))
    return DelimitedText(
        path=path,
        delimiter=form.delimiter,
        header=header,
        run_bytes=run_bytes,
        most_bytes=min(most_bytes, MAX_LINE_BYTES),
        nulls=nulls,
        has_own_nulls=table.na_values is not None,
        encoding=form.encoding,
        has_header=form.has_header,
    )


def _wanted(options: SourceOptions) -> set[str]:
    return {*(options.columns or ()), *options.labels}


def _facts_of_text(text: DelimitedText) -> dict[str, str]:
    """Return what a manifest keeps of how the text is written, where the name of the file does not say it."""
    delimiter = {"delimiter": text.delimiter} if text.delimiter != own_delimiter(text.path) else {}
    return delimiter | ({"encoding": text.encoding} if text.encoding != UTF_8 else {})


def _check_delimiter(text: DelimitedText, options: SourceOptions) -> None:
    """Refuse a header of one name that another delimiter divides, where a column of several is asked for."""
    (name, *more), path = text.header, text.path
    found = other_delimiter(name, text.delimiter)
    if found is not None and not more and _wanted(options) != {name}:
        raise InputError(
            f"the header has one column, {name[:80]!r}",
            where=f"{path}:1",
            why=f"It is read with the delimiter {text.delimiter!r}, but its delimiter seems to be {found!r}",
            fix=Fix(Argument("delimiter", found)),
        )


def _survey(
    text: DelimitedText, chosen: ChosenColumns, options: SourceOptions
) -> tuple[tuple[ColumnSurvey, ...], int, int]:
    """Find what is in the columns; count the rows, and the bytes of the longest run of records."""
    place = partial(place_of, text)
    by_column = chosen.names if len(text.header) < _WIDE else chosen.names[len(chosen.features) :]
    # What is no mark here is a name, as it is in quotes.
    marks = [mark for mark in MISSING_MARKS if mark not in text.nulls]
    columns = surveys_of(by_column, chosen.label, options.classes, options.memory, marks)
    features = FeatureSurvey(chosen.features)
    n_rows = longest = 0
    for run in _record_runs(text):
        longest = max(longest, len(run))
        if len(text.header) < _WIDE:
            batch = _batch(text, chosen, run, n_rows, {})
            numbers = dict(zip(chosen.features, batch.columns, strict=False))
            for column, values in zip(columns, batch.columns, strict=True):
                add_text(column, values, n_rows, place, numbers)
            n_rows += batch.num_rows
        else:
            cells = _cells(text, run, n_rows)
            if chosen.features:
                features.add_text(_features(text, chosen, cells), n_rows, place)
            for column in columns:
                add_text(column, _label(text, chosen, cells), n_rows, place, {})
            n_rows += cells.n_rows
    columns = columns if len(text.header) < _WIDE else (*features.columns(), *columns)
    check_no_missing(columns, partial(_places, text), may_be_named=True)
    return columns, n_rows, longest


def _runs(text: DelimitedText, _: int, chosen: ChosenColumns, dtypes: TableDtypes) -> Iterator[TableRun]:
    """Read the rows; the runs are the file's own, whatever memory is allowed."""
    n_rows = 0
    for run in _record_runs(text):
        if len(text.header) < _WIDE:
            kinds = dict.fromkeys(chosen.features, dtypes.features) | {str(chosen.label): dtypes.label}
            rows = run_of(_batch(text, chosen, run, n_rows, kinds), chosen, dtypes)
        else:
            rows = _wide_run(text, chosen, dtypes, _cells(text, run, n_rows))
        yield rows
        n_rows += rows.n_rows
        del rows


def _record_runs(text: DelimitedText) -> Iterator[bytes]:
    return record_runs(
        text.path,
        text.delimiter,
        text.run_bytes,
        text.most_bytes,
        partial(_too_long, text),
        encoding=text.encoding,
        has_header=text.has_header,
    )


def _too_long(text: DelimitedText, n_bytes: int) -> InputError | BudgetError:
    why = "A quote that is never closed makes one record of the rest of the file"
    if n_bytes > text.most_bytes < MAX_LINE_BYTES:
        return BudgetError(
            f"a record is longer than {format_bytes(text.most_bytes)}, which is 1/{_MEMORY_PER_RECORD} of the memory",
            where=str(text.path),
            why=why,
            fix=Fix("close the quote; or, if the record is so long, ", Argument("memory", _MEMORY_FOR_ANY_RECORD)),
        )
    over = (
        "a quote is never closed"
        if n_bytes <= text.most_bytes
        else f"a record is longer than {format_bytes(MAX_LINE_BYTES)}"
    )
    return InputError(over, where=str(text.path), why=why, fix="close the quote")


def _batch(
    text: DelimitedText,
    chosen: ChosenColumns,
    run: bytes,
    n_rows: int,
    dtypes: Mapping[str, np.dtype[Any] | None],
    categorical: frozenset[str] = frozenset(),
) -> Any:
    """Parse the chosen columns of a run of records; as text where no dtype is named."""
    try:
        return _parsed_run(text, chosen, run, dtypes, categorical)
    except arrow().ArrowInvalid as error:
        reason = str(error)
        found = _RAGGED.search(reason)
        ragged = found and RaggedRecord(row=int(found[1]) - 1, n_cells=int(found[2]), text=found[3])
        raise _refusal(text, ragged, n_rows, reason) from error


def _parsed_run(
    text: DelimitedText,
    chosen: ChosenColumns,
    run: bytes,
    dtypes: Mapping[str, np.dtype[Any] | None],
    categorical: frozenset[str],
) -> Any:
    encoded = arrow().dictionary(arrow().int32(), arrow().string())
    csv_module = arrow("pyarrow.csv")
    table = csv_module.read_csv(
        arrow().BufferReader(run),
        csv_module.ReadOptions(use_threads=False, block_size=len(run) + 1, column_names=list(text.header)),
        # No invalid_row_handler: Arrow's threads would free it, also when Python has ended.
        csv_module.ParseOptions(delimiter=text.delimiter, newlines_in_values=True),
        csv_module.ConvertOptions(
            include_columns=chosen.names,
            column_types={
                name: encoded if name in categorical else arrow_type(dtypes.get(name)) for name in chosen.names
            },
            null_values=text.nulls,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return table.combine_chunks().to_batches()[0]


_RAGGED: Final = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", re.DOTALL)
"""Arrow's message for a record of too few or too many values."""


def _cells(text: DelimitedText, run: bytes, n_rows: int) -> Cells:
    """Parse the cells of a run of records of a wide table."""
    try:
        cells = cells_of(run, text.delimiter, len(text.header))
    except UnicodeDecodeError:
        raise unreadable_text(text.path, text.encoding) from None
    if isinstance(cells, RaggedRecord):
        raise _refusal(text, cells, n_rows, "")
    return cells


def _wide_run(text: DelimitedText, chosen: ChosenColumns, dtypes: TableDtypes, cells: Cells) -> TableRun:
    features = None
    if dtypes.features is not None:
        values = _numbers(text, _features(text, chosen, cells), dtypes.features, chosen.features)
        features = values.reshape(cells.n_rows, len(chosen.features))
    label = None
    if chosen.label is not None:
        label = _label(text, chosen, cells)
        label = dtypes.numbered(label) if dtypes.label is None else parsed(label, dtypes.label)
        if label is None:
            raise _unreadable(text, f"a label is not {dtypes.label}")
    return TableRun(n_rows=cells.n_rows, features=features, label=label)


def _numbers(text: DelimitedText, cells: Any, dtype: np.dtype[Any], names: Sequence[str]) -> npt.NDArray[Any]:
    values = parsed(cells, dtype)
    if values is None:
        cell = first_refused(cells, dtype)
        if not (cells[cell].as_py() or "").strip():
            raise ValuesMissing(names[cell % len(names)])
        raise _unreadable(text, f"{cells[cell].as_py()!r:.80} is not {dtype}")
    if values.null_count:
        raise ValuesMissing(names[int(missing_in(values).argmax()) % len(names)])
    return numbers_in(values)


def _features(text: DelimitedText, chosen: ChosenColumns, cells: Cells) -> Any:
    """Return the cells of the features, one row after another, in the order they were chosen in."""
    marked = cells.text
    if text.has_own_nulls:
        # -999 is a number, too.
        quoted = np.zeros(len(marked), np.bool_)
        quoted[cells.quoted] = True
        marked = without_names(marked, text.nulls, but=quoted)
    if chosen.features == text.header:
        return marked
    places = {name: number for number, name in enumerate(text.header)}
    of_row = np.array([places[name] for name in chosen.features])
    return marked.take(arrow().array((np.arange(cells.n_rows)[:, None] * len(text.header) + of_row).reshape(-1)))


def _label(text: DelimitedText, chosen: ChosenColumns, cells: Cells) -> Any:
    """Return the cells of the label, nulls where they are missing."""
    places = np.arange(cells.n_rows) * len(text.header) + text.header.index(str(chosen.label))
    return without_names(cells.text.take(arrow().array(places)), text.nulls, but=np.isin(places, cells.quoted))


def _refusal(text: DelimitedText, row: RaggedRecord | None, n_rows: int, reason: str) -> InputError:
    if row is not None:
        return InputError(
            f"{row.n_cells:,} values, expected {len(text.header):,}",
            where=place_of(text, n_rows + row.row),
            why=f"The line is {row.text[:80]!r}",
            fix="complete the line, close its quotes, or quote the values that hold a delimiter",
        )
    if "UTF8" in reason:
        return unreadable_text(text.path, text.encoding)
    return _unreadable(text, reason)


def _unreadable(text: DelimitedText, reason: str) -> InputError:
    return InputError(f"the table cannot be read: {reason}", where=str(text.path), fix="write the file again")


def place_of(text: DelimitedText, row: int) -> str:
    """Return ``file:line`` of a row: the line its record starts at."""
    return _places(text, [row])[0]


def _places(text: DelimitedText, rows: list[int]) -> list[str]:
    """Read the file again for the lines of these rows: slow, and only for an error or on request."""
    lines = dict.fromkeys(rows, "")
    for row, line in zip(range(max(rows) + 1), _record_lines(text), strict=False):
        if row in lines:
            lines[row] = f"{text.path}:{line}"
    return [lines[row] or f"{text.path} row {row}" for row in rows]


def _record_lines(text: DelimitedText) -> Iterator[int]:
    """Yield the line, from 1, that each record after the header starts at; blank lines are skipped."""
    with open_lines(text.path, text.encoding, errors="replace") as file:
        reader = csv.reader(iter(lambda: file.readline(MAX_LINE_BYTES), ""), delimiter=text.delimiter)
        is_header, start = text.has_header, 1
        try:
            for record in reader:
                if record and not is_header:
                    yield start
                is_header = is_header and not record
                start = reader.line_num + 1
        except csv.Error:
            yield start  # of a record that Python's parser refuses; those after it are not known
