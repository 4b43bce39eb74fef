"""Sources opened as a request says: with columns chosen by themselves, or in the terms of another dataset."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, Fix, StreamtrainWarning, UsageError
from streamtrain.ingestion.append import check_columns, in_columns_of, unnamed_columns
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.resume import Say
from streamtrain.ingestion.sources.base import PLAIN_TABLE, RowFilter, Source, SourceOptions, TableOptions
from streamtrain.ingestion.sources.combine import ClassCheckedSource, StrippedClasses, name_of
from streamtrain.ingestion.sources.indexed.stored import StoredSource
from streamtrain.ingestion.sources.registry import (
    choose_automatically,
    needed_beside,
    open_like,
    open_source,
    options_of_arrays,
    readers_of,
)
from streamtrain.store.dataset import Dataset, open_preferred
from streamtrain.store.manifest import AUTO
from streamtrain.store.schema.arrangement import ignored_columns
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.matching import warn_of_unnamed
from streamtrain.store.schema.task import Labels, check_task, check_told
from streamtrain.store.writing.journal import Mode
from streamtrain.system.units import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What is ingested, as it was given."""

    source: object
    labels: object
    like: str | os.PathLike[str] | Dataset | None
    base: Dataset | None = None  # what its rows are appended to
    is_resumed: bool = False
    scratch: Path | None = None  # the folder for rows that have to go over disk


def open_requested(
    given: Given, request: IngestRequest, mode: Mode, learn_from: RowFilter | None, say: Say | None
) -> tuple[IngestRequest, Source]:
    """Open a source, and return with it the request that its columns or another dataset have completed."""
    is_known = given.base is not None and given.base.manifest.schema is not None
    if request.options.table.auto and not is_known:
        request = _chosen_automatically(given.source, request, say)
    if given.like is not None:
        request, opened = _opened_like(given.like, given, request, mode, say)
    elif given.base is not None and is_known:
        request, opened = _opened_behind(given.base, given, request, say)
    else:
        if given.base is not None:
            schema = given.base.schema
            needed = needed_beside(schema, given.labels)
            options = options_of_arrays(given.source, schema, request.options, needed=needed)
            request = replace(request, options=options)
        opened = _opened_anew(given, request, learn_from)
    if given.base is not None and not given.is_resumed:
        _tell_twice(given.base, opened, say)
    if say is not None:
        for text in opened.told:
            say(text)
    if isinstance(opened, StrippedClasses):
        _tell(opened.text, True, say)
    _tell_left_out(opened, say)
    if request.options.table.delimiter == "auto":
        _tell_delimiters(opened, say)
    _tell_counts(opened, say)
    if given.like is None and not is_known and say is not None:
        _tell_zone(opened, request.options.table.timezone, say)
    if isinstance(opened, StoredSource):
        request = replace(request, task=request.task or opened.told_task)
    _check_has_labels(opened, request)
    _check_names(opened, request, say)
    return request, _checked(opened, request)


def open_learning_from(given: Given, request: IngestRequest, learn_from: RowFilter | None) -> Source:
    """Open a source whose means and categories are learned from some of its rows, or from all."""
    return _checked(_opened_anew(given, request, learn_from), request)


def _opened_anew(given: Given, request: IngestRequest, learn_from: RowFilter | None) -> Source:
    known = _known_names(request, given.base)
    options = replace(_within(request, given), classes=known, learn_from=learn_from)
    return open_source(given.source, labels=given.labels, options=options)


def _within(request: IngestRequest, given: Given) -> SourceOptions:
    """Return the options of a request with what a source may take of memory, threads and disk."""
    return replace(request.options, memory=request.memory, n_workers=request.n_workers, scratch=given.scratch)


def _checked(opened: Source, request: IngestRequest) -> Source:
    """Check every label against the classes, where these are told."""
    return opened if request.classes in (None, AUTO) else ClassCheckedSource(opened, request.classes)


def _check_has_labels(source: Source, request: IngestRequest) -> None:
    """Refuse a task, or classes, of labels that there are none of."""
    if any(field.name == TARGET for field in source.fields):
        return
    for name, value in (("task", request.task), ("classes", AUTO if request.classes == AUTO else None)):
        if value is not None:
            what = f"{name} is {value!r}, of field {TARGET}, and there is none"
            raise UsageError(what, fix=f"give labels, or leave {name} out")


