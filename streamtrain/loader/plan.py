"""The plan of a run before it begins: memory, lanes, reads, steps, and shuffle quality on the real labels.

Everything follows from the functions that the loader itself calls, so a plan is what a loader of the same arguments
does. Shuffle quality is measured on the labels, over the whole first epoch or its first millions of samples. The memory
at which the shuffle would be as good as random is found by search, on a stretch in the middle of the epoch.

Labels are read block by block when they are needed, and no other field. They are kept as class numbers of one or two
bytes, or as float32 deviations where labels are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, UsageError
from streamtrain.loader.budget import LoaderProjection, LoaderSizes, shuffle_of, solve
from streamtrain.loader.budget_shares import whole_budget_bytes
from streamtrain.loader.deal import Deal
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_dataset import with_images
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.shuffle.order import I64, EpochOrder, shuffled_order
from streamtrain.shuffle.quality import (
    Array,
    LabelPopulation,
    ShuffleQuality,
    class_dtype,
    mean_quality,
    measure_quality,
    pieces_of,
    standardized,
)
from streamtrain.shuffle.share import Rank
from streamtrain.store.dataset import Dataset, opened
from streamtrain.store.layout import Layout
from streamtrain.store.schema.columns import TARGET
from streamtrain.system.arguments import check_batch_size, check_dataset, check_int, check_seed
from streamtrain.system.calls.public import public
from streamtrain.system.units import counted, format_bytes, parse_bytes


class StoredLabels:
    """The labels of a dataset (field ``y``), in the form that `measure_quality` takes.

    Integers of at most 65,536 values are classes, other integers and floats are numbers.
    """

    def __init__(self, dataset: Dataset) -> None:
        names = [field.name for field in dataset.fields]
        if TARGET not in names:
            raise UsageError(f"there is no field {TARGET}", where=str(dataset.path))
        self._layout = dataset.layout
        self._field = dataset.layout.field(TARGET)
        if self._field.shape:
            raise UsageError(f"field {TARGET} has {len(self._field.shape)} axes per sample", where=str(dataset.path))
        statistics = dataset.manifest.statistics[TARGET]
        self._overall = statistics.overall
        self._values = statistics.histogram.values if statistics.histogram else None
        counts = statistics.histogram.counts if statistics.histogram else None
        self.population = LabelPopulation(
            n_samples=len(dataset), shares=None if counts is None else counts / self._layout.n_samples
        )
        dtype: np.dtype[Any] = np.dtype(np.float32) if self._values is None else class_dtype(len(self._values))
        self._labels: Array = np.empty(len(dataset), dtype)
        self._here = np.zeros(self._layout.n_blocks, np.bool_)
        self._buffer = np.empty(self._layout.block_rows, self._field.dtype)
        self._reader = BlockReader(_with_labels_alone(dataset))

    def take(self, samples: I64) -> Array:
        """Give the labels of some samples, shape (n,)."""
        blocks = samples // self._layout.block_rows
        for block in np.unique(blocks[~self._here[blocks]]).tolist():
            self._read(block)
        return self._labels.take(samples)

    def _read(self, block: int) -> None:
        start, stop = self._layout.block_range(block)
        self._reader.read(block, [self._buffer.view(np.uint8).data])
        rows = self._buffer[: stop - start]
        if self._values is None:
            self._labels[start:stop] = standardized(rows, self._overall.mean, self._overall.std)
        else:
            self._labels[start:stop] = np.searchsorted(self._values, rows)
        self._here[block] = True

    def close(self) -> None:
        """Close all files."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_labels_alone(dataset: Dataset) -> Dataset:
    """Restrict a dataset to its labels, so that no other field is read."""
    stored = dataset.layout
    field = stored.field(TARGET)
    place = stored.fields.index(field)
    layout = Layout(
        fields=(field,),
        n_samples=stored.n_samples,
        block_rows=stored.block_rows,
        shard_blocks=stored.shard_blocks,
        codec=stored.codec,
    )
    checksums: npt.NDArray[np.uint32] = dataset.block_checksums[:, place : place + 1]
    return Dataset(path=dataset.path, manifest=replace(dataset.manifest, layout=layout), block_checksums=checksums)


_MEASURED_RUNS: Final = 8  # blocks of every lane in a measured beginning, so that lanes have gone through several
_LEAST_MEASURED: Final = 4_000_000
_MOST_MEASURED: Final = 20_000_000
_TRIED_SAMPLES: Final = 1 << 20
_FIRST_TRIED: Final = 1 << 20  # independent of the plan's own memory, as is the result
_LEAST_BATCHES: Final = 64
_MOST_EPOCHS: Final = 16
_NEXT_TRIED: Final = 1.25  # after a memory that is enough in the middle of an epoch alone
_KILOBYTES: Final = 10_000  # from here on a size of blocks is named in kilobytes
_TRIED_STEP: Final = 1.03  # two memories closer than this count as equal


