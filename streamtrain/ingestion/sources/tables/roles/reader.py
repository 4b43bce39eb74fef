"""A table as batches of columns: the interface between the formats, and what their columns become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.ingestion.sources.base import NO_READING, ReadingMemory
from streamtrain.ingestion.sources.tables.arrow import arrow
from streamtrain.ingestion.sources.tables.records import Cells


@dataclass(frozen=True, slots=True, kw_only=True)
class TableBatch:
    """A run of rows, as Arrow arrays by column; those of a wide table are made when asked for."""

    n_rows: int
    columns: Mapping[str, Any]
    n_bytes: int = 0  # of the text that it was read from


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
    metadata: Mapping[bytes, bytes] | None = None
    reading: ReadingMemory = NO_READING


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
