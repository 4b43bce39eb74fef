"""Parquet with images: a column of bytes, or of structs of bytes and a path, read a row group after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import ReadingMemory, Rows, Source, SourceOptions, as_field, field_of
from streamtrain.ingestion.sources.images.class_folders import image_fields
from streamtrain.ingestion.sources.images.image_check import DEFAULT_MEMORY, ImageCheck, check_no_images
from streamtrain.ingestion.sources.input_files import provenance_of, refuse_options
from streamtrain.ingestion.sources.tables import parquet
from streamtrain.ingestion.sources.tables.arrow import arrow, returning_memory
from streamtrain.store.layout import Field
from streamtrain.store.media.encoded import byte_lengths, objects_of
from streamtrain.store.schema.columns import TARGET
from streamtrain.system.memory import return_freed

_BYTES: Final = "bytes"
_DECODED_BYTES: Final = 4 << 20
_NOT_OF_IMAGES: Final = ("dtype", "shape", "fields")


def probe(path: Path, options: SourceOptions) -> Source:
    """Open a Parquet file: as images where it has a column of them, else as a table of numbers."""
    arrow()
    with parquet.reading_parquet(str(path)), parquet.open_file(path) as file:
        schema = file.schema_arrow
    images = [name for name, kind in zip(schema.names, schema.types, strict=True) if _holds_bytes(kind)]
    taken = [name for name in images if options.columns is None or name in options.columns]
    if not taken:
        check_no_images(options)
        return parquet.probe(path, options)
    others = [name for name in options.columns or () if name not in taken]
    if others:
        what = f"columns of images together with {', '.join(map(repr, others[:5]))}"
        fix = Fix(Argument("columns", tuple(taken)), ", with ", Argument("label_column"))
        raise UsageError(what, where=str(path), why="Beside images there are labels alone", fix=fix)
    with returning_memory():
        return ParquetImages(path, taken, options)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column holds bytes, by itself or in a struct beside a path."""
    types = arrow("pyarrow.types")
    if types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return _BYTES in names and _holds_bytes(kind.field(names.index(_BYTES)).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


class ParquetImages(Source):
    """The images of a Parquet file, and their labels, in order."""

    seekable = False

    def __init__(self, path: Path, columns: list[str], options: SourceOptions) -> None:
        refuse_options(path, "Parquet with images", options, *_NOT_OF_IMAGES, *options.table.given())
        self.path, self.check = path, ImageCheck(options.images, options.memory or DEFAULT_MEMORY)
        self._columns = {name if name.isidentifier() else "image": name for name in columns}
        self._label = options.labels[0] if options.labels else None
        lengths, labels = self._survey()
        self.n_samples = len(next(iter(lengths.values())))
        self.fields: tuple[Field, ...] = ()
        for name, n_bytes in lengths.items():
            self.fields += image_fields(options.images, int(n_bytes.mean()) if len(n_bytes) else 1, name)
        self.lengths = {} if options.images.size is not None else lengths
        self._labels: npt.NDArray[Any] | None = None
        if labels is not None:
            self.fields += (field_of(TARGET, labels.dtype, (), where=str(path)),)
            self._labels = as_field(labels, self.fields[-1], self.where)
        held = sum(n_bytes.nbytes for n_bytes in lengths.values()) + (0 if labels is None else labels.nbytes)
        self.reading = ReadingMemory(
            lasting_bytes=held + self.check.room.n_bytes,
            working_bytes=4 * _DECODED_BYTES + max(map(_most, lengths.values())),
        )
        self.provenance = provenance_of(path, "parquet images", columns_of_images=columns, label_column=self._label)
        self.told = (f"{path}: {self.n_samples:,} images of column{'s' * (len(columns) > 1)} {', '.join(columns)}",)

    def _survey(self) -> tuple[dict[str, npt.NDArray[np.uint32]], npt.NDArray[Any] | None]:
        """Read the file once, for the bytes of every image and the labels."""
        found: dict[str, list[npt.NDArray[np.uint32]]] = {name: [] for name in self._columns}
        labels: list[Any] = []
        n_done = 0
        for batch in self._batches(1):
            for name, column in self._columns.items():
                images = self._images(batch, column, n_done)
                if self.check.options.max_side is None:
                    lengths = byte_lengths(images)
                else:
                    each = [self.check.length(data, self.where(n_done + i)) for i, data in enumerate(images)]
                    lengths = np.array(each, np.uint32)
                found[name].append(lengths)
            if self._label is not None:
                labels += self._label_values(batch, n_done)
            n_done += batch.num_rows
        joined = {name: np.concatenate([np.empty(0, np.uint32), *parts]) for name, parts in found.items()}
        return joined, None if self._label is None else self._numbered(labels)

    def _label_values(self, batch: Any, first_row: int) -> list[Any]:
        if self._label not in batch.schema.names:
            names = ", ".join(batch.schema.names)
            raise InputError(f"no column {self._label!r}", where=str(self.path), why=f"It has {names}", fix=_LABEL)
        values: list[Any] = batch.column(batch.schema.names.index(self._label)).to_pylist()
        for row, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                what = "a label is missing" if value is None else f"a label is {value!r:.60}"
                raise InputError(what, where=self.where(first_row + row), fix="leave its row out, or write the label")
        return values

    def _numbered(self, labels: list[Any]) -> npt.NDArray[Any]:
        if not any(isinstance(label, str) for label in labels):
            return np.array(labels)
        self.classes = tuple(sorted(set(labels)))
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.array([numbers[label] for label in labels], np.int64)

    def _images(self, batch: Any, column: str, first_row: int) -> npt.NDArray[Any]:
        """Take the images of a batch; a missing one is refused."""
        values = batch.column(batch.schema.names.index(column))
        found = values.to_pylist()
        images: list[Any] = [value.get(_BYTES) if isinstance(value, dict) else value for value in found]
        if None in images:
            fix = "leave its row out, or write the image's bytes into it"
            raise InputError("an image is missing", where=self.where(first_row + images.index(None)), fix=fix)
        return objects_of(images)

    def _batches(self, n_rows: int) -> Iterator[Any]:
        names = [*self._columns.values(), *([self._label] if self._label else [])]
        with parquet.reading_parquet(str(self.path)), parquet.open_file(self.path) as file:
            known = [name for name in names if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                with parquet.reading_parquet(f"{self.path} row group {number}"):
                    yield from file.iter_batches(n_rows, row_groups=[number], columns=known, use_threads=False)
                    return_freed()

    def where(self, row: int) -> str:
        return parquet.place_of(self.path, row)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield the images in order, each checked."""
        mean = sum(field.row_bytes for field in self.fields)
        n_done = 0
        with returning_memory():
            for batch in self._batches(max(1, min(max_bytes, _DECODED_BYTES) // mean)):
                rows: dict[str, npt.NDArray[Any]] = {}
                for name, column in self._columns.items():
                    rows |= self._stored(name, self._images(batch, column, n_done), n_done)
                stop = n_done + batch.num_rows
                if self._labels is not None:
                    rows[TARGET] = self._labels[n_done:stop]
                n_done = stop
                del batch
                yield rows

    def _stored(self, name: str, images: npt.NDArray[Any], first_row: int) -> Rows:
        field = next(field for field in self.fields if field.name == name)
        places = [self.where(first_row + i) for i in range(len(images))]
        if field.encoded is None:
            return {name: np.stack([self.check.pixels(*pair) for pair in zip(images, places, strict=True)])}
        stored = objects_of([self.check.stored(*pair) for pair in zip(images, places, strict=True)])
        return {name: stored, field.encoded.lengths: byte_lengths(stored)}


_LABEL: Final = Fix(Argument("label_column"), " names the column of labels")


def _most(lengths: npt.NDArray[np.uint32]) -> int:
    return int(lengths.max(initial=0))
