"""Parquet: typed columns in row groups, read in batches.

A first pass checks every value, the second reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.errors import InputError, first_line
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.input_files import provenance_of, refuse_options
from streamtrain.ingestion.sources.tables.arrow import arrow, columns_of, without_dictionary
from streamtrain.ingestion.sources.tables.column_survey import (
    ColumnSurvey,
    add_typed,
    check_no_missing,
    leaving_out,
    surveys_of,
)
from streamtrain.ingestion.sources.tables.table_columns import (
    ChosenColumns,
    TableSource,
    choose_columns,
    facts_of,
    table_source,
)

_SURVEY_BYTES: Final = 4 << 20
_BUFFER_BYTES: Final = 1 << 20
# A value is at most 8 bytes and, as Arrow and as NumPy, is held twice.
_HELD_BYTES: Final = 16


def probe(path: Path, options: SourceOptions) -> TableSource:
    """Open a Parquet file: read through the chosen columns once, hold nothing."""
    arrow()
    refuse_options(path, "Parquet", options, "dtype", "shape")
    provenance = provenance_of(path, "parquet")
    with _reading(str(path)), _open_file(path) as file:
        chosen = choose_columns(file.schema_arrow.names, options, str(path), file.schema_arrow.metadata)
        _check_types(path, file.schema_arrow, chosen)
        n_claimed = file.metadata.num_rows
    columns, n_rows = _survey(path, chosen, surveys_of(chosen.names, chosen.label, options.classes))
    if n_rows != n_claimed:
        what = f"the row groups hold {n_rows:,} rows, the footer claims {n_claimed:,}"
        raise InputError(what, where=str(path), fix="write the file again")
    facts = ({**provenance[0], **facts_of(chosen)},)
    batches, where = partial(_batches, path, chosen), partial(_place_of, path)
    return table_source(path, chosen, columns, n_rows, facts, batches, where)


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

    def is_number(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    kinds = {name: schema.field(name).type for name in chosen.names}
    numbers = [name for name in chosen.features if is_number(_value_type(kinds[name]))]
    for name, declared in kinds.items():
        kind = _value_type(declared)
        is_string = types.is_string(kind) or types.is_large_string(kind)
        if not is_number(kind) and not (is_string and name == chosen.label):
            raise InputError(
                f"column {name!r} is {declared}, which is not supported",
                where=str(path),
                why="Features are bool, integer or float columns; the label may be text",
                fix=leaving_out("make number columns of it", numbers),
            )


def _value_type(declared: Any) -> Any:
    return declared.value_type if arrow("pyarrow.types").is_dictionary(declared) else declared


def _survey(
    path: Path, chosen: ChosenColumns, columns: tuple[ColumnSurvey, ...]
) -> tuple[tuple[ColumnSurvey, ...], int]:
    n_rows = 0
    for batch in _batches(path, chosen, _SURVEY_BYTES, {}):
        values = columns_of(batch)
        for column in columns:
            add_typed(column, without_dictionary(values[column.name]), n_rows)
        n_rows += batch.num_rows
    check_no_missing(columns, lambda rows: [_place_of(path, row) for row in rows])
    return columns, n_rows


def _batches(path: Path, chosen: ChosenColumns, max_bytes: int, _: Mapping[str, np.dtype[Any]]) -> Iterator[Any]:
    """Yield the chosen columns, row group by row group, in batches of about so many bytes."""
    n_rows = max(1, max_bytes // (_HELD_BYTES * len(chosen.names)))
    with _reading(str(path)), _open_file(path) as file:
        for group in range(file.num_row_groups):
            with _reading(f"{path} row group {group}"):
                yield from file.iter_batches(n_rows, row_groups=[group], columns=list(chosen.names))


def _place_of(path: Path, row: int) -> str:
    return f"{path} row {row}"
