"""Labels of images from a table, matched by the names of the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError, nearest_name
from streamtrain.ingestion.sources.base import Rows, Source, SourceOptions, as_field, check_range, field_of
from streamtrain.ingestion.sources.images.class_folders import ImageFolder, open_image_folder
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.store.schema.columns import TARGET

_KEY: Final = Fix(Argument("label_key", "file"), " names the column of file names, and ", Argument("label_column"))
_N_SHOWN: Final = 3


class LabelledImages(Source):
    """A folder of images with a label for each from a table."""

    seekable = True
    n_samples: int

    def __init__(self, images: ImageFolder, labels: npt.NDArray[Any], table: TableReader) -> None:
        self.images = images
        field = field_of(TARGET, labels.dtype, (), where=str(table.path))
        self._labels = as_field(labels, field, images.where)
        self.fields, self.n_samples = (*images.fields, field), images.n_samples
        self.lengths, self.reading, self.told = images.lengths, images.reading, images.told
        self.provenance = (*images.provenance, *({**entry, "field": TARGET} for entry in table.provenance))

    def where(self, row: int) -> str:
        return self.images.where(row)

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        return {**self.images.read(start, stop), TARGET: self._labels[start:stop]}


def open_labelled_folder(folder: Path, tables: Sequence[TableReader], options: SourceOptions) -> Source:
    """Open a folder of images with the labels of a table."""
    key, labels = options.label_key, options.labels
    if key is None or len(labels) != 1:
        what = "labels of images come from a table, which says by name whose they are"
        raise UsageError(what, where=str(folder), fix=_KEY)
    images = open_image_folder(folder, options)
    if images.classes is not None:
        fix = Fix("leave ", Argument("labels"), " out, or put all images into one folder")
        raise UsageError("the images lie in folders of classes, and there are labels too", where=str(folder), fix=fix)
    values = _values(images, tables, key, labels[0])
    if not all(_is_whole(value) for value in values):
        classes = tuple(sorted(set(values)))
        numbers = {name: number for number, name in enumerate(classes)}
        found = LabelledImages(images, np.array([numbers[value] for value in values], np.int64), tables[0])
        found.classes = classes
        return found
    return LabelledImages(images, np.array([int(value) for value in values], np.int64), tables[0])


def _values(images: ImageFolder, tables: Sequence[TableReader], key: str, label: str) -> list[str]:
    """Find the label of every file, as text; by its name with the suffix or without."""
    names = [images.files.path(row).name for row in range(images.n_samples)]
    rows = {Path(name).stem: row for row, name in enumerate(names)} | {name: row for row, name in enumerate(names)}
    found: list[str | None] = [None] * len(names)
    for table in tables:
        for name in (key, label):
            if name not in table.header:
                near = nearest_name(name, table.header)
                fix = Fix(f"did you mean {near!r}?" if near else _KEY)
                raise InputError(f"no column {name!r}", where=str(table.path), why=_has(table.header), fix=fix)
        n_done = 0
        for batch in table.batches([key, label]):
            pairs = zip(batch.columns[key].to_pylist(), batch.columns[label].to_pylist(), strict=True)
            for number, (name, value) in enumerate(pairs, n_done):
                _note(found, rows.get(Path(str(name)).name), name, value, table.place(number))
            n_done += batch.n_rows
    missing = [names[row] for row, value in enumerate(found) if value is None]
    if missing:
        what = f"{len(missing):,} images have no label: {', '.join(missing[:_N_SHOWN])}"
        where = str(images.files.folders[0])
        raise InputError(what, where=where, fix="label them, or move them out of the folder")
    return [str(value) for value in found]


def _note(found: list[str | None], row: int | None, name: object, value: object, where: str) -> None:
    if row is None:
        fix = "give the folder of the labelled images, or leave the row out"
        raise InputError(f"there is no image {name!r:.100}", where=where, fix=fix)
    if found[row] is not None:
        raise InputError(f"image {name!r:.100} has a second label", where=where, fix="leave one of the rows out")
    if value is None or value == "":
        raise InputError(f"image {name!r:.100} has no label", where=where, fix="label it, or leave it out of both")
    found[row] = str(value)


def _has(header: Sequence[str]) -> str:
    return f"It has {', '.join(header[:10])}"


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 19
