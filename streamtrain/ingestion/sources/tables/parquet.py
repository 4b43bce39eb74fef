"""Parquet: typed columns in row groups, read in batches.

A first pass checks every value, the second reads.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, first_line
from streamtrain.ingestion.sources.base import ReadingMemory, SourceOptions
from streamtrain.ingestion.sources.input_files import provenance_of, refuse_options
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    columns_of,
    returning_memory,
    stacked,
    without_dictionary,
)
from streamtrain.ingestion.sources.tables.column_survey import (
    ColumnSurvey,
    add_typed_batch,
    check_no_missing,
    surveys_of,
)
from streamtrain.ingestion.sources.tables.roles.reader import TableBatch, TableReader
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
from streamtrain.ingestion.sources.tables.table_options import TEXT_OPTIONS
from streamtrain.ingestion.sources.tables.typed_columns import check_types, is_text_type, plain_batch, plain_type
from streamtrain.system.memory import return_freed
from streamtrain.system.refusals import read_failure, refusal_behind
from streamtrain.system.syscalls import with_room

_BUFFER_BYTES: Final = 1 << 16
_PAGE_BYTES: Final = 1 << 20
_PAGE_ROWS: Final = 1024
"""Rows after which programs look at the size of a page that they write: of long texts it is larger than the usual."""
_DECODED_BYTES: Final = 2 << 20
_MOST_COLUMNS: Final = 100
"""Columns that are decoded at once, and their memory, where it is not all of them."""

# A value is at most 8 bytes and, as Arrow and as NumPy, is held twice.
_HELD_BYTES: Final = 16
_LABEL_BYTES: Final = 8
_FOOTER_BYTES: Final = 3200
"""Memory that Arrow takes for the description of a column in a row group, measured; held while a file is open."""


def probe(path: Path, options: SourceOptions) -> TableSource:
    """Open a Parquet file: read through the chosen columns once, hold nothing."""
    arrow()
    with returning_memory():
        return _probe(path, options)


def _probe(path: Path, options: SourceOptions) -> TableSource:
    refuse_options(path, "Parquet", options, "dtype", "shape", *TEXT_OPTIONS)
    provenance = provenance_of(path, "parquet")
    chosen, footer, metadata = _choose(path, options)
    surveys = surveys_of(chosen.names, chosen.label, options.classes, options.memory)
    columns, n_rows, page_bytes = _survey(path, chosen, surveys, metadata)
    del metadata
    if n_rows != footer.n_rows:
        what = f"the row groups hold {n_rows:,} rows, the footer claims {footer.n_rows:,}"
        raise InputError(what, where=str(path), fix="write the file again")
    # The footer of a wide table may be larger than all else.
    return_freed()
    facts = ({**provenance[0], **facts_of(chosen)},)
    where = partial(place_of, path)
    source = table_source(
        path, chosen, columns, n_rows, facts, partial(_runs, path, footer), where, header=partial(_names, path)
    )
    source.range_runs = partial(_range_runs, path)
    row_bytes = sum(field.row_bytes for field in source.fields)
    source.reading = ReadingMemory(
        lasting_bytes=COLUMN_BYTES * footer.n_columns,
        working_bytes=_FOOTER_BYTES * footer.n_columns * footer.n_groups + max(2 * _DECODED_BYTES, 2 * page_bytes),
        group_bytes=footer.most_rows * row_bytes,
        is_one_group=footer.n_groups == 1,
    )
    return source


def reader(path: Path, options: SourceOptions) -> TableReader:
    """Open a Parquet file for columns of any role: read its footer."""
    arrow()
    refuse_options(path, "Parquet", options, "dtype", "shape", *TEXT_OPTIONS)
    with reading_parquet(str(path)), open_file(path) as file:
        schema, footer = file.schema_arrow, file.metadata
        n_groups, n_columns, n_rows = footer.num_row_groups, footer.num_columns, footer.num_rows
        n_bytes = [footer.row_group(number).total_byte_size for number in range(n_groups)]
    row_bytes = sum(n_bytes) // max(1, n_rows) + 1
    return TableReader(
        path=path,
        header=tuple(schema.names),
        types={name: plain_type(kind) for name, kind in zip(schema.names, schema.types, strict=True)},
        batches=partial(_column_batches, path, max(1, _DECODED_BYTES // (2 * row_bytes))),
        place=partial(place_of, path),
        provenance=provenance_of(path, "parquet"),
        nulls=(),
        metadata=schema.metadata,
        reading=ReadingMemory(
            lasting_bytes=COLUMN_BYTES * n_columns,
            working_bytes=_FOOTER_BYTES * n_columns * n_groups
            + 4 * _DECODED_BYTES
            + n_columns * _BUFFER_BYTES
            + 2 * min(max(n_bytes, default=0), n_columns * _PAGE_BYTES + _PAGE_ROWS * row_bytes),
        ),
    )


def _column_batches(path: Path, n_rows: int, names: Sequence[str]) -> Iterator[TableBatch]:
    """Read columns as they are declared, a row group after another."""
    n_done = 0
    with reading_parquet(str(path)), open_file(path) as file:
        for number in range(file.num_row_groups):
            with reading_parquet(f"{path} row group {number}"):
                for batch in file.iter_batches(n_rows, row_groups=[number], columns=list(names), use_threads=False):
                    _check_text(batch)
                    yield TableBatch(n_rows=batch.num_rows, columns=columns_of(plain_batch(batch, str(path), n_done)))
                    n_done += batch.num_rows
                    del batch
                    return_freed()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footer:
    """What the footer of a file says of its size."""

    n_rows: int
    n_columns: int
    n_groups: int
    most_rows: int  # of a row group


def _choose(path: Path, options: SourceOptions) -> tuple[ChosenColumns, _Footer, Any]:
    """Choose columns; return with them what Arrow holds of the footer, too: in a wide table it is large."""
    with reading_parquet(str(path)), open_file(path) as file:
        schema, footer = file.schema_arrow, file.metadata
        chosen = choose_columns(schema.names, options, str(path), schema.metadata)
        check_types(str(path), schema, chosen)
    size = _Footer(
        n_rows=footer.num_rows,
        n_columns=footer.num_columns,
        n_groups=footer.num_row_groups,
        most_rows=max((footer.row_group(number).num_rows for number in range(footer.num_row_groups)), default=0),
    )
    return chosen, size, footer


def _names(path: Path) -> Sequence[str]:
    with reading_parquet(str(path)), open_file(path) as file:
        names: Sequence[str] = file.schema_arrow.names
    return names


@contextmanager
def open_file(path: Path, label: str | None = None, metadata: Any = None) -> Iterator[Any]:
    """Open a file for the block; the texts of column ``label`` stay in their dictionary."""
    parquet = arrow("pyarrow.parquet")
    # Row groups are read through a small buffer, not held whole; page checksums are compared where there are any.
    # Texts that are labels stay in their dictionary.
    options = {
        "metadata": metadata,
        "read_dictionary": None if label is None else [label],
        "buffer_size": _BUFFER_BYTES,
        "pre_buffer": False,
        "page_checksum_verification": True,
    }
    with with_room(lambda: parquet.ParquetFile(str(path), **options)) as file:
        yield file


@contextmanager
def reading_parquet(where: str) -> Iterator[None]:
    """Name the file and row group in whatever Arrow raises."""
    try:
        yield
    except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:
        if refusal := refusal_behind(error):
            raise read_failure(refusal, where, InputError, "copy it to another disk") from error
        what = f"the Parquet data is damaged: {first_line(error)}"
        raise InputError(what, where=where, fix="write or download the file again") from error


def _survey(
    path: Path, chosen: ChosenColumns, columns: tuple[ColumnSurvey, ...], metadata: Any
) -> tuple[tuple[ColumnSurvey, ...], int, int]:
    """Look at every value; return with what was found the rows, and the bytes of a page of labels at most."""
    n_rows = page_bytes = 0
    for group in _row_groups(path, chosen, metadata):
        n_before, page_bytes = n_rows, max(page_bytes, _label_page_bytes(group))
        for first, names in _column_groups(group, chosen):
            for start, batch in _batches(group, names, _DECODED_BYTES):
                add_typed_batch(columns[first : first + len(names)], batch, n_before + start)
                n_rows = max(n_rows, n_before + start + batch.num_rows)
    check_no_missing(columns, lambda rows: [place_of(path, row) for row in rows])
    return columns, n_rows, page_bytes


def _runs(
    path: Path, footer: _Footer, max_bytes: int, chosen: ChosenColumns, dtypes: TableDtypes
) -> Iterator[TableRun]:
    """Read the rows, in runs of about so many bytes."""
    if footer.n_groups == 1 and footer.most_rows * _row_bytes(chosen, dtypes) <= max_bytes:
        run = _whole(path, chosen, dtypes)
        # The file is closed by now, and the memory of its footer is free for others.
        return_freed()
        yield run
        return
    yield from _range_runs(path, max_bytes, chosen, dtypes, 0, sys.maxsize)


def _range_runs(
    path: Path, max_bytes: int, chosen: ChosenColumns, dtypes: TableDtypes, start: int, stop: int
) -> Iterator[TableRun]:
    """Read the rows [start, stop), in runs of about so many bytes; of other row groups only what the footer says."""
    row_bytes = _row_bytes(chosen, dtypes)
    for group in _row_groups(path, chosen, start=start, stop=stop):
        first, end = max(0, start - group.first_row), min(group.n_rows, stop - group.first_row)
        if group.n_rows * row_bytes > max_bytes and _bytes_of_all(group, chosen) <= max_bytes // 2:
            for row, batch in _batches(group, list(chosen.names), max_bytes // 2):
                if row >= end:
                    break
                if row + batch.num_rows > first:
                    skipped = max(0, first - row)
                    part = batch.slice(skipped, min(end - row, batch.num_rows) - skipped)
                    yield run_of(part, chosen, dtypes)
            continue
        # All columns at once may be larger than memory: some at a time, for every run of rows anew.
        step = max(1, max_bytes // row_bytes)
        for row in range(first, end, step):
            yield _run_by_columns(group, row, min(row + step, end), chosen, dtypes)


def _whole(path: Path, chosen: ChosenColumns, dtypes: TableDtypes) -> TableRun:
    with closing(_row_groups(path, chosen)) as groups:
        group = next(groups)
        return _run_by_columns(group, 0, group.n_rows, chosen, dtypes)


def _row_bytes(chosen: ChosenColumns, dtypes: TableDtypes) -> int:
    size = dtypes.features.itemsize if dtypes.features is not None else 0
    return size * len(chosen.features) + (_LABEL_BYTES if chosen.label is not None else 0)


def _run_by_columns(group: _RowGroup, start: int, stop: int, chosen: ChosenColumns, dtypes: TableDtypes) -> TableRun:
    """Read rows [start, stop) of a row group, some columns at a time."""
    n_features = len(chosen.features)
    features = None if dtypes.features is None else np.empty((stop - start, n_features), dtypes.features)
    labels = []
    for first, names in _column_groups(group, chosen):
        for row, batch in _batches(group, names, _DECODED_BYTES):
            if row >= stop:
                break
            if row + batch.num_rows <= start:
                # Arrow keeps all of a batch for a slice of it, one without rows, too.
                continue
            part = batch.slice(max(0, start - row), max(0, stop - max(row, start)))
            if first == n_features:
                # By number: texts may be long, and all those of the run are held at once.
                labels.append(dtypes.numbered(part.column(0)))
            elif features is not None:
                _put(features[max(row, start) - start :, first:], part)
    label = arrow().concat_arrays(labels) if len(labels) > 1 else labels[0] if labels else None
    return TableRun(n_rows=stop - start, features=features, label=label)


def _put(out: npt.NDArray[Any], batch: Any) -> None:
    """Put columns into the first rows and columns of an array."""
    values = stacked(batch)
    if values is not None:
        out[: values.shape[1], : values.shape[0]] = values.T
        return
    for number, (name, column) in enumerate(columns_of(batch).items()):
        out[: len(column), number] = numbers_of(name, without_dictionary(column))


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowGroup:
    """A row group of an open file."""

    path: Path
    file: Any
    number: int
    first_row: int
    n_rows: int
    column_bytes: int  # of a column on average, not compressed
    label: str | None
    label_bytes: int


def _row_groups(
    path: Path, chosen: ChosenColumns, metadata: Any = None, *, start: int = 0, stop: int = sys.maxsize
) -> Generator[_RowGroup, None, None]:
    """Yield the row groups that hold some of the rows [start, stop)."""
    n_before = 0
    with reading_parquet(str(path)), open_file(path, chosen.label, metadata) as file:
        label = _place_of_texts(file.schema_arrow, chosen.label)
        for number in range(file.num_row_groups):
            described = file.metadata.row_group(number)
            first_row, n_before = n_before, n_before + described.num_rows
            if n_before <= start or first_row >= stop:
                continue
            yield _RowGroup(
                path=path,
                file=file,
                number=number,
                first_row=first_row,
                n_rows=described.num_rows,
                column_bytes=described.total_byte_size // max(1, described.num_columns),
                label=chosen.label,
                label_bytes=0 if label is None else _stored_bytes(path, file, number, str(chosen.label), label),
            )


def _place_of_texts(schema: Any, label: str | None) -> int | None:
    """Find the number of a column of texts among the stored ones; None where the label is none."""
    # Not from the footer's own schema: the two would hold each other.
    if label is None or not is_text_type(schema.types[place := schema.names.index(label)]):
        return None
    return sum(map(_n_stored, schema.types[:place]))


def _n_stored(kind: Any) -> int:
    """Count the columns that are stored of one: of a struct, several."""
    return sum(_n_stored(kind.field(number).type) for number in range(kind.num_fields)) or 1


def _stored_bytes(path: Path, file: Any, group: int, name: str, place: int) -> int:
    """Return the bytes of a column in a row group, not compressed."""
    # Arrow ends the process when it is asked for a column that is described wrong. When it is to read it, it raises.
    with reading_parquet(f"{path} row group {group}"):
        next(file.iter_batches(1, row_groups=[group], columns=[name], use_threads=False), None)
    column = file.metadata.row_group(group).column(place)
    return int(column.total_uncompressed_size) if column.path_in_schema == name else 0


def _bytes_of_all(group: _RowGroup, chosen: ChosenColumns) -> int:
    """Project the memory of decoding all columns at once: a page of each, maybe a dictionary, as read and decoded."""
    n_bytes = len(chosen.names) * (_BUFFER_BYTES + 2 * min(group.column_bytes, _PAGE_BYTES))
    return n_bytes + 2 * _label_page_bytes(group)


def _label_page_bytes(group: _RowGroup) -> int:
    """Project a page of labels: of texts, it may be much larger than one of numbers."""
    row_bytes = -(-group.label_bytes // max(1, group.n_rows))
    return min(group.label_bytes, max(_PAGE_BYTES, _PAGE_ROWS * row_bytes))


def _column_groups(group: _RowGroup, chosen: ChosenColumns) -> Iterator[tuple[int, list[str]]]:
    """Yield columns to be decoded at once, with the number of the first; the label comes alone."""
    held = 2 * min(group.column_bytes, _PAGE_BYTES) + min(group.column_bytes, _BUFFER_BYTES)
    step = min(_MOST_COLUMNS, max(1, _DECODED_BYTES // max(1, held)))
    for first in range(0, len(chosen.features), step):
        yield first, list(chosen.features[first : first + step])
    if chosen.label is not None:
        yield len(chosen.features), [chosen.label]


def _batches(group: _RowGroup, names: list[str], max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield batches of columns of about so many bytes, with the first row of each."""
    # A text may be longer than a number: as long as its column is large.
    text_bytes = 2 * group.label_bytes // max(1, group.n_rows)
    n_rows = max(1, max_bytes // (_HELD_BYTES * len(names) + text_bytes * (group.label in names)))
    start = 0
    with reading_parquet(f"{group.path} row group {group.number}"):
        for batch in group.file.iter_batches(n_rows, row_groups=[group.number], columns=names, use_threads=False):
            _check_text(batch)
            yield start, plain_batch(batch, f"{group.path} row group {group.number}", start)
            start += batch.num_rows
            # Pages and columns are of many sizes: what one leaves free takes none of the next, and would add up.
            del batch
            return_freed()


def _check_text(batch: Any) -> None:
    # Arrow takes the file's word that text is UTF-8; a dictionary's values are held to the same.
    is_primitive = arrow("pyarrow.types").is_primitive
    for number, kind in enumerate(batch.schema.types):
        if not is_primitive(kind):
            batch.column(number).validate(full=True)


def place_of(path: Path, row: int) -> str:
    """Name a row of a file."""
    return f"{path} row {row}"
