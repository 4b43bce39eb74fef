"""Rows of raw data in the terms of a schema, for a model to predict: `rows`."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, StreamtrainError, StreamtrainWarning, UsageError
from streamtrain.ingestion.request import check_option_names, source_options
from streamtrain.ingestion.sources.base import ReadingMemory, Source, SourceOptions
from streamtrain.ingestion.sources.combine import name_of
from streamtrain.ingestion.sources.registry import is_text as is_text_source
from streamtrain.ingestion.sources.registry import open_readers, open_source, options_of_arrays, readers_of
from streamtrain.ingestion.sources.tables.arrow import arrow, is_text, places_in, returning_memory, without_dictionary
from streamtrain.ingestion.sources.tables.column_survey import UnfitColumns
from streamtrain.ingestion.sources.tables.roles.known import known_of, label_of, options_like
from streamtrain.ingestion.sources.tables.roles.learned import Learned
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.ingestion.sources.tables.roles.role_table import open_unsurveyed
from streamtrain.ingestion.sources.tables.roles.rows import missing_labels
from streamtrain.ingestion.sources.tables.table_options import table_options
from streamtrain.store.dataset import open_preferred
from streamtrain.store.layout import Field
from streamtrain.store.schema.arrangement import AS_IT_IS, Arrangement, arrange, check_columns, ignored_columns
from streamtrain.store.schema.columns import (
    CATEGORIES,
    ID,
    INPUT,
    MISSING,
    TARGET,
    TEXT_FORM,
    WEIGHT,
    Schema,
    schema_of,
)
from streamtrain.store.schema.matching import listed
from streamtrain.system.arguments import check_optional_functions
from streamtrain.system.calls.public import public
from streamtrain.system.display.notebook_html import clipped, clipped_left
from streamtrain.system.units import counted, parse_bytes

Say = Callable[[str], None]
_RUN_BYTES: Final = 1 << 20
_N_SHOWN: Final = 5


class KnowsItsData(Protocol):
    """A dataset, or a model that was trained on one."""

    @property
    def schema(self) -> Schema: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRows:
    """Rows of raw data, which are read when they are iterated: dicts of arrays, in order; made by `rows`.

    Attributes
    ----------
    fields : tuple of Field
        What the arrays are.
    n_rows : int or None
        How many rows there are; None where only reading them tells.
    """

    fields: tuple[Field, ...]
    n_rows: int | None
    source: Source
    arrangement: Arrangement = AS_IT_IS
    takes_options: bool = False  # of ingest, so that a remedy may name them

    def __repr__(self) -> str:
        n_rows = "" if self.n_rows is None else f"{self.n_rows:,} rows, "
        held = ", ".join(f"{each.name} {each.dtype.name}{list(each.shape) or ''}" for each in self.fields)
        what = f": {n_rows}{clipped(held, 50)})"
        return f"RawRows('{clipped_left(self.name, 88 - len(what))}'{what}"

    @property
    def name(self) -> str:
        """What is read."""
        return name_of(self.source)

    @property
    def reading(self) -> ReadingMemory:
        """The memory that reading takes besides the rows."""
        return self.source.reading

    @public
    def __iter__(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield runs of at most a megabyte of rows, or one row."""
        try:
            for run in self.source.iter_blocks(_RUN_BYTES):
                rows = self.arrangement.of({field.name: run[field.name] for field in self.fields})
                yield {field.name: rows[field.name].astype(field.dtype, copy=False) for field in self.fields}
        except UnfitColumns as error:
            raise _unfit(error) from error
        except InputError as error:
            error.fix = _remedy(error.fix, takes_options=self.takes_options)
            raise


def _remedy(fix: str | None, *, takes_options: bool) -> str | None:
    """Leave out of a remedy what only an ingest has an option for."""
    if takes_options or not isinstance(fix, Fix):
        return fix
    named = [place for place, part in enumerate(fix.parts) if getattr(part, "name", None) in _OF_INGEST]
    # The words before an option belong to it.
    return (Fix(*fix.parts[: max(0, named[0] - 1)]) or _AS_BEFORE) if named else fix


_OF_INGEST: Final = ("nan", "dates", "decode")
_AS_BEFORE: Final = "write it as the training data was written"