ONE_BATCH: Final = "one batch: nothing to mix"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCounts:
    """The reads of an epoch."""

    n_blocks: int  # read
    n_stored: int  # of the dataset
    stored_bytes: int  # of the blocks read, as a share of all stored files

    @property
    def ratio(self) -> float:
        """Blocks read ÷ blocks stored."""
        return self.n_blocks / self.n_stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SufficientMemory:
    """The smallest memory at which batches vary no more than a full reshuffle's, and the shuffle it gives."""

    memory_bytes: int  # rounded to two digits
    lanes: int
    quality: ShuffleQuality  # of the same positions as the plan's own


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """The part of a run that each of several ranks has."""

    world_size: int
    local_batch_size: int
    sizes: LoaderSizes  # of a rank's own pool
    projection: LoaderProjection  # of one rank, whose budget is the plan's
    first: ReadCounts  # of one rank in the first epoch
    later: ReadCounts
    last_batch: tuple[int, ...]  # samples of each rank in the last batch
    possible: tuple[int, ...]  # the numbers of ranks that can share the batches and groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run as planned."""

    sizes: LoaderSizes
    projection: LoaderProjection
    n_batches: int
    first: ReadCounts  # the first epoch
    later: ReadCounts  # a later one, with the pool's cache
    quality: ShuffleQuality | None  # None without labels; why has the reason
    most: ShuffleQuality | None  # with as many lanes as any memory gives, over the stretch that memories are tried on
    enough: SufficientMemory | None  # None where no memory makes the shuffle as good as random, or without labels
    why: str
    ranks: RankPlan | None = None  # where they were asked for

    def __repr__(self) -> str:
        memory = f"{format_bytes(self.projection.total_bytes)} of {format_bytes(self.projection.budget_bytes)}"
        batches = f"{counted(self.n_batches, 'batch', 'batches')} of {self.sizes.batch_size:,}"
        of = f"{batches}, {counted(self.sizes.lanes, 'lane')}, {memory}"
        mixed = f", variance {self.quality.variance:.3g}, drift {self.quality.drift:.3g}" if self.quality else ""
        return f"Plan({of}{mixed})"


@public
def plan(
    dataset: Dataset | str | Path,
    *,
    batch_size: int = 256,
    memory: int | str = "512MB",
    lanes: int | None = None,
    groups: int | None = None,
    drop_last: bool = False,
    seed: int = 0,
    ranks: int | None = None,
    decode: Decode | None = None,
) -> Plan:
    """Plan a shuffled run; arguments as those of `StreamLoader`, and the number of ranks that share it.

    Returns
    -------
    Plan
        Sizes, projected memory, reads of an epoch, and shuffle quality.

    Raises
    ------
    UsageError
        An argument is wrong, ``drop_last`` leaves no batch, or so many ranks cannot share the batches.
    BudgetError
        ``memory`` is too small.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> y = np.arange(100_000) // 10_000
    >>> dataset = st.ingest({"y": y}, tempfile.mkdtemp() + "/d.zarr", block="400B")
    >>> found = plan(dataset, memory="4MB", lanes=64)
    >>> found.n_batches, found.sizes.lanes, found.quality.variance < 0.5
    (391, 64, True)
    """
    dataset = opened(dataset)
    check_dataset(dataset)
    dataset = with_images(dataset, decode)
    layout = dataset.layout
    check_batch_size(batch_size, layout.n_samples, drop_last=drop_last)
    check_seed(seed)
    memory_bytes = parse_bytes(memory, name="memory")
    sizes, projection = solve(
        layout, batch_size=batch_size, memory=memory_bytes, lanes=lanes, groups=groups, rho=dataset.rho
    )
    assert projection.expected is not None
    first, later = projection.expected.reads
    quality, most, enough, why = _measured(dataset, sizes, memory_bytes, batch_size, seed)
    whole, rest = divmod(layout.n_samples, batch_size)
    return Plan(
        sizes=sizes,
        projection=projection,
        n_batches=whole + (rest > 0 and not drop_last),
        first=_reads(dataset, first),
        later=_reads(dataset, later),
        quality=quality,
        most=most,
        enough=enough,
        why=why,
        ranks=None if ranks is None else _of_ranks(dataset, sizes, projection, ranks, drop_last=drop_last),
    )


