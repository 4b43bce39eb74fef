"""Datasets of streamtrain as sources: stored again with other blocks, another codec, or some of their fields."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import Rows, Source, SourceOptions, choose_fields, pieces, rows_within
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.layout import Field
from streamtrain.store.media.encoded import LENGTHS_SUFFIX, lengths_field
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.facts import SchemaFacts
from streamtrain.store.schema.task import TaskName, check_task
from streamtrain.store.zarr_metadata import PRIVATE, ROOT
from streamtrain.system.files import local_path


class StoredSource(Source):
    """The rows of a dataset, block by block, with what its schema says of them."""

    seekable = False

    def __init__(self, dataset: Dataset, options: SourceOptions) -> None:
        self.dataset = dataset
        names = [field.name for field in dataset.layout.own_fields]
        self._names = dict(choose_fields(names, options, where=str(dataset.path)))
        stored = {field.name: field for field in dataset.fields}
        self.fields = tuple(
            each for field, name in self._names.items() for each in _with_lengths(replace(stored[name], name=field))
        )
        self.lengths = {}
        for field, name in list(self._names.items()):
            if (encoded := stored[name].encoded) is not None:
                self._names[f"{field}{LENGTHS_SUFFIX}"] = encoded.lengths
                (lengths,) = dataset.read_rows(range(len(dataset)), [stored[encoded.lengths]]).values()
                self.lengths = {**self.lengths, field: lengths}
        self.n_samples = len(dataset)
        self.chunk_bytes = max(self.n_bytes_of_block, 1)
        if self._names.get(TARGET) == TARGET:
            self.classes = dataset.manifest.classes
        schema, facts = dataset.schema, dataset.manifest.schema
        if facts is not None and all(self._names.get(name) == name for name in names):
            self.schema_facts = SchemaFacts(
                columns=facts.columns,
                kinds=facts.kinds,
                categories=schema.categories,
                targets=facts.targets,
                fills=facts.fills,
            )
        elif facts is not None:
            fix = Fix("leave ", Argument("fields"), " out")
            what = "the dataset has categories, dates or several targets, and only some of its fields are taken"
            raise InputError(what, where=str(dataset.path), fix=fix)
        self.provenance = self._sources()

    @property
    def told_task(self) -> TaskName | None:
        """The task that was told when it was stored, if field ``y`` is taken."""
        is_taken = self._names.get(TARGET) == TARGET
        return check_task(self.dataset.manifest.options.get("task")) if is_taken else None

    @property
    def n_bytes_of_block(self) -> int:
        """The bytes of a block of all fields that are taken."""
        return self.dataset.layout.block_rows * sum(field.row_bytes for field in self.fields)

    def _sources(self) -> tuple[dict[str, Any], ...]:
        told: dict[str, Any] = {"format": "streamtrain", "dataset": self.dataset.id}
        of_tables = [dict(entry) for entry in self.dataset.manifest.sources if "columns" in entry]
        if not of_tables or any(field != name for field, name in self._names.items()):
            return (told,)
        # What the columns are called, and how they were read; not the file, which need not be there any more.
        gone = ("path", "bytes", "mtime_ns")
        return tuple({k: v for k, v in entry.items() if k not in gone} | told for entry in of_tables)

    def where(self, row: int) -> str:
        return f"{self.dataset.path} sample {row}"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield views of the blocks, cut where they are longer than ``max_bytes``."""
        n_rows = rows_within(max_bytes, self.fields)
        for block in range(self.dataset.layout.n_blocks):
            rows = {field: self.dataset.read_block(name, block) for field, name in self._names.items()}
            yield from pieces(rows, n_rows)
            # A block goes before the next one is read.
            del rows


def _with_lengths(field: Field) -> tuple[Field, ...]:
    """Put the field of its samples' lengths, named after it, behind an encoded one."""
    if field.encoded is None:
        return (field,)
    renamed = replace(field, encoded=replace(field.encoded, lengths=f"{field.name}{LENGTHS_SUFFIX}"))
    return renamed, lengths_field(renamed)


def stored_datasets(source: object) -> list[Dataset] | None:
    """Open the datasets that a source is, by itself or by their paths; None where it is none."""
    if isinstance(source, Dataset):
        return [source]
    if isinstance(source, str | os.PathLike):
        return [open_dataset(source)] if is_dataset_path(source) else None
    if not isinstance(source, list | tuple) or not source:
        return None
    if not all(isinstance(each, Dataset | str | os.PathLike) for each in source):
        return None
    if not any(isinstance(each, Dataset) or is_dataset_path(each) for each in source):
        return None
    return [each if isinstance(each, Dataset) else open_dataset(each) for each in source]


def is_dataset_path(path: str | os.PathLike[str]) -> bool:
    """Say whether a folder is, or was to be, a dataset of streamtrain."""
    folder: Path = local_path(path)
    # Of a path that cannot be looked up `os.path` says no, and `Path` raises.
    return os.path.isdir(folder / PRIVATE) and os.path.isfile(folder / ROOT)  # noqa: PTH112, PTH113


def open_stored(datasets: Sequence[Dataset], options: SourceOptions) -> list[Source]:
    """Open datasets as sources; of several none may have what only its own manifest explains."""
    sources = [StoredSource(dataset, options) for dataset in datasets]
    if len(sources) > 1:
        for source in sources:
            if source.schema_facts is not None:
                where = str(source.dataset.path)
                fix = "give the files that they were made of as a list, or ingest each by itself"
                raise InputError("one of several datasets has categories, dates or targets", where=where, fix=fix)
    return list(sources)
