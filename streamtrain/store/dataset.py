"""An open dataset: its layout, its statistics, and its samples by index.

Opening reads no sample. From the root down: the root names the manifest by its digest, the manifest every file by its
length, and the id is the digest of layout and checksum table. A file's bytes are checked when they are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DamagedBlock, DatasetError, ResourceError, UsageError, unknown_name
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE, LocalFile
from streamtrain.store.layout import Field, Layout
from streamtrain.store.manifest import (
    MOST_MANIFEST_BYTES,
    Json,
    Manifest,
    check_manifest,
    dataset_id,
    file_damage,
    parse_manifest,
    read_categories,
    read_checksums,
)
from streamtrain.store.media.encoded import unpack
from streamtrain.store.reads.drawn import drawn_samples, row_of
from streamtrain.store.reads.ranges import as_samples, iter_samples, read_range, sample_of
from streamtrain.store.root import check_folder, read_root
from streamtrain.store.schema.columns import CATEGORIES, INPUT, TARGET, CategoryColumn, Schema, reading_of, schema_of
from streamtrain.store.schema.description import described, described_columns
from streamtrain.store.schema.label_task import class_values, label_task
from streamtrain.store.schema.summary import dataset_html, dataset_line
from streamtrain.store.schema.task import LabelTask
from streamtrain.store.shard import ShardReader, damaged_block, read_bounded, read_stored, unread_block
from streamtrain.store.split_root import chosen_split, split_folder
from streamtrain.store.statistics import MOST_VALUES, FieldStats, Histogram, settle_features, stats_shape
from streamtrain.system.calls.public import public
from streamtrain.system.files import local_path
from streamtrain.system.refusals import refusal_behind

Array = npt.NDArray[Any]
T = TypeVar("T")


class Dataset:
    """A committed dataset; made by `streamtrain.open`. Any number of threads may read it.

    Parameters
    ----------
    path : Path
        Its directory.
    manifest : Manifest
        Its facts.
    block_checksums : ndarray of uint32, shape (n_blocks, n_fields)
        The crc32c of every encoded block.

    Examples
    --------
    >>> import tempfile, streamtrain as st
    >>> source = {"x": np.arange(12, dtype=np.float32).reshape(6, 2), "y": np.array([0, 0, 1, 1, 2, 2])}
    >>> dataset = st.ingest(source, tempfile.mkdtemp() + "/d.zarr")
    >>> len(dataset), dataset[4:6]["x"].tolist(), dataset[-1]["y"].item(), dataset.n_classes
    (6, [[8.0, 9.0], [10.0, 11.0]], 2, 3)
    >>> dataset.stats("x").mean.tolist()
    [5.0, 6.0]
    """

    def __init__(self, *, path: Path, manifest: Manifest, block_checksums: npt.NDArray[np.uint32]) -> None:
        self.path = path
        self.manifest = manifest
        self.block_checksums = block_checksums
        self._categories: tuple[CategoryColumn, ...] | None = None

    @property
    def id(self) -> str:
        """SHA-256 of the content, hexadecimal: the same data has the same id wherever it lies."""
        return self.manifest.id

    @property
    def layout(self) -> Layout:
        """Fields, rows, blocks, shards, codec."""
        return self.manifest.layout

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields, in order."""
        return self.layout.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of classes 0, 1, ..., where they were strings, or are values of a table's column."""
        values = self.class_values() if self.manifest.classes is None and self.task == "classification" else None
        return self.manifest.classes if values is None else tuple(f"{value:.0f}" for value in values.tolist())

    @property
    def task(self) -> str | None:
        """The task of field ``y``: "classification", "multilabel" or "regression"; None if it is undecided.

        It was given at the ingest, or follows from the stored statistics; a training may override it.
        """
        found = self.label_task()
        return None if found is None else found.name

    def label_task(self, field: str = TARGET) -> LabelTask | None:
        """Return the task of a field of labels and what it follows from; None without that field."""
        described = next((each for each in self.fields if each.name == field), None)
        return None if described is None else label_task(self.manifest, described)

    def class_values(self, ignored: int | None = None) -> Array | None:
        """Return the stored labels that classes 0, 1, ... stand for; None where a label is its class's number."""
        return class_values(self.manifest, ignored)

    @property
    def schema(self) -> Schema:
        """What the numbers mean: fields, names of columns, categories, targets and classes.

        Raises
        ------
        DatasetError
            A stored list of categories is damaged.
        """
        named, facts = self._named, self.manifest.schema
        if facts is None:
            return named
        return replace(
            named, kinds=facts.kinds, categories=self._read_categories(), targets=facts.targets, fills=facts.fills
        )

    @property
    def _named(self) -> Schema:
        """The schema without what files of their own hold."""
        manifest = self.manifest
        named, facts = schema_of(self.fields, manifest.sources, classes=manifest.classes), manifest.schema
        named = replace(named, reading=reading_of(manifest.options, manifest.sources))
        if facts is None:
            return named
        told = {INPUT: facts.columns, TARGET: facts.targets, CATEGORIES: tuple(each.name for each in facts.categories)}
        return replace(named, columns={**named.columns, **{name: names for name, names in told.items() if names}})

    def _read_categories(self) -> tuple[CategoryColumn, ...]:
        if self._categories is None:
            try:
                self._categories = read_categories(self.path, self.manifest)
            except DatasetError:
                self.check_not_replaced()
                raise
        return self._categories

    @property
    def categories(self) -> dict[str, CategoryColumn]:
        """The columns of field ``cat``, in order, each with ``names`` (of codes 2, 3, ...), ``counts`` and ``size``."""
        return {category.name: category for category in self._read_categories()}

    @property
    def targets(self) -> tuple[str, ...] | None:
        """The names of the columns of field ``y``, where there are several."""
        return (self.manifest.schema.targets or None) if self.manifest.schema else None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns of field ``x``, where it was read from a table."""
        return self._named.columns.get(INPUT)

    def describe(self) -> dict[str, list[Any]]:
        """Describe the columns, a list per property: role, share missing, mean, std, min, max, categories with counts.

        >>> import tempfile, streamtrain as st
        >>> dataset = st.ingest({"x": np.arange(6.0), "y": ["a", "b", "b"] * 2}, tempfile.mkdtemp() + "/d.zarr")
        >>> dataset.describe()["mean"], dataset.describe()["categories"]
        ([2.5, None], [None, {'b': 4, 'a': 2}])
        """
        names = dict(enumerate(self.manifest.classes or ()))
        is_class = names or self.task == "classification"
        return described(described_columns(self.manifest, self.schema, self.stats, names if is_class else None))

    @property
    def n_classes(self) -> int | None:
        """The number of classes of field ``y``: as given to the ingest, else from 0 to its largest label.

        None for quantities, and where it is not known.
        """
        if (classes := self.classes) is not None:
            return len(classes)
        if self.task == "regression":
            return None
        told = self.manifest.options.get("classes")
        if isinstance(told, int):
            return told
        histogram = self.label_histogram
        if histogram is None or histogram.values[0] < 0 or histogram.values[-1] >= MOST_VALUES:
            return None
        return int(histogram.values[-1]) + 1

    @property
    def label_histogram(self) -> Histogram | None:
        """How often each value of field ``y`` occurs, where it holds integers."""
        return self.histogram(TARGET)

    def histogram(self, field: str) -> Histogram | None:
        """How often each value of a field occurs, where it holds one integer a sample."""
        summary = self.manifest.statistics.get(field)
        return summary.histogram if summary else None

    @property
    def rho(self) -> float | None:
        """How alike the labels (field ``y``) inside a block are: 1 in sorted data, about 0 in shuffled."""
        summary = self.manifest.statistics.get(TARGET)
        return summary.rho if summary else None

    @property
    def nbytes(self) -> int:
        """Decoded bytes of all samples."""
        return self.layout.n_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored files."""
        return sum(file.n_bytes for file in self.manifest.files.values())

    @public
    def stats(self, field: str) -> FieldStats:
        """Return the statistics of a field; reads its per-feature arrays.

        Raises
        ------
        UnknownName
            There is no such field.
        DatasetError
            The stored statistics are damaged, or another dataset has taken the place of this one.
        """
        described = self._field(field)
        shape = (6, *stats_shape(described))
        key = zarr_metadata.chunk_key(f"{zarr_metadata.STATISTICS}/{field}", len(shape))
        try:
            data = read_stored(self.path, key, self.manifest.files[key])
        except DatasetError:
            self.check_not_replaced()
            raise
        summary = self.manifest.statistics[field]
        features = settle_features(np.frombuffer(data, "<f8").astype(np.float64).reshape(shape), described.dtype)
        return FieldStats(
            features=features,
            overall=summary.overall,
            histogram=summary.histogram,
            rho=summary.rho,
            facts=summary.facts,
            images=summary.images,
        )

    def shard_path(self, field: str, shard: int) -> Path:
        """The file of a field's shard."""
        return self.path / zarr_metadata.shard_key(self._field(field), shard)

    def open_shard(self, field: str, block: int, *, indexed: bool = True) -> ShardReader:
        """Open the shard of a field that holds a block; raise `DamagedBlock` if the file is missing or wrong."""
        described, shard = self._field(field), block // self.layout.shard_blocks
        path = f"{self.path}/{zarr_metadata.shard_key(described, shard)}"
        try:
            return ShardReader(LocalFile(path), self.layout, described, shard, indexed=indexed)
        except (DatasetError, ResourceError) as error:
            self.check_not_replaced()
            if refusal := refusal_behind(error):
                raise unread_block(self.layout, described, block, path, refusal) from refusal
            raise damaged_block(self.layout, described, block, where=path, why=error.what) from error

    def check_not_replaced(self) -> None:
        """After a read error, raise if another dataset has replaced this one.

        Data of the other is never returned: each block is compared with the checksums of this dataset.
        """
        try:
            now = read_root(self.path).get("id")
        except (DatasetError, ResourceError):
            return
        if now != self.id:
            raise replaced(self.path)

    @public
    def read_block(self, field: str, block: int) -> Array:
        """Read one block of a field, checked.

        Returns
        -------
        ndarray of shape (n, *field.shape)
            Its samples, those of an encoded field bytes; n is ``block_rows``, or less in the last block.

        Raises
        ------
        DamagedBlock
            The stored bytes are not those that were written, or are missing.
        DatasetError
            Another dataset has taken the place of this one.
        ResourceError
            The bytes cannot be read now: the machine ran short of something, or its disk or network failed.
        """
        start, stop = self.layout.block_range(block)
        rows, facts = self._decoded(field, block), self._field(field).encoded
        if facts is None:
            return rows[: stop - start]
        try:
            return unpack(rows.reshape(-1), self.read_block(facts.lengths, block))
        except ValueError as error:
            where = str(self.shard_path(field, block // self.layout.shard_blocks))
            raise damaged_block(self.layout, self._field(field), block, where=where, why=str(error)) from error

    def _decoded(self, field: str, block: int) -> Array:
        """Read a block at its full size, as it was encoded."""
        with self.open_shard(field, block) as shard:
            rows = np.empty((self.layout.block_rows, *shard.field.shape), shard.field.dtype)
            expected = int(self.block_checksums[block, self.layout.fields.index(shard.field)])
            try:
                shard.decode(block, shard.check_stored(block, shard.fetch_stored(block), expected), rows)
            except DamagedBlock:
                self.check_not_replaced()
                raise
        return rows

    def _field(self, name: str) -> Field:
        for field in self.layout.fields:
            if field.name == name:
                return field
        raise unknown_name("field", str(name), (field.name for field in self.layout.own_fields))

    def __len__(self) -> int:
        return self.layout.n_samples

    @public
    def __getitem__(self, key: int | slice) -> dict[str, Any]:
        """Read some samples, arrays or (encoded) bytes: one by an int, several by a slice of any step."""
        fields = self.layout.own_fields
        if isinstance(key, slice):
            return as_samples(self.read_rows(range(*key.indices(len(self))), fields))
        row = row_of(key, len(self))
        return {name: sample_of(values, 0) for name, values in self.read_rows(range(row, row + 1), fields).items()}

    def read_rows(self, rows: range, fields: Sequence[Field] | None = None) -> dict[str, Array]:
        """Read some samples of all fields, or some: an array of each, those of encoded ones of objects."""
        return {field.name: read_range(self, field, rows) for field in fields or self.layout.fields}

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """Read samples for torch's ``DataLoader``, which asks for those of a batch so."""
        return drawn_samples(self, [row_of(key, len(self)) for key in keys])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each sample in order, a block read once."""
        return iter_samples(self)

    def __reduce__(self) -> tuple[Callable[[str, str], Dataset], tuple[str, str]]:
        """Pickle the place and the id: whoever unpickles it opens the dataset again."""
        return _opened_again, (str(self.path.absolute()), self.id)

    def __copy__(self) -> Self:
        """Return itself, which never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself, which never changes."""
        return self

    def __repr__(self) -> str:
        return dataset_line(self.path, self.layout, self.columns, self.label_task())

    def _repr_html_(self) -> str:
        names, columns = dict(enumerate(self.classes or ())), self.describe()
        return dataset_html(repr(self), self.manifest, columns, self.label_histogram, names)


@public
def open_dataset(path: str | os.PathLike[str], *, split: str | None = None) -> Dataset:
    """Open a dataset.

    Parameters
    ----------
    path : path-like
        The directory that `ingest` wrote.
    split : str, optional
        Which of the datasets in it, where it was ingested with ``split``: ``"train"``, say.

    Returns
    -------
    Dataset
        Its facts; no sample has been read.

    Raises
    ------
    UsageError
        It holds several splits and none of them was named, or ``split`` is not one of them.
    DatasetError
        It is not a dataset, is incomplete, of a newer format, or some file is missing or not what was written.

    Examples
    --------
    >>> import tempfile, streamtrain as st
    >>> path = st.ingest({"x": np.arange(600), "y": np.arange(600) % 3}, tempfile.mkdtemp() + "/d.zarr").path
    >>> dataset = open_dataset(path)
    >>> len(dataset), dataset[598:]["y"].tolist()
    (600, [1, 2])
    """
    folder = local_path(path)
    if split is not None and not isinstance(split, str):
        raise UsageError(f"split is {split!r:.80}; it must be the name of a split")
    return read_in_place(folder, partial(_opened, split=split))


def open_preferred(path: str | os.PathLike[str], *splits: str) -> Dataset:
    """Open a dataset; of a root the first of these splits that it has, else train."""
    folder = local_path(path)
    check_folder(folder)
    return open_dataset(folder, split=chosen_split(folder, *splits))


def opened(given: T | str | os.PathLike[str]) -> T | Dataset:
    """Open a dataset that is given as a path; what is no path stays as it is."""
    return open_dataset(given) if isinstance(given, str | os.PathLike) else given


def read_in_place(folder: Path, read: Callable[[Path], T]) -> T:
    """Read a dataset's facts, anew where an ingest put another dataset under the name between two of the reads."""
    while True:
        before = _identity(folder)
        try:
            return read(folder)
        except (DatasetError, ResourceError):
            if _identity(folder) == before:
                raise


def _opened_again(path: str, id_: str) -> Dataset:
    """Open a dataset that was handed over; refuse another one that has taken its place."""
    dataset = open_dataset(path)
    if dataset.id != id_:
        what = f"the dataset is not the one that was passed on: its id is {dataset.id[:16]}, not {id_[:16]}"
        why = "It was replaced or appended to meanwhile"
        raise DatasetError(what, where=path, why=why, fix="open it again, and pass that on")
    return dataset


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _opened(folder: Path, *, split: str | None = None) -> Dataset:
    check_folder(folder)
    folder = split_folder(folder, split)
    manifest = read_facts(folder)
    for damage in file_damage(folder, manifest):
        raise damage
    return checked_dataset(folder, manifest)


def read_facts(folder: Path) -> Manifest:
    """Read root and manifest and compare them; no other file is read."""
    ours = read_root(folder)
    manifest = _read_manifest(folder, ours)
    if ours.get("id") != manifest.id or ours.get("format") != manifest.format:
        raise _other_id(folder)
    check_manifest(folder, manifest)
    return manifest


def checked_dataset(folder: Path, manifest: Manifest) -> Dataset:
    """Make the dataset of files that match its manifest, after reading and checking its checksum table."""
    checksums = read_checksums(folder, manifest)
    if dataset_id(manifest.layout, manifest.classes, checksums, manifest.schema) != manifest.id:
        raise _other_id(folder)
    return Dataset(path=folder, manifest=manifest, block_checksums=checksums)


def replaced(folder: Path) -> DatasetError:
    """Make the error for a dataset whose place another one took while it was read."""
    what = "the dataset was replaced by another one while it was read: an ingest overwrote it or appended to it"
    return DatasetError(what, where=str(folder), fix="open it again")


def _other_id(folder: Path) -> DatasetError:
    return DatasetError("the dataset's id does not match its content", where=str(folder), fix=RESTORE)


def _read_manifest(folder: Path, ours: Json) -> Manifest:
    path = folder / zarr_metadata.MANIFEST
    data = read_bounded(path, MOST_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != ours.get("manifest_sha256"):
        raise DatasetError("the manifest is not the one that was committed", where=str(path), fix=RESTORE)
    return parse_manifest(data, where=str(path))
