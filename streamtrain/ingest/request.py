"""What an ingest was asked for, parsed and checked before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from streamtrain.errors import UsageError, unknown_name
from streamtrain.ingest.memory import MOST_WORKERS
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.combine import Classes
from streamtrain.store.codec import CodecChoice
from streamtrain.store.statistics import MOST_VALUES


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for, parsed.

    Parameters
    ----------
    memory, shard_bytes : int
        In bytes.
    block_bytes : int, optional
        In bytes; by default the layout's own.
    codec : {"auto", "none", "lz4", "zstd"}
        The compression.
    n_workers : int
        The most workers.
    progress : bool, optional
        Whether to show a bar; by default on a terminal.
    options : SourceOptions
        How to read files.
    classes : int or tuple of str, optional
        What labels there may be.
    """

    memory: int
    block_bytes: int | None
    shard_bytes: int
    codec: CodecChoice
    n_workers: int
    progress: bool | None
    options: SourceOptions
    classes: Classes | None = None

    def as_json(self) -> dict[str, Any]:
        """What shapes the dataset, for its manifest; budget and workers do not."""
        options = {field.name: getattr(self.options, field.name) for field in fields(SourceOptions)}
        given = {name: value.name if isinstance(value, np.dtype) else value for name, value in options.items()}
        return {
            "block": self.block_bytes,
            "shard": self.shard_bytes,
            "codec": self.codec,
            **{name: value for name, value in (given | {"classes": self.classes}).items() if value is not None},
        }


def source_options(**options: object) -> SourceOptions:
    """Make `SourceOptions` from what a user gives; a dtype may be text, columns and shape any sequence.

    Raises
    ------
    UsageError
        An option is unknown, or not of its kind.

    Examples
    --------
    >>> source_options(dtype="float32", shape=[28, 28]).shape
    (28, 28)
    """
    known = [field.name for field in fields(SourceOptions)]
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    parsed: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        if "dtype" in parsed:
            parsed["dtype"] = np.dtype(parsed["dtype"])
        if "shape" in parsed:
            shape = parsed["shape"]
            parsed["shape"] = tuple(int(n) for n in (shape if isinstance(shape, Sequence) else (shape,)))
        if "columns" in parsed:
            columns = parsed["columns"]
            parsed["columns"] = (columns,) if isinstance(columns, str) else tuple(columns)
    except (TypeError, ValueError) as error:
        raise UsageError(f"an option is not of its kind: {error}", fix="dtype='float32', shape=(28, 28), say") from None
    return SourceOptions(**parsed)


def parse_classes(classes: int | Sequence[str] | None) -> Classes | None:
    """Check a number of classes, or their names.

    Raises
    ------
    UsageError
        It is neither, there are none or too many, or two have one name.

    Examples
    --------
    >>> parse_classes(10), parse_classes(["cat", "dog"])
    (10, ('cat', 'dog'))
    """
    fix = 'classes=10, or classes=["cat", "dog"], say'
    if classes is None:
        return None
    if isinstance(classes, int) and not isinstance(classes, bool):
        return _counted(classes, classes, fix)
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) and name for name in classes):
        raise UsageError(f"classes is {classes!r}; it is their number, or a list of their names", fix=fix)
    if len(set(classes)) < len(classes):
        raise UsageError("two classes have the same name", fix=fix)
    return _counted(tuple(classes), len(classes), fix)


def _counted(classes: Classes, n_classes: int, fix: str) -> Classes:
    if not 1 <= n_classes <= MOST_VALUES:
        raise UsageError(f"classes are {n_classes:,}; they can be 1 to {MOST_VALUES:,}", fix=fix)
    return classes


def parse_workers(n_workers: int | None) -> int:
    """Check a number of workers; by default one per core this process may use, up to 16."""
    if n_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MOST_WORKERS)
    if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 1:
        raise UsageError(f"n_workers is {n_workers!r}; it must be a positive integer")
    return n_workers
