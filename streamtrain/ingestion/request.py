"""The request for an ingest, parsed and checked, and its plan: memory, workers, codec and layout.

The plan follows from headers and first rows alone, before anything is written. Memory is a sum of named terms, solved
for the workers that a budget allows.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from streamtrain.errors import (
    Argument,
    BudgetError,
    Fix,
    InputError,
    ResourceError,
    StreamtrainWarning,
    UsageError,
    unknown_name,
)
from streamtrain.ingestion.append import AppendedSource, appended_layout, check_free_bytes
from streamtrain.ingestion.row_stream import RowStream, part_rows
from streamtrain.ingestion.sources.base import (
    MOST_PIECE_BYTES,
    NO_READING,
    ImageOptions,
    ReadingMemory,
    Source,
    SourceOptions,
    TableOptions,
)
from streamtrain.ingestion.sources.combine import Classes
from streamtrain.ingestion.sources.images.image_check import image_options
from streamtrain.ingestion.sources.tables.column_survey import class_bytes
from streamtrain.ingestion.sources.tables.table_options import table_options
from streamtrain.store.codec import TRIAL_BYTES, CodecChoice, check_encodable, choose_codec, parse_codec, trial_rows
from streamtrain.store.layout import (
    CHECKSUM_BYTES,
    ENCODED_CODEC,
    UNKNOWN_SAMPLES,
    Codec,
    Field,
    Layout,
    plan_layout,
    with_capacity,
)
from streamtrain.store.manifest import AUTO
from streamtrain.store.media.encoded import largest_block
from streamtrain.store.schema.task import TaskName, check_task
from streamtrain.store.shard import index_bytes
from streamtrain.store.statistics import MOST_VALUES, finish_bytes, is_wide, tally_bytes, work_bytes
from streamtrain.store.writing.writer import FLUSHERS
from streamtrain.system.arguments import check_names, is_int
from streamtrain.system.calls.argument_names import unknown_argument
from streamtrain.system.calls.public import name_of
from streamtrain.system.display.progress_bar import parse_progress
from streamtrain.system.files import Files
from streamtrain.system.memory import Projection, is_in_memory, memory_limit, n_cores
from streamtrain.system.units import format_bytes, memory_too_small, parse_bytes

MOST_WORKERS: Final = 16
_WAVES: Final = (8, 4, 2, 1)  # parts or shards a worker gets at a time
_HEAD_BYTES: Final = 256 * 10**6
_RUN_BYTES: Final = (2**18, 2**24)
_PROCESS_BYTES: Final = 3 * 10**6
_THREAD_BYTES: Final = 6 * 10**5
_ROUND_BYTES: Final = 10**5
_FILE_BYTES: Final = 500
_ASSUMED_BLOCKS: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSizes:
    """How much an ingest does at once."""

    n_workers: int
    n_wave: int  # tasks handed out together: shards, or parts of a source that reads in order only
    run_bytes: int = 0  # what a source that reads in order is asked for at once


def head_bytes(memory: int) -> int:
    """Limit what is held of a source of unknown length, to learn whether it is short."""
    return min(memory // 4, _HEAD_BYTES)


def run_bytes(memory: int) -> int:
    """Limit what a source that reads in order is asked for at once."""
    least, most = _RUN_BYTES
    return min(max(least, memory // 32), most)


def _runs_of_groups(memory: int, group_bytes: int) -> list[int]:
    """List how much may be asked for at once, the most first: rows stored in groups are decoded anew for every run."""
    usual = run_bytes(memory)
    larger = {min(group_bytes, memory // parts) for parts in (4, 8, 16)}
    smaller = {_RUN_BYTES[0]} if group_bytes else set()
    return sorted({usual, *(n_bytes for n_bytes in larger if n_bytes > usual), *smaller}, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMemory:
    """What an ingest's source holds besides rows as they are asked for."""

    chunk_bytes: int = 0
    reading: ReadingMemory = NO_READING
    class_bytes: int = 0


