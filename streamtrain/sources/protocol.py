"""What every raw format gives to ingest: fields, a row count, and bounded runs of rows in order.

A source is opened by ``probe(path, options)``, which reads headers only. Sources that can read any range of rows
also have ``read``; ingest then reads shards in parallel. A source knows where each row came from, so every later
complaint can name the file and the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamtrain.store.layout import Field

Rows = Mapping[str, npt.NDArray[Any]]
"""A run of consecutive rows: field name -> array of shape (n_rows, *field.shape), the same n_rows in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to read raw files; each family takes what concerns it and refuses what does not.

    Parameters
    ----------
    label_column : str, optional
        Tables: the column that becomes field ``y``.
    columns : tuple of str, optional
        Tables: the columns that become field ``x``, in this order; all but the label by default.
    dtype : numpy.dtype, optional
        Raw binary: the element type.
    shape : tuple of int, optional
        Raw binary: the shape of one sample.
    """

    label_column: str | None = None
    columns: tuple[str, ...] | None = None
    dtype: np.dtype[np.generic] | None = None
    shape: tuple[int, ...] | None = None


@runtime_checkable
class Source(Protocol):
    """Raw data that can be read in order, in bounded memory, any number of times unless it says otherwise."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields, with native-endian dtypes and the shape of one sample."""

    @property
    def n_samples(self) -> int | None:
        """How many rows there are; None where only the end tells."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The sorted names of string labels mapped to 0, 1, ... in field ``y``; None where labels are numbers."""

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """What was read, for the manifest: format, and for files the path as given, bytes and mtime_ns."""

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield consecutive runs of rows, each of at most ``max_bytes`` (or one row, where a row is larger)."""

    def where(self, row: int) -> str:
        """Where a row came from: ``file:line``, ``file row N`` or the like."""


@runtime_checkable
class SeekableSource(Source, Protocol):
    """A source that can read any range of rows, from several threads at once."""

    @property
    def n_samples(self) -> int:
        """How many rows there are."""

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop); memory is that of the rows alone."""


@runtime_checkable
class ChunkedSource(Source, Protocol):
    """A source that has to make its rows in chunks of its own size."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes made at once, however little is asked; 0 where what is asked is kept to."""


def chunk_bytes_of(source: Source) -> int:
    """Bytes that a source makes at once, however little is asked; 0 where it keeps to what is asked."""
    return source.chunk_bytes if isinstance(source, ChunkedSource) else 0


Probe = Callable[[Path, SourceOptions], Source]
"""Opens one file of a format: reads its header, checks it against the file's size, raises InputError."""
