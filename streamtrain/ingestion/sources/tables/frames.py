"""Data frames and Arrow tables as sources: surveyed and read as a Parquet file is, where they lie in memory.

pandas, polars and whatever else has ``__arrow_c_stream__`` are recognized by what they offer, and never imported here.
A stream that may end for good is read once, without a survey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np

from streamtrain.errors import InputError, UsageError, first_line
from streamtrain.ingestion.sources.base import ReadingMemory, Source, SourceOptions
from streamtrain.ingestion.sources.column_names import index_columns
from streamtrain.ingestion.sources.iterables import IterableSource
from streamtrain.ingestion.sources.tables.arrow import arrow, columns_of, missing_in, returning_memory
from streamtrain.ingestion.sources.tables.column_survey import add_typed_batch, check_no_missing, surveys_of
from streamtrain.ingestion.sources.tables.roles.reader import TableBatch, TableReader
from streamtrain.ingestion.sources.tables.table_columns import (
    COLUMN_BYTES,
    ChosenColumns,
    TableDtypes,
    TableRun,
    choose_columns,
    facts_of,
    run_of,
    table_source,
)
from streamtrain.ingestion.sources.tables.typed_columns import (
    check_types,
    is_text_type,
    number_dtype,
    plain_batch,
    plain_type,
)
from streamtrain.system.arguments import a_kind

_RUN_BYTES: Final = 1 << 20
_HELD_BYTES: Final = 16  # of a value: as Arrow and as NumPy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """A frame that can be read any number of times."""

    name: str
    schema: Any
    batches: Callable[[list[str], int], Iterator[Any]]  # of these columns, of at most so many rows
    left_out: tuple[str, ...] = ()


def is_frame(value: object) -> TypeGuard[Any]:
    """Recognize a data frame, an Arrow table, or a stream of batches; a frame has names for its columns."""
    if _is_lazy(value):
        return True
    if not hasattr(value, "__arrow_c_stream__") or _is_one_column(value):
        return False
    names = getattr(value, "columns", None) if hasattr(value, "iloc") else None
    # pandas numbers columns that were given no names: such a frame is an array.
    return names is None or all(isinstance(name, str) for name in names)


def _is_one_column(value: Any) -> bool:
    return (hasattr(value, "dtype") and not hasattr(value, "columns")) or hasattr(value, "chunks")


def _is_lazy(value: object) -> bool:
    return hasattr(value, "collect_schema") and not hasattr(value, "__arrow_c_stream__") and hasattr(value, "collect")


def open_frame(value: Any, options: SourceOptions) -> Source:
    """Open a frame: read through its chosen columns once, hold nothing."""
    arrow()
    name = f"the {type(value).__name__}"
    if _is_lazy(value):
        why = "It is a query, which would run again in every pass"
        raise InputError("a LazyFrame holds no rows yet", fix="frame.collect(), or frame.sink_parquet(FILE)", why=why)
    with returning_memory():
        frame = _frame_of(value, name)
        return _once(value, name, options) if frame is None else _surveyed(frame, options)


def reader(value: Any) -> TableReader:
    """Open a frame for columns of any role."""
    arrow()
    frame = None if _is_lazy(value) else _frame_of(value, f"the {type(value).__name__}")
    if frame is None:
        why = "Missing values, categories, dates and the like take two passes"
        fix = "hold it in memory, pyarrow.table(x); or write it to a Parquet file"
        raise UsageError(f"{a_kind(value)} is read once", why=why, fix=fix)

    def batches(names: Sequence[str]) -> Iterator[TableBatch]:
        n_done = 0
        for batch in frame.batches(list(names), max(1, _RUN_BYTES // (_HELD_BYTES * max(1, len(names))))):
            yield TableBatch(n_rows=batch.num_rows, columns=columns_of(plain_batch(batch, frame.name, n_done)))
            n_done += batch.num_rows

    return TableReader(
        path=Path(frame.name),
        header=tuple(frame.schema.names),
        types={field.name: plain_type(field.type) for field in frame.schema},
        batches=batches,
        place=lambda row: f"{frame.name} row {row}",
        provenance=({"format": "frame"},),
        nulls=(),
        metadata=frame.schema.metadata,
        reading=_reading(frame, len(frame.schema.names)),
    )


def _reading(frame: _Frame, n_columns: int) -> ReadingMemory:
    return ReadingMemory(
        lasting_bytes=COLUMN_BYTES * len(frame.schema.names),
        working_bytes=4 * max(_RUN_BYTES, _HELD_BYTES * n_columns),
    )


def _frame_of(value: Any, name: str) -> _Frame | None:
    """Describe a frame by its kind; None for a stream, of which nobody knows whether it begins again."""
    pa = arrow()
    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Table):
        return _Frame(name=name, schema=value.schema, batches=lambda names, n: _sliced(value.select(names), n))
    if hasattr(value, "iloc"):
        return _pandas_frame(value, name)
    if hasattr(value, "slice") and hasattr(value, "to_arrow"):
        schema = pa.RecordBatchReader.from_stream(value.head(0)).schema
        return _Frame(name=name, schema=schema, batches=lambda names, n: _streamed(value.select(names), n))
    return None


def _sliced(table: Any, n_rows: int) -> Iterator[Any]:
    yield from table.to_batches(max_chunksize=n_rows)


def _streamed(frame: Any, n_rows: int) -> Iterator[Any]:
    step = _copied_at_once(frame.estimated_size(), len(frame), n_rows)
    for start in range(0, len(frame), step):
        yield from arrow().RecordBatchReader.from_stream(frame.slice(start, step))


def _copied_at_once(n_bytes: int, n_total: int, most_rows: int) -> int:
    """Say how many rows of a frame are copied at once: texts may be long."""
    return max(1, min(most_rows, _RUN_BYTES * n_total // max(1, n_bytes)))


def _pandas_frame(value: Any, name: str) -> _Frame:
    pa = arrow()
    index = value.index
    # 0, 1, 2, ... numbers the rows; any other index is data that nobody named.
    is_plain = (index.nlevels == 1 and len(index) == 0) or index.equals(value.reset_index(drop=True).index)
    left_out = () if is_plain else tuple(str(level or "index") for level in index.names)
    try:
        schema = pa.Schema.from_pandas(value, preserve_index=False).remove_metadata()
    except (pa.ArrowException, TypeError) as error:
        fix = "make the column one of numbers or text"
        raise InputError(f"a column holds values of several kinds: {first_line(error)}", where=name, fix=fix) from error

    def batches(names: list[str], n_rows: int) -> Iterator[Any]:
        own = pa.schema([schema.field(column) for column in names])
        step = _copied_at_once(int(value[names].memory_usage(deep=True).sum()), len(value), n_rows)
        for start in range(0, len(value), step):
            run = value[names].iloc[start : start + step]
            yield from (
                pa.Table.from_pandas(run, schema=own, preserve_index=False, nthreads=1).combine_chunks().to_batches()
            )

    return _Frame(name=name, schema=schema, batches=batches, left_out=left_out)


def _choose(schema: Any, options: SourceOptions, name: str) -> ChosenColumns:
    """Choose columns; an index that stands alone is what is meant."""
    names = tuple(column for column in schema.names if column != options.label_column)
    if options.columns is None and index_columns(schema.names, schema.metadata).issuperset(names):
        options = replace(options, columns=names)
    return choose_columns(schema.names, options, name, schema.metadata)


def _surveyed(frame: _Frame, options: SourceOptions) -> Source:
    chosen = _choose(frame.schema, options, frame.name)
    check_types(frame.name, frame.schema, chosen)
    columns = surveys_of(chosen.names, chosen.label, options.classes, options.memory)
    n_rows = 0
    for batch in _batches(frame, chosen, _RUN_BYTES):
        add_typed_batch(columns, batch, n_rows)
        n_rows += batch.num_rows
    check_no_missing(columns, lambda rows: [f"{frame.name} row {row}" for row in rows])
    facts: dict[str, Any] = {"format": "frame", **facts_of(chosen)}
    left_out = (*frame.left_out, *chosen.left_out)

    def runs(max_bytes: int, chosen: ChosenColumns, dtypes: TableDtypes) -> Iterator[TableRun]:
        for batch in _batches(frame, chosen, min(max_bytes, _RUN_BYTES)):
            yield run_of(batch, chosen, dtypes)

    return table_source(
        frame.name,
        chosen,
        columns,
        n_rows,
        (facts | ({"left_out": list(left_out)} if left_out else {}),),
        runs,
        lambda row: f"{frame.name} row {row}",
        _reading(frame, len(chosen.names)),
        lambda: tuple(frame.schema.names),
    )


def _batches(frame: _Frame, chosen: ChosenColumns, max_bytes: int) -> Iterator[Any]:
    n_rows = max(1, max_bytes // (_HELD_BYTES * len(chosen.names)))
    n_done = 0
    for batch in frame.batches(list(chosen.names), n_rows):
        yield plain_batch(batch, frame.name, n_done)
        n_done += batch.num_rows


def _once(value: Any, name: str, options: SourceOptions) -> Source:
    """Read a stream of batches as it comes, in the dtypes that its schema declares."""
    reader = arrow().RecordBatchReader.from_stream(value)
    chosen = _choose(reader.schema, options, name)
    check_types(name, reader.schema, chosen)
    if chosen.label is not None and is_text_type(reader.schema.field(chosen.label).type):
        raise UsageError(
            f"label column {chosen.label!r} is text, and a stream is read once",
            where=name,
            why="Classes are numbered when all of them are known",
            fix="hold it in memory, pyarrow.table(x); or write it to a Parquet file",
        )
    kinds = [number_dtype(reader.schema.field(column).type) for column in chosen.features]
    dtypes = TableDtypes(features=np.result_type(*kinds) if kinds else None)
    source = IterableSource(_items(reader, name, chosen, dtypes))
    source.provenance = ({"format": "iterator", **facts_of(chosen)},)
    return source


def _items(reader: Iterable[Any], name: str, chosen: ChosenColumns, dtypes: TableDtypes) -> Iterator[Any]:
    n_done = 0
    for whole in reader:
        batch = plain_batch(whole.select(list(chosen.names)), name, n_done)
        for column, values in columns_of(batch).items():
            if values.null_count:
                row = n_done + int(missing_in(values).argmax())
                fix = "fill it in or leave its row out of the stream"
                raise InputError(f"a value of column {column!r} is missing", where=f"{name} row {row}", fix=fix)
        run = run_of(batch, chosen, dtypes)
        label = {} if chosen.label is None else {"y": run.label.to_numpy(zero_copy_only=False)}
        if batch.num_rows:
            yield ({} if run.features is None else {"x": run.features}) | label
        n_done += batch.num_rows
