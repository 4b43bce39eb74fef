"""Columns of a table as features ``x`` and label ``y``, chosen by name and read in a second pass.

CSV and Parquet differ in how batches come out of a file; how a batch becomes fields is the same and stands here. A
first pass, `streamtrain.ingestion.sources.tables.column_survey`, has found what is in the columns.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import (
    MOST_PIECE_BYTES,
    NO_READING,
    ReadingMemory,
    Rows,
    Source,
    SourceOptions,
    as_field,
    field_of,
    pieces,
    rows_within,
)
from streamtrain.ingestion.sources.column_names import index_columns
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    columns_of,
    numbers_in,
    places_in,
    returning_memory,
    without_dictionary,
)
from streamtrain.ingestion.sources.tables.column_survey import ColumnSurvey, class_names
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, TARGET
from streamtrain.store.schema.matching import listed, named_in_order, names_difference

_N_LISTED: Final = 100

COLUMN_BYTES: Final = 1100
"""Memory of a column from opening to commit, measured: its name and what holds it, figures, its place in a schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenColumns:
    """The columns that are read."""

    features: tuple[str, ...]
    label: str | None
    left_out: tuple[str, ...] = field(default=(), compare=False)  # of an index, which nobody named

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.features if self.label is None else (*self.features, self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRun:
    """A run of rows of a table."""

    n_rows: int
    features: npt.NDArray[Any] | None = None  # of shape (n_rows, n_features)
    label: Any = None  # an Arrow array; of text, the numbers of its classes


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDtypes:
    """The dtypes of a table: of its features, and of its label; None for text, whose classes are named."""

    features: np.dtype[Any] | None
    label: np.dtype[Any] | None = None
    classes: Any = None  # an Arrow array of texts

    def numbered(self, label: Any) -> Any:
        """Number the texts of a label, null where one is no class; leave numbers as they are."""
        return label if self.classes is None else places_in(self.classes, label)


class ValuesMissing(Exception):
    """Values of a column are missing now that were there in the survey."""


Runs = Callable[[int, ChosenColumns, TableDtypes], Iterator[TableRun]]
"""Reads the columns, in runs of about so many bytes; raises `ValuesMissing`."""

RangeRuns = Callable[[int, ChosenColumns, TableDtypes, int, int], Iterator[TableRun]]
"""Reads the rows [start, stop) so."""


def choose_columns(
    header: Sequence[str], options: SourceOptions, where: str, metadata: Mapping[bytes, bytes] | None = None
) -> ChosenColumns:
    """Choose feature and label columns by name; read an index only if it is named."""
    check_header(header, where)
    index = index_columns(header, metadata)
    data = [name for name in header if name not in index]
    label = next(iter(options.labels), None)
    # Labels alone are to be read.
    if options.columns == () and label is None:
        label = _only_column(data or header, where)
    features = tuple(name for name in data if name != label) if options.columns is None else options.columns
    unnamed = index.difference((*features, label))
    left_out = tuple(name for name in header if name in unnamed)
    chosen = ChosenColumns(features=features, label=label, left_out=left_out)
    _check_chosen(chosen, header, where)
    return chosen


def check_header(header: Sequence[str], where: str) -> None:
    """Refuse a header that names a column twice, or not at all."""
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"the header names column {twice[0]!r} twice", where=where, fix="rename one of them")
    if any(not name.strip() for name in header):
        number = next(number for number, name in enumerate(header, 1) if not name.strip())
        fix = "name it; or leave it out of the file, as pandas does with to_csv(..., index=False)"
        raise InputError(f"column {number} has no name in the header", where=where, fix=fix)


def _only_column(header: Sequence[str], where: str) -> str:
    if len(header) > 1:
        listed = listed_header(header)
        fix = Fix(Argument("label_column", header[-1]), ", say")
        raise UsageError("the label column is not named", where=where, why=f"It has {listed}", fix=fix)
    return header[0]


def _check_chosen(chosen: ChosenColumns, header: Sequence[str], where: str) -> None:
    check_there(chosen.features, header, where, "column")
    check_there(chosen.names[len(chosen.features) :], header, where, "label column")
    if chosen.label in chosen.features:
        fix = "take it out of columns"
        raise UsageError(f"column {chosen.label!r} is both label and feature", where=where, fix=fix)
    twice = [name for name, count in Counter(chosen.features).items() if count > 1]
    if twice:
        raise UsageError(f"column {twice[0]!r} is chosen twice", where=where, fix="name it once")
    if not chosen.names:
        why = f"{', '.join(chosen.left_out)} is an index" if chosen.left_out else None
        raise UsageError("no column is left to read", where=where, why=why, fix="name columns or a label column")