def _of_ranks(
    dataset: Dataset, sizes: LoaderSizes, whole: LoaderProjection, world_size: int, *, drop_last: bool
) -> RankPlan:
    check_int(world_size, "ranks")
    layout, batch_size = dataset.layout, sizes.batch_size
    how: dict[str, Any] = {"layout": layout, "batch_size": batch_size, "shuffle": True, "drop_last": drop_last}
    deal = Deal(rank=Rank(world_size=world_size), **how)
    own, projection = deal.solve(sizes, whole, memory=whole.budget_bytes, rho=dataset.rho)
    assert projection.expected is not None
    first, later = (_reads(dataset, ratio, of=world_size) for ratio in projection.expected.reads)
    n_last = (layout.n_samples - 1) % batch_size + 1 if not drop_last else batch_size
    ranks = (Rank(rank=rank, world_size=world_size) for rank in range(world_size))
    shared = math.gcd(batch_size, sizes.groups)
    return RankPlan(
        world_size=world_size,
        local_batch_size=deal.local_batch_size,
        sizes=own,
        projection=projection,
        first=first,
        later=later,
        last_batch=tuple(rank.samples_of_batch(n_last, shuffled=True) for rank in ranks),
        possible=tuple(n for n in range(1, shared + 1) if shared % n == 0),
    )


def _order(layout: Layout, sizes: LoaderSizes, seed: int, epoch: int) -> EpochOrder:
    return shuffled_order(shuffle_of(layout, sizes), seed=seed, epoch=epoch)


