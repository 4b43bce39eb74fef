"""Records of a delimited file, in runs of bytes; the cells of a wide one, as one text array.

A file is cut here, not by Arrow, which reads up to 32 blocks ahead. And Arrow makes columns: of a row of 30,000 it
makes 30,000 arrays, each of which costs as much as hundreds of values. Quotes mean what they mean to Arrow: something
at the start of a cell only, where two of them are one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.ingestion.sources.tables.arrow import arrow
from streamtrain.ingestion.sources.tables.text.encoded_text import UTF_8, open_text

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_QUOTED: Final = rb'"(?:[^"]++|"")*+"'
_LINE_END: Final = rb"(?:\r\n?|\n)"


def record_runs(
    path: Path,
    delimiter: str,
    n_bytes: int,
    most_bytes: int,
    refusal: Callable[[int], Exception],
    *,
    encoding: str = UTF_8,
    has_header: bool = True,
) -> Iterator[bytes]:
    """Yield a file's records after its header, if it has one, in UTF-8, about ``n_bytes`` at a time.

    A record of more than ``most_bytes``, or with a quote that is not closed at the end of the file, is refused: raised
    is the error that ``refusal`` makes of the bytes read of it.
    """
    is_header, rest = has_header, b""
    mark = _BYTE_ORDER_MARK
    with open_text(path, encoding) as file:
        # A record that is longer than a piece is looked for again in twice as much.
        while piece := file.read(max(n_bytes - len(rest), len(rest), 1)):
            rest, mark = rest + piece.removeprefix(mark), b""
            end = _records_end(rest, delimiter)
            if not end and len(rest) > most_bytes:
                raise refusal(len(rest))
            run, rest = rest[:end], rest[end:]
            if is_header and run:
                run, is_header = _without_header(run, delimiter)
            if run:
                yield run
            del run
    if rest and not is_header:
        yield rest
        if b'"' in rest and _records_end(rest + b"\n", delimiter) <= len(rest):
            raise refusal(len(rest))


def _records_end(data: bytes, delimiter: str) -> int:
    """Find the end of the last whole record; 0 where there is none."""
    if b'"' not in data:
        return max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    found = _patterns(delimiter).records.match(data)
    return found.end() if found else 0


def _without_header(data: bytes, delimiter: str) -> tuple[bytes, bool]:
    """Cut the header off; where the data are blank lines, it is still to come."""
    found = _patterns(delimiter).first.match(data)
    return (data[found.end() :], False) if found else (b"", True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patterns:
    first: re.Pattern[bytes]  # a record, and blank lines before it
    records: re.Pattern[bytes]  # as many records as there are
    quoted: re.Pattern[bytes]  # a cell in quotes, without what may stand behind them
    line_ends: re.Pattern[bytes]  # the ends of a line and of blank lines after it; or a cell in quotes, group 1


@cache
def _patterns(delimiter: str) -> _Patterns:
    separator = re.escape(delimiter.encode())
    cell = rb"(?:" + _QUOTED + rb'|(?!"))[^' + separator + rb"\r\n]*+"
    record = cell + rb"(?:" + separator + cell + rb")*+" + _LINE_END
    quoted = rb"(?<![^" + separator + rb"\r\n])" + _QUOTED
    return _Patterns(
        first=re.compile(_LINE_END + rb"*+" + record),
        records=re.compile(rb"(?:" + record + rb")*+"),
        quoted=re.compile(quoted),
        line_ends=re.compile(rb"(" + quoted + rb")|" + _LINE_END + rb"++"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedRecord:
    """A record with more or fewer cells than the header; ``row`` counts from the first of its run."""

    row: int
    n_cells: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of a run of records."""

    text: Any  # an Arrow array of strings, of n_rows * n_columns
    quoted: npt.NDArray[np.int64]  # the cells in quotes
    n_rows: int


def cells_of(run: bytes, delimiter: str, n_columns: int) -> Cells | RaggedRecord:
    """Find the cells of a run of records; the first record that has not so many is returned instead.

    Raises
    ------
    UnicodeDecodeError
        It is not UTF-8.
    """
    run = _plain_lines(run, delimiter)
    if not run.isascii():
        run.decode()
    data = np.frombuffer(run, np.uint8)
    ends = np.flatnonzero((data == ord(delimiter)) | (data == ord("\n")))
    spans = [found.span() for found in _patterns(delimiter).quoted.finditer(run)] if b'"' in run else []
    starts, stops = np.array(spans, np.int64).reshape(-1, 2).T
    if spans:
        # Separators in quotes are none.
        last = np.searchsorted(starts, ends, "right") - 1
        ends = ends[(last < 0) | (ends >= stops[last])]
    at_end = np.flatnonzero(data[ends] == ord("\n"))
    n_cells = np.diff(at_end, prepend=-1)
    wrong = np.flatnonzero(n_cells != n_columns)
    if len(wrong):
        row = int(wrong[0])
        start = ends[at_end[row - 1]] + 1 if row else 0
        line = run[start : min(ends[at_end[row]], start + 400)].decode(errors="replace")
        return RaggedRecord(row=row, n_cells=int(n_cells[row]), text=line)
    dropped = np.sort(np.concatenate([ends, _quote_marks(run, starts, stops)])) if spans else ends
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends - np.searchsorted(dropped, ends) if spans else ends - np.arange(len(ends))
    buffers = arrow().py_buffer(offsets), arrow().py_buffer(np.delete(data, dropped))
    text = arrow().StringArray.from_buffers(len(ends), *buffers)
    return Cells(text=text, quoted=np.searchsorted(ends, starts), n_rows=len(at_end))


def _plain_lines(run: bytes, delimiter: str) -> bytes:
    """End every record in a line feed, and leave out blank lines."""
    if b"\r" in run or b"\n\n" in run:
        run = _patterns(delimiter).line_ends.sub(lambda found: found[1] or b"\n", run)
    run = run.removeprefix(b"\n")
    return run if run.endswith(b"\n") else run + b"\n"


def _quote_marks(run: bytes, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Find the marks that are no text: around a cell, and the first of every two within it."""
    marks = [starts, stops - 1]
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if run.find(b'"', start + 1, stop - 1) >= 0:
            marks.append(
                np.array([start + 1 + found.start() for found in re.finditer(b'""', run[start + 1 : stop - 1])])
            )
    return np.concatenate(marks)