def check_there(names: Sequence[str], header: Sequence[str], where: str, kind: str) -> None:
    """Refuse names of columns that a header does not have, all of them at once."""
    known = frozenset(header)
    others = [name for name in dict.fromkeys(names) if name not in known]
    if not others:
        return
    near = difflib.get_close_matches(others[0], header, n=1)
    fix = f"did you mean {near[0]!r}?" if near else "name one of these"
    what = f"no {kind}{'s' * (len(others) > 1)} {listed(tuple(others))}"
    raise InputError(what, where=where, why=f"It has {listed_header(header)}", fix=fix)


def listed_header(header: Sequence[str]) -> str:
    """List the first names of a header."""
    more = f" and {len(header) - _N_LISTED:,} more" if len(header) > _N_LISTED else ""
    return ", ".join(header[:_N_LISTED]) + more


def facts_of(chosen: ChosenColumns) -> dict[str, Any]:
    """Return what a manifest keeps of the choice of columns."""
    facts: dict[str, Any] = {"columns": list(chosen.features), "label_column": chosen.label}
    return facts | ({"left_out": list(chosen.left_out)} if chosen.left_out else {})


@dataclass(kw_only=True)
class TableSource(Source):
    """A table that was surveyed, read in order."""

    path: Path | str  # of a file, or the name of what lies in memory
    chosen: ChosenColumns
    columns: tuple[ColumnSurvey, ...]  # of the chosen, in their order
    n_samples: int
    classes: tuple[str, ...] | None
    provenance: tuple[dict[str, Any], ...]
    fields: tuple[Field, ...]
    runs: Runs
    place: Callable[[int], str]
    reading: ReadingMemory
    header: Callable[[], Sequence[str]] = tuple  # names all columns of the file
    range_runs: RangeRuns | None = None
    seekable = False

    def where(self, row: int) -> str:
        return self.place(row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order; refuse a file that is not what the survey found."""
        with returning_memory():
            yield from self._iter_runs(self.runs(max_bytes, self.chosen, self._dtypes()), max_bytes, 0, self.n_samples)

    @property
    def has_ranges(self) -> bool:
        return self.range_runs is not None

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        assert self.range_runs is not None
        with returning_memory():
            runs = self.range_runs(max_bytes, self.chosen, self._dtypes(), start, stop)
            yield from self._iter_runs(runs, max_bytes, start, stop)

    def _iter_runs(self, runs: Iterator[TableRun], max_bytes: int, start: int, stop: int) -> Iterator[Rows]:
        n_rows = rows_within(min(max_bytes, MOST_PIECE_BYTES), self.fields)
        n_done = start
        try:
            for run in runs:
                rows = {field.name: self._field(field, run, n_done) for field in self.fields}
                n_done += run.n_rows
                del run
                yield from pieces(rows, n_rows)
                del rows
        except ValuesMissing as missing:
            raise self._changed(f"column {str(missing)!r} has missing values that were there before") from None
        if n_done != stop:
            raise self._changed(f"{n_done:,} rows now, {self.n_samples:,} when it was opened")

    def _dtypes(self) -> TableDtypes:
        of_field = {field.name: field.dtype for field in self.fields}
        return TableDtypes(
            features=of_field.get(INPUT),
            label=of_field[TARGET] if self.chosen.label and not self.classes else None,
            classes=None if self.classes is None else arrow().array(self.classes, arrow().string()),
        )

    def _field(self, field: Field, run: TableRun, first_row: int) -> npt.NDArray[Any]:
        if field.name != TARGET:
            assert run.features is not None
            return run.features
        if self.classes is None:
            values = numbers_of(str(self.chosen.label), without_dictionary(run.label))
            return as_field(values, field, lambda row: self.where(first_row + row))
        if run.label.null_count:
            raise self._changed(f"column {self.chosen.label!r} has a label it did not have")
        return numbers_in(run.label).astype(np.int64)

    def _changed(self, what: str) -> InputError:
        fix = "ingest again when nothing writes to it"
        return InputError(f"changed while it was read: {what}", where=str(self.path), fix=fix)


def numbers_of(name: str, column: Any) -> npt.NDArray[Any]:
    """Convert a number column that has no missing values."""
    if column.null_count:
        raise ValuesMissing(name)
    return numbers_in(column)


def run_of(batch: Any, chosen: ChosenColumns, dtypes: TableDtypes) -> TableRun:
    """Make a run of rows of an Arrow batch of the chosen columns."""
    columns, dtype = columns_of(batch), dtypes.features
    features = np.empty((batch.num_rows, len(chosen.features)), dtype) if dtype is not None else None
    if features is not None:
        for number, name in enumerate(chosen.features):
            features[:, number] = numbers_of(name, without_dictionary(columns[name]))
    label = None if chosen.label is None else dtypes.numbered(columns[chosen.label])
    return TableRun(n_rows=batch.num_rows, features=features, label=label)


def table_source(
    path: Path | str,
    chosen: ChosenColumns,
    columns: tuple[ColumnSurvey, ...],
    n_samples: int,
    provenance: tuple[dict[str, Any], ...],
    runs: Runs,
    place: Callable[[int], str],
    reading: ReadingMemory = NO_READING,
    header: Callable[[], Sequence[str]] = tuple,
) -> TableSource:
    """Make a source of a surveyed table: features in their narrowest common dtype, text labels numbered."""
    if not n_samples:
        raise InputError("the table has columns but no rows", where=str(path), fix="leave the file out")
    label = columns[-1] if chosen.label is not None else None
    classes = class_names(label, str(path)) if label is not None and label.dtype is None else None
    source = TableSource(
        path=path,
        chosen=chosen,
        columns=columns,
        n_samples=n_samples,
        classes=classes,
        provenance=provenance,
        fields=(),
        runs=runs,
        place=place,
        reading=reading,
        header=header,
    )
    features = [column.dtype for column in columns[: len(chosen.features)] if column.dtype is not None]
    dtype = np.result_type(*features) if features else None
    return with_dtypes(source, dtype, label.dtype if label is not None else None)


def in_one_order(parts: Sequence[Source]) -> Sequence[Source]:
    """Put the feature columns of tables in the first one's order; leave other sources as they are."""
    first = parts[0]
    if not isinstance(first, TableSource):
        return parts
    return [
        in_order(part, first.chosen.features, str(first.path)) if isinstance(part, TableSource) else part
        for part in parts
    ]


def in_order(source: TableSource, names: tuple[str, ...], of: str) -> TableSource:
    """Put a table's feature columns in this order, which is that of another one."""
    if source.chosen.features == names:
        return source
    other = names_difference(names, source.chosen.features, of)
    if other is not None:
        fix = Fix(named_in_order("columns", names), "; or ingest it as a dataset of its own")
        if not set(names) <= set(source.header() or source.chosen.features):
            fix = Fix("data with all of these columns; or ingest it as a dataset of its own")
        raise InputError(f"its columns are not those of {of}: {other}", where=str(source.path), fix=fix)
    surveyed = {column.name: column for column in source.columns}
    facts, *more = source.provenance
    return replace(
        source,
        chosen=replace(source.chosen, features=names),
        columns=tuple(surveyed[name] for name in (*names, *source.chosen.names[len(names) :])),
        provenance=({**facts, "columns": list(names)}, *more),
    )


def with_dtypes(source: TableSource, x: np.dtype[Any] | None, y: np.dtype[Any] | None) -> TableSource:
    """Give a table's features and number labels these dtypes; refuse one that rounds a whole number."""
    where, n_features = str(source.path), len(source.chosen.features)
    fields = []
    if x is not None:
        fields.append(field_of(INPUT, x, (n_features,), where=where))
    if source.chosen.label is not None:
        fields.append(field_of(TARGET, y if y is not None else np.dtype(np.int64), (), where=where))
    dtypes = {field.name: field.dtype for field in fields}
    for column in source.columns:
        if column.dtype is not None:
            _check_fits(column, dtypes[TARGET if column.is_label else INPUT], where)
    return replace(source, fields=tuple(fields))


def _check_fits(column: ColumnSurvey, dtype: np.dtype[Any], where: str) -> None:
    limit = (
        2 ** (np.finfo(dtype).nmant + 1) if dtype.kind == "f" else int(np.iinfo(dtype).max) if dtype.kind != "b" else 1
    )
    largest = max(column.largest, -column.smallest - (dtype.kind == "i"))
    if largest > limit:
        raise InputError(
            f"column {column.name!r} holds whole numbers up to {largest}, beyond {limit}, the last exact in {dtype}",
            where=where,
            why=f"{dtype} is the narrowest dtype that all columns share",
            fix="leave the column out, or store the other columns as whole numbers",
        )
