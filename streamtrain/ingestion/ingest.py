"""The function `ingest`: arguments, lock, plan, write, check, commit.

The rows that were read are compared with what the source promised before the commit.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError, StreamtrainError, StreamtrainWarning, UsageError
from streamtrain.ingestion.append import AppendedSource, appended_source, in_columns_of, n_full_shards, unnamed_columns
from streamtrain.ingestion.opening import open_requested
from streamtrain.ingestion.request import (
    IngestRequest,
    IngestSizes,
    check_disk_space,
    parse_classes,
    parse_workers,
    plan_ingest,
    run_bytes,
    sizes_for_request,
    source_options,
    warning_of_memory,
)
from streamtrain.ingestion.resume import (
    IngestTask,
    InterruptedIngest,
    Say,
    check_destination,
    check_finished_ingest,
    check_outside,
    check_rereadable,
    check_same_ingest,
    discard_interrupted,
    find_interrupted,
    is_fingerprinted,
    keep_or_discard,
    prepare,
    publish_and_tidy,
)
from streamtrain.ingestion.row_stream import RowStream
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.combine import ClassCheckedSource
from streamtrain.ingestion.sources.input_files import changed
from streamtrain.ingestion.write_shards import Tallies, write_shards
from streamtrain.ingestion.write_stream import write_stream
from streamtrain.store.codec import parse_codec
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.layout import UNKNOWN_SAMPLES, Layout
from streamtrain.store.manifest import AUTO
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.matching import warn_of_unnamed
from streamtrain.store.schema.task import LabelTask, check_task
from streamtrain.store.shard import shard_exists
from streamtrain.store.statistics import FieldStats
from streamtrain.store.writing.journal import JournalHeader, Mode
from streamtrain.store.writing.lock import check_unlocked, writer_lock
from streamtrain.store.writing.staging import (
    begin_folder,
    check_foreign_files,
    check_names,
    destination_state,
    real_path,
    recover_interrupted_swap,
    successor,
    tidy,
)
from streamtrain.store.writing.writer import DatasetWriter
from streamtrain.system.arguments import check_flags, check_optional_functions
from streamtrain.system.files import Files, local_path
from streamtrain.system.progress_bar import ByteProgress, parse_progress
from streamtrain.system.units import parse_bytes

_ROWS_SHOWN: Final = 3


def checked_statistics(
    source: Source, provenance: tuple[dict[str, Any], ...], tallies: Tallies, n_samples: int, *, keep_nan: bool = False
) -> Mapping[str, FieldStats]:
    """Return the statistics, if what was read can be trusted and trained on."""
    change = changed(provenance)
    if change:
        raise InputError(change, fix="ingest again when nothing writes to it")
    if n_samples == 0:
        raise InputError("there are no samples", fix="give at least one row")
    if source.n_samples is not None and source.n_samples != n_samples:
        raise InputError(f"the source promised {source.n_samples} rows and gave {n_samples}", fix="check the source")
    statistics = {tally.field.name: tally.finish() for tally in tallies}
    for tally in tallies:
        if keep_nan and tally.field.name != TARGET:
            continue
        _check_finite(source, tally.field.name, statistics[tally.field.name], tally.nonfinite_rows)
    return statistics


def _check_finite(source: Source, name: str, stats: FieldStats, rows: tuple[int, ...]) -> None:
    n_nan, n_inf = stats.overall.n_nan, stats.overall.n_inf
    if n_nan or n_inf:
        counts = [f"{n:,} {kind}" for n, kind in ((n_nan, "NaN"), (n_inf, "infinite")) if n]
        raise InputError(
            f"field {name} holds {' and '.join(counts)} value{'s' * (n_nan + n_inf > 1)}",
            where=source.where(rows[0]),
            why=f"The first are at {', '.join(source.where(row) for row in rows[:_ROWS_SHOWN])}",
            fix="remove those rows, or fill them in; they are never replaced silently",
        )


def ingest(
    source: object,
    dest: str | os.PathLike[str],
    *,
    labels: object = None,
    classes: int | Sequence[str] | None = None,
    task: str | None = None,
    like: str | os.PathLike[str] | Dataset | None = None,
    memory: int | str = "1GB",
    block: int | str | None = None,
    shard: int | str = "64MB",
    codec: str = "auto",
    progress: bool | None = None,
    n_workers: int | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    say: Say | None = None,
    **options: object,
) -> Dataset:
    """Store raw data as a dataset: read once, in bounded memory; committed whole or not at all.

    Parameters
    ----------
    source : path, list of paths, array, dict of arrays, or iterable of dicts of arrays
        See `streamtrain.ingestion.sources.registry.open_source`.
    dest : path-like
        The directory to make; nothing may be there, unless one of the three below says otherwise.
    labels : same as source, optional
        What becomes field ``y``.
    classes : int or sequence of str, optional
        How many classes field ``y`` holds, numbered from 0, or their names; other labels are refused. ``"auto"`` makes
        classes of the different whole numbers there are. By default numbers are stored as they come, and text is sorted
        and numbered.
    like : Dataset or path-like, optional
        Read the rows in the terms of another dataset: its columns by name, categories, fills, classes and task. A
        category that it has not is "other"; a class that it has not is refused. Nothing is learned from the rows.
    task : {"classification", "multilabel", "regression"}, optional
        How labels are read; by default that follows from what they hold, see `Dataset.task`. Nothing is stored
        otherwise for it, and a training may say otherwise.
    memory : int or str
        What the ingest may own, in bytes or as text with a unit.
    block : int or str, optional
        Decoded bytes of a block, the unit of reading and shuffling, down to one sample; by default about 512 KiB.
    shard : int or str
        Decoded bytes of a shard file of the largest field.
    codec : {"auto", "none", "lz4", "zstd"}
        The compression; ``"auto"`` compares the sizes of the first blocks.
    progress : bool, optional
        Whether to show a bar on stderr; by default where that is a terminal.
    n_workers : int, optional
        The most threads; by default one per core. The result does not depend on it.
    overwrite : bool
        Replace the dataset at ``dest``, in one step when the new one is finished. Other folders are refused.
    append : bool
        Add the rows behind those of the dataset at ``dest``, which keeps its block, shard and codec. Full shards are
        shared with the old one by hard links, and the result takes its place in one step.
    resume : bool
        Resume an interrupted ingest of the same sources and options; where there is none, begin. Iterators cannot.
    say : callable, optional
        Called with a sentence on what an earlier ingest left.
    **options
        How to read it: ``label_column``, ``columns``, ``dtype``, ``shape``, ``fields``; see `SourceOptions`. Delimited
        text: ``header`` ("first", or "none" with ``names``), ``delimiter`` ("auto", or a character), ``encoding``
        ("utf-8"), and ``na_values``, the texts that mean missing.

    Returns
    -------
    Dataset
        The committed dataset, open.

    Raises
    ------
    UsageError
        An argument is wrong, or something is at ``dest``.
    InputError
        The raw data is bad, or what is appended does not fit: nothing readable is left of it.
    DatasetError
        An interrupted ingest is at ``dest``, or the one to resume was of other sources or options.
    BudgetError
        ``memory`` is too small; the message has the smallest that works.
    ResourceError
        The disk is full or cannot be written; what was done stays for ``resume``.
    LockedError
        Another process is writing ``dest``.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> rows = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10) // 5}
    >>> dataset = ingest(rows, tempfile.mkdtemp() + "/d.zarr", codec="none")
    >>> len(dataset), dataset[3]["x"].tolist(), dataset.label_histogram.counts.tolist()
    (10, [6.0, 7.0], [5, 5])
    >>> len(ingest(rows, dataset.path, append=True))
    20
    """
    check_flags(overwrite=overwrite, append=append, resume=resume)
    check_optional_functions(say=say)
    request = IngestRequest(
        memory=parse_bytes(memory, name="memory"),
        block_bytes=None if block is None else parse_bytes(block, name="block"),
        shard_bytes=parse_bytes(shard, name="shard"),
        codec=parse_codec(codec),
        n_workers=parse_workers(n_workers),
        progress=parse_progress(progress),
        options=source_options(**options),
        classes=parse_classes(classes),
        task=check_task(task),
    )
    if overwrite and append:
        raise UsageError("overwrite and append exclude each other", fix="choose one of them")
    mode: Mode = "overwrite" if overwrite else "append" if append else "create"
    path = real_path(local_path(dest))
    check_unlocked(path)
    recover_interrupted_swap(path, Files())
    check_destination(path, mode, resume=resume)
    request, opened = open_requested(source, labels, like, request, path=path, mode=mode, say=say)
    _check_has_labels(opened, request)
    if request.classes not in (None, AUTO):
        opened = ClassCheckedSource(opened, request.classes)
    before = open_dataset(path).label_task() if mode == "append" and destination_state(path) == "committed" else None
    _check_same_task(before, request, dest)
    dataset = run_ingest(opened, path, request, mode=mode, resume=resume, say=say)
    _tell_other_task(before, dataset, say)
    dataset.path = local_path(dest)  # which may be a link to it
    return dataset


def _check_has_labels(source: Source, request: IngestRequest) -> None:
    """Refuse a task, or classes, of labels that there are none of."""
    if any(field.name == TARGET for field in source.fields):
        return
    for name, value in (("task", request.task), ("classes", AUTO if request.classes == AUTO else None)):
        if value is not None:
            what = f"{name} is {value!r}, of field {TARGET}, and there is none"
            raise UsageError(what, fix=f"give labels, or leave {name} out")


def _check_same_task(before: LabelTask | None, request: IngestRequest, dest: str | os.PathLike[str]) -> None:
    """Refuse a task of rows to append that is not the dataset's: it is one for all rows."""
    if before is not None and request.task not in (None, before.name):
        what = f"task is {request.task!r}, and that of the dataset {before.name!r}"
        raise UsageError(what, where=str(dest), fix="leave it out, and tell the training")


