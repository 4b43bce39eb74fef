"""CSV and TSV: text with a header line, a record per line, UTF-8.

A first bounded pass counts the rows, finds every column's type and checks every value; the second reads. Places are
lines of the file: Arrow counts records, so a line is looked up again when an error needs it.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError
from streamtrain.ingestion.sources.base import ReadingMemory, SourceOptions
from streamtrain.ingestion.sources.input_files import open_bytes, provenance_of, refuse_options
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    arrow_type,
    first_refused,
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
from streamtrain.system.units import format_bytes

_DELIMITERS: Final = {".tsv": "\t", ".tab": "\t"}
_MIN_RUN_BYTES: Final = 1 << 18
_MAX_RUN_BYTES: Final = 1 << 20
_MAX_LINE_BYTES: Final = 1 << 24
_MEMORY_PER_RECORD: Final = 16  # at least, for the copies of it that are held at once
_MEMORY_FOR_ANY_RECORD: Final = f"{_MEMORY_PER_RECORD * _MAX_LINE_BYTES // 10**6 + 1}MB"
_PIECE_BYTES: Final = 1 << 18
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
    facts = ({**provenance[0], **facts_of(chosen)},)
    reading = ReadingMemory(
        lasting_bytes=2 * COLUMN_BYTES * len(text.header),
        working_bytes=_COPIES * longest + _CELL_BYTES * longest // 2,
    )
    runs, place = partial(_runs, text), partial(place_of, text)
    return table_source(path, chosen, columns, n_rows, facts, runs, place, reading, lambda: text.header)


def _open_text(path: Path, options: SourceOptions) -> DelimitedText:
    delimiter = _DELIMITERS.get(path.suffix.lower(), ",")
    header = _read_header(path, delimiter)
    if _looks_like_data(header):
        raise InputError(
            "the first line holds numbers only: the header is missing",
            where=f"{path}:1",
            fix=f"add a first line of {len(header)} column names",
        )
    n_header = sum(len(name) + 1 for name in header)
    # Some hundred records make a run worth its while, if that is not too much.
    run_bytes = max(_MIN_RUN_BYTES, min(256 * n_header, _MAX_RUN_BYTES)) if len(header) < _WIDE else _MIN_RUN_BYTES
    most_bytes = _MAX_LINE_BYTES if options.memory is None else options.memory // _MEMORY_PER_RECORD
    nulls = ("", *(mark for mark in MISSING_MARKS if mark not in (options.classes or ())))
    return DelimitedText(
        path=path,
        delimiter=delimiter,
        header=header,
        run_bytes=run_bytes,
        most_bytes=min(most_bytes, _MAX_LINE_BYTES),
        nulls=nulls,
    )


@contextmanager
def _open_lines(path: Path, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors, newline="") as text:
        yield text


def _check_delimiter(text: DelimitedText, options: SourceOptions) -> None:
    """Refuse a header of one name that another delimiter divides, where a column of several is asked for."""
    (name, *more), path = text.header, text.path
    found = next((mark for mark in _OTHER_DELIMITERS if mark in name and mark != text.delimiter), None)
    wanted = {*(options.columns or ()), *([options.label_column] if options.label_column else [])}
    if found is not None and not more and wanted != {name}:
        to = shlex.quote(f"{path.stem}-tabs.tsv")
        raise InputError(
            f"the header has one column, {name[:80]!r}",
            where=f"{path}:1",
            why=f"The delimiter of a {path.suffix} is {text.delimiter!r}; here {found!r} seems to be it",
            fix=f"convert it: tr '{found}' '\\t' < {shlex.quote(str(path))} > {to}",
        )


_OTHER_DELIMITERS: Final = (";", "|", "\t", ",")


def _read_header(path: Path, delimiter: str) -> tuple[str, ...]:
    try:
        with _open_lines(path) as file:
            lines = iter(lambda: file.readline(_MAX_LINE_BYTES), "")
            return tuple(next(record for record in csv.reader(lines, delimiter=delimiter) if record))
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except StopIteration:
        raise InputError("only blank lines, no header", where=str(path), fix="write the file again") from None
    except csv.Error as error:
        raise InputError(f"the header cannot be read: {error}", where=f"{path}:1", fix="check its quotes") from error


def _looks_like_data(header: tuple[str, ...]) -> bool:
    """Say whether a header is all numbers, other than 0, 1, 2, ... of a table without names."""
    numbered = [str(number) for number in range(len(header) + 1)]
    return list(header) not in (numbered[:-1], numbered[1:]) and all(map(_is_number, header))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _survey(
    text: DelimitedText, chosen: ChosenColumns, options: SourceOptions
) -> tuple[tuple[ColumnSurvey, ...], int, int]:
    """Find what is in the columns; count the rows, and the bytes of the longest run of records."""
    place = partial(place_of, text)
    by_column = chosen.names if len(text.header) < _WIDE else chosen.names[len(chosen.features) :]
    columns = surveys_of(by_column, chosen.label, options.classes, options.memory)
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
            rows = run_of(_batch(text, chosen, run, n_rows, kinds), chosen, dtypes.features)
        else:
            rows = _wide_run(text, chosen, dtypes, _cells(text, run, n_rows))
        yield rows
        n_rows += rows.n_rows
        del rows


def _record_runs(text: DelimitedText) -> Iterator[bytes]:
    return record_runs(text.path, text.delimiter, text.run_bytes, text.most_bytes, partial(_too_long, text))


def _too_long(text: DelimitedText, n_bytes: int) -> InputError | BudgetError:
    why = "A quote that is never closed makes one record of the rest of the file"
    if n_bytes > text.most_bytes < _MAX_LINE_BYTES:
        return BudgetError(
            f"a record is longer than {format_bytes(text.most_bytes)}, which is 1/{_MEMORY_PER_RECORD} of the memory",
            where=str(text.path),
            why=why,
            fix=Fix("close the quote; or, if the record is so long, ", Argument("memory", _MEMORY_FOR_ANY_RECORD)),
        )
    over = (
        "a quote is never closed"
        if n_bytes <= text.most_bytes
        else f"a record is longer than {format_bytes(_MAX_LINE_BYTES)}"
    )
    return InputError(over, where=str(text.path), why=why, fix="close the quote")


def _batch(
    text: DelimitedText, chosen: ChosenColumns, run: bytes, n_rows: int, dtypes: Mapping[str, np.dtype[Any] | None]
) -> Any:
    """Parse the chosen columns of a run of records; as text where no dtype is named."""
    csv_module = arrow("pyarrow.csv")
    try:
        table = csv_module.read_csv(
            arrow().BufferReader(run),
            csv_module.ReadOptions(use_threads=False, block_size=len(run) + 1, column_names=list(text.header)),
            # No invalid_row_handler: Arrow's threads would free it, also when Python has ended.
            csv_module.ParseOptions(delimiter=text.delimiter, newlines_in_values=True),
            csv_module.ConvertOptions(
                include_columns=chosen.names,
                column_types={name: arrow_type(dtypes.get(name)) for name in chosen.names},
                null_values=text.nulls,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except arrow().ArrowInvalid as error:
        reason = str(error)
        found = _RAGGED.search(reason)
        ragged = found and RaggedRecord(row=int(found[1]) - 1, n_cells=int(found[2]), text=found[3])
        raise _refusal(text, ragged, n_rows, reason) from error
    return table.combine_chunks().to_batches()[0]


_RAGGED: Final = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", re.DOTALL)
"""Arrow's message for a record of too few or too many values."""


