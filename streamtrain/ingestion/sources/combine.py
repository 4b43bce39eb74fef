"""Sources combined: one after another, labels beside features, and labels checked against classes.

The fields that the parts must agree on are compared before a row is read. The whole reads any range if every part does.

Without named classes, numbers that are not whole are values to be predicted. With them such numbers are a mistake, and
so is a class that nobody named; both are refused here, by the row, and not by a model or a device later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.arrays import align_streams
from streamtrain.ingestion.sources.base import (
    ReadingMemory,
    Rows,
    Source,
    as_field,
    check_range,
    describe_kinds,
    field_of,
    kinds_of,
    n_rows_of,
    pieces,
    rows_within,
)
from streamtrain.ingestion.sources.tables.table_columns import TableSource, in_one_order, with_dtypes
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, TARGET

_PIECE_BYTES: Final = 4_000_000
_N_SHOWN: Final = 5


class Concatenation(Source):
    """Sources of the same fields, one after another."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self.fields, self.classes, self.schema_facts = parts[0].fields, parts[0].classes, parts[0].schema_facts
        self.provenance = tuple(entry for part in parts for entry in part.provenance)
        self.seekable = all(part.seekable for part in parts)
        self.chunk_bytes = max(part.chunk_bytes for part in parts)
        self.reading = reduce(ReadingMemory.then, (part.reading for part in parts))
        self.told = tuple(text for part in parts for text in part.told)
        self.lengths = {name: np.concatenate([part.lengths[name] for part in parts]) for name in parts[0].lengths}
        counts = [part.n_samples for part in parts]
        self._starts = [0, *accumulate(n or 0 for n in counts)]
        self.n_samples = None if None in counts else self._starts[-1]

    def where(self, row: int) -> str:
        """Return where the part that holds the row has it from."""
        if self.n_samples is None:
            return f"row {row} of {len(self.parts)} sources"
        part, start, _ = self._part_of(row)
        return part.where(row - start)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        for part in self.parts:
            yield from part.iter_blocks(max_bytes)

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop), across parts where need be."""
        check_range(start, stop, self._starts[-1])
        part, first, end = self._part_of(start)
        return part.read(start - first, stop - first) if stop <= end else self._read_across(start, stop)

    @property
    def has_ranges(self) -> bool:
        return all(part.has_ranges for part in self.parts)

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        while start < stop:
            part, first, last = self._part_of(start)
            end = min(stop, last)
            yield from part.iter_range(start - first, end - first, max_bytes)
            start = end

    def _read_across(self, start: int, stop: int) -> Rows:
        out = {field.name: field.empty(stop - start) for field in self.fields}
        # In small pieces, so that no part's share is held a second time.
        n_rows = rows_within(_PIECE_BYTES, self.fields)
        while start < stop:
            part, first, last = self._part_of(start)
            end = min(stop, start + n_rows, last)
            for name, values in part.read(start - first, end - first).items():
                out[name][len(out[name]) - (stop - start) :][: end - start] = values
            start = end
        return out

    def _part_of(self, row: int) -> tuple[Source, int, int]:
        """Find the part that holds a row, its first row and its end."""
        number = min(bisect_right(self._starts, row), len(self.parts)) - 1
        return self.parts[number], self._starts[number], self._starts[number + 1]


def concatenate(parts: Sequence[Source]) -> Source:
    """Join sources of one kind, in order: columns reordered, CSV's dtypes widened, classes united."""
    if len(parts) == 1:
        return parts[0]
    united = _unite_classes(_widen(in_one_order(parts)))
    groups: dict[str, list[str]] = {}
    for part in united:
        groups.setdefault(_signature(part), []).append(name_of(part))
    if len(groups) > 1:
        raise InputError(
            f"{len(parts)} sources hold different data",
            where=", ".join(names[0] for names in list(groups.values())[:_N_SHOWN]),
            why="; ".join(_line(names, held) for held, names in list(groups.items())[:_N_SHOWN]),
            fix="convert them to one dtype, shape and list of columns, or ingest them apart",
        )
    return Concatenation(united)