def _tell_other_task(before: LabelTask | None, dataset: Dataset, say: Say | None) -> None:
    """Warn where the rule says otherwise of the labels after an append."""
    now = dataset.label_task()
    if before is None or now is None or before.name == now.name:
        return
    text = f"before the append its labels were read as {before.name or 'undecided'}, now as {now.name or 'undecided'}"
    if say is None:
        warnings.warn(StreamtrainWarning(text, fix=Fix(Argument("task", before.name))), stacklevel=3)
    else:
        say(Fix(f"warning: {text}: ", Argument("task", before.name)))


def run_ingest(
    source: Source,
    path: Path,
    request: IngestRequest,
    *,
    files: Files | None = None,
    mode: Mode = "create",
    resume: bool = False,
    say: Say | None = None,
) -> Dataset:
    """Write a source as a dataset, as its only writer; see `ingest`."""
    files, say = files or Files(), say or _say_nothing
    if resume:
        check_rereadable(source)
    check_outside(path, source)
    check_names(path, (field.name for field in source.fields))
    with writer_lock(path, files):
        tidy(path, files)
        check_destination(path, mode, resume=resume)
        interrupted = find_interrupted(path, mode) if resume else None
        if interrupted is not None:
            _resume(source, interrupted, path, request, files, say)
        elif not (resume and _is_complete(source, path, request, mode, say)):
            _begin(source, path, request, mode, files, say)
        # Opened before another writer can replace it.
        return open_dataset(path)


