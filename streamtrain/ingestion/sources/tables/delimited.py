"""CSV and TSV: text with a header line, a record per line, UTF-8.

A first bounded pass counts the rows, finds every column's type and checks every value; the second reads. Places are
lines of the file: Arrow counts records, so a line is looked up again when an error needs it.
"""

from __future__ import annotations

import codecs
import csv
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.input_files import open_bytes, provenance_of, refuse_options
from streamtrain.ingestion.sources.tables.arrow import arrow, arrow_type, columns_of
from streamtrain.ingestion.sources.tables.column_survey import (
    MISSING_MARKS,
    ColumnSurvey,
    add_text,
    check_no_missing,
    surveys_of,
)
from streamtrain.ingestion.sources.tables.table_columns import (
    ChosenColumns,
    TableSource,
    choose_columns,
    facts_of,
    table_source,
)
from streamtrain.system.units import format_bytes

_DELIMITERS: Final = {".tsv": "\t", ".tab": "\t"}
# Arrow reads up to 32 blocks ahead, so the memory of a pass is about 36 of them.
_MIN_BLOCK_BYTES: Final = 1 << 18
_MAX_BLOCK_BYTES: Final = 1 << 20
_MAX_LINE_BYTES: Final = 1 << 24
_PIECE_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class DelimitedText:
    """A delimited file whose header has been read."""

    path: Path
    delimiter: str
    header: tuple[str, ...]
    block_bytes: int  # also the longest record
    nulls: tuple[str, ...]  # a missing value, where it is not in quotes


def probe(path: Path, options: SourceOptions) -> TableSource:
    """Open a CSV or TSV file: read through it once, hold nothing."""
    arrow()
    refuse_options(path, "CSV", options, "dtype", "shape")
    provenance = provenance_of(path, "csv")
    text = _open_text(path, options)
    _check_delimiter(text, options)
    chosen = choose_columns(text.header, options, f"{path}:1")
    columns, n_rows = _survey(text, chosen, surveys_of(chosen.names, chosen.label, options.classes))
    facts = ({**provenance[0], **facts_of(chosen)},)
    batches = partial(_batches, text, chosen)
    return table_source(path, chosen, columns, n_rows, facts, batches, partial(place_of, text))


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
    # Some hundred records make a block worth its while, if that is not too much; a few must fit in any case.
    block_bytes = max(_MIN_BLOCK_BYTES, min(256 * n_header, _MAX_BLOCK_BYTES), 6 * n_header)
    nulls = ("", *(mark for mark in MISSING_MARKS if mark not in (options.classes or ())))
    return DelimitedText(path=path, delimiter=delimiter, header=header, block_bytes=block_bytes, nulls=nulls)


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
        with path.open(encoding="utf-8-sig", newline="") as file:
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
    text: DelimitedText, chosen: ChosenColumns, columns: tuple[ColumnSurvey, ...]
) -> tuple[tuple[ColumnSurvey, ...], int]:
    n_rows = 0
    for batch in _batches(text, chosen, text.block_bytes, {}):
        values = columns_of(batch)
        features = {name: values[name] for name in chosen.features}
        for column in columns:
            add_text(column, values[column.name], n_rows, partial(place_of, text), features)
        n_rows += batch.num_rows
    check_no_missing(columns, partial(_places, text), may_be_named=True)
    return columns, n_rows


def _batches(text: DelimitedText, chosen: ChosenColumns, _: int, dtypes: Mapping[str, np.dtype[Any]]) -> Iterator[Any]:
    """Yield the chosen columns, one block of the file at a time; as text where no dtype is named."""
    # The block is the file's own, whatever memory is allowed: a record read once must be readable again.
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    csv_module = arrow("pyarrow.csv")
    try:
        yield from csv_module.open_csv(
            str(text.path),
            csv_module.ReadOptions(use_threads=False, block_size=text.block_bytes),
            csv_module.ParseOptions(delimiter=text.delimiter, newlines_in_values=True, invalid_row_handler=refuse),
            csv_module.ConvertOptions(
                include_columns=chosen.names,
                column_types={name: arrow_type(dtypes.get(name)) for name in chosen.names},
                null_values=text.nulls,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except arrow().ArrowInvalid as error:
        raise _refusal(text, ragged, str(error)) from error


def _refusal(text: DelimitedText, ragged: list[Any], reason: str) -> InputError:
    if ragged:
        row = ragged[0]
        # Arrow counts the header as record 1.
        return InputError(
            f"{row.actual_columns} values, expected {row.expected_columns}",
            where=place_of(text, row.number - 2),
            why=f"The line is {row.text[:80]!r}",
            fix="complete the line, close its quotes, or quote the values that hold a delimiter",
        )
    if "straddling" in reason:
        return InputError(
            f"a record is longer than {format_bytes(text.block_bytes)}",
            where=str(text.path),
            why="A quote that is never closed makes one record of the rest of the file",
            fix="close the quote",
        )
    if "UTF8" in reason:
        return _not_utf8(text.path)
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
    with text.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
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