def _check_names(source: Source, request: IngestRequest, say: Say | None) -> None:
    """Refuse a task that labels with names cannot be of; tell where nearly every row has a class of its own."""
    names, n = source.classes, source.n_samples
    if names is None:
        return
    column = request.options.label_column
    name = column if isinstance(column, str) else TARGET
    if request.task is not None:
        labels = Labels(kind="i", shape=(), n_samples=n or 0, values=range(len(names)), is_named=True, name=name)
        check_told(labels, request.task, name_of(source))
    if n is not None and request.classes in (None, AUTO) and len(names) >= max(_FEWEST_OF_IDS, _OWN_CLASS * n):
        text = f"label {name} has {len(names):,} classes for {counted(n, 'row')}, nearly one a row, as an id has"
        _tell(text, True, say)


_FEWEST_OF_IDS: Final = 20
_OWN_CLASS: Final = 0.9
"""The share of distinct labels from which on they are hardly classes."""


def _opened_like(
    like: str | os.PathLike[str] | Dataset, given: Given, request: IngestRequest, mode: Mode, say: Say | None
) -> tuple[IngestRequest, Source]:
    """Open a source in the terms of another dataset, whose classes and task are the request's then."""
    for name in ("classes", "task"):
        if getattr(request, name) is not None:
            fix = Fix("leave ", Argument(name), " out, or ", Argument("like"))
            raise UsageError(f"{name} is given together with like", why="They are those of the other dataset", fix=fix)
    if mode == "append":
        fix = Fix("leave ", Argument("like"), " out")
        raise UsageError("like is given, and rows are appended", why="They are read like the dataset there", fix=fix)
    base = like if isinstance(like, Dataset) else open_preferred(like)
    options = _within(request, given)
    opened, terms = open_like(given.source, base, labels=given.labels, options=options)
    opened = _matched_by_name(base, opened, say)
    n_classes = base.manifest.options.get("classes")
    classes = base.manifest.classes or (n_classes if isinstance(n_classes, int) else None)
    table = _keeping_nan(base, terms.table)
    options = replace(terms, table=table, classes=request.options.classes, memory=None, n_workers=None, scratch=None)
    return replace(request, options=options, classes=classes, task=check_task(base.task), like=base.id), opened


def _opened_behind(
    base: Dataset, given: Given, request: IngestRequest, say: Say | None
) -> tuple[IngestRequest, Source]:
    """Open rows to append in the terms of the dataset, which knows categories, dates, fills or several targets."""
    options = _within(request, given)
    opened, terms = open_like(given.source, base, labels=given.labels, options=options, appends=True)
    _tell_ignored(given.source, base, terms, say)
    return replace(request, options=replace(request.options, table=_keeping_nan(base, terms.table))), opened


def _tell_ignored(source: object, base: Dataset, terms: SourceOptions, say: Say | None) -> None:
    """Tell which columns of rows to append are ignored, other than those that were left out before."""
    table = terms.table
    known = {*(terms.columns or ()), *terms.labels, *table.categorical, *table.dates, *table.exclude}
    known |= {table.weight_column or "", table.id_column or "", *base.manifest.options.get("exclude", ())}
    readers = readers_of(source, terms) or ()
    further = dict.fromkeys(name for reader in readers for name in reader.header if name not in known)
    text = ignored_columns(further, of="the dataset", where=str(readers[0].path)) if readers else None
    if text is not None:
        _tell(text, False, say)


def _tell_twice(base: Dataset, more: Source, say: Say | None) -> None:
    """Tell which files are appended that are in the dataset already."""
    there = {_file_of(entry) for entry in base.manifest.sources if "path" in entry}
    for entry in more.provenance:
        if "path" in entry and _file_of(entry) in there:
            _tell(
                f"{entry['path']} is among the sources of {base.path} already: its rows will be in it twice", True, say
            )


def _file_of(entry: Mapping[str, Any]) -> tuple[object, ...]:
    return (Path(entry["path"]).name, entry.get("bytes"), entry.get("mtime_ns"))


