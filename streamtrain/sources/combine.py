"""Several sources as one, one after another.

What the parts must agree on is compared before a row is read. The whole reads any range if every part does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final, TypeGuard, cast

import numpy as np

from streamtrain.errors import InputError
from streamtrain.sources.protocol import Rows, SeekableSource, Source
from streamtrain.sources.rows import check_range, describe, rows_within
from streamtrain.sources.tables import TableSource, with_dtypes
from streamtrain.store.layout import Field

_PIECE_BYTES: Final = 4_000_000
_N_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Concatenation:
    """Sources of the same fields, one after another."""

    parts: tuple[Source, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        """Those of every part."""
        return self.parts[0].fields

    @property
    def n_samples(self) -> int | None:
        """Rows of all parts; None where a part does not know."""
        counts = [part.n_samples for part in self.parts]
        return None if None in counts else sum(cast("list[int]", counts))

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Those of every part."""
        return self.parts[0].classes

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """Of every part, in order."""
        return tuple(entry for part in self.parts for entry in part.provenance)

    def where(self, row: int) -> str:
        """Where the part that holds the row says it came from."""
        if self.n_samples is None:
            return f"row {row} of {len(self.parts)} sources"
        number, start = _part_of(self.parts, row)
        return self.parts[number].where(row - start)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield the rows of every part, in order."""
        for part in self.parts:
            yield from part.iter_blocks(max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeekableConcatenation(Concatenation):
    """Sources of the same fields that all read any range."""

    parts: tuple[SeekableSource, ...]

    @property
    def n_samples(self) -> int:
        """Rows of all parts."""
        return sum(part.n_samples for part in self.parts)

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop), across parts where need be."""
        check_range(start, stop, self.n_samples)
        number, first = _part_of(self.parts, start)
        if stop - first <= self.parts[number].n_samples:
            return self.parts[number].read(start - first, stop - first)
        return self._read_across(start, stop)

    def _read_across(self, start: int, stop: int) -> Rows:
        out = {field.name: np.empty((stop - start, *field.shape), field.dtype) for field in self.fields}
        # In small pieces, so that no part's share is held a second time.
        n_rows = rows_within(_PIECE_BYTES, self.fields)
        while start < stop:
            number, first = _part_of(self.parts, start)
            end = min(stop, start + n_rows, first + self.parts[number].n_samples)
            for name, values in self.parts[number].read(start - first, end - first).items():
                out[name][len(out[name]) - (stop - start) :][: end - start] = values
            start = end
        return out


def _part_of(parts: Sequence[Source], row: int) -> tuple[int, int]:
    """The part that holds a row, and its first row."""
    starts = [0, *accumulate(part.n_samples or 0 for part in parts)]
    number = min(bisect_right(starts, row), len(parts)) - 1
    return number, starts[number]


def concatenate(parts: Sequence[Source]) -> Source:
    """Join sources of one kind, in order.

    CSV files find their dtypes in the values, so theirs are widened to common ones; all others must agree. The
    names of text labels are united.

    Raises
    ------
    InputError
        Dtypes, shapes, columns or the kind of labels differ; the message lists who has what.
    """
    if len(parts) == 1:
        return parts[0]
    united = _unite_classes(_widen(parts))
    groups: dict[str, list[str]] = {}
    for part in united:
        groups.setdefault(_signature(part), []).append(name_of(part))
    if len(groups) > 1:
        raise InputError(
            f"{len(parts)} sources do not hold the same",
            where=", ".join(names[0] for names in list(groups.values())[:_N_SHOWN]),
            why="; ".join(_line(names, held) for held, names in list(groups.items())[:_N_SHOWN]),
            fix="convert them to one dtype, shape and list of columns, or ingest them apart",
        )
    if _all_seekable(united):
        return SeekableConcatenation(parts=united)
    return Concatenation(parts=united)


def name_of(source: Source) -> str:
    """The path of a source, or its format where it has none."""
    first = source.provenance[0] if source.provenance else {}
    return str(first.get("path", first.get("format", "source")))


def _line(names: list[str], held: str) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{others}: {held}"


def _signature(source: Source) -> str:
    facts = source.provenance[0] if source.provenance else {}
    held = [f"{field.name} {describe(field)}" for field in source.fields]
    columns = facts.get("columns")
    return ", ".join(held) + (f" of columns {', '.join(columns)}" if columns else "")


def _widen(parts: Sequence[Source]) -> Sequence[Source]:
    tables = [part for part in parts if isinstance(part, TableSource) and part.provenance[0]["format"] == "csv"]
    if len(tables) < len(parts) or len({part.chosen for part in tables}) > 1:
        return parts
    common = {
        field.name: np.result_type(*(own.dtype for part in tables for own in part.fields if own.name == field.name))
        for field in tables[0].fields
    }
    return [with_dtypes(part, common.get("x"), common.get("y")) for part in tables]


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


def _all_seekable(parts: tuple[Source, ...]) -> TypeGuard[tuple[SeekableSource, ...]]:
    return all(isinstance(part, SeekableSource) for part in parts)
