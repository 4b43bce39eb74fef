"""Device memory as sizes and named terms, and where the bytes lie. Pure.

The shuffle parameters are those of the CPU, so the order is the same bit for bit. The device's needs come out of the
same budget: first from the blocks that are only cached, then from the size of the pieces work is done in.
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
    """Traits of allocators that decide the memory taken besides the bytes requested."""

    locks_powers_of_two: bool = False  # torch allocates page-locked memory, and rounds it up to a power of two
    is_unified: bool = False  # the device's memory is the host's
    is_expandable: bool = False  # a stream's allocations lie in one segment that grows by 20 MiB (expandable_segments)
    rounds_up: bool = False  # to a power of two at most (roundup_power2_divisions)
    is_deterministic: bool = False  # writes by index sort first, in memory of their own

    @property
    def term(self) -> str:
        """The name of the device's memory in a projection: only "device" is not the host's."""
        return "unified" if self.is_unified else "device"


PLAIN: Final = AllocatorTraits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A stretch of memory in which rows of one size lie end to end."""

    start: int
    row_bytes: int
    n_rows: int

    @property
    def stop(self) -> int:
        """The byte after the last row."""
        return self.start + self.n_rows * self.row_bytes

    def rows(self, first: int, n: int) -> slice:
        """Give the bytes of n rows."""
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
    """Lay out each field's rows in the memory of a full span."""
    n_rows = sizes.span_samples(layout.n_samples)
    return sections((field.row_bytes for field in layout.batch_fields), n_rows=n_rows, alignment=_DEVICE_ALIGNMENT)


def pool_sections(layout: Layout, sizes: LoaderSizes) -> list[Section]:
    """Lay out each field's rows in the memory of a pool on the device; the buffers' twins follow."""
    n_rows = sizes.slots * layout.block_rows
    return sections((field.row_bytes for field in layout.fields), n_rows=n_rows, alignment=_DEVICE_ALIGNMENT)


def pool_bytes(layout: Layout, sizes: LoaderSizes) -> tuple[int, int]:
    """Count the bytes of a pool on the device: without the buffers' twins, and with them."""
    rows = _rounded(pool_sections(layout, sizes)[-1].stop, PAGE_BYTES)
    return rows, rows + n_buffers(sizes) * buffer_bytes(layout, sizes, pool_on_device=True)


def read_sections(layout: Layout, n_blocks: int) -> list[Section]:
    """Lay out the blocks of one read, field by field, on their way to the device, and behind them their slots."""
    block_bytes = [layout.block_rows * field.row_bytes for field in layout.fields]
    return sections([*block_bytes, 8], n_rows=n_blocks, alignment=PAGE_BYTES)


def gather_index_bytes(layout: Layout, sizes: LoaderSizes) -> int:
    """Choose the bytes of one index into the rows of the pool."""
    return 4 if sizes.slots * layout.block_rows < 2**31 else 8


def n_buffers(sizes: LoaderSizes) -> int:
    """Count the page-locked buffers: each thread may hold one, and one more is on its way."""
    return sizes.threads + 1


def buffer_bytes(layout: Layout, sizes: LoaderSizes, *, pool_on_device: bool) -> int:
    """Size a page-locked buffer: a span; or, for a pool on the device, the blocks of a read or an index."""
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
    """Project what the loader owns at these sizes: on the host, page-locked (``pinned``), and on the device."""
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
    """Make room in the budget for a device's needs, with the same lanes and groups, or refuse it."""

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
    """Yield the same lanes with work in ever smaller pieces, down to the least that works at all."""
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
    """Read ``read_blocks`` blocks at once in ``threads`` threads; each block needs a slot to be filled."""
    filled = sizes.threads * sizes.read_blocks - threads * read_blocks
    return replace(sizes, read_blocks=read_blocks, threads=threads, prefetch=sizes.prefetch - filled)


def allocated_bytes(n_bytes: int, count: int = 1, *, traits: AllocatorTraits = PLAIN) -> int:
    """Compute the bytes that torch's caching allocator takes from a CUDA device for allocations of one size.

    Those up to 1 MiB share segments of 2 MiB, those below 10 MiB segments of 20 MiB; larger ones have their own, of a
    multiple of 2 MiB (PyTorch, notes on CUDA semantics and ``c10/cuda/CUDACachingAllocator``).
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
