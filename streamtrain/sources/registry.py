"""`open_source`: whatever the user gives, as one source."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Final

from streamtrain.errors import InputError, UsageError, remedy
from streamtrain.sources.arrays import from_arrays, is_array, to_array
from streamtrain.sources.combine import concatenate
from streamtrain.sources.dask_arrays import from_dask, is_dask
from streamtrain.sources.formats import RAW, Family, check_content, family_of
from streamtrain.sources.inputs import check_file, look_up
from streamtrain.sources.iterables import IterableSource
from streamtrain.sources.labelled import with_labels
from streamtrain.sources.protocol import Source, SourceOptions

_NO_OPTIONS: Final = SourceOptions()


def open_source(source: object, *, labels: object = None, options: SourceOptions = _NO_OPTIONS) -> Source:
    """Open raw data, with its labels beside it if they are a source of their own.

    Parameters
    ----------
    source : path, list of paths, array, dict of arrays, iterable of dicts of arrays, or Source
        A folder stands for the files in it, sorted by name, hidden ones left out. An array is anything with
        ``shape``, ``dtype`` and slices, dask arrays included; the first axis are the samples. A bare array and a
        file without names become field ``x``.
    labels : same as source, optional
        Its only field becomes ``y``; of a table, the label column, or its only column.
    options : SourceOptions
        How to read files.

    Returns
    -------
    Source
        A `SeekableSource` where every part can read any range of rows.

    Raises
    ------
    InputError
        The data is missing, damaged, empty or does not fit together.
    UsageError
        The arguments are of no known kind, or the options do not apply.

    Examples
    --------
    >>> import numpy as np
    >>> source = open_source(np.zeros((4, 2), np.float32), labels=np.array([0, 1, 1, 0], np.uint8))
    >>> source.n_samples, [(field.name, str(field.dtype)) for field in source.fields]
    (4, [('x', 'float32'), ('y', 'int64')])
    """
    if labels is None:
        return _open(source, options)
    own, label_options = _split_options(labels, options)
    _check_distinct([*(_files_of(source) or ()), *(_files_of(labels) or ())])
    return with_labels(_open(source, own), _open(labels, label_options))


def _split_options(labels: object, options: SourceOptions) -> tuple[SourceOptions, SourceOptions]:
    """The options that concern the features, and those that concern the labels."""
    files = _files_of(labels)
    family = family_of(files[0], _NO_OPTIONS) if files else None
    if family is None or not family.is_table:
        if family is RAW:
            what = "labels cannot be raw binary: dtype and shape are those of the features"
            raise UsageError(what, where=str(labels), fix="save the labels as .npy")
        return options, _NO_OPTIONS
    return dataclasses.replace(options, label_column=None), SourceOptions(label_column=options.label_column, columns=())


def _paths_in(source: object) -> list[Path] | None:
    """The paths a source names; None where it is something else than paths."""
    if isinstance(source, str | os.PathLike):
        return [_path(source)]
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | os.PathLike) for item in source):
        return [_path(item) for item in source]
    return None


def _path(text: str | os.PathLike[str]) -> Path:
    if text == "-":
        raise UsageError("standard input cannot be read twice", fix="write the data to a file first")
    return Path(text)


def _open(source: object, options: SourceOptions) -> Source:
    files = _files_of(source)
    if files is not None:
        return _open_files(files, options)
    for option in dataclasses.fields(options):
        if getattr(options, option.name) is not None:
            raise UsageError(f"{option.name} applies to files only", fix=f"leave {option.name} out")
    return source if isinstance(source, Source) else _open_memory(source)


def _open_memory(source: object) -> Source:
    if isinstance(source, Mapping):
        return _open_arrays(source)
    if is_array(source) or is_dask(source) or hasattr(source, "__array__"):
        return _open_arrays({"x": source})
    if isinstance(source, Iterable) and not _is_listed_wrong(source):
        return IterableSource(source)
    raise UsageError(
        f"a {type(source).__name__} is not a source of data",
        why="A source is a path, a list of paths, an array, a dict of arrays or an iterable of dicts of arrays",
        fix='{"x": x, "y": y}, say',
    )


def _is_listed_wrong(source: Iterable[Any]) -> bool:
    """A list of arrays or numbers: which is which is not said, and an iterator's error would not help."""
    return isinstance(source, str | bytes | list | tuple) and not all(isinstance(item, Mapping) for item in source)


def _open_arrays(arrays: Mapping[Any, Any]) -> Source:
    if not arrays or not all(isinstance(name, str) for name in arrays):
        raise UsageError("fields are named by text, and there is at least one", fix='{"x": x, "y": y}, say')
    named = {
        name: array if is_array(array) or is_dask(array) else to_array(array, f"array {name!r}")
        for name, array in arrays.items()
    }
    return from_dask(named) if any(map(is_dask, named.values())) else from_arrays(named)


def _files_of(source: object) -> list[Path] | None:
    """The files a source stands for: its paths, those of a folder in its place; None where it names none."""
    paths = _paths_in(source)
    if paths is None:
        return None
    return [file for path in paths for file in (_listed(path) if S_ISDIR(look_up(path).st_mode) else [path])]


def _listed(folder: Path) -> list[Path]:
    """The files of a folder by name; like other tools we pass over names that start with a dot or underscore."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    except OSError as error:
        fix = remedy(error, "copy it to another disk")
        raise InputError(f"the folder is not readable: {error.strerror}", where=str(folder), fix=fix) from error
    if not entries:
        raise InputError("no files in the folder", where=str(folder), fix="give the folder that holds the data files")
    inner = [entry.name for entry in entries if entry.is_dir()]
    if inner:
        fix = "give the folders of files as a list"
        raise InputError(f"the folder holds folders: {', '.join(inner[:5])}", where=str(folder), fix=fix)
    return entries


def _check_one_kind(files: Sequence[Path], families: Sequence[Family]) -> None:
    kinds = {family.name: file for file, family in zip(files, families, strict=True)}
    if len(kinds) > 1:
        listed = "; ".join(f"{path} is {kind}" for kind, path in kinds.items())
        fix = "give files of one kind; labels go to labels="
        raise InputError("the files are of several kinds", where=str(files[0].parent), why=listed, fix=fix)


def _check_distinct(files: Sequence[Path]) -> None:
    seen: dict[tuple[int, int], Path] = {}
    for file in files:
        status = file.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), file)
        if first is not file:
            what = "the same file is given twice" if first == file else f"is the same file as {first}"
            raise InputError(what, where=str(file), fix="give every file once")


def _open_files(files: Sequence[Path], options: SourceOptions) -> Source:
    for file in files:
        check_file(file)
    _check_distinct(files)
    families = [family_of(file, options) for file in files]
    _check_one_kind(files, families)
    for file, family in zip(files, families, strict=True):
        check_content(file, family)
    return concatenate([family.probe(file, options) for file, family in zip(files, families, strict=True)])