def _unfit(error: UnfitColumns) -> InputError:
    fix = error.fix or "correct the value in the source, or leave its row out"
    return InputError(error.what, where=error.where, why=error.why, fix=fix)


@public
def rows(
    source: object,
    *,
    like: KnowsItsData | str | os.PathLike[str],
    memory: int | str = "512MB",
    say: Say | None = None,
    **options: object,
) -> RawRows:
    r"""Read raw data as a model or a dataset takes it: the inputs alone, each row once, nothing stored.

    Parameters
    ----------
    source : path, list of paths, array, dict of arrays, or data frame
        As for `streamtrain.ingest`.
    like : model, Dataset or path of one
        What `streamtrain.load` returns, or a dataset. Columns are matched by name; an unknown category becomes "other".
        Further columns are ignored, labels too.
    memory : int or str
        The memory budget of reading.
    say : callable, optional
        Called with a sentence on what is put in order or ignored; by default that is a warning.
    **options
        How text is written: ``header``, ``names``, ``delimiter``, ``encoding``, ``na_values``; and ``fields``,
        ``dtype``, ``shape`` of arrays.

    Returns
    -------
    RawRows
        An iterable of dicts of arrays, in bounded memory.

    Raises
    ------
    UsageError
        A column is missing, or a field has another dtype or shape.
    InputError
        A value is not a number, or is missing and has no fill; or a label is of an unknown class.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "old.csv").write_text("a,b,y\n1,2.5,0\n3,4.5,1\n")
    >>> dataset = st.ingest(folder / "old.csv", folder / "old.zarr", label_column="y")
    >>> _ = (folder / "new.csv").write_text("b,a\n0.5,7\n")
    >>> [run["x"].tolist() for run in rows(folder / "new.csv", like=dataset)]
    [[[7.0, 0.5]]]
    """
    check_option_names(options, rows)
    check_optional_functions(say=say)
    known = _known(like)
    if say is None:

        def say(text: str) -> None:
            warnings.warn(StreamtrainWarning(text), stacklevel=5)

    inputs = getattr(known, "inputs", None) or _inputs_of(known.schema)
    return open_rows(
        source,
        known.schema,
        inputs=inputs,
        options=replace(source_options(**options), memory=parse_bytes(memory, name="memory")),
        of="the model" if hasattr(known, "inputs") else "the dataset",
        say=say,
        form_is_told=bool(options.keys() & set(TEXT_FORM)),
        takes_options=True,
    )


def _known(like: object) -> KnowsItsData:
    if isinstance(like, str | os.PathLike):
        return open_preferred(like)
    if not isinstance(getattr(like, "schema", None), Schema):
        what = f"like is {like!r:.80}, which does not name columns"
        raise UsageError(what, fix="a dataset, or streamtrain.load(RUN)")
    return like  # type: ignore[return-value]


def _inputs_of(schema: Schema) -> tuple[str, ...]:
    return tuple(each.name for each in schema.fields if each.name not in (TARGET, WEIGHT, ID))


def open_rows(
    source: object,
    schema: Schema,
    *,
    inputs: Sequence[str],
    options: SourceOptions,
    of: str,
    say: Say,
    labels: Sequence[str] = (),
    labels_from: object = None,
    form_is_told: bool = False,
    takes_options: bool = False,
) -> RawRows:
    """Open raw data for some fields of a schema; with ``labels``, what a model is measured by, surveyed first.

    ``of`` describes the schema in messages. Text is written as that of the training, unless its form is told. Arrays
    may have their labels in a source of their own, ``labels_from``.
    """
    _check_known(schema, (*inputs, *labels), of)
    if not form_is_told:
        options = _in_form(source, schema, options)
    readers = readers_of(source, options)
    has_names = bool(schema.columns.get(INPUT) or schema.categories)
    if readers is None or not has_names:
        try:
            found = _of_arrays(source, schema, (*inputs, *labels), options, of, say, labels_from)
        except StreamtrainError as error:
            error.fix = _remedy(error.fix, takes_options=takes_options)
            raise
        return replace(found, takes_options=takes_options)
    if labels_from is not None:
        what = "a table, whose labels are one of its columns, together with labels of their own"
        raise UsageError(what, where=str(readers[0].path), fix=Fix("leave ", Argument("labels"), " out"))
    columns = _columns_of(schema, (*inputs, *labels))
    for reader in readers:
        _check_header(reader, columns, of, _labels_of(schema) if labels else ())
    own = _id_of(schema, readers)
    if not own and (lost := schema.reading.get("id_column")):
        say(f"{readers[0].path}: there is no column {lost!r}, which holds the ids of {of}: predictions have none")
    _tell_ignored(readers, {*columns, *_labels_of(schema), *_singles_of(schema), *own}, of, say)
    wanted = (*inputs, *labels, *((ID,) if own else ()))
    known = replace(known_of(schema), fields=tuple(each for each in schema.fields if each.name in wanted))
    like = _options_of(schema, options, wanted, is_measured=bool(labels))
    _check_classes(readers, schema)
    if labels:
        opened = open_readers(readers, like, known)
        _tell_left_out(opened, say)
    else:
        opened = _open_unsurveyed(readers, like, known)
    return RawRows(fields=opened.fields, n_rows=opened.n_samples, source=opened)


