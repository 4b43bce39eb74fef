"""Rows appended to a dataset: its full shards are linked, its last one is read again, new rows follow.

The dataset's layout stays: fields, rows of a block, blocks of a shard, codec. So the result has the bytes that one
ingest of all the rows in this layout gives; only its manifest names several sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, ResourceError, UsageError
from streamtrain.ingestion.sources.arrays import NamedArrays
from streamtrain.ingestion.sources.base import Rows, Source, describe_kinds, kinds_of
from streamtrain.ingestion.sources.combine import ClassCheckedSource, Concatenation, LabelledSource, name_of
from streamtrain.ingestion.sources.tables.roles.known import known_of
from streamtrain.ingestion.sources.tables.table_columns import TableSource, in_order
from streamtrain.store import zarr_metadata
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import UNKNOWN_SAMPLES, Field, Layout
from streamtrain.store.manifest import AUTO
from streamtrain.store.media.encoded import largest_block
from streamtrain.store.schema.columns import INPUT, TARGET, Schema, schema_of
from streamtrain.store.schema.matching import first_difference, unnamed
from streamtrain.store.shard import StoredFile, shard_exists
from streamtrain.store.writing.journal import Shards
from streamtrain.system.files import Files
from streamtrain.system.units import format_bytes


class AppendedSource(Source):
    """The rows of a dataset from its last, partial shard on, then those of a source; numbered as in the result."""

    def __init__(self, base: Dataset, more: Source, codes: npt.NDArray[np.int64] | None) -> None:
        self.base, self.more, self.codes = base, more, codes
        self.fields, self.classes, self.schema_facts = base.fields, base.manifest.classes, more.schema_facts
        self.n_samples = None if more.n_samples is None else len(base) + more.n_samples
        self.provenance = (*base.manifest.sources, *more.provenance)
        self.seekable, self.chunk_bytes, self.reading = more.seekable, more.chunk_bytes, more.reading
        self.first_row = n_full_shards(base) * base.layout.block_rows * base.layout.shard_blocks

    def where(self, row: int) -> str:
        """Name the sample of the dataset, or where the source has the row from."""
        n_before = len(self.base)
        return f"{self.base.path} sample {row}" if row < n_before else self.more.where(row - n_before)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield the rows from ``first_row`` on, in order."""
        step = max(1, max_bytes // self.base.layout.row_bytes)
        for start in range(self.first_row, len(self.base), step):
            yield self.base.read_rows(range(start, min(start + step, len(self.base))))
        for rows in self.more.iter_blocks(max_bytes):
            yield self._coded(rows)

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop), across the two where need be."""
        n_before = len(self.base)
        if start >= n_before:
            return self._coded(self.more.read(start - n_before, stop - n_before))
        if stop <= n_before:
            return self.base.read_rows(range(start, stop))
        before, after = self.base.read_rows(range(start, n_before)), self._coded(self.more.read(0, stop - n_before))
        return {name: np.concatenate([before[name], after[name]]) for name in before}

    @property
    def has_ranges(self) -> bool:
        return self.more.has_ranges

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        n_before = len(self.base)
        step = max(1, max_bytes // self.base.layout.row_bytes)
        for first in range(start, min(stop, n_before), step):
            yield self.base.read_rows(range(first, min(first + step, stop, n_before)))
        if stop > n_before:
            for rows in self.more.iter_range(max(start - n_before, 0), stop - n_before, max_bytes):
                yield self._coded(rows)

    def _coded(self, rows: Rows) -> Rows:
        return rows if self.codes is None else {**rows, TARGET: self.codes[rows[TARGET]]}


def n_full_shards(base: Dataset) -> int:
    """Count the shards of a dataset that have no room for more rows."""
    return len(base) // (base.layout.block_rows * base.layout.shard_blocks)


def appended_source(base: Dataset, more: Source) -> AppendedSource:
    """Put the rows of a source behind a dataset's last ones; refuse other columns, fields or classes."""
    facts = known_of(base.schema).facts if base.manifest.schema is not None else None
    if more.schema_facts != facts:
        raise UsageError(
            "the rows have categories, dates, fills or several targets that the dataset does not have",
            where=str(base.path),
            why="They would not be numbered and filled in like those of the dataset",
            fix="leave the options that make them out; or ingest all sources together, as one dataset",
        )
    if facts is None:
        more = in_columns_of(base.schema, more)
        check_columns(base, more)
    declared = base.manifest.options.get("classes")
    if declared not in (None, AUTO) and any(field.name == TARGET for field in more.fields):
        more = ClassCheckedSource(more, declared if isinstance(declared, int) else tuple(declared))
    _check_fields(base, more)
    return AppendedSource(base, more, _codes(base, more))


def in_columns_of(schema: Schema, source: Source) -> Source:
    """Put a source's feature columns in the order of a dataset's, where both have names."""
    names = schema.columns.get(INPUT)
    return source if names is None else _in_order(source, names)


def _in_order(source: Source, names: tuple[str, ...]) -> Source:
    match source:
        case TableSource():
            return in_order(source, names, "the dataset") if source.chosen.features else source
        case NamedArrays():
            return source.in_order(names, "the dataset")
        case Concatenation():
            return Concatenation([_in_order(part, names) for part in source.parts])
        case LabelledSource():
            return LabelledSource(_in_order(source.features, names), source.labels)
        case ClassCheckedSource():
            return ClassCheckedSource(_in_order(source.source, names), source.allowed)
    return source