def _reads(dataset: Dataset, ratio: float, *, of: int = 1) -> ReadCounts:
    """Count the reads of one of several ranks, which has the same number of blocks as the others."""
    n_stored = -(-dataset.layout.n_blocks // of)
    stored_bytes = round(dataset.stored_bytes * ratio / of)
    return ReadCounts(n_blocks=round(ratio * n_stored), n_stored=n_stored, stored_bytes=stored_bytes)


def few_lanes(layout: Layout, sizes: LoaderSizes, memory: int, *, n_measuring: int = 0) -> Fix | None:
    """Explain the cost of fewer lanes than a batch has samples, and the remedy; None where they are enough.

    ``memory`` is the training loader's, beside those that measure; what is named is the budget of all.
    """
    wanted = min(sizes.batch_size, layout.n_samples)
    # Of a batch that is the whole dataset, all samples come whatever the lanes.
    if sizes.lanes >= wanted or sizes.batch_size >= layout.n_samples:
        return None
    # Blocks come in random order, so a sample that is a block of its own is drawn alone, however few lanes there are.
    if layout.block_rows == 1:
        return None

    def is_mended(layout: Layout, memory: int) -> bool:
        try:
            return solve(layout, batch_size=wanted, memory=memory)[0].lanes >= wanted
        except BudgetError:
            return False

    high = max(memory, 1)
    while not is_mended(layout, high):
        high *= 2
    enough = _smallest(lambda some: is_mended(layout, some), high)
    budget = _digits(whole_budget_bytes(enough, n_measuring), 2)
    rows = layout.block_rows
    while rows and not is_mended(replace(layout, block_rows=rows), memory):
        rows //= 2
    block = rows * layout.row_bytes
    smaller = Argument("block", f"{block // 1000}KB" if block >= _KILOBYTES else f"{block}B")
    of_one = min(wanted / sizes.lanes, layout.block_rows)
    return Fix(
        f"{counted(sizes.lanes, 'lane')} for batches of {wanted:,}: about {of_one:.3g} samples of a batch come from "
        "the same block; only one does with ",
        Argument("memory", n_bytes=budget),
        *((", or with ", smaller, " at the ingest") if rows else ()),
    )


def _measured(
    dataset: Dataset, sizes: LoaderSizes, memory: int, batch_size: int, seed: int
) -> tuple[ShuffleQuality | None, ShuffleQuality | None, SufficientMemory | None, str]:
    try:
        labels = StoredLabels(dataset)
    except UsageError as error:
        return None, None, None, error.what
    with labels:
        if batch_size >= len(dataset):
            return None, None, None, ONE_BATCH
        trial = _ShuffleTrial(dataset, labels, batch_size, seed)
        quality = trial.beginning(sizes)
        enough = trial.enough(memory, sizes, quality)
        return quality, trial.most, enough, ""


class _ShuffleTrial:
    """Shuffles of one dataset, tried on its labels, with measured ones remembered."""

    def __init__(self, dataset: Dataset, labels: StoredLabels, batch_size: int, seed: int) -> None:
        self._dataset = dataset
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._tried: dict[tuple[int, int], ShuffleQuality] = {}
        self.most: ShuffleQuality | None = None

    def beginning(self, sizes: LoaderSizes) -> ShuffleQuality:
        """Measure the epoch's beginning, or all of it where it has no more samples."""
        layout = self._dataset.layout
        wanted = max(_LEAST_MEASURED, _MEASURED_RUNS * layout.block_rows * sizes.lanes)
        stop = min(_MOST_MEASURED, wanted) // self._batch_size * self._batch_size or self._batch_size
        return self._measure(sizes, 0, stop, block_rows=layout.block_rows)

    def _measure(self, sizes: LoaderSizes, start: int, stop: int, block_rows: int | None = None) -> ShuffleQuality:
        """Measure a stretch of the first epoch, or of as many as have enough batches: those of few are all chance."""
        n_samples = min(stop, self._dataset.layout.n_samples) - start
        n_batches = max(1, n_samples // self._batch_size)
        n_epochs = min(_MOST_EPOCHS, -(-_LEAST_BATCHES // n_batches), max(1, _TRIED_SAMPLES // n_samples))
        orders = (_order(self._dataset.layout, sizes, self._seed, epoch) for epoch in range(n_epochs))
        how: dict[str, Any] = {"batch_size": self._batch_size, "block_rows": block_rows}
        take, population = self._labels.take, self._labels.population
        return mean_quality(
            [measure_quality(pieces_of(order, start, stop), take, population, **how) for order in orders]
        )

    def _middle(self, sizes: LoaderSizes) -> ShuffleQuality:
        """Measure a stretch about the epoch's middle, where no block is cut."""
        at = sizes.lanes, sizes.groups
        if at not in self._tried:
            n_batches = self._dataset.layout.n_samples // self._batch_size
            n_tried = max(1, _TRIED_SAMPLES // self._batch_size)
            start = max(0, n_batches - n_tried) // 2 * self._batch_size
            self._tried[at] = self._measure(sizes, start, start + n_tried * self._batch_size)
        return self._tried[at]

    def enough(self, memory: int, own: LoaderSizes, quality: ShuffleQuality) -> SufficientMemory | None:
        """Find the smallest memory whose batches vary no more than a full reshuffle's; None if there is none.

        ``memory`` is the plan's, of which ``quality`` was measured: what is found agrees with it.
        """
        high = _FIRST_TRIED
        # All of the blocks may fit a little before all of the lanes do.
        n_blocks = self._dataset.layout.n_blocks
        while (sizes := self._solved(high)) is None or sizes.slots < n_blocks or sizes.lanes < self._lanes(2 * high):
            high *= 2
        self.most = self._middle(sizes)
        is_own_choice = own == self._solved(memory)
        low = 1
        found = self._smallest_in(low, high)
        while found is not None:
            is_below = is_own_choice and not quality.is_random and found.memory_bytes <= memory
            if not is_below and found.quality.is_random:
                break
            low = max(round(found.memory_bytes * _NEXT_TRIED), memory if is_below else 0)
            found = self._smallest_in(low, high)
        if quality.is_random and (found is None or found.memory_bytes > memory):
            return SufficientMemory(memory_bytes=memory, lanes=own.lanes, quality=quality)
        if found is None and self.most.is_random:
            self.most = self.beginning(sizes)
        return found

    def _smallest_in(self, low: int, high: int) -> SufficientMemory | None:
        """Find the smallest memory above ``low`` and up to ``high`` that is enough for a stretch of the middle."""
        if low >= high or not self._is_random(high):
            return None
        found = _digits(_smallest(self._is_random, high, low), 2)
        if found <= low:
            return None
        sizes = self._solved(found)
        assert sizes is not None
        return SufficientMemory(memory_bytes=found, lanes=sizes.lanes, quality=self.beginning(sizes))

    def _is_random(self, memory: int) -> bool:
        sizes = self._solved(memory)
        return sizes is not None and self._middle(sizes).is_random

    def _lanes(self, memory: int) -> int:
        sizes = self._solved(memory)
        return sizes.lanes if sizes else 0

    def _solved(self, memory: int) -> LoaderSizes | None:
        dataset = self._dataset
        try:
            return solve(dataset.layout, batch_size=self._batch_size, memory=memory, rho=dataset.rho)[0]
        except BudgetError:
            return None


def _smallest(holds: Callable[[int], bool], high: int, low: int = 1) -> int:
    """Find about the smallest number above ``low`` for which something holds that holds at ``high`` and above it."""
    while high > low * _TRIED_STEP + 1:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _digits(number: int, n_digits: int) -> int:
    """Round a number up to ``n_digits`` digits and then zeros."""
    unit: int = 10 ** max(0, len(str(number)) - n_digits)
    return -(-number // unit) * unit
