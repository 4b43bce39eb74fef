"""Labels held against the classes that were named: whole numbers below their count, or their names.

Without a word on classes, numbers that are not whole are values to be predicted. With it they are a mistake, and so is
a class that nobody named; both are refused here, by the row, and not by a model or a device later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, UsageError
from streamtrain.sources.combine import name_of
from streamtrain.sources.labelled import Labelled
from streamtrain.sources.protocol import Rows, SeekableSource, Source, chunk_bytes_of
from streamtrain.sources.rows import LABELS, n_rows_of
from streamtrain.store.layout import Field

Classes = int | tuple[str, ...]
"""How many classes there are, numbered from 0, or their names in the order of their numbers."""

_N_SHOWN: Final = 5
_PIECE_ROWS: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """A source whose field ``y`` holds none but the classes that were named, as int64."""

    source: Source
    fields: tuple[Field, ...]
    classes: tuple[str, ...] | None
    n_classes: int
    codes: npt.NDArray[np.int64] | None

    @property
    def n_samples(self) -> int | None:
        """Those of the source."""
        return self.source.n_samples

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """That of the source."""
        return self.source.provenance

    @property
    def chunk_bytes(self) -> int:
        """What the source makes at once."""
        return chunk_bytes_of(self.source)

    def where(self, row: int) -> str:
        """Where the source says."""
        return self.source.where(row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order.

        Raises
        ------
        InputError
            A label is none of the classes.
        """
        n_done = 0
        for rows in self.source.iter_blocks(max_bytes):
            yield self._checked(rows, n_done)
            n_done += n_rows_of(rows)

    def _checked(self, rows: Rows, first_row: int) -> Rows:
        labels = rows[LABELS]
        if self.codes is not None:
            return {**rows, LABELS: self.codes[labels]}
        for start in range(0, len(labels), _PIECE_ROWS):
            self._check(labels[start : start + _PIECE_ROWS], first_row + start)
        return {**rows, LABELS: labels.astype(np.int64, copy=False)}

    def _check(self, labels: npt.NDArray[Any], first_row: int) -> None:
        is_class = (labels >= 0) & (labels < self.n_classes)
        if labels.dtype.kind == "f":
            is_class &= labels == np.floor(labels)
        if not is_class.all():
            row = int(is_class.argmin())
            raise InputError(
                f"label {labels[row]} is none of the {self.n_classes:,} classes 0 to {self.n_classes - 1}",
                where=(self.source.labels if isinstance(self.source, Labelled) else self.source).where(first_row + row),
                why="Nothing is rounded or left out unasked",
                fix="correct it, or the number of classes; leave classes out where y is a value to be predicted",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeekableClassified(Classified):
    """The same, of a source that reads any range."""

    source: SeekableSource

    @property
    def n_samples(self) -> int:
        """Those of the source."""
        return self.source.n_samples

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop)."""
        return self._checked(self.source.read(start, stop), start)


def with_classes(source: Source, classes: Classes) -> Source:
    """Hold the labels of a source against the classes there may be.

    Parameters
    ----------
    source : Source
        With a field ``y`` of one value per sample.
    classes : int or tuple of str
        How many there are, or their names: labels that are text become the places of theirs, and labels that are
        numbers get them.

    Raises
    ------
    UsageError
        The source has no such field.
    InputError
        A label that is text is none of the classes.

    Examples
    --------
    >>> from streamtrain.sources.registry import open_source
    >>> source = open_source({"y": np.array([0.0, 2.0, 1.5])})
    >>> list(with_classes(source, 3).iter_blocks(1000))
    Traceback (most recent call last):
        ...
    streamtrain.errors.InputError: row 2 of the arrays: label 1.5 is none of the 3 classes 0 to 2. Nothing is ...
    """
    labels = next((field for field in source.fields if field.name == LABELS and not field.shape), None)
    if labels is None:
        fix = "give labels, or leave classes out"
        raise UsageError("classes are of field y, one per sample, and there is none", where=name_of(source), fix=fix)
    names = source.classes if isinstance(classes, int) else classes
    n_classes = classes if isinstance(classes, int) else len(classes)
    kind = SeekableClassified if isinstance(source, SeekableSource) else Classified
    return kind(
        source=source,  # type: ignore[arg-type]  # which of the two, the line above knows
        fields=tuple(_as_label(field) if field is labels else field for field in source.fields),
        classes=names,
        n_classes=n_classes,
        codes=None if source.classes is None else _codes(source, source.classes, classes),
    )


def _as_label(field: Field) -> Field:
    return Field(name=field.name, dtype=np.dtype(np.int64), shape=())


def _codes(source: Source, found: tuple[str, ...], classes: Classes) -> npt.NDArray[np.int64]:
    """The number of each class that was found."""
    if isinstance(classes, int):
        if len(found) > classes:
            listed = ", ".join(map(repr, found[:_N_SHOWN])) + ", ..." * (len(found) > _N_SHOWN)
            fix = "correct the labels, or the number of classes"
            raise InputError(
                f"{len(found):,} classes are there, {classes:,} were named: {listed}", where=name_of(source), fix=fix
            )
        return np.arange(len(found))
    unseen = [name for name in found if name not in classes]
    if unseen:
        raise InputError(
            f"labels that are none of the classes: {', '.join(map(repr, unseen[:_N_SHOWN]))}",
            where=name_of(source),
            why=f"The classes are {', '.join(map(repr, classes[:_N_SHOWN]))}{', ...' * (len(classes) > _N_SHOWN)}",
            fix="correct the labels, or name their classes too",
        )
    return np.array([classes.index(name) for name in found], np.int64)