def unnamed_columns(base: Dataset, more: Source, of: str = "the dataset", *, but: str | None = None) -> str | None:
    """Say what of a dataset and of what is appended to it has names on one side only, one field left out."""
    if more.schema_facts is not None:
        return None  # all of them have names, which were matched
    names = (name for name in _names(base) if name != but)
    return unnamed(base.schema, _schema(more), fields=names, of=of, where=name_of(more))


def _schema(source: Source) -> Schema:
    return schema_of(source.fields, source.provenance, classes=source.classes)


def _names(base: Dataset) -> tuple[str, ...]:
    return tuple(field.name for field in base.fields)


def check_columns(base: Dataset, more: Source) -> None:
    """Refuse columns of other names, or in an order that nobody here can change."""
    own = _schema(more)
    # `_check_fields` compares dtypes and shapes more strictly, and classes are numbered anew.
    same_classes = base.manifest.classes if own.classes is not None else None
    found = first_difference(
        replace(base.schema, fields=()),
        replace(own, fields=(), classes=same_classes),
        fields=_names(base),
        of="the dataset",
    )
    if found is not None:
        raise InputError(found.what, where=name_of(more), why=found.why, fix="give the same columns, in that order")


def appended_layout(source: AppendedSource) -> Layout:
    """Give the dataset's layout as many rows as there will be."""
    base = source.base.layout
    for field in base.encoded_fields:
        _check_capacity(source, field, base.block_rows * field.row_bytes)
    return replace(base, n_samples=UNKNOWN_SAMPLES if source.n_samples is None else source.n_samples)


def _check_capacity(source: AppendedSource, field: Field, capacity: int) -> None:
    """Refuse samples that a block of the dataset, which has the bytes of its largest, would not hold."""
    assert field.encoded is not None
    base = source.base
    last = range(len(base) // base.layout.block_rows * base.layout.block_rows, len(base))
    before = base.read_rows(last, [base.layout.field(field.encoded.lengths)])[field.encoded.lengths]
    found = largest_block(np.concatenate([before, source.more.lengths[field.name]]), base.layout.block_rows)
    if found > capacity:
        raise InputError(
            f"{base.layout.block_rows} samples in a row have up to {found:,} bytes, and a block of field {field.name} "
            f"has room for {capacity:,}",
            where=str(base.path),
            why="A block has the bytes of the largest when the dataset was made",
            fix="ingest all sources together, as one dataset",
        )


def full_shards(base: Dataset) -> Shards:
    """Return the files of a dataset's full shards, as its manifest knows them."""
    return {shard: _stored(base, shard) for shard in range(n_full_shards(base))}


def link_shards(base: Dataset, folder: Path, files: Files, say: Callable[[str], None]) -> None:
    """Give a dataset's full shards a second name in the folder of its successor, unless they have it.

    Where the file system has no links they are copied, if there is room for that.
    """
    missing = {
        shard: stored
        for shard, stored in full_shards(base).items()
        if not shard_exists(folder, base.layout, shard, stored)
    }
    can_link = True
    for shard in missing:
        for field in base.fields:
            old, path = base.shard_path(field.name, shard), folder / zarr_metadata.shard_key(field, shard)
            files.ensure_dir(path.parent, flush_folder=False)
            if os.path.lexists(path):
                files.unlink(path)
            if can_link and not (can_link := files.link(old, path)):
                n_bytes = sum(file.n_bytes for stored in missing.values() for file in stored)
                check_free_bytes(folder, n_bytes, files)
                say(f"{folder}: no hard links here; {format_bytes(n_bytes)} of full shards are copied")
            if not can_link:
                files.copy(old, path)


def check_free_bytes(folder: Path, n_bytes: int, files: Files, fix: str = "free some space, or another disk") -> None:
    """Refuse to write more than the disk has room for, where that is known."""
    free_bytes, _ = files.system.free(folder)
    if free_bytes is not None and n_bytes > free_bytes:
        what = f"{format_bytes(n_bytes)} are needed, and {format_bytes(free_bytes)} are free"
        raise ResourceError(what, where=str(folder), fix=fix)


def _stored(base: Dataset, shard: int) -> tuple[StoredFile, ...]:
    return tuple(base.manifest.files[zarr_metadata.shard_key(field, shard)] for field in base.fields)


def _check_fields(base: Dataset, more: Source) -> None:
    there, here = kinds_of(base.fields), kinds_of(more.fields)
    if there != here:
        raise InputError(
            f"the source has {describe_kinds(here)}; the dataset has {describe_kinds(there)}",
            where=str(base.path),
            why="What is appended has the dataset's fields, dtypes and shapes",
            fix="convert the source, or ingest it as a dataset of its own",
        )


def _codes(base: Dataset, more: Source) -> npt.NDArray[np.int64] | None:
    """Map each class of the source to the dataset's number; None where they have the same."""
    classes = base.manifest.classes
    if more.classes == classes:
        return None
    unknown = sorted(set(more.classes or ()) - set(classes or ()))
    if more.classes is None or classes is None or unknown:
        kinds = "numbers" if more.classes is None else ", ".join(map(repr, unknown[:5])) or "text"
        known = "numbers" if classes is None else ", ".join(map(repr, classes[:5]))
        raise InputError(
            f"the source has other classes than the dataset: {kinds}",
            where=str(base.path),
            why=f"The dataset's labels are {known}",
            fix="correct the labels, or ingest all sources again",
        )
    return np.array([classes.index(name) for name in more.classes], np.int64)
