"""`ingest`: arguments, plan, write, check, commit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from streamtrain.errors import InputError, UsageError
from streamtrain.files import Files
from streamtrain.ingest.memory import IngestSizes, head_bytes, run_bytes, solve_ingest
from streamtrain.ingest.progress import ByteProgress
from streamtrain.ingest.request import Request, parse_workers, source_options
from streamtrain.ingest.shards import Tallies, write_shards
from streamtrain.ingest.stream import RowStream, write_stream
from streamtrain.layout import UNKNOWN_SAMPLES, Codec, Layout, plan_layout
from streamtrain.sources import SeekableSource, Source, changed, chunk_bytes_of, open_source
from streamtrain.stats import FieldStats
from streamtrain.store import Dataset, open_dataset
from streamtrain.store.codec import TRIAL_BYTES, check_encodable, choose_codec, parse_codec, trial_rows
from streamtrain.store.writer import DatasetWriter
from streamtrain.units import parse_bytes

_ROWS_SHOWN: Final = 3


def ingest(
    source: object,
    dest: str | os.PathLike[str],
    *,
    labels: object = None,
    memory: int | str = "1GB",
    block: int | str | None = None,
    shard: int | str = "64MB",
    codec: str = "auto",
    progress: bool | None = None,
    n_workers: int | None = None,
    **options: object,
) -> Dataset:
    """Store raw data as a dataset: read once, in bounded memory; committed whole or not at all.

    Parameters
    ----------
    source : path, list of paths, array, dict of arrays, or iterable of dicts of arrays
        See `streamtrain.sources.open_source`.
    dest : path-like
        The directory to make; nothing may be there.
    labels : same as source, optional
        What becomes field ``y``.
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
    **options
        How to read files: ``label_column``, ``columns``, ``dtype``, ``shape``; see `SourceOptions`.

    Returns
    -------
    Dataset
        The committed dataset, open.

    Raises
    ------
    UsageError
        An argument is wrong, or something is at ``dest``.
    InputError
        The raw data is bad: nothing readable is left at ``dest``.
    BudgetError
        ``memory`` is too small; the message has the smallest that works.
    ResourceError
        The disk is full or cannot be written.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> rows = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10) // 5}
    >>> dataset = ingest(rows, tempfile.mkdtemp() + "/d.zarr", codec="none")
    >>> len(dataset), dataset[3]["x"].tolist(), dataset.label_histogram.counts.tolist()
    (10, [6.0, 7.0], [5, 5])
    """
    request = Request(
        memory=parse_bytes(memory, name="memory"),
        block_bytes=None if block is None else parse_bytes(block, name="block"),
        shard_bytes=parse_bytes(shard, name="shard"),
        codec=parse_codec(codec),
        n_workers=parse_workers(n_workers),
        progress=progress,
        options=source_options(**options),
    )
    path = Path(dest)
    check_destination(path)
    run(open_source(source, labels=labels, options=request.options), path, request)
    return open_dataset(path)


def check_destination(path: Path) -> None:
    """Refuse a destination where something is.

    Raises
    ------
    UsageError
        A dataset, an interrupted ingest, or something else.
    """
    if not os.path.lexists(path):
        return
    if (path / "zarr.json").exists() and (path / "_streamtrain").is_dir():
        raise UsageError("a dataset exists there already", where=str(path), fix="choose another path, or delete it")
    if (path / "_streamtrain").is_dir():
        what = "an ingest that did not finish is there"
        raise UsageError(what, where=str(path), fix="delete it, or choose another path")
    what = "something that is not a dataset exists there; ingest writes only where nothing is"
    raise UsageError(what, where=str(path), fix="choose another path")


def run(source: Source, path: Path, request: Request, *, files: Files | None = None) -> None:
    """Write a source as a dataset; see `ingest`."""
    if isinstance(source, SeekableSource):
        _run(source, None, path, request, files or Files())
    else:
        with closing(RowStream(source, run_bytes(request.memory))) as stream:
            _run(source, stream, path, request, files or Files())


def _run(source: Source, stream: RowStream | None, path: Path, request: Request, files: Files) -> None:
    layout, sizes = _plan(source, stream, request)
    shown = layout.n_bytes if layout.n_samples < UNKNOWN_SAMPLES else None
    with DatasetWriter(path, layout, files=files) as writer:
        with (
            ByteProgress(shown, show=request.progress) as progress,
            # The pool ends before the writer does: no task may write into a directory that is being removed.
            ThreadPoolExecutor(sizes.n_workers, thread_name_prefix="streamtrain-ingest") as pool,
        ):
            if stream is None:
                assert isinstance(source, SeekableSource)
                tallies, n_samples = write_shards(source, writer, sizes, pool=pool, progress=progress), layout.n_samples
            else:
                tallies, n_samples = write_stream(stream, writer, sizes, pool=pool, progress=progress)
        statistics = _checked(source, tallies, n_samples)
        writer.commit(
            n_samples=n_samples,
            classes=source.classes,
            sources=source.provenance,
            options=request.as_json(),
            statistics=statistics,
        )


def _plan(source: Source, stream: RowStream | None, request: Request) -> tuple[Layout, IngestSizes]:
    """Layout, codec and sizes; only headers, and the head of a source that reads in order, have been read."""
    n_samples = source.n_samples
    if stream is not None and n_samples is None and not stream.peek(head_bytes(request.memory)):
        n_samples = stream.n_read
    if n_samples == 0:
        raise InputError("there are no samples", fix="give at least one row")
    layout = plan_layout(
        source.fields, n_samples, block_bytes=request.block_bytes, shard_bytes=request.shard_bytes, codec="none"
    )
    if request.codec != "auto":
        layout = replace(layout, codec=request.codec)
        check_encodable(layout)
        return layout, _solve(layout, source, stream, request)
    # Refused, if at all, before rows are read to try the codecs on: a single one may be larger than the budget.
    sizes = _solve(replace(layout, codec="lz4"), source, stream, request)
    return replace(layout, codec=_choose_codec(source, stream, layout)), sizes


def _solve(layout: Layout, source: Source, stream: RowStream | None, request: Request) -> IngestSizes:
    trial = TRIAL_BYTES if request.codec == "auto" else 0
    sizes, _ = solve_ingest(
        layout,
        memory=request.memory,
        n_workers=request.n_workers,
        seekable=stream is None,
        held_bytes=max(trial, stream.head_bytes if stream else 0),
        chunk_bytes=chunk_bytes_of(source) if stream else 0,
    )
    return sizes


def _choose_codec(source: Source, stream: RowStream | None, layout: Layout) -> Codec:
    n_rows = trial_rows(layout)
    first: list[npt.NDArray[Any]]
    if stream is None:
        assert isinstance(source, SeekableSource)
        rows = source.read(0, n_rows)
        first = [rows[field.name] for field in layout.fields]
    else:
        stream.peek(n_rows * layout.row_bytes)
        first = [stream.first_rows(field.name, n_rows) for field in layout.fields]
    # On a thread of its own: on the main thread blosc may start others.
    with ThreadPoolExecutor(1, thread_name_prefix="streamtrain-ingest") as one:
        return one.submit(choose_codec, first, layout.block_rows).result()


def _checked(source: Source, tallies: Tallies, n_samples: int) -> Mapping[str, FieldStats]:
    """The statistics, if what was read can be trusted and trained on."""
    change = changed(source.provenance)
    if change:
        raise InputError(change, fix="ingest again when nothing writes to it")
    if n_samples == 0:
        raise InputError("there are no samples", fix="give at least one row")
    if source.n_samples is not None and source.n_samples != n_samples:
        raise InputError(f"the source promised {source.n_samples} rows and gave {n_samples}", fix="check the source")
    statistics = {tally.field.name: tally.finish() for tally in tallies}
    for tally in tallies:
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