def name_of(source: Source) -> str:
    """Return the path of a source, or its format where it has none."""
    first = source.provenance[0] if source.provenance else {}
    return str(first.get("path", first.get("format", "source")))


def _line(names: list[str], held: str) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{others}: {held}"


def _signature(source: Source) -> str:
    facts = source.provenance[0] if source.provenance else {}
    columns, label = facts.get("columns"), None if source.classes else facts.get("label_column")
    of = f" of columns {', '.join(columns)}" if columns else ""
    return describe_kinds(kinds_of(source.fields)) + of + (f", labels {label!r}" if label else "")


def _widen(parts: Sequence[Source]) -> Sequence[Source]:
    tables = [part for part in parts if isinstance(part, TableSource) and part.provenance[0]["format"] == "csv"]
    if len(tables) < len(parts) or len({part.chosen for part in tables}) > 1:
        return parts
    common = {
        field.name: np.result_type(*(own.dtype for part in tables for own in part.fields if own.name == field.name))
        for field in tables[0].fields
    }
    return [with_dtypes(part, common.get(INPUT), common.get(TARGET)) for part in tables]


def _unite_classes(parts: Sequence[Source]) -> tuple[Source, ...]:
    if len({part.classes for part in parts}) == 1:
        return tuple(parts)
    kinds = {"numbers" if part.classes is None else "text": name_of(part) for part in parts}
    if len(kinds) > 1:
        raise InputError(
            "labels are text in one file and numbers in another",
            where=", ".join(sorted(kinds.values())),
            why="; ".join(f"{name}: {kind}" for kind, name in sorted(kinds.items())),
            fix="write all labels as text, or all as numbers",
        )
    united = tuple(sorted({name for part in parts for name in part.classes or ()}))
    return tuple(_with_classes(part, united) for part in parts)


def _with_classes(part: Source, classes: tuple[str, ...]) -> Source:
    if isinstance(part, TableSource):
        return replace(part, classes=classes)
    raise InputError("the files name different classes", where=name_of(part), fix="ingest them apart")


