"""The loader's sizes, solved from a memory budget, and their memory as named terms. Pure.

``project`` says what given sizes cost; ``solve`` finds the most lanes, and then the most slots, that a budget allows.
The shuffle parameters (lanes, groups) follow from layout, batch size and the stated budget alone, never from the
machine, so that the same call gives the same order everywhere. The number of threads may follow the machine: the
budget counts the most that may run. Where pages are larger than 4 KiB, what mappings take more comes out of the reserve
and of what is read ahead or kept, never out of the lanes.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from streamtrain.errors import Argument, BudgetError, Fix
from streamtrain.shuffle.expected_reads import expected_reads
from streamtrain.shuffle.order import ShuffleParameters
from streamtrain.store.layout import PAGE_BYTES, Layout
from streamtrain.system.arguments import check_int
from streamtrain.system.memory import Projection
from streamtrain.system.units import memory_too_small

_FEW_THREADS: Final = 2
_MOST_THREADS: Final = 4
_MEMORY_FOR_MOST_THREADS: Final = 128_000_000
_MOST_RESERVE_BYTES: Final = 3 << 20
MOST_LANES: Final = 4096
"""More lanes mix no better and cost time; memory that is left keeps blocks until they are needed again."""

_INDEX_SAMPLE_BYTES: Final = 264
_VISIT_BYTES: Final = 212
_BLOCK_FIELD_BYTES: Final = 20
_BLOCK_BYTES: Final = 24
_THREAD_BYTES: Final = 512 << 10
_DECODER_BYTES: Final = 3 << 20
_DECODER_BLOCKS: Final = 16
"""Memory that blosc takes and frees at each call and the allocator keeps, measured on blocks of 20 to 512 KB."""
_OBJECTS_BYTES: Final = 1 << 20
_LEAST_MOST_GROUPS: Final = 8
_BLOCKS_PER_GROUP: Final = 100
_LANES_PER_GROUP: Final = 4
_BLOCKS_PER_LANE: Final = 8
_SLOTS_PER_LANE: Final = 3
_CHEAP_BLOCKS_PER_LANE: Final = 100  # with this many blocks a lane, the extra reads of lanes stay under 2 %
_MOST_SLOTS_IN_LANES: Final = 0.6
"""The share of the slots that lanes may have while they are fewer than a batch's samples."""
_LARGE_PARTS: Final = (8, 16, 32)
_LARGEST_PIECE_BYTES: Final = 16 << 20
BUDGET_PARTS: Final = 4
"""Parts of a budget that loaders share; one that measures has one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSizes:
    """The sizes of a loader's parts."""

    batch_size: int
    lanes: int  # 1 for the sequential order, like groups
    groups: int
    slots: int  # blocks in use or read ahead, and beyond them those kept until they are needed again
    prefetch: int  # blocks that may be read ahead of the lanes
    read_blocks: int  # blocks of one reader task, at most
    span_batches: int  # batches gathered into one piece of memory
    spans: int  # such pieces; two are the consumer's, who takes one while it holds the one before
    index_samples: int  # samples whose positions are worked out at once
    threads: int  # reader threads, at most
    reserve_bytes: int  # left free for what allocators keep beyond what is requested
    shuffle: bool = True

    @property
    def working_slots(self) -> int:
        """Slots for blocks that are in use or read ahead; the others are a cache."""
        return min(self.slots, self.lanes + self.prefetch)

    def span_samples(self, n_samples: int) -> int:
        """The most samples that a span of a dataset of ``n_samples`` holds."""
        return min(n_samples, self.span_batches * self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderExpectation:
    """Expectations of an order: reads, batch variance, drift; ``str()`` puts them into a sentence."""

    lanes: int
    groups: int
    n_blocks: int
    block_rows: int
    n_slots: int  # blocks that memory holds
    n_cached: int  # of them, besides those that lanes and reading ahead take
    batch_size: int
    rho: float  # intra-block correlation of the labels; 1, the worst, where it is not known

    @property
    def reads(self) -> tuple[float, float]:
        """Blocks read ÷ blocks stored in the first epoch, and in a later one."""
        return expected_reads(self.n_blocks, self.lanes, n_slots=self.n_slots, n_cached=self.n_cached)

    @property
    def same_block(self) -> float:
        """Samples of a batch that come from one block: 1, or more if there are fewer lanes than samples."""
        return max(1.0, self.batch_size / self.lanes)

    @property
    def variance(self) -> float:
        """The variance of batches ÷ that of a full reshuffle, at most, whatever the labels are."""
        return 1 + (self.same_block - 1) * self.rho

    @property
    def drift(self) -> float:
        """The distance of an epoch's beginning from the whole ÷ a full reshuffle's, at most.

        That of blocks drawn without regard to where they lie (the design effect of cluster samples: W. Cochran,
        *Sampling techniques*, 1977, chapter 9).
        """
        return math.sqrt(1 + (self.block_rows - 1) * self.rho)

    def __str__(self) -> str:
        groups = f" in {self.groups} group{'s' * (self.groups != 1)}" if self.lanes > 1 else ""
        first, later = self.reads
        again = f"{later:.3f}" if later else "0 (all of it stays in memory)"
        return (
            f"{self.lanes:,} lane{'s' * (self.lanes != 1)}{groups}; "
            f"blocks read ÷ blocks stored {first:.3f} in the first epoch, {again} in a later one; "
            f"against a full reshuffle batches vary at most {self.variance:.3g} times, drift at most {self.drift:.3g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderProjection(Projection):
    """A projection of what a loader owns, and what to expect of its order; None for the sequential one."""

    expected: OrderExpectation | None = None


def project(layout: Layout, sizes: LoaderSizes, *, budget_bytes: int, rho: float | None = None) -> LoaderProjection:
    """Project what the loader owns at these sizes, and what to expect of its order."""
    terms = _terms(layout, sizes)
    if more := _larger_pages_bytes(layout, sizes):
        terms["pages"] = more
    return LoaderProjection(budget_bytes=budget_bytes, terms=terms, expected=expect(layout, sizes, rho))


def _terms(layout: Layout, sizes: LoaderSizes) -> dict[str, int]:
    span_samples = sizes.span_samples(layout.n_samples)
    span_bytes = sum(_pages(span_samples * field.row_bytes) for field in layout.batch_fields)
    largest_bytes = max(field.row_bytes for field in layout.fields) * layout.block_rows
    decoder_bytes = largest_bytes + min(_DECODER_BLOCKS * largest_bytes, _DECODER_BYTES)
    pool = sum(_pages(sizes.slots * layout.block_rows * field.row_bytes) for field in layout.fields)
    lanes = min(sizes.lanes, sizes.slots) * layout.block_bytes
    cache = (sizes.slots - sizes.working_slots) * layout.block_bytes
    return {
        "lanes": lanes,
        "prefetch": pool - lanes - cache,
        "cache": cache,
        "batches": sizes.spans * span_bytes,
        "decoding": sizes.threads * ((decoder_bytes if layout.is_compressed else 0) + layout.decoder_bytes),
        "order": _order_bytes(layout, sizes),
        "index work": max(sizes.index_samples, sizes.lanes) * _INDEX_SAMPLE_BYTES,
        "checksums": layout.n_blocks * len(layout.fields) * _BLOCK_FIELD_BYTES,
        "threads": sizes.threads * _THREAD_BYTES + _OBJECTS_BYTES,
        "reserve": sizes.reserve_bytes,
    }


def _order_bytes(layout: Layout, sizes: LoaderSizes) -> int:
    """Count the visits and reads of two epochs, the slots' tables, and the row orders of runs under way."""
    in_order = layout.n_blocks * (_VISIT_BYTES + _BLOCK_BYTES)
    if not sizes.shuffle:
        return in_order
    longest_run = min(layout.block_rows, -(-layout.n_samples // sizes.lanes))
    row_orders = 2 * sizes.lanes * longest_run * (2 if longest_run <= 1 << 16 else 4)
    return in_order + 3 * sizes.lanes * _VISIT_BYTES + row_orders


def expect(layout: Layout, sizes: LoaderSizes, rho: float | None = None) -> OrderExpectation | None:
    """State what to expect of the order at these sizes; None of the sequential one. Unknown ``rho`` is the worst, 1."""
    if not sizes.shuffle:
        return None
    return OrderExpectation(
        lanes=sizes.lanes,
        groups=sizes.groups,
        n_blocks=layout.n_blocks,
        block_rows=layout.block_rows,
        n_slots=sizes.slots,
        n_cached=sizes.slots - sizes.working_slots,
        batch_size=min(sizes.batch_size, layout.n_samples),
        rho=1.0 if rho is None else min(max(rho, 0.0), 1.0),
    )


def solve(
    layout: Layout,
    *,
    batch_size: int,
    memory: int,
    shuffle: bool = True,
    lanes: int | None = None,
    groups: int | None = None,
    rho: float | None = None,
) -> tuple[LoaderSizes, LoaderProjection]:
    """Find the sizes for a budget of ``memory`` bytes, or refuse it with every term and the smallest that works."""
    if lanes is not None:
        check_int(lanes, "lanes", fix=Fix(Argument("lanes", 64), ", say"))
    if groups is not None:
        check_int(groups, "groups", fix=Fix(Argument("groups", 8), ", say"))
    lanes, groups = (lanes, groups) if shuffle else (1, 1)
    least = _least(layout, batch_size, lanes, groups, shuffle=shuffle)
    with_fewer = lanes is not None and shuffle
    _check_fits(project(layout, least, budget_bytes=memory), with_fewer)
    comfortable = _comfortable(layout, least, memory)
    larger = [] if shuffle else [_in_pieces(layout, comfortable, memory // parts) for parts in _LARGE_PARTS]
    start = next((sizes for sizes in (*larger, comfortable) if _fits(layout, sizes, memory)), least)
    sizes = start if lanes else _with_solved_lanes(layout, start, memory, groups)
    sizes = _most_slots(layout, sizes, memory)
    if _larger_pages_bytes(layout, sizes):
        sizes = _within_larger_pages(layout, sizes, least, memory)
    projection = project(layout, sizes, budget_bytes=memory, rho=rho)
    _check_fits(projection, with_fewer)
    return sizes, projection


def _check_fits(needed: LoaderProjection, with_fewer: bool) -> None:
    if needed.total_bytes > needed.budget_bytes:
        raise BudgetError(
            memory_too_small(needed.budget_bytes, needed.total_bytes),
            why=f"The least the loader owns: {needed}",
            fix=Fix(Argument("memory", n_bytes=needed.total_bytes), ", or fewer lanes" if with_fewer else None),
        )


def _within_larger_pages(layout: Layout, sizes: LoaderSizes, least: LoaderSizes, memory: int) -> LoaderSizes:
    """Make room for what larger pages take: out of the reserve, then of the kept blocks, then of all but the lanes."""
    tight = replace(sizes, reserve_bytes=max(0, sizes.reserve_bytes - _larger_pages_bytes(layout, sizes)))
    over = project(layout, tight, budget_bytes=memory).total_bytes - memory
    fewer = replace(tight, slots=max(tight.working_slots, tight.slots - max(0, -(-over // layout.block_bytes))))
    if project(layout, fewer, budget_bytes=memory).total_bytes <= memory:
        return fewer
    return _with_slots(layout, replace(least, lanes=sizes.lanes, groups=sizes.groups))


def _least(layout: Layout, batch_size: int, lanes: int | None, groups: int | None, *, shuffle: bool) -> LoaderSizes:
    n_lanes = lanes or groups or 1
    n_groups = groups or _solved_groups(layout, math.gcd(batch_size, n_lanes), n_lanes)
    sizes = LoaderSizes(
        batch_size=batch_size,
        lanes=n_lanes,
        groups=n_groups,
        slots=0,
        prefetch=0,
        read_blocks=1,
        span_batches=1,
        spans=3,
        index_samples=4096,
        threads=_FEW_THREADS,
        reserve_bytes=0,
        shuffle=shuffle,
    )
    if shuffle:
        shuffle_of(layout, sizes)
    return _with_slots(layout, sizes)


def shuffle_of(layout: Layout, sizes: LoaderSizes) -> ShuffleParameters:
    """Make the shuffle parameters of some sizes; what does not divide as it must is refused."""
    return ShuffleParameters(
        n_samples=layout.n_samples,
        block_rows=layout.block_rows,
        batch_size=sizes.batch_size,
        lanes=sizes.lanes,
        groups=sizes.groups,
    )


def _comfortable(layout: Layout, least: LoaderSizes, memory: int) -> LoaderSizes:
    """Choose sizes at which work goes in large pieces, for about a quarter of the budget besides the pool."""
    batch_bytes = least.batch_size * layout.batch_row_bytes
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
    """Enlarge the pieces of the sequential order, whose memory no other lane needs: each job wakes a thread."""
    piece_bytes = min(_LARGEST_PIECE_BYTES, piece_bytes)
    larger = replace(
        sizes,
        read_blocks=min(256, max(sizes.read_blocks, piece_bytes // layout.block_bytes)),
        span_batches=max(sizes.span_batches, piece_bytes // 2 // (sizes.batch_size * layout.batch_row_bytes)),
    )
    return _with_slots(layout, larger)


def _with_slots(layout: Layout, sizes: LoaderSizes) -> LoaderSizes:
    """Add the slots these lanes need: their own, those for uneven demand, and those being filled.

    Lanes change blocks at uniform phases, so their demand strays from an even one by about 1.6 times the root.
    """
    prefetch = math.ceil(2 * math.sqrt(sizes.lanes)) + sizes.threads * sizes.read_blocks
    return replace(sizes, prefetch=prefetch, slots=min(layout.n_blocks, sizes.lanes + prefetch))


def _fits(layout: Layout, sizes: LoaderSizes, memory: int) -> bool:
    return sum(_terms(layout, sizes).values()) <= memory


def _with_solved_lanes(layout: Layout, start: LoaderSizes, memory: int, groups: int | None) -> LoaderSizes:
    """Choose the groups first, then the lanes that follow from them."""
    batch_size, n_blocks = start.batch_size, layout.n_blocks

    def at(lanes: int, groups: int = 1) -> LoaderSizes:
        return _with_slots(layout, replace(start, lanes=lanes, groups=groups))

    def most(bound: Callable[[LoaderSizes], float]) -> int:
        """Find the most lanes that fit and stay within a bound that does not grow with them."""
        low, high = 0, min(MOST_LANES, layout.n_samples)
        while low < high:
            middle = -(-(low + high) // 2)
            sizes = at(middle)
            within = _fits(layout, sizes, memory) and middle <= bound(_most_slots(layout, sizes, memory))
            low, high = (middle, high) if within else (low, middle - 1)
        return low

    def within_whole_batches(sizes: LoaderSizes) -> float:
        cheap = min(sizes.slots - sizes.prefetch, n_blocks // _CHEAP_BLOCKS_PER_LANE)
        return min(max(sizes.slots // _SLOTS_PER_LANE, cheap), n_blocks // _BLOCKS_PER_LANE)

    def within_a_batch(sizes: LoaderSizes) -> float:
        affordable = max(_MOST_SLOTS_IN_LANES * sizes.slots, n_blocks / _CHEAP_BLOCKS_PER_LANE)
        return min(batch_size, sizes.slots - sizes.prefetch, n_blocks // _BLOCKS_PER_LANE, affordable)

    bound = batch_size * max(1, min(n_blocks // _BLOCKS_PER_LANE, MOST_LANES) // batch_size)
    bound = min(bound, layout.n_samples)
    n_groups = groups or _solved_groups(layout, batch_size, bound)
    whole = at(max(bound // n_groups, 1) * n_groups, n_groups)
    if _fits(layout, replace(whole, slots=n_blocks), memory):
        return replace(whole, slots=n_blocks)
    bound, unit = most(within_whole_batches), batch_size
    if bound < batch_size:
        bound = most(within_a_batch)
        unit = groups or _solved_groups(layout, batch_size, bound)
    n_groups = groups or _solved_groups(layout, batch_size, bound)
    return at(max(bound // unit * unit, n_groups), n_groups)


def _solved_groups(layout: Layout, divided: int, bound: int) -> int:
    """Find the divisor with the most twos, of equals the largest, that leaves a group enough blocks and lanes.

    Ranks that share an epoch take whole groups, and they come in twos. Where the batch size divides the lanes the
    number of groups is free: whatever it is, it cuts the data into the same strata. ``bound`` is the most lanes.
    """
    most = min(max(_LEAST_MOST_GROUPS, layout.n_blocks // _BLOCKS_PER_GROUP), bound // _LANES_PER_GROUP, divided)
    return max((g for g in range(1, most + 1) if divided % g == 0), key=lambda g: (g & -g, g), default=1)


def _most_slots(layout: Layout, sizes: LoaderSizes, memory: int) -> LoaderSizes:
    spare = memory - sum(_terms(layout, sizes).values())
    more = max(0, spare - len(layout.fields) * PAGE_BYTES) // layout.block_bytes
    return replace(sizes, slots=min(layout.n_blocks, sizes.slots + more))


def _pages(n_bytes: int, page_bytes: int = PAGE_BYTES) -> int:
    return -(-n_bytes // page_bytes) * page_bytes


def _larger_pages_bytes(layout: Layout, sizes: LoaderSizes) -> int:
    """Count what the mappings of slots and spans take beyond their 4 KiB pages where the system's are larger."""
    mapped = [sizes.slots * layout.block_rows * field.row_bytes for field in layout.fields]
    span_samples = sizes.span_samples(layout.n_samples)
    mapped += [span_samples * field.row_bytes for field in layout.batch_fields] * sizes.spans
    return sum(_pages(n_bytes, mmap.PAGESIZE) - _pages(n_bytes) for n_bytes in mapped)
