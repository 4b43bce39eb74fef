"""One source written as one dataset, as its only writer: lock, plan, write, check, commit.

The rows that were read are compared with what the source promised before the commit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError, StreamtrainError, StreamtrainWarning
from streamtrain.ingestion.append import AppendedSource, appended_source, in_columns_of, n_full_shards, unnamed_columns
from streamtrain.ingestion.cluster.cluster_shards import check_workers, write_on
from streamtrain.ingestion.cluster.connection import Cluster, connect
from streamtrain.ingestion.cluster.portable import portable
from streamtrain.ingestion.request import (
    IngestRequest,
    IngestSizes,
    check_disk_space,
    layout_to_resume,
    plan_ingest,
    run_bytes,
    sizes_for_request,
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
from streamtrain.ingestion.sources.input_files import changed
from streamtrain.ingestion.write_shards import Tallies, write_shards
from streamtrain.ingestion.write_stream import write_stream
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.layout import UNKNOWN_SAMPLES, Layout
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.matching import warn_of_unnamed
from streamtrain.store.schema.task import check_told
from streamtrain.store.shard import shard_exists
from streamtrain.store.statistics import FieldStats
from streamtrain.store.writing.journal import JournalHeader, Mode, begin_journal
from streamtrain.store.writing.lock import writer_lock
from streamtrain.store.writing.staging import (
    begin_folder,
    check_foreign_files,
    check_names,
    destination_state,
    successor,
    tidy,
)
from streamtrain.store.writing.writer import DatasetWriter
from streamtrain.system.display.progress_bar import ByteProgress
from streamtrain.system.files import Files

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
            fix="remove those rows, or fill them in"
            if name == TARGET
            else Fix("remove those rows, fill them in, or keep them as they are: ", Argument("nan", "keep")),
        )


def run_ingest(
    source: Source,
    path: Path,
    request: IngestRequest,
    *,
    files: Files | None = None,
    mode: Mode = "create",
    resume: bool = False,
    say: Say | None = None,
    scheduler: object = None,
) -> Dataset:
    """Write a source as a dataset, as its only writer; see `ingest`."""
    files, say = files or Files(), say or _say_nothing
    if resume:
        check_rereadable(source)
    if scheduler is not None:
        portable(source)
    check_outside(path, source)
    check_names(path, (field.name for field in source.fields))
    with writer_lock(path, files):
        tidy(path, files)
        check_destination(path, mode, resume=resume)
        interrupted = find_interrupted(path, mode) if resume else None
        if interrupted is not None:
            _resume(source, interrupted, path, request, files, say, scheduler)
        elif not (resume and _is_complete(source, path, request, mode, say)):
            _begin(source, path, request, mode, files, say, scheduler)
        # Opened before another writer can replace it.
        return open_dataset(path)


def _say_nothing(text: str) -> None:
    """Say nothing."""


def _tell(warning: StreamtrainWarning | None, say: Say) -> None:
    """Say a warning, or issue it where nobody listens."""
    if warning is not None and say is _say_nothing:
        warnings.warn(warning, stacklevel=6)
    elif warning is not None:
        say(f"warning: {warning}")


def _whole(base: Dataset | None, source: Source, say: Say) -> Source:
    """Join a dataset's last rows to the source; say or warn what is matched by position."""
    if base is None:
        return source
    whole = appended_source(base, source)
    text = unnamed_columns(base, source)
    if say is _say_nothing:
        warn_of_unnamed(text, stacklevel=6)
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


def _begin(
    source: Source, path: Path, request: IngestRequest, mode: Mode, files: Files, say: Say, scheduler: object
) -> None:
    base = open_dataset(path) if mode == "append" else None
    if base is not None:
        check_foreign_files(path, base.layout)
    whole = _whole(base, source, say)
    discard_interrupted(path, mode, files)
    folder = path if destination_state(path) == "absent" else successor(path)
    with _stream(whole, request) as stream:
        layout, sizes = plan_ingest(whole, stream, request)
        header = _header(mode if folder != path else "create", base, layout, whole, request)
        n_kept = 0 if base is None else n_full_shards(base)
        check_disk_space(path.parent, layout, files, n_kept=n_kept)
        _tell(warning_of_memory(path.parent, layout), say)
        with connect(scheduler, whole, layout, request) as cluster:

            def begin(fresh: Path) -> None:
                begin_journal(fresh, header, files)
                check_workers(cluster, fresh, n_kept)

            begin_folder(folder, path, begin, files)
            work = IngestTask(path=path, folder=folder, header=header, source=whole, own=source, base=base, shards={})
            _write(work, sizes, stream, request, files, say, cluster=cluster)


def _resume(
    source: Source,
    interrupted: InterruptedIngest,
    path: Path,
    request: IngestRequest,
    files: Files,
    say: Say,
    scheduler: object,
) -> None:
    """Finish an interrupted ingest: the shards of its journal stay, if they are what was written."""
    header, folder = interrupted.header, interrupted.folder
    base = open_dataset(path) if header.mode == "append" else None
    whole = _whole(base, source, say)
    layout = layout_to_resume(header.layout, whole)
    check_same_ingest(header, _header(header.mode, base, layout, whole, request), path)
    if interrupted.is_finished:
        say(f"{path}: its {header.mode} was finished, and takes its place")
        publish_and_tidy(folder, path, files, say)
        return
    shards = {
        shard: stored for shard, stored in interrupted.shards.items() if shard_exists(folder, layout, shard, stored)
    }
    n_linked = 0 if base is None else n_full_shards(base)
    say(f"{path}: resumes; {len(shards):,} of {layout.n_shards - n_linked:,} shards are done")
    with _stream(whole, request) as stream:
        sizes = sizes_for_request(layout, whole, stream, request)
        check_disk_space(path.parent, layout, files, n_kept=n_linked + len(shards))
        work = IngestTask(path=path, folder=folder, header=header, source=whole, own=source, base=base, shards=shards)
        with connect(scheduler, whole, layout, request) as cluster:
            # Outside of what an error may remove: the shards that are done stay.
            check_workers(cluster, folder, n_linked + len(shards))
            _write(work, sizes, stream, request, files, say, is_begun=True, cluster=cluster)


def _write(
    work: IngestTask,
    sizes: IngestSizes,
    stream: RowStream | None,
    request: IngestRequest,
    files: Files,
    say: Say,
    *,
    is_begun: bool = False,
    cluster: Cluster | None = None,
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
                if cluster is not None:
                    tallies, n_samples = write_on(cluster, writer, progress, compare=compare), layout.n_samples
                elif stream is None:
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
        # What does not open must not replace what does, nor labels that are not of the task that was told.
        written = open_dataset(work.folder)
        if work.base is None and (task := written.label_task()) is not None and task.by == "told" and task.name:
            check_told(task.labels, task.name, str(work.path))
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
