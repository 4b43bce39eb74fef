"""Device memory as sizes and named terms, and where the bytes lie. Pure.

The shuffle parameters are those of the CPU, so the order is the same bit for bit. What the device needs on top comes
out of the same budget: first from the blocks that are only cached, then from the size of the pieces work is done in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from streamtrain.errors import Argument, BudgetError, Fix
from streamtrain.loader.budget import LoaderSizes, project
from streamtrain.store.layout import PAGE_BYTES, Layout
from streamtrain.system.memory import Projection
from streamtrain.system.units import format_bytes

_DEVICE_ALIGNMENT: Final = 256
_POOL_TERMS: Final = ("lanes", "prefetch", "cache")
_SPANS_OUTSIDE: Final = 3
"""Spans beside those that wait in the pool: the caller's present one, the one the device still computes on, and the one
that the caller's last variable refers to; the pool counts two of them."""

_SMALL_BYTES: Final = 1 << 20
_SMALL_SEGMENT: Final = 2 << 20
_LARGE_BYTES: Final = 10 << 20
_LARGE_SEGMENT: Final = 20 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorTraits:
    """What allocators take beside what they are asked for.

    Attributes
    ----------
    locks_powers_of_two : bool
        Page-locked memory is rounded up to a power of two: torch allocates it.
    is_unified : bool
        The device's memory is the host's.
    is_expandable : bool
        Allocations of a stream lie in one segment that grows by 20 MiB (``expandable_segments``).
    rounds_up : bool
        Allocations are rounded up, to a power of two at most (``roundup_power2_divisions``).
    is_deterministic : bool
        Writes by index sort first, in memory of their own (`torch.use_deterministic_algorithms`).
    """

    locks_powers_of_two: bool = False
    is_unified: bool = False
    is_expandable: bool = False
    rounds_up: bool = False
    is_deterministic: bool = False

    @property
    def term(self) -> str:
        """What a projection calls the device's memory: only what is the device's alone is not the host's."""
        return "unified" if self.is_unified else "device"


PLAIN: Final = AllocatorTraits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Where rows of one size lie, end to end, in a piece of memory.

    Examples
    --------
    >>> first, second = sections([3, 8], n_rows=10, alignment=16)
    >>> second.rows(1, 4), second.stop
    (slice(40, 72, None), 112)
    """

    start: int
    row_bytes: int
    n_rows: int

    @property
    def stop(self) -> int:
        """The byte after the last row."""
        return self.start + self.n_rows * self.row_bytes

    def rows(self, first: int, n: int) -> slice:
        """The bytes of n rows."""
        start = self.start + first * self.row_bytes
        return slice(start, start + n * self.row_bytes)


def sections(row_bytes: Iterable[int], *, n_rows: int, alignment: int) -> list[Section]:
    """Lay rows of several sizes out one after another, each kind aligned."""
    found: list[Section] = []
    at = 0
    for n_bytes in row_bytes:
        found.append(Section(start=at, row_bytes=n_bytes, n_rows=n_rows))
        at = _rounded(found[-1].stop, alignment)
    return found


def span_sections(layout: Layout, sizes: LoaderSizes) -> list[Section]:
    """Where each field's rows lie in the memory of a full span."""
    n_rows = sizes.span_samples(layout.n_samples)
    return sections((field.row_bytes for field in layout.fields), n_rows=n_rows, alignment=_DEVICE_ALIGNMENT)


def pool_sections(layout: Layout, sizes: LoaderSizes) -> list[Section]:
    """Where each field's rows lie in the memory of a pool on the device; behind them come the buffers' twins."""
    n_rows = sizes.slots * layout.block_rows
    return sections((field.row_bytes for field in layout.fields), n_rows=n_rows, alignment=_DEVICE_ALIGNMENT)


def pool_bytes(layout: Layout, sizes: LoaderSizes) -> tuple[int, int]:
    """Bytes of the memory of a pool on the device: without the buffers' twins, and with them."""
    rows = _rounded(pool_sections(layout, sizes)[-1].stop, PAGE_BYTES)
    return rows, rows + n_buffers(sizes) * buffer_bytes(layout, sizes, pool_on_device=True)


