"""What an ingest owns, as a sum of named terms, and the workers that a budget allows. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from streamtrain.errors import BudgetError
from streamtrain.ingest.parts import part_rows
from streamtrain.store.layout import UNKNOWN_SAMPLES, Layout
from streamtrain.store.statistics import tally_bytes, work_bytes
from streamtrain.store.writing.writer import FLUSHERS
from streamtrain.system.memory import Projection
from streamtrain.system.units import format_bytes

MOST_WORKERS: Final = 16
_WAVES: Final = (8, 4, 2, 1)  # parts or shards a worker gets at a time
_HEAD_BYTES: Final = 256 * 10**6
_RUN_BYTES: Final = (2**18, 2**24)
_PROCESS_BYTES: Final = 6 * 10**6
_THREAD_BYTES: Final = 10**6
_ROUND_BYTES: Final = 10**5
_FILE_BYTES: Final = 500
_ASSUMED_BLOCKS: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSizes:
    """How much an ingest does at once.

    Parameters
    ----------
    n_workers : int
        Threads that read, encode and write.
    n_wave : int
        Tasks handed out together: shards, or parts of a source that reads in order only.
    """

    n_workers: int
    n_wave: int


def head_bytes(memory: int) -> int:
    """How much of a source of unknown length is held to learn whether it is short.

    Examples
    --------
    >>> head_bytes(100_000_000), head_bytes(10**12)
    (25000000, 256000000)
    """
    return min(memory // 4, _HEAD_BYTES)


def run_bytes(memory: int) -> int:
    """The most that a source which reads in order only is asked for at once.

    Examples
    --------
    >>> run_bytes(64 * 2**20), run_bytes(2**40)
    (2097152, 16777216)
    """
    least, most = _RUN_BYTES
    return min(max(least, memory // 32), most)


def project_ingest(
    layout: Layout, sizes: IngestSizes, *, seekable: bool, held_bytes: int, budget_bytes: int, chunk_bytes: int = 0
) -> Projection:
    """What an ingest owns at these sizes.

    Parameters
    ----------
    layout : Layout
        The plan.
    sizes : IngestSizes
        How much happens at once.
    seekable : bool
        Whether workers read their own rows.
    held_bytes : int
        The rows held before the plan was made.
    budget_bytes : int
        What the user allows.
    chunk_bytes : int
        What the source makes at once, however little it is asked for.
    """
    rows = part_rows(layout)
    part = rows * layout.row_bytes
    shard_rows = layout.block_rows * layout.shard_blocks
    n_blocks = layout.n_blocks if layout.n_samples < UNKNOWN_SAMPLES else _ASSUMED_BLOCKS
    n_fields, workers, wave = len(layout.fields), sizes.n_workers, sizes.n_wave
    part_tally = sum(tally_bytes(field, rows) for field in layout.fields)
    shard_tally = sum(tally_bytes(field, shard_rows) for field in layout.fields)
    row_bytes = max(field.row_bytes for field in layout.fields)
    run = max(run_bytes(budget_bytes), layout.row_bytes, chunk_bytes)
    n_parts = workers if seekable else wave
    encoded = n_parts * part if layout.codec != "none" else workers * min(part, row_bytes * layout.block_rows)
    # While rows come in: a tally per part and per shard at work or waiting. At the end: the figures made of them.
    working = n_parts * part_tally + workers * max(work_bytes(field, rows) for field in layout.fields)
    working += (workers + wave if seekable else 1) * shard_tally
    terms = {
        "rows": (2 * workers if seekable else 2 * wave) * part,
        "source": 0 if seekable else 3 * run,
        "head": held_bytes,
        "encoded blocks": encoded,
        "statistics": shard_tally + max(working, 3 * shard_tally),
        "tables": n_blocks * n_fields * 12
        + (workers if seekable else 1) * n_fields * layout.shard_blocks * 48
        + -(-n_blocks // layout.shard_blocks) * n_fields * _FILE_BYTES,
        "threads": _PROCESS_BYTES + (workers + FLUSHERS) * _THREAD_BYTES,
    }
    return Projection(budget_bytes=budget_bytes, terms={name: n_bytes for name, n_bytes in terms.items() if n_bytes})


def solve_ingest(
    layout: Layout, *, memory: int, n_workers: int, seekable: bool, held_bytes: int, chunk_bytes: int = 0
) -> tuple[IngestSizes, Projection]:
    """Find the most workers, and the longest wave for them, that a budget allows.

    Parameters
    ----------
    memory : int
        The budget in bytes.
    n_workers : int
        The most workers.
    chunk_bytes : int
        What the source makes at once, however little it is asked for.

    Raises
    ------
    BudgetError
        Not even one worker fits; the message has every term and the smallest budget that would do.
    """
    project = partial(project_ingest, layout, seekable=seekable, chunk_bytes=chunk_bytes)
    for workers in range(n_workers, 0, -1):
        for wave in _WAVES:
            sizes = IngestSizes(n_workers=workers, n_wave=wave * workers)
            projection = project(sizes, held_bytes=held_bytes, budget_bytes=memory)
            if projection.total_bytes <= memory:
                return sizes, projection
    least = _smallest_budget(project, projection, held_bytes if layout.n_samples < UNKNOWN_SAMPLES else None)
    chunks = f", chunks of at most {max(1, run_bytes(memory) // layout.row_bytes):,} rows" if chunk_bytes else ""
    raise BudgetError(
        f"memory is {format_bytes(memory)}, and the smallest that works is {format_bytes(least)}",
        why=f"The least an ingest of this data owns: {projection}",
        fix=f"memory='{least / 10**6:.1f}MB'{chunks}, or a smaller block",
    )


def _smallest_budget(project: Callable[..., Projection], projection: Projection, held_bytes: int | None) -> int:
    """The budget at which one worker fits; what grows with the budget itself is projected until it does not."""
    sizes = IngestSizes(n_workers=1, n_wave=1)
    while projection.total_bytes > projection.budget_bytes:
        least = math.ceil(projection.total_bytes / _ROUND_BYTES) * _ROUND_BYTES
        held = head_bytes(least) if held_bytes is None else held_bytes
        projection = project(sizes, held_bytes=held, budget_bytes=least)
    return projection.budget_bytes
