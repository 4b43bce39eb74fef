"""Labels from one source beside the features of another, row by row, as field ``y``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from streamtrain.errors import InputError, UsageError
from streamtrain.sources.combine import name_of
from streamtrain.sources.protocol import Rows, SeekableSource, Source, chunk_bytes_of
from streamtrain.sources.rows import as_field, check_range, field_of, n_rows_of, pieces, rows_within
from streamtrain.sources.steps import in_step
from streamtrain.store.layout import Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Features from one source and, row by row, the labels from another."""

    features: Source
    labels: Source
    fields: tuple[Field, ...]

    @property
    def n_samples(self) -> int | None:
        """Rows of both, where either knows."""
        return self.labels.n_samples if self.features.n_samples is None else self.features.n_samples

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Those of the labels."""
        return self.labels.classes

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """Of the features, then of the labels."""
        return (*self.features.provenance, *({**entry, "field": "y"} for entry in self.labels.provenance))

    @property
    def chunk_bytes(self) -> int:
        """What features and labels make at once."""
        return chunk_bytes_of(self.features) + chunk_bytes_of(self.labels)

    def where(self, row: int) -> str:
        """Where the row's features came from."""
        return self.features.where(row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order.

        Raises
        ------
        InputError
            One of the two ends before the other.
        """
        n_rows = rows_within(max_bytes, self.fields)
        features = _Counted(self.features.iter_blocks(n_rows * _row_bytes(self.features)))
        labels = _Counted(self._labels(n_rows * _row_bytes(self.labels)))
        with closing(features), closing(labels):
            for rows in in_step([features, labels]):
                yield from pieces(rows, n_rows)
        _check_counts(self.features, self.labels, features.n_rows, labels.n_rows)

    def _labels(self, max_bytes: int) -> Iterator[Rows]:
        n_done = 0
        for rows in self.labels.iter_blocks(max_bytes):
            yield self._as_labels(rows, n_done)
            n_done += n_rows_of(rows)

    def _as_labels(self, rows: Rows, first_row: int) -> Rows:
        values = rows[self.labels.fields[0].name]
        return {"y": as_field(values, self.fields[-1], lambda row: self.labels.where(first_row + row))}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeekableLabelled(Labelled):
    """Features and labels that both read any range."""

    features: SeekableSource
    labels: SeekableSource

    @property
    def n_samples(self) -> int:
        """Rows of both."""
        return self.features.n_samples

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop) of both."""
        check_range(start, stop, self.n_samples)
        return {**self.features.read(start, stop), **self._as_labels(self.labels.read(start, stop), start)}


class _Counted:
    """A stream of rows that knows how many went by."""

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
    """Put the only field of a labels source beside features, as field ``y``.

    Raises
    ------
    UsageError
        The features have a field ``y`` already.
    InputError
        The labels have several fields, or the row counts differ.
    """
    if any(field.name == "y" for field in features.fields):
        fix = "leave labels out, or the label column"
        raise UsageError("the features bring labels of their own (field 'y')", where=name_of(features), fix=fix)
    if len(labels.fields) != 1:
        listed = ", ".join(field.name for field in labels.fields)
        fix = "give labels as a source of one field"
        raise InputError(f"the labels hold several fields: {listed}", where=name_of(labels), fix=fix)
    if features.n_samples is not None and labels.n_samples is not None:
        _check_counts(features, labels, features.n_samples, labels.n_samples)
    own = labels.fields[0]
    fields = (*features.fields, field_of("y", own.dtype, own.shape, where=name_of(labels)))
    if isinstance(features, SeekableSource) and isinstance(labels, SeekableSource):
        return SeekableLabelled(features=features, labels=labels, fields=fields)
    return Labelled(features=features, labels=labels, fields=fields)


def _check_counts(features: Source, labels: Source, n_features: int, n_labels: int) -> None:
    if n_features != n_labels:
        raise InputError(
            f"features and labels differ in rows: {n_features:,} and {n_labels:,}",
            where=f"{name_of(features)}, {name_of(labels)}",
            why="Every sample has one label",
            fix="give the labels that belong to these features",
        )