def _in_form(source: object, schema: Schema, options: SourceOptions) -> SourceOptions:
    """Read text as that of the training was written, where nobody says otherwise."""
    said = {name: schema.reading[name] for name in TEXT_FORM if name in schema.reading}
    if not said or not is_text_source(source):
        return options
    return replace(options, table=table_options({**options.table.given(), **said}))


def _open_unsurveyed(readers: Sequence[TableReader], options: SourceOptions, known: Learned) -> Source:
    with returning_memory():
        return open_unsurveyed(readers, options, known)


def _check_known(schema: Schema, names: Iterable[str], of: str) -> None:
    for name in names:
        if schema.field(name) is None:
            known = ", ".join(each.name for each in schema.fields)
            what = f"{of} does not say what field {name} is{f', only {known}' if known else ''}"
            why = "It was trained by an earlier version, or on batches that a transform changed"
            raise UsageError(what, why=why, fix="a dataset, or train again")


def _columns_of(schema: Schema, fields: Iterable[str]) -> tuple[str, ...]:
    """List the columns that become some fields."""
    named = {MISSING: INPUT}
    lists = {name: schema.columns.get(name, ()) for name in (INPUT, CATEGORIES)}
    lists |= {TARGET: _labels_of(schema), WEIGHT: (schema.reading.get("weight_column", WEIGHT),)}
    return tuple(dict.fromkeys(column for field in fields for column in lists.get(named.get(field, field), ())))


def _labels_of(schema: Schema) -> tuple[str, ...]:
    return schema.targets or tuple(filter(None, [label_of(schema)]))


def _singles_of(schema: Schema) -> tuple[str, ...]:
    return tuple(schema.reading[name] for name in ("weight_column", "id_column") if name in schema.reading)


def _id_of(schema: Schema, readers: Sequence[TableReader]) -> tuple[str, ...]:
    """Return the column of ids, where all files have it."""
    name = schema.reading.get("id_column")
    return (name,) if name and all(name in reader.header for reader in readers) else ()


def _check_header(reader: TableReader, columns: Sequence[str], of: str, labels: Sequence[str] = ()) -> None:
    where = str(reader.path)
    others = [name for name in columns if name not in reader.header]
    if others and set(others) <= set(labels):
        raise UsageError(
            f"it has no column{'s' * (len(others) > 1)} {listed(tuple(others))}, with the labels that {of} learned",
            where=where,
            why=f"What is predicted is compared with them. It has {listed(tuple(reader.header))}",
            fix="data with its labels; predict takes data without",
        )
    twice = [name for name, n in Counter(reader.header).items() if n > 1]
    if twice:
        raise UsageError(f"the header names column {twice[0]!r} twice", where=where, fix="rename one of them")
    check_columns(columns, reader.header, of=of, where=where)


def _tell_ignored(readers: Sequence[TableReader], known: set[str], of: str, say: Say) -> None:
    further = dict.fromkeys(name for reader in readers for name in reader.header if name not in known)
    text = ignored_columns(further, of=of, where=str(readers[0].path))
    if text is not None:
        say(text)