def _keeping_nan(base: Dataset, table: TableOptions) -> TableOptions:
    return replace(table, nan=base.manifest.options.get("nan", PLAIN_TABLE.nan))


def _matched_by_name(base: Dataset, source: Source, say: Say | None) -> Source:
    """Put columns in the order of the other dataset; refuse others; tell what is matched by position."""
    if base.manifest.schema is not None:
        return source  # of a table, whose columns were matched as they were read
    source = in_columns_of(base.schema, source)
    check_columns(base, source)
    # Numbers of classes are what the other's are, whatever their names.
    text = unnamed_columns(base, source, of="the other dataset", but=TARGET)
    if say is None:
        warn_of_unnamed(text, stacklevel=6)
    elif text is not None:
        say(f"warning: {text}")
    return source


def _chosen_automatically(source: object, request: IngestRequest, say: Say | None) -> IngestRequest:
    """Choose what fits the columns; tell the arguments that say the same."""
    options, arguments, doubts = choose_automatically(source, replace(request.options, memory=request.memory))
    text = Fix("auto stands for ", Fix.together(arguments) if arguments else "no option at all")
    if say is None:
        warnings.warn(StreamtrainWarning(text), stacklevel=6)
    else:
        say(text)
    for doubt in doubts:
        if say is None:
            warnings.warn(StreamtrainWarning(doubt), stacklevel=6)
        else:
            say(Fix("hint: ", doubt))
    table = replace(options.table, auto=False)
    return replace(request, options=replace(options, table=table, memory=request.options.memory))


def _known_names(request: IngestRequest, base: Dataset | None) -> tuple[str, ...] | None:
    """List the names of classes that are given, and those of the dataset appended to."""
    known = None if base is None else base.manifest.classes
    named = request.classes if isinstance(request.classes, tuple) else None
    return named if known is None else (*known, *(named or ()))


def _tell_left_out(source: Source, say: Say | None) -> None:
    for entry in source.provenance:
        if say is not None and "left_out" in entry:
            listed = ", ".join(entry["left_out"])
            take = "name the columns to take it" if "path" in entry else "frame.reset_index() makes it a column"
            say(f"{entry.get('path', entry['format'])}: left out {listed}, an index and no feature; {take}")


def _tell_delimiters(source: Source, say: Say | None) -> None:
    for entry in source.provenance:
        if say is not None and "delimiter" in entry:
            say(f"{entry['path']}: the delimiter is {entry['delimiter']!r}")


def _tell_counts(source: Source, say: Say | None) -> None:
    """Tell how many rows of a table are left out, and how many categories are "other"."""
    n_rows = sum(entry.get("rows", 0) for entry in source.provenance)
    for name, why in (("unlabelled", "without a label"), ("dropped", "in which a number is missing")):
        n = sum(entry.get(name, 0) for entry in source.provenance)
        if n:
            _tell(f"left out {n:,} of {counted(n_rows, 'row')} {why}", n > _MANY * n_rows, say)
    unseen: Counter[str] = sum((Counter(entry.get("unseen", {})) for entry in source.provenance), Counter())
    for name, n in unseen.items():
        _tell(
            f"column {name!r}: {counted(n, 'value is', 'values are')} 'other': the dataset has no such categories",
            False,
            say,
        )


def _tell_zone(source: Source, timezone: str, say: Say) -> None:
    """Tell of which zone times were taken to be that name none."""
    zoneless = dict.fromkeys(name for entry in source.provenance for name in entry.get("zoneless", ()))
    if zoneless:
        zone = Argument("timezone", "Europe/Rome" if timezone == "UTC" else "UTC")
        say(Fix(f"times of {', '.join(zoneless)} name no zone and are taken as {timezone}: ", zone, " says another"))


_MANY: Final = 0.1
"""The share of rows left out above which it is a warning."""


def _tell(text: str, is_warning: bool, say: Say | None) -> None:
    if say is not None:
        say(f"warning: {text}" if is_warning else text)
    elif is_warning:
        warnings.warn(StreamtrainWarning(text), stacklevel=6)
