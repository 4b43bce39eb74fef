"""Parquet: typed columns in row groups, read in batches.

A first pass checks every value, the second reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.errors import InputError, first_line
from streamtrain.ingestion.sources.base import ReadingMemory, SourceOptions
from streamtrain.ingestion.sources.input_files import provenance_of, refuse_options
from streamtrain.ingestion.sources.tables.arrow import arrow, without_dictionary
from streamtrain.ingestion.sources.tables.column_survey import ColumnSurvey, add_typed, check_no_missing, surveys_of
from streamtrain.ingestion.sources.tables.table_columns import (
    COLUMN_BYTES,
    ChosenColumns,
    TableDtypes,
    TableRun,
    TableSource,
    choose_columns,
    facts_of,
    numbers_of,
    run_of,
    table_source,
)

_SURVEY_BYTES: Final = 4 << 20
_BUFFER_BYTES: Final = 1 << 16
_PAGE_BYTES: Final = 1 << 20
# A value is at most 8 bytes and, as Arrow and as NumPy, is held twice.
_HELD_BYTES: Final = 16
_VALUE_BYTES: Final = 8
_FOOTER_BYTES: Final = 3600
"""Memory that Arrow takes for the description of a column in a row group, measured; held while a file is open."""

_WIDE: Final = 100
"""Columns from which on a row group is read some columns at a time, and not some rows of all of them."""


def probe(path: Path, options: SourceOptions) -> TableSource:
    """Open a Parquet file: read through the chosen columns once, hold nothing."""
    arrow()
    refuse_options(path, "Parquet", options, "dtype", "shape")
    provenance = provenance_of(path, "parquet")
    with _reading(str(path)), _open_file(path) as file:
        chosen = choose_columns(file.schema_arrow.names, options, str(path), file.schema_arrow.metadata)
        _check_types(path, file.schema_arrow, chosen)
        n_claimed, reading = file.metadata.num_rows, _reading_memory(file.metadata, chosen)
    columns, n_rows = _survey(path, chosen, surveys_of(chosen.names, chosen.label, options.classes))
    if n_rows != n_claimed:
        what = f"the row groups hold {n_rows:,} rows, the footer claims {n_claimed:,}"
        raise InputError(what, where=str(path), fix="write the file again")
    facts = ({**provenance[0], **facts_of(chosen)},)
    where = partial(_place_of, path)
    return table_source(path, chosen, columns, n_rows, facts, partial(_runs, path), where, reading)


def _reading_memory(footer: Any, chosen: ChosenColumns) -> ReadingMemory:
    """Project the memory of reading: of the footer, and of what is decoded at once."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    n_rows = max((group.num_rows for group in groups), default=0)
    largest = max(groups, key=lambda group: group.total_byte_size, default=None)
    chunks = [largest.column(number).total_uncompressed_size for number in range(footer.num_columns)] if largest else []
    if len(chosen.names) < _WIDE:
        # Of every column a page is held, and it may be preceded by a dictionary.
        decoding = sum(_BUFFER_BYTES + 2 * min(n_bytes, _PAGE_BYTES) for n_bytes in chunks)
    else:
        decoding = 3 * max(_SURVEY_BYTES, *chunks)
    return ReadingMemory(
        lasting_bytes=COLUMN_BYTES * footer.num_columns,
        working_bytes=_FOOTER_BYTES * footer.num_columns * max(1, len(groups)) + decoding,
        group_bytes=0 if len(chosen.names) < _WIDE else 8 * n_rows * len(chosen.names),
    )


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    parquet = arrow("pyarrow.parquet")
    # Row groups are read through a small buffer, not held whole; page checksums are compared where there are any.
    with parquet.ParquetFile(
        str(path), buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    ) as file:
        yield file


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Name the file and row group in whatever Arrow raises."""
    try:
        yield
    except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"the Parquet data is damaged: {first_line(error)}"
        raise InputError(what, where=where, fix="write or download the file again") from error


def _check_types(path: Path, schema: Any, chosen: ChosenColumns) -> None:
    types = arrow("pyarrow.types")
    for name in chosen.names:
        declared = schema.field(name).type
        kind = declared.value_type if types.is_dictionary(declared) else declared
        is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        is_string = types.is_string(kind) or types.is_large_string(kind)
        if not is_number and not (is_string and name == chosen.label):
            raise InputError(
                f"column {name!r} is {declared}, which is not supported",
                where=str(path),
                why="Features are bool, integer or float columns; the label may be text",
                fix="leave it out by naming the others: columns=..., or flatten it into number columns",
            )


def _survey(
    path: Path, chosen: ChosenColumns, columns: tuple[ColumnSurvey, ...]
) -> tuple[tuple[ColumnSurvey, ...], int]:
    n_rows = 0
    for group in _row_groups(path):
        n_before = n_rows
        for first, start, batch in _decoded(group, chosen, _SURVEY_BYTES):
            for column, values in zip(columns[first:], batch.columns, strict=False):
                add_typed(column, without_dictionary(values), n_before + start)
            n_rows = max(n_rows, n_before + start + batch.num_rows)
    check_no_missing(columns, lambda rows: [_place_of(path, row) for row in rows])
    return columns, n_rows


def _runs(path: Path, max_bytes: int, chosen: ChosenColumns, dtypes: TableDtypes) -> Iterator[TableRun]:
    """Read the rows, in runs of about so many bytes."""
    for group in _row_groups(path):
        if len(chosen.names) < _WIDE:
            for _, _, batch in _decoded(group, chosen, max_bytes):
                yield run_of(batch, chosen, dtypes.features)
        else:
            yield from _wide_runs(group, max_bytes, chosen, dtypes)


def _wide_runs(group: _RowGroup, max_bytes: int, chosen: ChosenColumns, dtypes: TableDtypes) -> Iterator[TableRun]:
    """Read a row group for every run of its rows anew: all of its columns at once may be larger than memory."""
    n_features = len(chosen.features)
    step = max(1, max_bytes // (_VALUE_BYTES * (1 + n_features)))
    for start in range(0, group.n_rows, step):
        n_rows = min(step, group.n_rows - start)
        features = None if dtypes.features is None else np.empty((n_rows, n_features), dtypes.features)
        label = None
        for first, _, batch in _decoded(group, chosen, _SURVEY_BYTES):
            for number, column in enumerate(batch.slice(start, n_rows).columns, first):
                if number == n_features:
                    label = without_dictionary(column)
                elif features is not None:
                    features[:, number] = numbers_of(chosen.features[number], without_dictionary(column))
        yield TableRun(n_rows=n_rows, features=features, label=label)
        del features, label


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowGroup:
    """A row group of an open file."""

    path: Path
    file: Any
    number: int
    n_rows: int


def _row_groups(path: Path) -> Iterator[_RowGroup]:
    with _reading(str(path)), _open_file(path) as file:
        for number in range(file.num_row_groups):
            yield _RowGroup(path=path, file=file, number=number, n_rows=file.metadata.row_group(number).num_rows)


def _decoded(group: _RowGroup, chosen: ChosenColumns, max_bytes: int) -> Iterator[tuple[int, int, Any]]:
    """Yield some of a row group at a time: the number of the first column, the first row, a batch."""
    names = list(chosen.names)
    with _reading(f"{group.path} row group {group.number}"):
        if len(names) < _WIDE:
            n_rows = max(1, max_bytes // (_HELD_BYTES * len(names)))
            start = 0
            for batch in group.file.iter_batches(n_rows, row_groups=[group.number], columns=names):
                yield 0, start, batch
                start += batch.num_rows
            return
        step = min(_WIDE, max(1, max_bytes // (_HELD_BYTES * max(1, group.n_rows))))
        for first in range(0, len(names), step):
            table = group.file.read_row_group(group.number, columns=names[first : first + step], use_threads=False)
            for batch in table.combine_chunks().to_batches():
                yield first, 0, batch


def _place_of(path: Path, row: int) -> str:
    return f"{path} row {row}"