def _options_of(schema: Schema, options: SourceOptions, wanted: Sequence[str], *, is_measured: bool) -> SourceOptions:
    like = options_like(schema, options)
    is_dropped = like.table.na == "drop" and not is_measured
    table = replace(
        like.table,
        # No row is left out of predictions.
        na="error" if is_dropped else like.table.na,
        drop_unlabelled=is_measured and bool(schema.reading.get("drop_unlabelled")),
        weight_column=like.table.weight_column if WEIGHT in wanted else None,
        id_column=like.table.id_column if ID in wanted else None,
    )
    return replace(like, label_column=like.label_column if TARGET in wanted else None, table=table)


def _check_classes(readers: Sequence[TableReader], schema: Schema) -> None:
    """Refuse labels of classes that are not known, with their count; labels need not be there."""
    label = label_of(schema)
    if schema.classes is None or label is None or not all(label in reader.header for reader in readers):
        return
    names, unseen = arrow().array(schema.classes, arrow().string()), Counter[str]()
    with returning_memory():
        for reader in readers:
            for batch in reader.batches([label]):
                unseen += _unseen(batch.columns[label], names, schema.classes)
    if unseen:
        listed = ", ".join(map(repr, sorted(unseen)[:_N_SHOWN]))
        raise InputError(
            f"label column {label!r} has labels of classes that are not known, {unseen.total():,} in all: {listed}",
            where=str(readers[0].path),
            why=f"The classes are {', '.join(map(repr, schema.classes[:_N_SHOWN]))}",
            fix="leave those rows out of the source, or the column",
        )


def _unseen(column: Any, names: Any, classes: tuple[str, ...]) -> Counter[str]:
    plain = without_dictionary(column)
    text = plain if is_text(plain) else plain.cast(arrow().string())
    there = ~missing_labels(text, classes)
    places = places_in(names, text)
    found = np.flatnonzero(there & places.is_null().to_numpy(zero_copy_only=False))
    return Counter(text.take(arrow().array(found)).to_pylist())


def _tell_left_out(source: Source, say: Say) -> None:
    """Tell how many rows are left out of a measurement."""
    n_rows = sum(entry.get("rows", 0) for entry in source.provenance)
    for name, why in (("unlabelled", "without a label"), ("dropped", "in which a number is missing")):
        if n := sum(entry.get(name, 0) for entry in source.provenance):
            say(f"{name_of(source)}: left out {n:,} of {counted(n_rows, 'row')} {why}")


def _of_arrays(
    source: object,
    schema: Schema,
    names: Sequence[str],
    options: SourceOptions,
    of: str,
    say: Say,
    labels_from: object = None,
) -> RawRows:
    """Open arrays, and tables where names are on one side only."""
    own = [name for name in names if name != TARGET or labels_from is None]
    options = replace(options_of_arrays(source, schema, options, needed=own), classes=schema.classes)
    opened = open_source(source, labels=labels_from, options=options)
    found, where = {each.name for each in opened.fields}, name_of(opened)
    for name in names:
        if name not in found:
            fix = Fix(Argument("fields", {name: "NAME"}), " names it, if it is there")
            if name == TARGET and labels_from is None:
                fix = Fix(Argument("labels", "FILE"), " if they are in a file of their own; or ", fix)
            what, why = f"it has no field {name}, which {of} takes", f"It has {', '.join(sorted(found))}"
            if (before := schema.reading.get("arrays", {}).get(name)) is not None:
                why += f", and {name} was made of {before} in training"
            raise UsageError(what, where=where, why=why, fix=fix)
    theirs = schema_of(opened.fields, _named(opened.provenance), classes=opened.classes)
    arrangement = arrange(schema, theirs, fields=names, of=of, where=where)
    for text in arrangement.told:
        say(text)
    wanted = (*names, *({ID} & found))
    fields = tuple(_as_known(schema, each) for each in opened.fields if each.name in wanted)
    return RawRows(fields=fields, n_rows=opened.n_samples, source=opened, arrangement=arrangement)


def _as_known(schema: Schema, own: Field) -> Field:
    """Take the schema's dtype for what it holds: floats of another width, whole numbers as floats."""
    known = schema.field(own.name) or own
    return known if np.can_cast(own.dtype, known.dtype, "same_kind") else replace(own, shape=known.shape)


def _named(provenance: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(entry for entry in provenance if "columns" in entry)
