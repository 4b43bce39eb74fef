"""A table whose columns have roles, as a source: surveyed over all its files, then read in order."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import (
    MOST_PIECE_BYTES,
    ReadingMemory,
    Rows,
    Source,
    SourceOptions,
    as_field,
    pieces,
    rows_within,
)
from streamtrain.ingestion.sources.combine import Concatenation
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    is_text,
    numbers_in,
    parsed,
    places_in,
    returning_memory,
    without_dictionary,
)
from streamtrain.ingestion.sources.tables.categories import CategoryCodes
from streamtrain.ingestion.sources.tables.roles.choice import TableRoles, choose_roles, facts_of_roles
from streamtrain.ingestion.sources.tables.roles.learned import FileCounts, Learned, TableLearner
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.ingestion.sources.tables.roles.rows import ColumnTypes, RoleRun, RowReader, types_of
from streamtrain.ingestion.sources.tables.typed_columns import check_label_type
from streamtrain.store.schema.columns import CATEGORIES, ID, INPUT, MISSING, TARGET, WEIGHT
from streamtrain.store.schema.facts import SchemaFacts
from streamtrain.store.schema.matching import names_difference

_N_NAMED: Final = 50
_TEXT_COPIES: Final = 32
"""Memory of a run of text in cells, arrays of its columns, and numbers, to its length; up to 28 were measured."""


@dataclass(kw_only=True)
class RoleTable(Source):
    """One file of a table, with what was learned of all of them."""

    reader: TableReader
    roles: TableRoles
    options: SourceOptions
    learned: Learned
    types: ColumnTypes
    n_samples: int | None  # None where nobody has counted them
    provenance: tuple[dict[str, Any], ...]
    reading: ReadingMemory
    seekable = False

    def __post_init__(self) -> None:
        self.fields, self.classes = self.learned.fields, self.learned.classes
        facts = self.learned.facts
        is_plain = facts == SchemaFacts(columns=facts.columns)
        self.schema_facts = None if is_plain else facts

    def where(self, row: int) -> str:
        """Find the place of a row: rows that were dropped count in the file."""
        n_kept = 0
        with closing(self._runs()) as runs:
            for first_row, run in runs:
                if row < n_kept + len(run.rows):
                    return self.reader.place(first_row + int(run.rows[row - n_kept]))
                n_kept += len(run.rows)
        return f"{self.reader.path} row {row}"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows that are kept, in order; refuse a file that is not what the survey found."""
        n_rows, n_done = rows_within(min(max_bytes, MOST_PIECE_BYTES), self.fields), 0
        codes = [CategoryCodes(each) for each in self.learned.facts.categories]
        names = None if self.classes is None else arrow().array(self.classes, arrow().string())
        fills = np.array([self.learned.facts.fills.get(name, 0) for name in self.roles.inputs])
        with returning_memory(), closing(self._runs()) as runs:
            for first_row, run in runs:
                rows = {
                    field.name: self._field(field.name, run, codes, names, fills, first_row) for field in self.fields
                }
                n_done += len(run.rows)
                del run
                yield from pieces(rows, n_rows)
                del rows
        if self.n_samples not in (None, n_done):
            raise self._changed(f"{n_done:,} rows now, {self.n_samples:,} when it was opened")

    def column(self, name: str) -> Iterator[tuple[npt.NDArray[np.intp], Any]]:
        """Yield a column as the file has it: of each run the places of the rows that are kept, and their values."""
        rows, first_row = self._row_reader(), 0
        for batch in self.reader.batches(tuple(dict.fromkeys((*self.roles.names, name)))):
            kept = rows.run(batch, first_row).rows
            yield first_row + kept, batch.columns[name].take(arrow().array(kept))
            first_row += batch.n_rows

    def _row_reader(self) -> RowReader:
        # Forms of dates are found again, from the first run on; dtypes are known.
        types = replace(self.types, forms={}, may_widen=False)
        return RowReader(reader=self.reader, roles=self.roles, options=self.options, types=types)

    def _runs(self) -> Generator[tuple[int, RoleRun], None, None]:
        rows, first_row = self._row_reader(), 0
        with closing(rows.batches()) as batches:
            for batch in batches:
                yield first_row, rows.run(batch, first_row)
                first_row += batch.n_rows
                del batch

    def _field(
        self,
        name: str,
        run: RoleRun,
        codes: Sequence[CategoryCodes],
        names: Any | None,
        fills: npt.NDArray[np.float64],
        first_row: int,
    ) -> npt.NDArray[Any]:
        described = next(each for each in self.fields if each.name == name)
        match name:
            case _ if name == INPUT:
                values = run.inputs.values.astype(described.dtype, copy=False)
                missing = run.inputs.missing
                return np.where(missing, fills.astype(described.dtype), values) if missing.any() else values
            case _ if name == CATEGORIES:
                of_columns = [code.of(column) for code, column in zip(codes, run.categories, strict=True)]
                return np.stack(of_columns, axis=1).astype(np.int32, copy=False)
            case _ if name == MISSING:
                return run.inputs.missing
            case _ if name == WEIGHT:
                return _given(run.weight)
            case _ if name == ID:
                return _given(run.id)
        if run.targets is not None:
            return run.targets.astype(described.dtype, copy=False)
        if names is None:
            values = self._label_numbers(run.label, described.dtype)
            return as_field(values, described, lambda row: self.reader.place(first_row + int(run.rows[row])))
        places = places_in(names, run.label)
        if places.null_count:
            raise self._changed(f"column {self.roles.labels[0]!r} has a label it did not have")
        return numbers_in(places).astype(np.int64)

    def _label_numbers(self, label: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        plain = without_dictionary(label)
        if not is_text(plain):
            return numbers_in(plain)
        values = parsed(plain, dtype)
        if values is None or values.null_count:
            raise self._changed(f"column {self.roles.labels[0]!r} has a label that is not {dtype}")
        return numbers_in(values)

    def _changed(self, what: str) -> InputError:
        fix = "ingest again when nothing writes to it"
        return InputError(f"changed while it was read: {what}", where=str(self.reader.path), fix=fix)


def _given(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    assert values is not None
    return values


def open_tables(readers: Sequence[TableReader], options: SourceOptions, known: Learned | None = None) -> Source:
    """Survey the files of a table together, and make a source of them; learn nothing where another dataset is known."""
    with returning_memory():
        return _open_tables(readers, options, known)


def _open_tables(readers: Sequence[TableReader], options: SourceOptions, known: Learned | None) -> Source:
    roles = shared_roles(readers, options)
    for reader in readers:
        if reader.types is not None and len(roles.labels) == 1:
            check_label_type(str(reader.path), roles.labels[0], reader.types[roles.labels[0]])
    learner = TableLearner(roles, options, known)
    types, counts = [], []
    for reader in readers:
        found = types_of(roles, reader) if known is None else _known_types(known, roles)
        seen = FileCounts(n_columns=len(roles.inputs))
        _survey(RowReader(reader=reader, roles=roles, options=options, types=found), learner, seen)
        types.append(found)
        counts.append(seen)
    if not sum(seen.n_kept for seen in counts):
        raise _no_rows(readers[0], counts)
    learned = learner.finish(types, readers[0])
    tables = [
        _table(reader, roles, options, learned, own, seen)
        for reader, own, seen in zip(readers, types, counts, strict=True)
        if seen.n_kept
    ]
    lasting = tables[0].reading.lasting_bytes + learned.n_bytes  # which all of them share
    tables[0].reading = replace(tables[0].reading, lasting_bytes=lasting)
    return tables[0] if len(tables) == 1 else Concatenation(tables)


def open_unsurveyed(readers: Sequence[TableReader], options: SourceOptions, known: Learned) -> Source:
    """Make a source of a table's files in terms that are known: each row is read once, and checked as it is read."""
    tables = [_unsurveyed(reader, options, known) for reader in readers]
    lasting = tables[0].reading.lasting_bytes + known.n_bytes
    tables[0].reading = replace(tables[0].reading, lasting_bytes=lasting)
    return tables[0] if len(tables) == 1 else Concatenation(tables)


def _unsurveyed(reader: TableReader, options: SourceOptions, known: Learned) -> RoleTable:
    roles = choose_roles(reader.header, options, str(reader.path), reader.metadata)
    types = _known_types(known, roles)
    if reader.types is not None and types.numbers.kind == "f":
        # What declares floats of another width is rounded as arrays are; text is parsed as what it becomes.
        types = replace(types, numbers=np.dtype(np.float64))
    facts, *more = reader.provenance
    return RoleTable(
        reader=reader,
        roles=roles,
        options=options,
        learned=known,
        types=types,
        n_samples=None,
        provenance=({**facts, **facts_of_roles(roles)}, *more),
        reading=reader.reading,
    )


def _survey(rows: RowReader, learner: TableLearner, seen: FileCounts) -> None:
    with closing(rows.batches()) as batches:
        for batch in batches:
            learner.add(rows.run(batch, seen.n_read), rows.reader, seen.n_read, seen)
            seen.n_read += batch.n_rows
            seen.n_longest = max(seen.n_longest, batch.n_bytes)
            del batch


def _known_types(known: Learned, roles: TableRoles) -> ColumnTypes:
    dtypes = {each.name: each.dtype for each in known.fields}
    of_numbers = dtypes.get(INPUT, np.dtype(np.int64))
    return ColumnTypes(
        numbers=of_numbers,
        targets=dtypes[TARGET] if len(roles.labels) > 1 else np.dtype(np.int64),
        may_widen=False,
    )


def _table(
    reader: TableReader,
    roles: TableRoles,
    options: SourceOptions,
    learned: Learned,
    types: ColumnTypes,
    seen: FileCounts,
) -> RoleTable:
    # Read as the field has it: what is a whole number in one file may be a fraction in another.
    wanted = types if reader.types is not None else replace(types, numbers=_read_as(learned, roles, types))
    facts, *more = reader.provenance
    facts = {**facts, **facts_of_roles(roles), **seen.as_json(roles)}
    if zoneless := [name for name, form in types.forms.items() if form.has_time and not form.has_zone]:
        facts["zoneless"] = zoneless
    reading = replace(
        reader.reading,
        working_bytes=reader.reading.working_bytes + _TEXT_COPIES * seen.n_longest,
    )
    return RoleTable(
        reader=reader,
        roles=roles,
        options=options,
        learned=learned,
        types=wanted,
        n_samples=seen.n_kept,
        provenance=(facts, *more),
        reading=reading,
    )


def _read_as(learned: Learned, roles: TableRoles, types: ColumnTypes) -> np.dtype[Any]:
    dtypes = {each.name: each.dtype for each in learned.fields}
    return dtypes[INPUT] if roles.numbers and dtypes[INPUT].kind == "f" else types.numbers


def shared_roles(readers: Sequence[TableReader], options: SourceOptions) -> TableRoles:
    """Choose the roles of the columns that all files of a table have, by name; refuse files of other columns."""
    first, *others = readers
    roles = choose_roles(first.header, options, str(first.path), first.metadata)
    for reader in others:
        _check_same_columns(first, roles, reader, options)
    return roles


def _check_same_columns(first: TableReader, roles: TableRoles, reader: TableReader, options: SourceOptions) -> None:
    where = str(reader.path)
    if any(name not in reader.header for name in roles.names):
        # What nobody named is read, and what is left out is nowhere.
        further = [name for name in reader.header if name not in first.header and options.columns is None]
        theirs = (*(name for name in roles.names if name in reader.header), *further)
    else:
        theirs = choose_roles(reader.header, options, where, reader.metadata).names
    if (other := names_difference(roles.names, theirs, str(first.path))) is not None:
        shared = [each for each in roles.numbers if each in theirs]
        raise InputError(
            other,
            where=where,
            why="Files that are read together have the same columns",
            fix=_shared_columns(shared, options) if 0 < len(shared) <= _N_NAMED else "ingest the files apart",
        )


def _shared_columns(names: list[str], options: SourceOptions) -> Fix:
    # A column to leave out has to be in every file, and is never named beside those to read.
    no_exclude: tuple[str | Argument, ...] = (" without ", Argument("exclude")) if options.table.exclude else ()
    return Fix(Argument("columns", names), *no_exclude, ", or ingest the files apart")


def without_rows(reader: TableReader) -> InputError:
    """Make the error for a header alone."""
    return InputError("the table has columns but no rows", where=str(reader.path), fix="give a file with rows")


def _no_rows(reader: TableReader, counts: Sequence[FileCounts]) -> InputError:
    n_read = sum(seen.n_read for seen in counts)
    if not n_read:
        return without_rows(reader)
    n_unlabelled = sum(seen.n_unlabelled for seen in counts)
    what = (
        "no row has a label" if n_unlabelled == n_read else "no row is left: in each, a value or the label is missing"
    )
    return InputError(
        f"{what}, of {n_read:,}", where=str(reader.path), fix="name another label column, or fill values in"
    )