class LabelledSource(Source):
    """Features from one source and, row by row, the labels from another."""

    def __init__(self, features: Source, labels: Source) -> None:
        own = labels.fields[0]
        self.features, self.labels = features, labels
        self.fields = (*features.fields, field_of(TARGET, own.dtype, own.shape, where=name_of(labels)))
        self.n_samples = labels.n_samples if features.n_samples is None else features.n_samples
        self.classes, self.schema_facts = labels.classes, features.schema_facts
        self.provenance = (*features.provenance, *({**entry, "field": TARGET} for entry in labels.provenance))
        self.seekable = features.seekable and labels.seekable
        self.chunk_bytes = features.chunk_bytes + labels.chunk_bytes
        self.reading = features.reading.beside(labels.reading)
        self.told, self.lengths = (*features.told, *labels.told), features.lengths

    def where(self, row: int) -> str:
        return self.features.where(row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order; refuse sources of which one ends before the other."""
        n_rows = rows_within(max_bytes, self.fields)
        features = _CountingStream(self.features.iter_blocks(n_rows * _row_bytes(self.features)))
        labels = _CountingStream(self._labels(n_rows * _row_bytes(self.labels)))
        with closing(features), closing(labels):
            for rows in align_streams([features, labels]):
                yield from pieces(rows, n_rows)
        _check_counts(self.features, self.labels, features.n_rows, labels.n_rows)

    def read(self, start: int, stop: int) -> Rows:
        return {**self.features.read(start, stop), **self._as_labels(self.labels.read(start, stop), start)}

    @property
    def has_ranges(self) -> bool:
        return self.features.has_ranges and self.labels.has_ranges

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        n_rows = rows_within(max_bytes, self.fields)
        features = self.features.iter_range(start, stop, n_rows * _row_bytes(self.features))
        labels = self._labels_of(self.labels.iter_range(start, stop, n_rows * _row_bytes(self.labels)), start)
        for rows in align_streams([features, labels]):
            yield from pieces(rows, n_rows)

    def _labels(self, max_bytes: int) -> Iterator[Rows]:
        return self._labels_of(self.labels.iter_blocks(max_bytes), 0)

    def _labels_of(self, runs: Iterator[Rows], n_done: int) -> Iterator[Rows]:
        for rows in runs:
            yield self._as_labels(rows, n_done)
            n_done += n_rows_of(rows)

    def _as_labels(self, rows: Rows, first_row: int) -> Rows:
        values = rows[self.labels.fields[0].name]
        return {TARGET: as_field(values, self.fields[-1], lambda row: self.labels.where(first_row + row))}


class _CountingStream:
    """A stream of rows that counts them."""

    def __init__(self, stream: Iterator[Rows]) -> None:
        self._stream = stream
        self.n_rows = 0

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        rows = next(self._stream)
        self.n_rows += n_rows_of(rows)
        return rows

    def close(self) -> None:
        if hasattr(self._stream, "close"):
            self._stream.close()


def _row_bytes(source: Source) -> int:
    return sum(field.row_bytes for field in source.fields)


def with_labels(features: Source, labels: Source) -> Source:
    """Put the only field of a labels source beside features, as field ``y``."""
    if any(field.name == TARGET for field in features.fields):
        fix = "leave labels out, or the label column"
        raise UsageError("the features bring labels of their own (field 'y')", where=name_of(features), fix=fix)
    if len(labels.fields) != 1:
        names = [field.name for field in labels.fields]
        chosen = Argument("fields", {TARGET: TARGET if TARGET in names else names[-1]})
        fix = Fix("give labels as a source of one field, or choose it: ", chosen, ", say")
        raise InputError(f"the labels hold several fields: {', '.join(names)}", where=name_of(labels), fix=fix)
    if features.n_samples is not None and labels.n_samples is not None:
        _check_counts(features, labels, features.n_samples, labels.n_samples)
    return LabelledSource(features, labels)


def _check_counts(features: Source, labels: Source, n_features: int, n_labels: int) -> None:
    if n_features != n_labels:
        raise InputError(
            f"features and labels differ in rows: {n_features:,} and {n_labels:,}",
            where=f"{name_of(features)}, {name_of(labels)}",
            why="Every sample has one label",
            fix="give the labels that belong to these features",
        )


Classes = int | tuple[str, ...]
"""A number of classes, counted from 0, or their names in the order of their numbers."""

_N_LISTED: Final = 5
_PIECE_ROWS: Final = 2**16


class StrippedClasses(Source):
    """A source whose classes that differ only in the blanks around their names are one."""

    def __init__(self, source: Source, names: Sequence[str], stripped: Sequence[str]) -> None:
        self.source = source
        self.fields, self.n_samples, self.provenance = source.fields, source.n_samples, source.provenance
        self.seekable, self.chunk_bytes, self.reading = source.seekable, source.chunk_bytes, source.reading
        self.schema_facts, self.told, self.lengths = source.schema_facts, source.told, source.lengths
        self.classes = tuple(sorted(set(stripped)))
        self._numbers = np.array([self.classes.index(name) for name in stripped], np.int64)
        changed = [name for name, other in zip(names, stripped, strict=True) if name != other]
        shown = ", ".join(f"{name!r} is {name.strip()!r}" for name in changed[:_N_SHOWN])
        self.text = f"{len(changed)} class name{'s' * (len(changed) > 1)} stripped of blanks: {shown}"

    def where(self, row: int) -> str:
        return self.source.where(row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        yield from map(self._numbered, self.source.iter_blocks(max_bytes))

    def read(self, start: int, stop: int) -> Rows:
        return self._numbered(self.source.read(start, stop))

    @property
    def has_ranges(self) -> bool:
        return self.source.has_ranges

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        yield from map(self._numbered, self.source.iter_range(start, stop, max_bytes))

    def _numbered(self, rows: Rows) -> Rows:
        return {**rows, TARGET: self._numbers[rows[TARGET]]}


def merge_blanks(source: Source) -> Source:
    """Make one class of those whose names differ only in the blanks around them."""
    names = source.classes or ()
    n_alike = Counter(name.strip() for name in names)
    if len(n_alike) == len(names):
        return source
    stripped = [name.strip() if n_alike[name.strip()] > 1 else name for name in names]
    return StrippedClasses(source, names, stripped)


class ClassCheckedSource(Source):
    """A source whose field ``y``, one value per sample, holds none but the classes that were named, as int64."""

    def __init__(self, source: Source, allowed: Classes) -> None:
        labels = next((field for field in source.fields if field.name == TARGET and not field.shape), None)
        if labels is None:
            fix = "give labels, or leave classes out"
            raise UsageError(
                "classes are of field y, one per sample, and there is none", where=name_of(source), fix=fix
            )
        self.source, self.allowed = source, allowed
        self.fields = tuple(_as_label(field) if field is labels else field for field in source.fields)
        self.classes = source.classes if isinstance(allowed, int) else allowed
        self.schema_facts, self.lengths = source.schema_facts, source.lengths
        self.n_samples, self.provenance = source.n_samples, source.provenance
        self.seekable, self.chunk_bytes, self.reading = source.seekable, source.chunk_bytes, source.reading
        self._n_classes = allowed if isinstance(allowed, int) else len(allowed)
        self._codes = None if source.classes is None else _codes(source, source.classes, allowed)

    def where(self, row: int) -> str:
        return self.source.where(row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        yield from self._checked_runs(self.source.iter_blocks(max_bytes), 0)

    def read(self, start: int, stop: int) -> Rows:
        return self._checked(self.source.read(start, stop), start)

    @property
    def has_ranges(self) -> bool:
        return self.source.has_ranges

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        yield from self._checked_runs(self.source.iter_range(start, stop, max_bytes), start)

    def _checked_runs(self, runs: Iterator[Rows], n_done: int) -> Iterator[Rows]:
        for rows in runs:
            yield self._checked(rows, n_done)
            n_done += n_rows_of(rows)

    def _checked(self, rows: Rows, first_row: int) -> Rows:
        labels = rows[TARGET]
        if self._codes is not None:
            return {**rows, TARGET: self._codes[labels]}
        for start in range(0, len(labels), _PIECE_ROWS):
            self._check(labels[start : start + _PIECE_ROWS], first_row + start)
        return {**rows, TARGET: labels.astype(np.int64, copy=False)}

    def _check(self, labels: npt.NDArray[Any], first_row: int) -> None:
        is_class = (labels >= 0) & (labels < self._n_classes)
        if labels.dtype.kind == "f":
            is_class &= labels == np.floor(labels)
        if not is_class.all():
            row = int(is_class.argmin())
            of_labels = self.source.labels if isinstance(self.source, LabelledSource) else self.source
            raise InputError(
                f"label {labels[row]} is not one of the {self._n_classes:,} classes 0 to {self._n_classes - 1}",
                where=of_labels.where(first_row + row),
                why="Nothing is rounded or left out unless you ask for it",
                fix="correct it, or the number of classes; leave classes out where y is a value to be predicted",
            )


def _as_label(field: Field) -> Field:
    return Field(name=field.name, dtype=np.dtype(np.int64), shape=())


def _codes(source: Source, found: tuple[str, ...], classes: Classes) -> npt.NDArray[np.int64]:
    """Number each class that was found; refuse one that is not allowed."""
    if isinstance(classes, int):
        if len(found) > classes:
            listed = ", ".join(map(repr, found[:_N_LISTED])) + ", ..." * (len(found) > _N_LISTED)
            fix = "correct the labels, or the number of classes"
            raise InputError(
                f"{len(found):,} classes were found, {classes:,} were named: {listed}", where=name_of(source), fix=fix
            )
        return np.arange(len(found))
    unseen = [name for name in found if name not in classes]
    if unseen:
        raise InputError(
            f"labels that are not among the classes: {', '.join(map(repr, unseen[:_N_LISTED]))}",
            where=name_of(source),
            why=f"The classes are {', '.join(map(repr, classes[:_N_LISTED]))}{', ...' * (len(classes) > _N_LISTED)}",
            fix="correct the labels, or name their classes too",
        )
    return np.array([classes.index(name) for name in found], np.int64)
