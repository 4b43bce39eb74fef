"""`open_source`: whatever the user gives, as one source."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.arrays import (
    ArraySource,
    DaskSource,
    is_array,
    is_dask,
    open_array,
)
from streamtrain.ingestion.sources.base import (
    NO_OPTIONS,
    PLAIN_TABLE,
    Source,
    SourceOptions,
    check_source,
    choose_fields,
)
from streamtrain.ingestion.sources.column_names import column_names
from streamtrain.ingestion.sources.combine import concatenate, merge_blanks, name_of, with_labels
from streamtrain.ingestion.sources.hierarchies.hierarchy_source import present_arrays
from streamtrain.ingestion.sources.images.class_folders import image_folder_of, open_image_folder
from streamtrain.ingestion.sources.images.image_check import WITH_IMAGES, check_no_images
from streamtrain.ingestion.sources.images.label_table import open_labelled_folder
from streamtrain.ingestion.sources.indexed.stored import open_stored, stored_datasets
from streamtrain.ingestion.sources.indexed.torch_data import (
    NamedBatches,
    SampleSource,
    StackedSamples,
    is_data_loader,
    is_torch_dataset,
    is_torch_stream,
)
from streamtrain.ingestion.sources.input_files import check_distinct, check_file, look_up, refuse_options
from streamtrain.ingestion.sources.iterables import IterableSource
from streamtrain.ingestion.sources.recognition.folders import check_no_labels_among, files_in
from streamtrain.ingestion.sources.recognition.formats import RAW, FileFormat, check_content, format_of
from streamtrain.ingestion.sources.sparse import is_sparse
from streamtrain.ingestion.sources.tables import frames
from streamtrain.ingestion.sources.tables.column_survey import UnfitColumns
from streamtrain.ingestion.sources.tables.roles.choice import check_has_labels, has_roles
from streamtrain.ingestion.sources.tables.roles.findings import choose_for_all, foreign_at_once, told_at_once
from streamtrain.ingestion.sources.tables.roles.known import (
    check_fields_like,
    known_of,
    options_behind,
    options_like,
    without_names,
)
from streamtrain.ingestion.sources.tables.roles.learned import Learned
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.ingestion.sources.tables.roles.role_table import open_tables
from streamtrain.ingestion.sources.text_labels import TextLabels, is_text_labels
from streamtrain.store.dataset import Dataset
from streamtrain.store.reads.other_zarr import is_zarr
from streamtrain.store.schema.columns import ID, TARGET, Schema
from streamtrain.system.arguments import a_kind
from streamtrain.system.files import local_path

_CHOOSING: Final = (Argument("columns"), " and ", Argument("label_column"), " choose")


def open_source(source: object, *, labels: object = None, options: SourceOptions = NO_OPTIONS) -> Source:
    """Open raw data, with its labels beside it if they are a source of their own; it is seekable if every part is.

    A folder means the files in it, sorted by name, hidden ones left out. An array is anything with ``shape``, ``dtype``
    and slices, dask arrays included; its first axis is the samples. A bare array and a file without names become field
    ``x``; the only field of ``labels``, or a table's label column, becomes ``y``.
    """
    if labels is None:
        return _with_clear_names(_open(source, options), options)
    folder = image_folder_of(_paths_in(source) or [])
    if folder is not None and (tables := readers_of(labels, NO_OPTIONS)) is not None:
        return open_labelled_folder(folder, tables, options)
    own, label_options = _split_options(source, labels, options)
    check_distinct([*(_files_of(source) or ()), *(_files_of(labels) or ())])
    opened = _open_text_labels(labels) or _open(labels, label_options)
    return _with_clear_names(with_labels(_open(source, own), opened), options)


def open_like(
    source: object, dataset: Dataset, *, labels: object, options: SourceOptions, appends: bool = False
) -> tuple[Source, SourceOptions]:
    """Open raw data in the terms of another dataset: columns by name, its categories, fills, classes and dtypes.

    Return with it the options that say the same. Rows to append may be given the dataset's own options again.
    """
    readers = None if labels is not None else readers_of(source, options)
    if readers is not None:
        like = options_behind(dataset, options) if appends else options_like(dataset.schema, options)
        check_has_labels(readers, like.labels, str(dataset.path), appends=appends)
        return _with_clear_names(open_readers(readers, like, known_of(dataset.schema)), like), like
    options = options_of_arrays(source, dataset.schema, options, needed=needed_beside(dataset.schema, labels))
    opened = open_source(source, labels=labels, options=dataclasses.replace(options, classes=dataset.manifest.classes))
    if dataset.manifest.schema is not None:
        raise without_names(dataset, name_of(opened))
    check_fields_like(opened.fields, dataset, name_of(opened))
    return opened, options


def options_of_arrays(
    source: object, schema: Schema, options: SourceOptions, *, needed: Collection[str] | None = None
) -> SourceOptions:
    """Read HDF5 and Zarr as the arrays of a dataset were read, as far as nobody says otherwise.

    Of its fields only those are taken that are ``needed``, and ids; by default all.
    """
    arrays, files = schema.reading.get("arrays"), None if stored_datasets(source) is not None else _files_of(source)
    if not arrays or files is None or not all(format_of(file, NO_OPTIONS).is_hierarchy for file in files):
        return options
    chosen = options.fields or _same_arrays(files, arrays, needed)
    table, dates = options.table, schema.reading.get("dates", {})
    if not table.dates and chosen is not None:
        table = dataclasses.replace(table, dates={name: unit for name, unit in dates.items() if name in chosen})
    if schema.reading.get("nan"):
        table = dataclasses.replace(table, nan=schema.reading["nan"])
    decode = options.decode or schema.reading.get("decode")
    return dataclasses.replace(options, fields=chosen, decode=decode, table=table)


def needed_beside(schema: Schema, labels: object) -> list[str] | None:
    """List the fields that a source has to have whose labels come from elsewhere; None where they do not."""
    return None if labels is None else [each.name for each in schema.fields if each.name != TARGET]


def _same_arrays(
    files: Sequence[Path], arrays: Mapping[str, str], needed: Collection[str] | None
) -> dict[str, str] | None:
    """Choose the arrays that fields were made of; None where one that is needed is not there."""
    wanted = {name: path for name, path in arrays.items() if needed is None or name in (*needed, ID)}
    for file in files:
        there = present_arrays(file, tuple(wanted.values()), is_zarr=is_zarr(file))
        wanted = {name: path for name, path in wanted.items() if path in there}
    lacks = any(name not in wanted for name in arrays if needed is None or name in needed)
    return None if lacks or not wanted else wanted


def readers_of(source: object, options: SourceOptions) -> list[TableReader] | None:
    """Open what is a table, for columns of any role; None where it is none."""
    files = None if stored_datasets(source) is not None else _files_of(source)
    if files is None:
        return [frames.reader(source)] if frames.is_frame(source) else None
    reader = _checked_families(files, options)[0].reader
    return None if reader is None else [reader(file, options) for file in files]


def is_text(source: object) -> bool:
    """Say whether a source is files of delimited text."""
    files = _files_of(source)
    return files is not None and all(format_of(file, NO_OPTIONS).is_text for file in files)


def _open_text_labels(labels: object) -> Source | None:
    """Open a series of text; None where it is a path, a list of paths, or none of text."""
    if _paths_in(labels) is not None or not is_text_labels(labels):
        return None
    text = TextLabels(labels, f"array {TARGET!r}")
    source = ArraySource({TARGET: text})
    source.classes = text.classes
    return source


def _with_clear_names(source: Source, options: SourceOptions) -> Source:
    """Make one class of two that differ only in blanks, unless the classes are known."""
    return merge_blanks(source) if options.classes is None else source


def _split_options(source: object, labels: object, options: SourceOptions) -> tuple[SourceOptions, SourceOptions]:
    """Split the options into those of the features and those of the labels."""
    files = _files_of(labels)
    family = format_of(files[0], NO_OPTIONS) if files else None
    own, named = options, None
    if options.fields and TARGET in options.fields:
        features = {field: name for field, name in options.fields.items() if field != TARGET}
        own, named = dataclasses.replace(options, fields=features or None), {TARGET: options.fields[TARGET]}
    if family is None or not family.is_table:
        if family is RAW:
            what = "labels cannot be raw binary: dtype and shape are those of the features"
            raise UsageError(what, where=str(labels), fix="save the labels as .npy")
        return own, SourceOptions(fields=named)
    of_labels = SourceOptions(
        label_column=options.label_column, columns=(), fields=named, classes=options.classes, table=options.table
    )
    if _is_table(source):
        # Both are written alike, but the names are those of the features' columns.
        of_labels = dataclasses.replace(of_labels, table=dataclasses.replace(options.table, header="first", names=None))
    else:
        own = dataclasses.replace(own, table=PLAIN_TABLE)
    return dataclasses.replace(own, label_column=None), of_labels


def _is_table(source: object) -> bool:
    files = _files_of(source)
    return files is not None and all(format_of(file, NO_OPTIONS).is_table for file in files[:1])


def _paths_in(source: object) -> list[Path] | None:
    """List the paths a source names; None where it names none."""
    if isinstance(source, str | os.PathLike):
        return [_path(source)]
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | os.PathLike) for item in source):
        return [_path(item) for item in source]
    return None


def _path(text: str | os.PathLike[str]) -> Path:
    if text == "-":
        raise UsageError("standard input cannot be read twice", fix="write the data to a file first")
    return local_path(text)


def _open(source: object, options: SourceOptions) -> Source:
    if (folder := image_folder_of(_paths_in(source) or [])) is not None:
        return open_image_folder(folder, options)
    datasets = stored_datasets(source)
    files = None if datasets is not None else _files_of(source)
    if files is not None:
        return _open_files(files, options)
    check_no_images(options)
    if datasets is not None:
        _check_in_memory(options, "stored datasets")
        return concatenate(open_stored(datasets, options))
    if options.dtype is None and options.shape is None and options.fields is None and frames.is_frame(source):
        return _open_frame(source, options)
    _check_in_memory(options, "data in memory")
    # Before `Source` was a base class, a plug-in's source was known by its attributes.
    is_like_one = hasattr(source, "iter_blocks") and hasattr(source, "provenance")
    if options.fields is None and (isinstance(source, Source) or is_like_one):
        return check_source(source, "source")
    return _open_memory(source, options)


def _check_in_memory(options: SourceOptions, kind: str) -> None:
    """Refuse options of files for what is none."""
    for name in ("label_column", "columns", "dtype", "shape", "decode", "sample_axis"):
        if getattr(options, name) is not None:
            raise UsageError(f"{name} applies to files only", fix=Fix("leave ", Argument(name), " out"))
    _check_no_roles(options, kind)


def _open_frame(frame: object, options: SourceOptions) -> Source:
    if has_roles(options):
        return open_readers([frames.reader(frame)], options)
    try:
        return frames.open_frame(frame, options)
    except UnfitColumns as error:
        raise told_at_once(error, [frames.reader(frame)], options) from error


def _open_memory(source: object, options: SourceOptions) -> Source:
    if isinstance(source, Mapping):
        return _open_arrays(source, options)
    is_lone = is_array(source) or is_dask(source) or is_sparse(source) or hasattr(source, "__array__")
    if options.fields is not None and (is_lone or isinstance(source, Source)):
        raise _no_names(a_kind(source))
    if is_lone:
        return _open_arrays({"x": source}, options)
    if is_torch_dataset(source):
        return SampleSource(source, options)
    if is_data_loader(source):
        return IterableSource(NamedBatches(source, options), options)
    if isinstance(source, Iterable) and is_torch_stream(source):
        return IterableSource(StackedSamples(source, options), options)
    if isinstance(source, Iterable) and not _is_listed_wrong(source):
        return IterableSource(source, options)
    raise UsageError(
        f"{a_kind(source)} is not a source of data",
        why="A source is a path, a list of paths, an array, a dict of arrays or an iterable of dicts of arrays",
        fix='{"x": x, "y": y}, say',
    )


def _is_listed_wrong(source: Iterable[Any]) -> bool:
    """Recognize a list of arrays or numbers, which does not say what is what."""
    return isinstance(source, str | bytes | list | tuple) and not all(isinstance(item, Mapping) for item in source)


def _no_names(kind: str, where: str | None = None) -> UsageError:
    return UsageError(
        f"fields does not apply to {kind}",
        where=where,
        why="It chooses among the names in .npz, HDF5 and Zarr, dicts of arrays and iterables of them",
        fix=Fix("leave ", Argument("fields"), " out; of a table ", *_CHOOSING),
    )


def _open_arrays(arrays: Mapping[Any, Any], options: SourceOptions) -> Source:
    if not arrays or not all(isinstance(name, str) for name in arrays):
        raise UsageError("names of fields are text, and at least one is needed", fix='{"x": x, "y": y}, say')
    chosen = choose_fields(arrays, options, where="the arrays")
    named = {field: _open_named(arrays[name], name, field) for field, name in chosen.items()}
    found = {field: column_names(arrays[name]) for field, name in chosen.items()}
    columns = {field: names for field, names in found.items() if names is not None}
    kind = DaskSource if any(map(is_dask, named.values())) else ArraySource
    source = kind(named, columns)
    if isinstance(labels := named.get(TARGET), TextLabels):
        source.classes = labels.classes
    return source


def _open_named(values: object, name: str, field: str) -> Any:
    if field == TARGET and is_text_labels(values):
        return TextLabels(values, f"array {name!r}")
    return open_array(values, f"array {name!r}")


def _files_of(source: object) -> list[Path] | None:
    """List the files a source stands for, those in a folder included; None where it names none, or images."""
    paths = _paths_in(source)
    if paths is None or image_folder_of(paths) is not None:
        return None
    return [file for path in paths for file in (files_in(path) if _is_list(path) else [path])]


def _is_list(path: Path) -> bool:
    return S_ISDIR(look_up(path).st_mode) and not is_zarr(path)


def _check_one_kind(files: Sequence[Path], families: Sequence[FileFormat]) -> None:
    kinds = {family.name: file for file, family in zip(files, families, strict=True)}
    if len(kinds) > 1:
        listed = "; ".join(f"{path} is {kind}" for kind, path in kinds.items())
        fix = Fix("give files of one kind; labels go to ", Argument("labels"))
        raise InputError("the files are of several kinds", where=str(files[0].parent), why=listed, fix=fix)


def _checked_families(files: Sequence[Path], options: SourceOptions) -> list[FileFormat]:
    for file in files:
        if not is_zarr(file):
            check_file(file)
    check_distinct(files)
    families = [format_of(file, options) for file in files]
    _check_one_kind(files, families)
    return families


def _open_files(files: Sequence[Path], options: SourceOptions) -> Source:
    families = _checked_families(files, options)
    if families[0].name not in WITH_IMAGES:
        check_no_images(options)
    if options.fields is not None and not families[0].has_names:
        raise _no_names(f"{families[0].name} files", str(files[0]))
    for file, family in zip(files, families, strict=True):
        check_content(file, family)
    reader = families[0].reader
    if families[0].is_hierarchy:
        _check_no_roles(options, f"{families[0].name} files", but=("nan", "dates", "id_column", "weight_column"))
    else:
        refuse_options(files[0], families[0].name, options, "decode", "sample_axis")
    if reader is None and not families[0].is_hierarchy:
        _check_no_roles(options, f"{families[0].name} files")
    elif reader is not None and has_roles(options):
        return open_readers([reader(file, options) for file in files], options)
    try:
        return _opened(files, families, options)
    except UnfitColumns as error:
        if reader is None:
            raise
        raise told_at_once(error, [reader(file, options) for file in files], options) from error


def open_readers(readers: Sequence[TableReader], options: SourceOptions, known: Learned | None = None) -> Source:
    """Open the files of a table for columns of any role."""
    try:
        return open_tables(readers, options, known)
    except UnfitColumns as error:
        if known is not None and error.fix:
            raise
        if known is not None and (foreign := foreign_at_once(readers, options)) is not None:
            raise foreign from error
        if known is not None:
            fix = "correct the value in the source, or leave its row out"
            raise InputError(error.what, where=error.where, why=error.why, fix=fix) from error
        raise told_at_once(error, readers, options) from error


def _check_no_roles(options: SourceOptions, kind: str, but: Sequence[str] = ("nan",)) -> None:
    """Refuse options of tables for what is none; NaN may be kept anywhere."""
    for name in options.table.given():
        if name not in but:
            raise UsageError(f"{name} does not apply to {kind}", fix=Fix("leave ", Argument(name), " out"))


def choose_automatically(
    source: object, options: SourceOptions
) -> tuple[SourceOptions, tuple[Argument, ...], tuple[Fix, ...]]:
    """Choose what takes every column of a table's files; return the arguments that say the same, and doubts."""
    files = None if stored_datasets(source) is not None else _files_of(source)
    if files is None and frames.is_frame(source):
        return choose_for_all([frames.reader(source)], options)
    families = [] if files is None else _checked_families(files, options)
    if files is None or families[0].reader is None:
        _check_no_roles(options, "data that is not a table in files")
        return options, (), ()
    return choose_for_all([families[0].reader(file, options) for file in files], options)


def _opened(files: Sequence[Path], families: Sequence[FileFormat], options: SourceOptions) -> Source:
    probed = [family.probe(file, options) for file, family in zip(files, families, strict=True)]
    sources = [check_source(part, str(file)) for part, file in zip(probed, files, strict=True)]
    check_no_labels_among(sources)
    return concatenate(sources)
