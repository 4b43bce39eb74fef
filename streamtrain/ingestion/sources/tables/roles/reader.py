"""A table as batches of columns: the interface between the formats, and what their columns become."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.ingestion.sources.base import NO_READING, ReadingMemory
from streamtrain.ingestion.sources.tables.arrow import arrow, arrow_type
from streamtrain.ingestion.sources.tables.records import Cells


@dataclass(frozen=True, slots=True, kw_only=True)
class TableBatch:
    """A run of rows, as Arrow arrays by column; those of a wide table are made when asked for."""

    n_rows: int
    columns: Mapping[str, Any]
    n_bytes: int = 0  # of the text that it was read from


def read_ahead(batches: Generator[TableBatch, None, None]) -> Generator[TableBatch, None, None]:
    """Yield batches, while a thread parses the next one; it ends when this is closed, which an error alone does not."""
    with closing(batches), ThreadPoolExecutor(1, thread_name_prefix="streamtrain-ingest-parser") as parser:
        pending = parser.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            # The thread lasts: each new one has memory of its own, which stays when it ends.
            pending = parser.submit(next, batches, None)
            yield batch
            del batch


@dataclass(frozen=True, slots=True, kw_only=True)
class NumbersParsed:
    """Columns to read as numbers at once, and as which: that may change from one batch to the next."""

    names: tuple[str, ...]
    dtype: Callable[[], np.dtype[Any]]


NO_NUMBERS: Final = NumbersParsed(names=(), dtype=lambda: np.dtype(np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReader:
    """A table whose header has been read; ``types`` are those that the file declares, or None where all is text."""

    path: Path
    header: tuple[str, ...]
    types: Mapping[str, Any] | None
    batches: Callable[[Sequence[str]], Iterator[TableBatch]]
    place: Callable[[int], str]
    provenance: tuple[dict[str, Any], ...]
    nulls: tuple[str, ...]  # marks of missing values in text
    has_own_nulls: bool = False  # which were given
    has_header: bool = True
    metadata: Mapping[bytes, bytes] | None = None
    reading: ReadingMemory = NO_READING
    parsed: Callable[[Sequence[str], NumbersParsed], Generator[TableBatch, None, None]] | None = None
    """Batches of text in which numbers are parsed as they are read, where the file is text."""


class ParsedColumns(Mapping[str, Any]):
    """The columns of a run of text of which some are numbers already; asked for as text they are read again."""

    def __init__(self, columns: Mapping[str, Any], numbers: Sequence[str], as_text: Callable[[], Mapping[str, Any]]):
        self._columns = columns
        self._numbers = frozenset(numbers)
        self._as_text = as_text

    def numbers(self, names: Sequence[str], dtype: np.dtype[Any]) -> Any | None:
        """Return some columns one behind the other; None where they are not numbers of that dtype."""
        if not self._numbers.issuperset(names):
            return None
        columns = [self._columns[name] for name in names]
        return arrow().concat_arrays(columns) if columns[0].type == arrow_type(dtype) else None

    def __getitem__(self, name: str) -> Any:
        if name in self._numbers:
            self._columns, self._numbers = self._as_text(), frozenset()
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class CellColumns(Mapping[str, Any]):
    """The columns of a wide table's cells."""

    def __init__(self, header: Sequence[str], cells: Cells, without_marks: Callable[[Any, Any], Any]) -> None:
        self._places = {name: number for number, name in enumerate(header)}
        self._cells = cells
        self._without_marks = without_marks

    def flat(self, names: Sequence[str]) -> Any:
        """Return the cells of some columns, one row after another."""
        if tuple(names) == tuple(self._places):
            return self._cells.text
        return self._cells.text.take(arrow().array(self._at(names)))

    def __getitem__(self, name: str) -> Any:
        places = self._at([name])
        return self._without_marks(self._cells.text.take(arrow().array(places)), np.isin(places, self._cells.quoted))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        of_row = np.array([self._places[name] for name in names], np.int64)
        return (np.arange(self._cells.n_rows)[:, None] * len(self._places) + of_row).reshape(-1)