def project_ingest(
    layout: Layout,
    sizes: IngestSizes,
    *,
    seekable: bool,
    held_bytes: int,
    budget_bytes: int,
    source: SourceMemory = SourceMemory(),
) -> Projection:
    """Project the memory of an ingest of these sizes, as named terms."""
    rows = part_rows(layout)
    part = rows * layout.row_bytes
    shard_rows = layout.block_rows * layout.shard_blocks
    n_blocks = layout.n_blocks if layout.n_samples < UNKNOWN_SAMPLES else _ASSUMED_BLOCKS
    n_fields, workers, wave = len(layout.fields), sizes.n_workers, sizes.n_wave
    wide, narrow = ([field for field in layout.fields if is_wide(field) is one] for one in (True, False))
    part_tally = sum(tally_bytes(field, rows) for field in narrow)
    shard_tally = sum(tally_bytes(field, shard_rows) for field in layout.fields)
    row_bytes = max(field.row_bytes for field in layout.fields)
    n_parts = workers if seekable else wave
    encoded = n_parts * part if layout.is_compressed else workers * min(part, row_bytes * layout.block_rows)
    # While rows come in: a tally per part, unless samples are wide, and per shard, at work or waiting; then figures.
    working = n_parts * part_tally + workers * max((work_bytes(field, rows) for field in narrow), default=0)
    working += (workers if seekable else 1) * max((work_bytes(field, rows) for field in wide), default=0)
    working += (wave if seekable else 1) * shard_tally
    in_rows = (2 * workers if seekable else 2 * wave) * part
    run = max(sizes.run_bytes or run_bytes(budget_bytes), layout.row_bytes, source.chunk_bytes)
    terms = {
        "rows": in_rows,
        # What is taken from the head comes to be among the rows.
        "head": held_bytes if seekable else max(min(held_bytes, run, MOST_PIECE_BYTES), held_bytes - in_rows),
        "encoded blocks": encoded,
        "statistics": shard_tally + max(working, finish_bytes(layout.fields, shard_rows)),
        "tables": n_blocks * n_fields * 12
        + (workers if seekable else 1) * n_fields * layout.shard_blocks * 48
        + -(-n_blocks // layout.shard_blocks) * n_fields * _FILE_BYTES,
        "threads": _PROCESS_BYTES + (workers + FLUSHERS) * _THREAD_BYTES,
    }
    if not seekable:
        terms["source"] = _source_bytes(run, source.reading, sum(terms.values()))
    terms |= {"columns": source.reading.lasting_bytes, "classes": source.class_bytes}
    return Projection(budget_bytes=budget_bytes, terms={name: n_bytes for name, n_bytes in terms.items() if n_bytes})


def _source_bytes(run: int, reading: ReadingMemory, afterwards: int) -> int:
    """Project what a source holds that is asked for ``run`` bytes at once; ``afterwards`` is what its rows become."""
    if not reading.group_bytes:
        return 3 * run + reading.working_bytes
    if reading.is_one_group and run >= reading.group_bytes:
        return run + max(0, reading.working_bytes - afterwards)
    return run + reading.working_bytes


def solve_ingest(
    layout: Layout,
    *,
    memory: int,
    n_workers: int,
    seekable: bool,
    held_bytes: int,
    source: SourceMemory = SourceMemory(),
) -> tuple[IngestSizes, Projection]:
    """Find the most workers, and the longest wave for them, that a budget allows."""
    project = partial(project_ingest, layout, seekable=seekable, source=source)
    runs = _runs_of_groups(memory, source.reading.group_bytes)
    for run, workers, wave in product(runs, range(n_workers, 0, -1), _WAVES):
        sizes = IngestSizes(n_workers=workers, n_wave=wave * workers, run_bytes=run)
        projection = project(sizes, held_bytes=held_bytes, budget_bytes=memory)
        if projection.total_bytes <= memory:
            return sizes, projection
    held = held_bytes if layout.n_samples < UNKNOWN_SAMPLES else None
    least = _smallest_budget(project, projection, held, source.reading.group_bytes)
    chunks = f", chunks of at most {max(1, run_bytes(memory) // layout.row_bytes):,} rows" if source.chunk_bytes else ""
    raise BudgetError(
        memory_too_small(memory, least),
        why=f"The least an ingest of this data owns: {projection}",
        fix=Fix(Argument("memory", f"{least / 10**6:.1f}MB"), chunks, *_smaller_block(layout)),
    )


def _smaller_block(layout: Layout) -> tuple[str | Argument, ...]:
    """Name a smaller block where a part of the rows is one, and not several small ones."""
    is_large = layout.block_rows > 1 and part_rows(layout) == layout.block_rows
    return (", or a smaller ", Argument("block")) if is_large else ()


def _smallest_budget(
    project: Callable[..., Projection], projection: Projection, held_bytes: int | None, group_bytes: int
) -> int:
    """Find the budget for one worker; project again what grows with the budget itself."""
    while projection.total_bytes > projection.budget_bytes:
        least = math.ceil(projection.total_bytes / _ROUND_BYTES) * _ROUND_BYTES
        held = head_bytes(least) if held_bytes is None else held_bytes
        run = _runs_of_groups(least, group_bytes)[-1]
        sizes = IngestSizes(n_workers=1, n_wave=1, run_bytes=run)
        projection = project(sizes, held_bytes=held, budget_bytes=least)
    return projection.budget_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestRequest:
    """The arguments of an ingest, parsed."""

    memory: int
    block_bytes: int | None
    shard_bytes: int
    codec: CodecChoice
    n_workers: int
    progress: bool | None
    options: SourceOptions
    classes: Classes | Literal["auto"] | None = None
    task: TaskName | None = None
    like: str | None = None  # the id of the dataset in whose terms the rows are read

    def as_json(self) -> dict[str, Any]:
        """Return what shapes the dataset, for its manifest; budget and workers do not."""
        options = {
            field.name: getattr(self.options, field.name)
            for field in fields(SourceOptions)
            if field.name not in ("table", "images")
        }
        options |= self.options.table.given() | self.options.images.given()
        given = {name: value.name if isinstance(value, np.dtype) else value for name, value in options.items()}
        given |= {"classes": self.classes, "task": self.task, "like": self.like}
        return {
            "block": self.block_bytes,
            "shard": self.shard_bytes,
            "codec": self.codec,
            **{name: value for name, value in given.items() if value is not None},
        }


DECODINGS: Final = ("cf", "raw")
_NOT_GIVEN: Final = ("classes", "memory", "n_workers", "scratch", "learn_from", "table", "images")
"""Options of sources that are made of other arguments."""


def check_option_names(options: Mapping[str, object], function: Callable[..., object]) -> None:
    """Refuse an option of reading that there is not, naming the nearest of those and of a function's own arguments."""
    own = [name for name, each in inspect.signature(function).parameters.items() if each.kind is not each.VAR_KEYWORD]
    known = [*(each.name for each in fields(SourceOptions) if each.name not in _NOT_GIVEN), *own]
    known += [each.name for each in (*fields(TableOptions), *fields(ImageOptions))]
    for name in options:
        if name not in known:
            raise unknown_argument(name, known, name_of(function), options[name])


def source_options(**options: object) -> SourceOptions:
    """Make `SourceOptions` from what a user gives; a dtype may be text, columns and shape any sequence."""
    check_option_names(options, source_options)
    of_tables = [field.name for field in fields(TableOptions)]
    parsed: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        if "dtype" in parsed:
            parsed["dtype"] = np.dtype(parsed["dtype"])
        if "shape" in parsed:
            shape = parsed["shape"]
            parsed["shape"] = tuple(int(n) for n in (shape if isinstance(shape, Sequence) else (shape,)))
        if "columns" in parsed:
            columns = parsed["columns"]
            check_names(columns=columns)
            parsed["columns"] = (columns,) if isinstance(columns, str) else tuple(columns)
    except (TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise UsageError(f"an option is not of its kind: {error}", fix=_OF_RAW) from None
    if "decode" in parsed and parsed["decode"] not in DECODINGS:
        raise unknown_name("decode", str(parsed["decode"]), DECODINGS)
    if "sample_axis" in parsed and not is_int(parsed["sample_axis"], 0):
        what = f"sample_axis is {parsed['sample_axis']!r:.80}; it is the number of an axis, counted from 0"
        raise UsageError(what, fix=Fix(Argument("sample_axis", 0)))
    if "fields" in parsed:
        parsed["fields"] = _parse_fields(parsed["fields"])
    table = table_options({name: parsed.pop(name) for name in of_tables if name in parsed})
    of_images = [field.name for field in fields(ImageOptions)]
    images = image_options({name: parsed.pop(name) for name in of_images if name in parsed})
    if isinstance(parsed.get("label_column"), list | tuple):
        labels = tuple(parsed["label_column"])
        check_names(label_column=labels)
        parsed["label_column"] = labels[0] if len(labels) == 1 else labels
    return SourceOptions(**parsed, table=table, images=images)


_MOST_THREADS: Final = 1024
_OF_RAW: Final = Fix(Argument("dtype", "float32"), " and ", Argument("shape", (28, 28)), ", say")


def _parse_fields(chosen: object) -> dict[str, str]:
    if isinstance(chosen, Mapping):  # places in a sample are names as well
        chosen = {name: str(value) if is_int(value, 0) else value for name, value in chosen.items()}
    if not isinstance(chosen, Mapping) or not all(isinstance(word, str) for pair in chosen.items() for word in pair):
        fix = Fix(Argument("fields", {"x": "images", "y": "labels"}), ", say")
        raise UsageError(f"fields is {chosen!r}; it maps each field to what it is made of", fix=fix)
    if not chosen:
        raise UsageError("fields names none", fix="leave it out, for every field under its own name")
    return dict(chosen)


def parse_classes(classes: int | Sequence[str] | None) -> Classes | Literal["auto"] | None:
    """Check a number of classes, or their names; with ``"auto"`` they are the values of the labels."""
    fix = Fix(Argument("classes", 10), ", or ", Argument("classes", ["cat", "dog"]), ", say")
    if classes is None:
        return None
    if isinstance(classes, str) and classes == AUTO:
        return AUTO
    if is_int(classes):
        return _counted(classes, classes, fix)
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) and name for name in classes):
        raise UsageError(f"classes is {classes!r}; it is their number, or a list of their names", fix=fix)
    if len(set(classes)) < len(classes):
        raise UsageError("two classes have the same name", fix=fix)
    return _counted(tuple(classes), len(classes), fix)


