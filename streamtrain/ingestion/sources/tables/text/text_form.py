"""The form of a delimited file: its delimiter, its header or the names given in its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import TableOptions
from streamtrain.ingestion.sources.tables.text.encoded_text import check_mark, open_text, unreadable_text

MAX_LINE_BYTES: Final = 1 << 24
_DELIMITERS: Final = (",", ";", "\t", "|")
_OF_SUFFIX: Final = {".tsv": "\t", ".tab": "\t"}
_N_SNIFFED: Final = 20
_SNIFFED_CHARS: Final = 1 << 16
_MOST_NAMED: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """How a delimited file is written."""

    encoding: str
    delimiter: str
    header: tuple[str, ...]
    has_header: bool


def own_delimiter(path: Path) -> str:
    """Return the delimiter that a file's suffix promises."""
    return _OF_SUFFIX.get(path.suffix.lower(), ",")


@contextmanager
def open_lines(path: Path, encoding: str, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """Open a text file for reading by the line; its line ends stay."""
    with open_text(path, encoding, errors) as file, io.TextIOWrapper(file, "utf-8-sig", errors, newline="") as text:
        yield text


def form_of(path: Path, table: TableOptions, wanted: Collection[str]) -> TextForm:
    """Find the form of a file; ``wanted`` are the columns that are asked for by name."""
    check_mark(path, table.encoding)
    try:
        delimiter = table.delimiter if table.delimiter != "auto" else _sniffed(path, table, wanted)
        first = _first_record(path, table.encoding, delimiter)
    except UnicodeDecodeError:
        raise unreadable_text(path, table.encoding) from None
    except csv.Error as error:
        raise InputError(f"the header cannot be read: {error}", where=f"{path}:1", fix="check its quotes") from error
    has_header = table.header != "none"
    header = first if has_header else _names_for(first, table, path)
    if has_header and _looks_like_data(header):
        raise InputError(
            "the first line holds numbers only: the header is missing",
            where=f"{path}:1",
            fix=Fix(
                "add a first line of column names; or name them: ",
                Argument("header", "none"),
                " and ",
                Argument("names", _suggested(len(header))),
            ),
        )
    return TextForm(encoding=table.encoding, delimiter=delimiter, header=header, has_header=has_header)


def other_delimiter(name: str, delimiter: str) -> str | None:
    """Find another delimiter in the only name of a header."""
    return next((mark for mark in _DELIMITERS[1:] + _DELIMITERS[:1] if mark in name and mark != delimiter), None)


def _sniffed(path: Path, table: TableOptions, wanted: Collection[str]) -> str:
    """Choose the delimiter by which the first records have as many cells as the header; the suffix's own is first."""
    own = own_delimiter(path)
    with open_lines(path, table.encoding) as file:
        sample = _sample(file)
    n_cells = _n_cells(sample, own)
    whole = next(csv.reader(sample, delimiter=own), [])
    if n_cells > 1 or (len(whole) == 1 and set(wanted) == set(whole)):
        return own
    others = {mark: _n_cells(sample, mark) for mark in _DELIMITERS if mark != own}
    best = max(others, key=lambda mark: others[mark])
    return best if others[best] > 1 else own


def _sample(file: io.TextIOWrapper) -> list[str]:
    """Read the first lines that are not blank: at least one, then as many as are no great matter."""
    sample: list[str] = []
    n_chars = 0
    for line in iter(lambda: file.readline(MAX_LINE_BYTES), ""):
        if sample or line.strip("\r\n"):
            sample.append(line)
            n_chars += len(line)
        if len(sample) > _N_SNIFFED or n_chars > _SNIFFED_CHARS:
            break
    return sample


def _n_cells(sample: Sequence[str], delimiter: str) -> int:
    """Count the cells of the first records, if it is the same number in each; else 0."""
    try:
        records = [len(record) for record in csv.reader(sample, delimiter=delimiter) if record]
    except csv.Error:
        return 0
    # The sample may end within a record.
    whole = records[:-1] if len(sample) > _N_SNIFFED and len(records) > 1 else records
    return whole[0] if len(set(whole)) == 1 else 0


def _first_record(path: Path, encoding: str, delimiter: str) -> tuple[str, ...]:
    with open_lines(path, encoding) as file:
        lines = iter(lambda: file.readline(MAX_LINE_BYTES), "")
        found = next(islice(filter(None, csv.reader(lines, delimiter=delimiter)), 1), None)
    if found is None:
        raise InputError("only blank lines, no header", where=str(path), fix="write the file again")
    return tuple(found)


def _names_for(first: tuple[str, ...], table: TableOptions, path: Path) -> tuple[str, ...]:
    """Return the names given in place of a header, one for each value of the first record."""
    if table.names is None:
        named = Argument("names", _suggested(len(first)))
        raise UsageError("the columns have no names", where=str(path), fix=Fix("name them: ", named))
    if len(table.names) != len(first):
        raise UsageError(
            f"{len(table.names):,} names are given, and the first line has {len(first):,} values",
            where=f"{path}:1",
            why=f"The delimiter is {table.delimiter!r}" if table.delimiter != "auto" else None,
            fix="give one name for each",
        )
    return table.names


def _suggested(n_columns: int) -> list[str] | None:
    """Suggest names for so many columns."""
    return [f"c{number}" for number in range(1, n_columns + 1)] if n_columns <= _MOST_NAMED else None


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