def _say_nothing(text: str) -> None:
    """Say nothing."""


def _tell(warning: StreamtrainWarning | None, say: Say) -> None:
    """Say a warning, or issue it where nobody listens."""
    if warning is not None and say is _say_nothing:
        warnings.warn(warning, stacklevel=5)
    elif warning is not None:
        say(f"warning: {warning}")


def _whole(base: Dataset | None, source: Source, say: Say) -> Source:
    """Join a dataset's last rows to the source; say or warn what is matched by position."""
    if base is None:
        return source
    whole = appended_source(base, source)
    text = unnamed_columns(base, source)
    if say is _say_nothing:
        warn_of_unnamed(text, stacklevel=5)
    elif text is not None:
        say(f"warning: {text}")
    return whole


def _is_complete(source: Source, path: Path, request: IngestRequest, mode: Mode, say: Say) -> bool:
    """Say whether the work to be resumed is done, and what is done otherwise."""
    if destination_state(path) == "absent":
        say(f"{path}: nothing to resume; starts afresh")
        return False
    dataset = open_dataset(path)
    try:
        own = in_columns_of(dataset.schema, source) if mode == "append" else source
        check_finished_ingest(dataset.manifest, own, request.as_json(), path, mode)
    except StreamtrainError:
        if mode == "create":
            raise
        say(f"{path}: no interrupted {mode}; starts afresh")
        return False
    say(f"{path}: already complete; nothing was done")
    return True


def _begin(source: Source, path: Path, request: IngestRequest, mode: Mode, files: Files, say: Say) -> None:
    base = open_dataset(path) if mode == "append" else None
    if base is not None:
        check_foreign_files(path, base.layout)
    whole = _whole(base, source, say)
    discard_interrupted(path, mode, files)
    folder = path if destination_state(path) == "absent" else successor(path)
    with _stream(whole, request) as stream:
        layout, sizes = plan_ingest(whole, stream, request)
        header = _header(mode if folder != path else "create", base, layout, whole, request)
        check_disk_space(path.parent, layout, files, n_kept=0 if base is None else n_full_shards(base))
        _tell(warning_of_memory(path.parent, layout), say)
        begin_folder(folder, path, header, files)
        work = IngestTask(path=path, folder=folder, header=header, source=whole, own=source, base=base, shards={})
        _write(work, sizes, stream, request, files, say)