def _counted(classes: Classes, n_classes: int, fix: str) -> Classes:
    if not 1 <= n_classes <= MOST_VALUES:
        raise UsageError(f"classes are {n_classes:,}; they can be 1 to {MOST_VALUES:,}", fix=fix)
    return classes


def parse_workers(n_workers: int | None) -> int:
    """Check a number of workers; by default one per core this process may use, up to 16."""
    if n_workers is None:
        return min(n_cores(), MOST_WORKERS)
    if not is_int(n_workers, 1, _MOST_THREADS):
        raise UsageError(f"n_workers is {n_workers!r:.80}; it must be a positive integer, at most {_MOST_THREADS}")
    return n_workers


def parse_request(
    *,
    memory: int | str = "1GB",
    block: int | str | None = None,
    shard: int | str = "64MB",
    codec: str = "auto",
    n_workers: int | None = None,
    progress: bool | None = None,
    classes: int | Sequence[str] | None = None,
    task: str | None = None,
    **options: object,
) -> IngestRequest:
    """Check the arguments of an ingest; the options are those of reading."""
    return IngestRequest(
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


def plan_ingest(source: Source, stream: RowStream | None, request: IngestRequest) -> tuple[Layout, IngestSizes]:
    """Choose layout, codec and sizes from headers, and from the head of a source that reads in order."""
    if isinstance(source, AppendedSource):
        layout = appended_layout(source)
        return layout, sizes_for_request(layout, source, stream, request)
    n_samples = source.n_samples
    if stream is not None and n_samples is None and not stream.peek(head_bytes(request.memory)):
        n_samples = stream.n_read
    if n_samples == 0:
        raise InputError("there are no samples", fix="give at least one row")
    layout = plan_layout(
        source.fields,
        n_samples,
        block_bytes=request.block_bytes,
        shard_bytes=request.shard_bytes,
        codec="none",
        capacity=partial(_checked_capacity, source),
    )
    if layout.encoded_fields and request.codec == "auto":
        # What else there is of an image is small.
        request = replace(request, codec=ENCODED_CODEC)
    if request.codec != "auto":
        layout = replace(layout, codec=request.codec)
        check_encodable(layout)
        return layout, sizes_for_request(layout, source, stream, request)
    # Refused, if at all, before rows are read to try the codecs on: a single one may be larger than the budget.
    sizes = sizes_for_request(replace(layout, codec="lz4"), source, stream, request)
    return replace(layout, codec=_choose_codec(source, stream, layout)), sizes


def capacity_of(source: Source, field: Field, block_rows: int) -> int:
    """Return the bytes of the largest block of an encoded field."""
    return largest_block(source.lengths[field.name], block_rows)


_MOST_UNEVEN: Final = 4
_ALWAYS_TAKEN: Final = 2**20


def _checked_capacity(source: Source, field: Field, block_rows: int) -> int:
    """Return it where it is not far above what a block has on average: a loader has room for the largest everywhere."""
    lengths = source.lengths[field.name]
    capacity = capacity_of(source, field, block_rows)
    mean = int(lengths.sum(dtype=np.int64)) * block_rows // len(lengths)
    if capacity > max(_MOST_UNEVEN * mean, _ALWAYS_TAKEN):
        largest = int(lengths.argmax())
        raise InputError(
            f"the largest block would have {format_bytes(capacity)}, and blocks have {format_bytes(mean)} on average",
            where=source.where(largest),
            why=f"This is the largest image, of {format_bytes(int(lengths[largest]))}. A loader would have room for "
            "the largest block everywhere",
            fix=Fix(Argument("max_side", _MAX_SIDE), " makes large images smaller; or leave this one out"),
        )
    return capacity


_MAX_SIDE: Final = 512


def layout_to_resume(layout: Layout, source: Source) -> Layout:
    """Give the layout of an interrupted ingest the fields of its source, with the blocks that these need."""
    block_rows, n_samples = layout.block_rows, UNKNOWN_SAMPLES if source.n_samples is None else source.n_samples
    if isinstance(source, AppendedSource):
        return replace(layout, fields=source.fields, n_samples=appended_layout(source).n_samples)
    fields = tuple(with_capacity(field, block_rows, partial(capacity_of, source)) for field in source.fields)
    return replace(layout, fields=fields, n_samples=n_samples)


def sizes_for_request(layout: Layout, source: Source, stream: RowStream | None, request: IngestRequest) -> IngestSizes:
    """Solve the sizes for the memory of a request, and have the stream keep to them."""
    trial = TRIAL_BYTES if request.codec == "auto" else 0
    sizes, _ = solve_ingest(
        layout,
        memory=request.memory,
        n_workers=request.n_workers,
        seekable=stream is None,
        held_bytes=max(trial, stream.head_bytes if stream else 0),
        source=SourceMemory(
            chunk_bytes=source.chunk_bytes if stream else 0,
            reading=source.reading,
            class_bytes=class_bytes(source.classes or ()),
        ),
    )
    if stream is not None:
        stream.ask_for(sizes.run_bytes)
    return sizes


def _choose_codec(source: Source, stream: RowStream | None, layout: Layout) -> Codec:
    n_rows = trial_rows(layout)
    first: list[npt.NDArray[Any]]
    if stream is None:
        rows = source.read(0, n_rows)
        first = [rows[field.name] for field in layout.fields]
    else:
        stream.peek(n_rows * layout.row_bytes)
        first = [stream.first_rows(field.name, n_rows) for field in layout.fields]
    # On a thread of its own: on the main thread blosc may start others.
    with ThreadPoolExecutor(1, thread_name_prefix="streamtrain-ingest") as one:
        return one.submit(choose_codec, first, layout.block_rows).result()


def warning_of_memory(folder: Path, layout: Layout) -> StreamtrainWarning | None:
    """Warn of a dataset that takes more than half of the memory, in a folder that lies there."""
    free_bytes = memory_limit().free_bytes
    if layout.n_samples >= UNKNOWN_SAMPLES or 2 * layout.n_bytes <= free_bytes or not is_in_memory(folder):
        return None
    size, free = format_bytes(layout.n_bytes), format_bytes(free_bytes)
    what = f"{folder} lies in memory (tmpfs), and the dataset takes up to {size} of the {free} that are free"
    return StreamtrainWarning(what, fix="a folder on a disk")


def check_disk_space(folder: Path, layout: Layout, files: Files, *, n_kept: int = 0) -> None:
    """Refuse an ingest that the disk has no room for, if it is uncompressed and of a known length."""
    if layout.n_samples >= UNKNOWN_SAMPLES:
        return
    n_shards = layout.n_shards - n_kept
    _, free_files = files.system.free(folder)
    if free_files is not None and n_shards * len(layout.fields) > free_files:
        what = f"{n_shards * len(layout.fields):,} files are needed, and the file system has room for {free_files:,}"
        raise ResourceError(what, where=str(folder), fix="a larger shard, or another disk")
    n_blocks = layout.n_blocks - n_kept * layout.shard_blocks
    block_bytes = sum(layout.block_rows * field.row_bytes + CHECKSUM_BYTES for field in layout.fields)
    n_bytes = n_blocks * block_bytes + n_shards * len(layout.fields) * index_bytes(layout.shard_blocks)
    if layout.codec == "none":
        fix = "free some space, choose a codec that compresses, or another disk"
        check_free_bytes(folder, n_bytes, files, fix)
