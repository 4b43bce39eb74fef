"""The loader's sizes, solved from a memory budget, and their memory as named terms. Pure.

``project`` says what given sizes cost; ``solve`` finds the most lanes, and then the most slots, that a budget allows.
The shuffle parameters (lanes, groups) follow from layout, batch size and the stated budget alone, never from the
machine, so that the same call gives the same order everywhere. The number of threads may follow the machine: the
budget counts the most that may run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from streamtrain.errors import BudgetError
from streamtrain.shuffle.order import ShuffleParameters
from streamtrain.shuffle.read_list import largest_lead
from streamtrain.store.layout import PAGE_BYTES, Layout
from streamtrain.system.arguments import check_lanes
from streamtrain.system.memory import Projection
from streamtrain.system.units import format_bytes

_FEW_THREADS: Final = 2
_MOST_THREADS: Final = 4
_MEMORY_FOR_MOST_THREADS: Final = 128_000_000
_MOST_RESERVE_BYTES: Final = 3 << 20
MOST_LANES: Final = 4096
"""Lanes beyond this mix no better and cost time; what memory is left keeps blocks for the next epoch."""

_INDEX_SAMPLE_BYTES: Final = 264
_RUN_BYTES: Final = 216
_BLOCK_FIELD_BYTES: Final = 20
_THREAD_BYTES: Final = 512 << 10
_DECODER_BYTES: Final = 3 << 20
_DECODER_BLOCKS: Final = 16
"""What blosc takes and frees at each call and the allocator keeps, as measured on blocks of 20 to 512 KB."""
_OBJECTS_BYTES: Final = 1 << 20
_MOST_GROUPS: Final = 8
_LANES_PER_GROUP: Final = 16
_LARGE_PARTS: Final = (8, 16, 32)
_LARGEST_PIECE_BYTES: Final = 16 << 20
_FEWEST_USEFUL_LANES: Final = _MOST_GROUPS * _LANES_PER_GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSizes:
    """How large the loader's parts are.

    Parameters
    ----------
    batch_size : int
        Samples of a batch.
    lanes, groups : int
        Shuffle parameters; ``lanes`` is 1 for the sequential order.
    slots : int
        Blocks the pool holds: those in use and read ahead, and beyond them those kept for the next epoch.
    prefetch : int
        Blocks that may be read ahead of the lanes.
    read_blocks : int
        Blocks one reader task takes, at most.
    span_batches, spans : int
        Batches gathered into one piece of memory, and how many such pieces there are: two of them the consumer's, who
        takes one while it holds the one before.
    index_samples : int
        Samples whose places are worked out at once.
    threads : int
        Reader threads, at most.
    reserve_bytes : int
        Left free for what allocators keep beyond what they are asked for.
    """

    batch_size: int
    lanes: int
    groups: int
    slots: int
    prefetch: int
    read_blocks: int
    span_batches: int
    spans: int
    index_samples: int
    threads: int
    reserve_bytes: int

    @property
    def working_slots(self) -> int:
        """Slots for blocks that are in use or read ahead; the others are a cache."""
        return min(self.slots, self.lanes + self.prefetch)

    def span_samples(self, n_samples: int) -> int:
        """The most samples a span of a dataset of that size holds."""
        return min(n_samples, self.span_batches * self.batch_size)


def project(layout: Layout, sizes: LoaderSizes, *, budget_bytes: int) -> Projection:
    """What the loader owns at these sizes."""
    span_samples = sizes.span_samples(layout.n_samples)
    span_bytes = sum(_pages(span_samples * field.row_bytes) for field in layout.fields)
    largest_bytes = max(field.row_bytes for field in layout.fields) * layout.block_rows
    decoder_bytes = largest_bytes + min(_DECODER_BLOCKS * largest_bytes, _DECODER_BYTES)
    row_index_bytes = 2 if layout.block_rows <= 1 << 16 else 4
    row_orders = 2 * sizes.lanes * layout.block_rows * row_index_bytes if sizes.lanes > 1 else 0
    pool = sum(_pages(sizes.slots * layout.block_rows * field.row_bytes) for field in layout.fields)
    lanes = min(sizes.lanes, sizes.slots) * layout.block_bytes
    cache = (sizes.slots - sizes.working_slots) * layout.block_bytes
    terms = {
        "lanes": lanes,
        "prefetch": pool - lanes - cache,
        "cache": cache,
        "batches": sizes.spans * span_bytes,
        "decoding": 0 if layout.codec == "none" else sizes.threads * decoder_bytes,
        "order": (layout.n_blocks + sizes.lanes) * _RUN_BYTES + row_orders,
        "index work": max(sizes.index_samples, sizes.lanes) * _INDEX_SAMPLE_BYTES,
        "checksums": layout.n_blocks * len(layout.fields) * _BLOCK_FIELD_BYTES,
        "threads": sizes.threads * _THREAD_BYTES + _OBJECTS_BYTES,
        "reserve": sizes.reserve_bytes,
    }
    return Projection(budget_bytes=budget_bytes, terms=terms)


def solve(
    layout: Layout,
    *,
    batch_size: int,
    memory: int,
    shuffle: bool = True,
    lanes: int | None = None,
    groups: int | None = None,
    rho: float | None = None,
) -> tuple[LoaderSizes, Projection]:
    """Find the sizes for a budget of ``memory`` bytes.

    Parameters
    ----------
    layout : Layout
        The dataset's.
    batch_size : int
        Samples of a batch.
    memory : int
        The budget in bytes.
    shuffle : bool
        False for the sequential order, which has one lane.
    lanes, groups : int, optional
        Taken as given; solved for by default.
    rho : float, optional
        The intra-block correlation of the labels; where it is known, lanes that the batches do not need leave their
        memory to the cache.

    Raises
    ------
    BudgetError
        The budget is too small; the message has every term and the smallest budget that would do.
    UsageError
        ``lanes`` is not positive and even.
    """
    check_lanes(lanes)
    least = _least(layout, batch_size, lanes if shuffle else 1)
    if groups is not None:
        least = replace(least, groups=groups)
    needed = project(layout, least, budget_bytes=memory)
    if needed.total_bytes > memory:
        raise BudgetError(
            f"memory is {format_bytes(memory)}, and the smallest that works is {format_bytes(needed.total_bytes)}",
            why=f"The least the loader owns: {needed}",
            fix=f"memory='{needed.total_bytes}B'" + ("" if lanes is None else ", or fewer lanes"),
        )
    comfortable = _comfortable(layout, least, memory)
    larger = [] if shuffle else [_in_pieces(layout, comfortable, memory // parts) for parts in _LARGE_PARTS]
    start = next((sizes for sizes in (*larger, comfortable) if _fits(layout, sizes, memory)), least)
    sizes = start if lanes or not shuffle else _most_lanes(layout, start, memory, rho)
    sizes = _most_slots(layout, sizes, memory)
    return sizes, project(layout, sizes, budget_bytes=memory)


def _least(layout: Layout, batch_size: int, lanes: int | None) -> LoaderSizes:
    sizes = LoaderSizes(
        batch_size=batch_size,
        lanes=lanes or 2,
        groups=_groups_dividing(batch_size, lanes) if lanes and lanes > 1 else 1,
        slots=0,
        prefetch=0,
        read_blocks=1,
        span_batches=1,
        spans=3,
        index_samples=4096,
        threads=_FEW_THREADS,
        reserve_bytes=0,
    )
    return _with_slots(layout, sizes)


def _comfortable(layout: Layout, least: LoaderSizes, memory: int) -> LoaderSizes:
    """Sizes at which work goes in large pieces, about a quarter of the budget in all beside the pool."""
    batch_bytes = least.batch_size * layout.row_bytes
    sizes = replace(
        least,
        read_blocks=min(16, max(1, memory // 64 // layout.block_bytes)),
        span_batches=max(1, min(8 << 20, memory // 24) // batch_bytes),
        spans=5,
        index_samples=max(4096, min(65_536, memory // 16 // _INDEX_SAMPLE_BYTES)),
        threads=_MOST_THREADS if memory >= _MEMORY_FOR_MOST_THREADS else _FEW_THREADS,
        reserve_bytes=min(_MOST_RESERVE_BYTES, memory // 6),
    )
    return _with_slots(layout, sizes)


def _in_pieces(layout: Layout, sizes: LoaderSizes, piece_bytes: int) -> LoaderSizes:
    """Sizes for the sequential order, whose memory no other lane has a use for: each job costs a thread some waking."""
    piece_bytes = min(_LARGEST_PIECE_BYTES, piece_bytes)
    larger = replace(
        sizes,
        read_blocks=min(256, max(sizes.read_blocks, piece_bytes // layout.block_bytes)),
        span_batches=max(sizes.span_batches, piece_bytes // 2 // (sizes.batch_size * layout.row_bytes)),
    )
    return _with_slots(layout, larger)


def _with_slots(layout: Layout, sizes: LoaderSizes) -> LoaderSizes:
    """With the slots these lanes need: their own, those that even demand cannot do without, those being filled."""
    prefetch = math.isqrt(sizes.lanes) + sizes.threads * sizes.read_blocks
    return replace(sizes, prefetch=prefetch, slots=min(layout.n_blocks, sizes.lanes + prefetch))


def _fits(layout: Layout, sizes: LoaderSizes, memory: int) -> bool:
    return project(layout, sizes, budget_bytes=memory).total_bytes <= memory


def _most_lanes(layout: Layout, start: LoaderSizes, memory: int, rho: float | None) -> LoaderSizes:
    """The most lanes that fit and that are of use, then fewer where that spreads the lanes' phases."""

    def at(lanes: int) -> LoaderSizes:
        return _with_slots(layout, replace(start, lanes=lanes, groups=_groups_dividing(start.batch_size, lanes)))

    most = max(1, min(MOST_LANES, layout.n_blocks // 2, _useful_lanes(layout, start.batch_size, rho)) // 2)
    low, high = 1, most
    while low < high:
        middle = -(-(low + high) // 2)
        low, high = (middle, high) if _fits(layout, at(2 * middle), memory) else (low, middle - 1)
    return at(_spread_lanes(layout, start.batch_size, 2 * low))


def _useful_lanes(layout: Layout, batch_size: int, rho: float | None) -> int:
    """Lanes beyond this give way to a cache: a tenth of the blocks, or all that the batches' variance asks for.

    A batch drawn from 10·b·ρ blocks varies as one of a full reshuffle does even if nothing were stratified.
    """
    if rho is None:
        return layout.n_blocks
    return max(_FEWEST_USEFUL_LANES, layout.n_blocks // 10, math.ceil(10 * batch_size * max(0.0, rho)))


def _spread_lanes(layout: Layout, batch_size: int, asked: int) -> int:
    """The lanes, at most 10 % below what was asked, that move on to their next blocks most evenly.

    The largest number whose largest lead is at most its root is taken, else that of the least lead.
    """
    step = 2 * _groups(batch_size, asked)
    largest = max(2, asked // step * step)
    leads: dict[int, int] = {}
    for lanes in range(largest, max(1, math.ceil(0.9 * asked) - 1), -step):
        shuffle = ShuffleParameters(
            n_samples=layout.n_samples, block_rows=layout.block_rows, lanes=lanes, groups=step // 2
        )
        leads[lanes] = largest_lead(shuffle)
        if leads[lanes] <= math.isqrt(lanes):
            return lanes
    return min(leads, key=lambda lanes: leads[lanes], default=largest)


def _groups(batch_size: int, lanes: int) -> int:
    """The largest power of two up to 8 that divides the batch and leaves each group enough lanes."""
    groups = _MOST_GROUPS
    while groups > 1 and (batch_size % groups or lanes < _LANES_PER_GROUP * groups):
        groups //= 2
    return groups


def _groups_dividing(batch_size: int, lanes: int) -> int:
    groups = _groups(batch_size, lanes)
    while lanes % (2 * groups):
        groups //= 2
    return groups


def _most_slots(layout: Layout, sizes: LoaderSizes, memory: int) -> LoaderSizes:
    spare = memory - project(layout, sizes, budget_bytes=memory).total_bytes
    more = max(0, spare - len(layout.fields) * PAGE_BYTES) // layout.block_bytes
    return replace(sizes, slots=min(layout.n_blocks, sizes.slots + more))


def _pages(n_bytes: int) -> int:
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES
