"""The plan of an ingest, from headers and first rows alone: layout, codec, what happens at once, room on the disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamtrain.errors import InputError, ResourceError
from streamtrain.ingest.append import Appended, appended_layout
from streamtrain.ingest.memory import IngestSizes, head_bytes, solve_ingest
from streamtrain.ingest.request import Request
from streamtrain.ingest.stream import RowStream
from streamtrain.ingestion.sources.base import SeekableSource, Source, chunk_bytes_of
from streamtrain.store.codec import TRIAL_BYTES, check_encodable, choose_codec, trial_rows
from streamtrain.store.layout import CHECKSUM_BYTES, UNKNOWN_SAMPLES, Codec, Layout, plan_layout
from streamtrain.store.shard import index_bytes
from streamtrain.system.files import Files
from streamtrain.system.units import format_bytes


def plan(source: Source, stream: RowStream | None, request: Request) -> tuple[Layout, IngestSizes]:
    """Layout, codec and sizes; only headers, and the head of a source that reads in order, have been read."""
    if isinstance(source, Appended):
        layout = appended_layout(source)
        return layout, solve(layout, source, stream, request)
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
        return layout, solve(layout, source, stream, request)
    # Refused, if at all, before rows are read to try the codecs on: a single one may be larger than the budget.
    sizes = solve(replace(layout, codec="lz4"), source, stream, request)
    return replace(layout, codec=_choose_codec(source, stream, layout)), sizes


def solve(layout: Layout, source: Source, stream: RowStream | None, request: Request) -> IngestSizes:
    """What happens at once, in the memory that was asked for; see `solve_ingest`."""
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


def check_room(folder: Path, layout: Layout, files: Files, *, n_kept: int = 0) -> None:
    """Refuse an ingest that the disk has no room for, where that can be told: uncompressed, of a known length.

    Parameters
    ----------
    n_kept : int
        Shards that are there already.

    Raises
    ------
    ResourceError
        There are too few bytes free, or too few files.
    """
    if layout.n_samples >= UNKNOWN_SAMPLES:
        return
    n_shards = layout.n_shards - n_kept
    free_bytes, free_files = files.system.free(folder)
    if free_files is not None and n_shards * len(layout.fields) > free_files:
        what = f"{n_shards * len(layout.fields):,} files are needed, and the file system has room for {free_files:,}"
        raise ResourceError(what, where=str(folder), fix="a larger shard, or another disk")
    n_blocks = layout.n_blocks - n_kept * layout.shard_blocks
    block_bytes = sum(layout.block_rows * field.row_bytes + CHECKSUM_BYTES for field in layout.fields)
    n_bytes = n_blocks * block_bytes + n_shards * len(layout.fields) * index_bytes(layout.shard_blocks)
    if layout.codec == "none" and n_bytes > free_bytes:
        raise ResourceError(
            f"{format_bytes(n_bytes)} are needed, and {format_bytes(free_bytes)} are free",
            where=str(folder),
            fix="free some space, choose a codec that compresses, or another disk",
        )