def read_sections(layout: Layout, n_blocks: int) -> list[Section]:
    """Where the blocks of one read, field by field, lie on their way to the device, and behind them their slots."""
    block_bytes = [layout.block_rows * field.row_bytes for field in layout.fields]
    return sections([*block_bytes, 8], n_rows=n_blocks, alignment=PAGE_BYTES)


def gather_index_bytes(layout: Layout, sizes: LoaderSizes) -> int:
    """Bytes of one index into the rows of the pool.

    Examples
    --------
    >>> from streamtrain.store.layout import Field
    >>> import numpy as np
    >>> y = Field(name="y", dtype=np.dtype("int64"), shape=())
    >>> layout = Layout(fields=(y,), n_samples=10**10, block_rows=10**6, shard_blocks=1, codec="none")
    >>> from streamtrain.loader.budget import solve
    >>> sizes, _ = solve(layout, batch_size=100, memory=10**9, lanes=2)
    >>> gather_index_bytes(layout, sizes), gather_index_bytes(layout, replace(sizes, slots=3000))
    (4, 8)
    """
    return 4 if sizes.slots * layout.block_rows < 2**31 else 8


def n_buffers(sizes: LoaderSizes) -> int:
    """Page-locked buffers: each thread may hold one, and one more is on its way."""
    return sizes.threads + 1


def buffer_bytes(layout: Layout, sizes: LoaderSizes, *, pool_on_device: bool) -> int:
    """The bytes of a page-locked buffer: a span; or, for a pool on the device, the blocks of a read or an index."""
    if not pool_on_device:
        return _rounded(span_sections(layout, sizes)[-1].stop, PAGE_BYTES)
    blocks = read_sections(layout, sizes.read_blocks)[-1].stop
    index = sizes.span_samples(layout.n_samples) * gather_index_bytes(layout, sizes)
    return _rounded(max(blocks, index), PAGE_BYTES)


def project_on_device(
    layout: Layout,
    sizes: LoaderSizes,
    *,
    budget_bytes: int,
    pool_on_device: bool,
    traits: AllocatorTraits = PLAIN,
) -> Projection:
    """What the loader owns at these sizes: on the host, of it page-locked (``pinned``), and on the device."""
    terms = dict(project(layout, sizes, budget_bytes=budget_bytes).terms)
    del terms["batches"]
    buffer = buffer_bytes(layout, sizes, pool_on_device=pool_on_device)
    n_spans = sizes.spans - 2 + _SPANS_OUTSIDE
    device = allocated_bytes(span_sections(layout, sizes)[-1].stop, n_spans, traits=traits)
    if pool_on_device:
        for name in _POOL_TERMS:
            del terms[name]
        device += allocated_bytes(pool_bytes(layout, sizes)[1], traits=traits)
        device += 2 * allocated_bytes(buffer, traits=traits) if traits.is_deterministic else 0
    locked = 1 << (buffer - 1).bit_length() if traits.locks_powers_of_two else buffer
    terms |= {"pinned": n_buffers(sizes) * locked, traits.term: device}
    return Projection(budget_bytes=budget_bytes, terms=terms)