def _cells(text: DelimitedText, run: bytes, n_rows: int) -> Cells:
    """Parse the cells of a run of records of a wide table."""
    try:
        cells = cells_of(run, text.delimiter, len(text.header))
    except UnicodeDecodeError:
        raise _not_utf8(text.path) from None
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
        label = label if dtypes.label is None else parsed(label, dtypes.label)
        if label is None:
            raise _unreadable(text, f"a label is not {dtypes.label}")
    return TableRun(n_rows=cells.n_rows, features=features, label=label)


def _numbers(text: DelimitedText, cells: Any, dtype: np.dtype[Any], names: Sequence[str]) -> npt.NDArray[Any]:
    values = parsed(cells, dtype)
    if values is None:
        cell = first_refused(cells, dtype)
        if not cells[cell].as_py().strip():
            raise ValuesMissing(names[cell % len(names)])
        raise _unreadable(text, f"{cells[cell].as_py()!r:.80} is not {dtype}")
    return numbers_in(values)


def _features(text: DelimitedText, chosen: ChosenColumns, cells: Cells) -> Any:
    """Return the cells of the features, one row after another, in the order they were chosen in."""
    if chosen.features == text.header:
        return cells.text
    places = {name: number for number, name in enumerate(text.header)}
    of_row = np.array([places[name] for name in chosen.features])
    return cells.text.take(arrow().array((np.arange(cells.n_rows)[:, None] * len(text.header) + of_row).reshape(-1)))


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
        return _not_utf8(text.path)
    return _unreadable(text, reason)


def _unreadable(text: DelimitedText, reason: str) -> InputError:
    return InputError(f"the table cannot be read: {reason}", where=str(text.path), fix="write the file again")


def _not_utf8(path: Path) -> InputError:
    with open_bytes(path) as file:
        has_mark = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if has_mark else "latin1"
    return InputError(
        f"not UTF-8 text: byte {_first_bad_byte(path):,} is part of no character",
        where=str(path),
        fix=f"convert it: iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(f'utf8-{path.name}')}",
    )


def _first_bad_byte(path: Path) -> int:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_bytes(path) as file:
        for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
            n_pending = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                return offset - n_pending + error.start
            offset += len(piece)
    return offset


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
    with _open_lines(text.path, errors="replace") as file:
        reader = csv.reader(iter(lambda: file.readline(_MAX_LINE_BYTES), ""), delimiter=text.delimiter)
        is_header, start = True, 1
        try:
            for record in reader:
                if record and not is_header:
                    yield start
                is_header = is_header and not record
                start = reader.line_num + 1
        except csv.Error:
            yield start  # of a record that Python's parser refuses; those after it are not known