def _resume(
    source: Source, interrupted: InterruptedIngest, path: Path, request: IngestRequest, files: Files, say: Say
) -> None:
    """Finish an interrupted ingest: the shards of its journal stay, if they are what was written."""
    header, folder = interrupted.header, interrupted.folder
    base = open_dataset(path) if header.mode == "append" else None
    whole = _whole(base, source, say)
    n_samples = UNKNOWN_SAMPLES if whole.n_samples is None else whole.n_samples
    layout = replace(header.layout, fields=whole.fields, n_samples=n_samples)
    check_same_ingest(header, _header(header.mode, base, layout, whole, request), path)
    if interrupted.is_finished:
        say(f"{path}: its {header.mode} was finished, and takes its place")
        publish_and_tidy(folder, path, files, say)
        return
    shards = {
        shard: stored for shard, stored in interrupted.shards.items() if shard_exists(folder, layout, shard, stored)
    }
    n_linked = 0 if base is None else n_full_shards(base)
    say(f"{path}: goes on; {len(shards):,} of {layout.n_shards - n_linked:,} shards are done")
    with _stream(whole, request) as stream:
        sizes = sizes_for_request(layout, whole, stream, request)
        check_disk_space(path.parent, layout, files, n_kept=n_linked + len(shards))
        work = IngestTask(path=path, folder=folder, header=header, source=whole, own=source, base=base, shards=shards)
        _write(work, sizes, stream, request, files, say, is_begun=True)


def _write(
    work: IngestTask,
    sizes: IngestSizes,
    stream: RowStream | None,
    request: IngestRequest,
    files: Files,
    say: Say,
    *,
    is_begun: bool = False,
) -> None:
    """Write what is missing, commit it, and put it in its place."""
    layout, whole = work.header.layout, work.source
    journal = None
    try:
        journal = prepare(work, files, say)
        shown = layout.n_bytes if layout.n_samples < UNKNOWN_SAMPLES else None
        with (
            closing(journal),
            DatasetWriter(
                work.folder, layout, files=files, journal=journal, kept=work.kept, n_linked=work.n_linked
            ) as writer,
        ):
            with (
                ByteProgress(shown, show=request.progress) as progress,
                # The pool ends before the writer does: no task may write into a directory that is being removed.
                ThreadPoolExecutor(sizes.n_workers, thread_name_prefix="streamtrain-ingest") as pool,
            ):
                compare = is_begun and not is_fingerprinted(work.own)
                if stream is None:
                    tallies = write_shards(whole, writer, sizes, pool=pool, progress=progress, compare=compare)
                    n_samples = layout.n_samples
                else:
                    tallies, n_samples = write_stream(
                        stream, writer, sizes, pool=pool, progress=progress, compare=compare
                    )
            statistics = checked_statistics(
                whole, work.own.provenance, tallies, n_samples, keep_nan=request.options.table.nan == "keep"
            )
            writer.commit(
                n_samples=n_samples,
                classes=whole.classes,
                sources=whole.provenance,
                options=work.header.options,
                statistics=statistics,
                schema=whole.schema_facts,
            )
        # What does not open must not replace what does.
        open_dataset(work.folder)
    except BaseException as error:
        keep_or_discard(work, error, 0 if journal is None else journal.n_shards, files, say, is_begun=is_begun)
        raise
    publish_and_tidy(work.folder, work.path, files, say)


def _header(mode: Mode, base: Dataset | None, layout: Layout, source: Source, request: IngestRequest) -> JournalHeader:
    return JournalHeader(
        mode=mode,
        base=None if base is None else base.id,
        version=version_of("streamtrain"),
        layout=layout,
        classes=source.classes,
        sources=source.provenance,
        options=request.as_json() if base is None else base.manifest.options,
    )


@contextmanager
def _stream(source: Source, request: IngestRequest) -> Iterator[RowStream | None]:
    """Open a source that reads in order as a stream of rows; give None for one that reads any range."""
    if source.seekable:
        yield None
    else:
        first_row = source.first_row if isinstance(source, AppendedSource) else 0
        with closing(RowStream(source, run_bytes(request.memory), first_row=first_row)) as stream:
            yield stream