def fit_to_device(
    layout: Layout,
    sizes: LoaderSizes,
    *,
    budget_bytes: int,
    pool_on_device: bool,
    traits: AllocatorTraits = PLAIN,
) -> tuple[LoaderSizes, Projection]:
    """Make room in the budget for what a device needs, with the same lanes and groups.

    Parameters
    ----------
    layout : Layout
        The dataset's.
    sizes : LoaderSizes
        Solved for the CPU.
    budget_bytes : int
        The budget.
    pool_on_device : bool
        Whether the blocks lie on the device, or only the batches.
    traits : AllocatorTraits
        What its memory takes.

    Raises
    ------
    BudgetError
        The budget is too small; the message has every term and the smallest budget that would do for these lanes.
    """

    def total(tried: LoaderSizes) -> Projection:
        how: dict[str, Any] = {"budget_bytes": budget_bytes, "pool_on_device": pool_on_device}
        return project_on_device(layout, tried, traits=traits, **how)

    for tried in _smaller_and_smaller(sizes):
        if total(_with_slots(tried, 0)).total_bytes > budget_bytes:
            continue
        low, high = tried.working_slots, sizes.slots
        while low < high:
            middle = -(-(low + high) // 2)
            fits = total(_with_slots(tried, middle)).total_bytes <= budget_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        fitted = _with_slots(tried, low)
        return fitted, total(fitted)
    needed = total(_with_slots(tried, 0))
    lanes = (", ", Argument("lanes", sizes.lanes)) if sizes.shuffle else ()
    raise BudgetError(
        f"memory is {format_bytes(budget_bytes)}, and the smallest that works with a device is "
        f"{format_bytes(needed.total_bytes)}",
        why=f"The least the loader owns: {needed}",
        fix=Fix(Argument("memory", n_bytes=needed.total_bytes), *lanes),
    )


def _with_slots(sizes: LoaderSizes, n_slots: int) -> LoaderSizes:
    return replace(sizes, slots=max(n_slots, sizes.working_slots))


def _smaller_and_smaller(sizes: LoaderSizes) -> Iterator[LoaderSizes]:
    """The same lanes with work in smaller and smaller pieces, down to the least that goes on at all."""
    while True:
        yield replace(sizes, slots=sizes.working_slots)
        if sizes.span_batches == sizes.read_blocks == 1:
            break
        sizes = _reading(sizes, max(1, sizes.read_blocks // 2), sizes.threads)
        sizes = replace(sizes, span_batches=max(1, sizes.span_batches // 2))
    least = _reading(sizes, 1, min(2, sizes.threads))
    least = replace(least, spans=3, index_samples=min(4096, sizes.index_samples), reserve_bytes=0)
    yield replace(least, slots=least.working_slots)


def _reading(sizes: LoaderSizes, read_blocks: int, threads: int) -> LoaderSizes:
    """With reads of so many blocks by so many threads, of whose blocks each needs a slot to be filled."""
    filled = sizes.threads * sizes.read_blocks - threads * read_blocks
    return replace(sizes, read_blocks=read_blocks, threads=threads, prefetch=sizes.prefetch - filled)


def allocated_bytes(n_bytes: int, count: int = 1, *, traits: AllocatorTraits = PLAIN) -> int:
    """What torch's caching allocator takes from a CUDA device for allocations of one size.

    Those up to 1 MiB share segments of 2 MiB, those below 10 MiB segments of 20 MiB; larger ones have their own, of a
    multiple of 2 MiB (PyTorch, notes on CUDA semantics and ``c10/cuda/CUDACachingAllocator``).

    Examples
    --------
    >>> allocated_bytes(8 << 20, 3) >> 20, allocated_bytes(11 << 20) >> 20, allocated_bytes(1000, 3) >> 20
    (40, 12, 2)
    >>> allocated_bytes(11 << 20, 3, traits=AllocatorTraits(is_expandable=True)) >> 20
    40
    """
    if traits.rounds_up:
        n_bytes = 1 << (max(1, n_bytes) - 1).bit_length()
    if traits.is_expandable:
        step = _SMALL_SEGMENT if n_bytes <= _SMALL_BYTES else _LARGE_SEGMENT
        return _rounded(count * _rounded(max(1, n_bytes), 512), step)
    if n_bytes >= _LARGE_BYTES:
        return count * _rounded(n_bytes, _SMALL_SEGMENT)
    segment = _SMALL_SEGMENT if n_bytes <= _SMALL_BYTES else _LARGE_SEGMENT
    per_segment = segment // _rounded(max(1, n_bytes), 512)
    return -(-count // per_segment) * segment


def _rounded(n: int, step: int) -> int:
    return -(-n // step) * step
