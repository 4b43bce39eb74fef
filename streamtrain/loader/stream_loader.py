"""`StreamLoader`: shuffled batches of a stored dataset in bounded memory, with ``state_dict``."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from streamtrain.errors import CheckpointError, DeviceError, UsageError, differences
from streamtrain.loader.augmentation import Transform
from streamtrain.loader.batch import Batch, batch_type
from streamtrain.loader.budget import LoaderProjection, LoaderSizes, epoch_orders, expect, solve
from streamtrain.loader.device.transfer import Placement, make_transfer
from streamtrain.loader.quarantine import EMPTY_BATCH, Quarantine, QuarantinedBlock, batch_finisher, reader_of
from streamtrain.loader.reading.pool import Pool
from streamtrain.loader.telemetry import LoaderTelemetry
from streamtrain.loader.world import OfOneProcess, refuse_worker, warn_of_ranks
from streamtrain.shuffle.order import I64, ORDER_VERSION, EpochOrder
from streamtrain.shuffle.positions import samples_at
from streamtrain.store.dataset import Dataset, opened
from streamtrain.system.arguments import (
    check_batch_size,
    check_dataset,
    check_flags,
    check_int,
    check_optional_functions,
    check_reading,
    check_seed,
    naming_nearest,
)
from streamtrain.system.display.notebook_html import clipped, clipped_left
from streamtrain.system.events import ThreadSeconds
from streamtrain.system.memory import n_cores, require_memory
from streamtrain.system.units import format_bytes, parse_bytes


def samples_ending_at(order: EpochOrder, position: int, batch_size: int, quarantine: Quarantine | None) -> I64:
    """Find the samples of the batch that ends at a position, without those that are left out."""
    found = samples_at(order, max(position - 1, 0) // batch_size * batch_size, position)
    kept = quarantine.kept(found) if quarantine else None
    return found if kept is None else found[kept]


LOADER_STATE_VERSION: Final = 2
_LEAST: Final = {"seed": 0, "epoch": 0, "batch": 0, "lanes": 1, "groups": 1}
"""Entries of a state that may differ from the loader's, and the least of each."""
_FIRST_VERSION: Final = {"reshuffle": "epoch", "order": 1}  # defaults where a state of version 1 has none


def checked_state(state: object, mine: Mapping[str, Any]) -> dict[str, Any]:
    """Validate a state to resume from, of this release or an earlier one, against the loader's ``mine``."""
    if not isinstance(state, Mapping):
        raise UsageError(f"the state is {type(state).__name__}", fix="what state_dict() returned")
    for name, value in state.items():
        # Arrays and tensors compare by elements.
        if not isinstance(value, int | str | None):
            raise UsageError(f"the state's {name} is {value!r:.80}", fix="what state_dict() returned")
    is_first = state.get("version") == 1
    known = {**_FIRST_VERSION, **state, "version": LOADER_STATE_VERSION} if is_first else dict(state)
    if is_first and mine.get("order") is None:
        known["order"] = None
    ours = {name: value for name, value in mine.items() if name not in _LEAST and name != "order"}
    if wrong := differences(known, ours):
        raise UsageError("the state is of another loader", why="; ".join(wrong), fix="make the loader as it was")
    for name, least in _LEAST.items():
        check_int(known.get(name), f"the state's {name}", least)
    return known if known.get("order") == mine.get("order") else _in_this_order(known, mine)


def _in_this_order(state: dict[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """Adapt a state of another order that stands between epochs: the next one is of this order, by its lanes."""
    begun = state["batch"] > 0
    # Then every epoch is the same, but those before had other batches.
    repeats = state.get("reshuffle") == "never" and state["epoch"] > 0
    if begun or repeats:
        where = f"inside epoch {state['epoch']}" if begun else f"after {state['epoch']} epochs that are all alike,"
        raise CheckpointError(
            f"the state stands {where} of order {state.get('order')}, and this release makes order {ORDER_VERSION}",
            why=(
                "Order 1 is that of streamtrain 0.1.0, whose lanes began and ended every epoch at their cuts. The "
                "samples behind the state are not those that this order has behind it: some would come twice"
            ),
            fix="finish that epoch with the release that began it, or begin a new run",
        )
    return {**state, "lanes": mine["lanes"], "groups": mine["groups"], "order": mine["order"]}


BatchGroup = tuple[Tensor, ...]  # the fields of some batches in a row

_BATCHES_AT_ONCE: Final = 512


def groups_of(fields: Iterable[Tensor], batch_size: int) -> list[BatchGroup]:
    """Cut the fields of a span, (n, ...) each, into groups of batches, the first one last."""
    parts = [torch.split(field, batch_size * _BATCHES_AT_ONCE) for field in fields]
    return list(zip(*parts, strict=True))[::-1]


def batches_of(group: BatchGroup, batch_size: int, make: Callable[[Iterable[Tensor]], Batch]) -> list[Batch]:
    """Cut a group into its batches, the first one last."""
    parts = [torch.split(field, batch_size) for field in group]
    return list(map(make, zip(*parts, strict=True)))[::-1]


_ORDER = ("seed", "batch_size", "shuffle", "reshuffle", "drop_last")
_SAME = ("batch_size", "seed", "transform", "device", "on_bad_block", "timeout")


class StreamLoader(OfOneProcess):
    """Iterate over a dataset in shuffled batches without loading it.

    Each ``iter()`` is the next epoch. A batch belongs to the caller: its memory is never rewritten while anything
    refers to it. A few threads keep reading ahead until ``close()``, the end of a ``with`` block, or garbage
    collection.

    Parameters
    ----------
    dataset : Dataset or path
        From ``streamtrain.open``.
    batch_size : int
        Samples of a batch; the last of an epoch may be shorter.
    memory : int or str
        The budget for everything the loader owns, like ``"512MB"``.
    seed : int
        The order is a function of (dataset, seed, epoch, shuffle parameters) alone.
    shuffle : bool
        False yields the stored order.
    reshuffle : {"epoch", "never"}
        Whether batches are formed anew every epoch, or every epoch has the order, and so the batches, of epoch 0.
    drop_last : bool
        Whether to leave out a short last batch.
    lanes, groups : int, optional
        How many lanes the shuffle has, and groups they are dealt to; solved from ``memory`` by default. ``groups``
        divides ``lanes`` and ``batch_size``. With at least as many lanes as a batch has samples, best a multiple, no
        labels make batches vary more than a full reshuffle's.
    transform : callable, optional
        Called with each `Batch` on the loader's device, returns what is yielded instead. One that takes two arguments
        also gets a key for each sample, for `streamtrain.uniform` and `streamtrain.normal`.
    device : str, torch.device or Placement, optional
        Where batches end; ``"auto"`` is CUDA where there is any. By default they stay on the CPU.
    on_bad_block : {"error", "quarantine"}
        Whether a damaged block is an error, before a batch with a sample of it, or left out, with a warning and in
        ``quarantined``: batches are then shorter by its samples, and one that lost all is not yielded.
    timeout : float, optional
        Seconds that a read may take, or that nothing may happen, before a `StallError`; None waits for ever.

    Raises
    ------
    UsageError
        An argument is wrong, or ``drop_last`` leaves no batch.
    BudgetError
        ``memory`` is too small; the message names every term and the smallest budget that works. Or it is more than
        the machine, or the process's control group, has free.
    DeviceError
        The device is not there, or has too little memory; the message has the budget that would fit.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> dataset = st.ingest({"x": np.arange(10.0), "y": np.arange(10)}, tempfile.mkdtemp() + "/d.zarr")
    >>> with StreamLoader(dataset, batch_size=4, seed=0) as loader:
    ...     [len(y) for x, y in loader], sorted(int(v) for x, y in loader for v in y)
    ([4, 4, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    _instead = "hand over the dataset, which can be pickled, and make a loader of it there"

    @naming_nearest
    def __init__(
        self,
        dataset: Dataset | str | Path,
        *,
        batch_size: int = 256,
        memory: int | str = "512MB",
        seed: int = 0,
        shuffle: bool = True,
        reshuffle: str = "epoch",
        drop_last: bool = False,
        lanes: int | None = None,
        groups: int | None = None,
        transform: Transform | None = None,
        device: str | torch.device | Placement | None = None,
        on_bad_block: str = "error",
        timeout: float | None = 300.0,
    ) -> None:
        dataset = opened(dataset)
        check_dataset(dataset)
        check_batch_size(batch_size, len(dataset), drop_last=drop_last)
        check_seed(seed)
        check_reading(on_bad_block, timeout, reshuffle)
        check_flags(shuffle=shuffle)
        check_optional_functions(transform=transform)
        self._telemetry = LoaderTelemetry()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.reshuffle = reshuffle
        self.drop_last = drop_last
        self.memory_bytes = parse_bytes(memory, name="memory")
        self.transform = transform
        self.device = device
        self.on_bad_block = on_bad_block
        self.timeout = timeout
        self.wait_seconds = 0.0
        self._quarantine = Quarantine(dataset.layout) if on_bad_block == "quarantine" else None
        self._carrier = make_transfer(device, timeout=timeout)
        self._sizes, self._projection = self._solve(lanes, groups)
        require_memory(self._projection.host_bytes)
        self._batch_type = batch_type([field.name for field in dataset.layout.fields])
        self._epoch = self._position = self._turn = 0
        self._pool: Pool | None = None
        self._pool_at: tuple[int, int] | None = None
        self._entered = self._closed = False
        self._ended: int | None = None
        self._work_before = ThreadSeconds()
        self._blocks_read_before = 0
        self._telemetry.opened(self)
        weakref.finalize(self, self._telemetry.closed)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return (len(self.dataset) if self.drop_last else len(self.dataset) + self.batch_size - 1) // self.batch_size

    def __repr__(self) -> str:
        order = f"{self._sizes.lanes:,} lanes" if self.shuffle else "in stored order"
        memory = format_bytes(self.memory_bytes).replace(".0 ", " ").replace(" ", "")
        given = f"batch_size={self.batch_size}, memory='{memory}', seed={self.seed}"
        what = f", {given}: {len(self):,} batches, {order}, epoch {self._epoch + 1})"
        return clipped(f"StreamLoader('{clipped_left(str(self.dataset.path), 85 - len(what))}'{what}", 100)

    @property
    def projection(self) -> LoaderProjection:
        """The planned bound of the loader's memory, as a sum of named terms, and what to expect of the order."""
        return self._projection

    @property
    def sizes(self) -> LoaderSizes:
        """The lanes, groups, slots and spans solved from the budget."""
        return self._sizes

    @property
    def work(self) -> ThreadSeconds:
        """Seconds of work of the threads so far; ``wait_seconds`` is the consumer's own."""
        return self._work_before + self._pool.work() if self._pool else self._work_before

    @property
    def blocks_read(self) -> int:
        """Blocks read so far, each time it was read; those that were still in memory do not count."""
        return self._blocks_read_before + (self._pool.n_read if self._pool else 0)

    @property
    def order_version(self) -> int | None:
        """The version of the epoch's order; None for the stored order."""
        return ORDER_VERSION if self.shuffle else None

    @property
    def quarantined(self) -> tuple[QuarantinedBlock, ...]:
        """The blocks that are left out: field, block, file, samples, and why."""
        return self._quarantine.found if self._quarantine else ()

    @property
    def epoch(self) -> int:
        """The epoch that is under way, else that of the next ``iter()``."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next ``iter()``, which then starts at its beginning."""
        check_int(epoch, "epoch", least=0)
        self._turn += 1
        self._epoch, self._position, self._entered, self._ended = epoch, 0, False, None

    def last_samples(self) -> I64:
        """Return the rows in the dataset of the batch that was yielded last, in its order, (B,) int64."""
        epoch, position = self._epoch, self._position
        if not position and self._ended is not None:
            epoch, position = self._ended, self._n_positions()
        return samples_ending_at(self._orders()(epoch), position, self.batch_size, self._quarantine)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's place, counted in yielded batches: a few numbers and the dataset's id."""
        place = {"epoch": self._epoch, "batch": -(-self._position // self.batch_size)}
        lanes = {"lanes": self._sizes.lanes, "groups": self._sizes.groups}
        order = {name: getattr(self, name) for name in _ORDER}
        kind = {"version": LOADER_STATE_VERSION, "dataset": self.dataset.id, "order": self.order_version}
        return {**kind, **place, **lanes, **order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where ``state_dict`` was taken, with its lanes and groups, whatever the budget gives.

        Raises
        ------
        UsageError
            The state is of another dataset or of other parameters, or is not a loader state.
        CheckpointError
            The state stands inside an epoch of an earlier order.
        BudgetError
            The state's lanes do not fit the budget.
        """
        state = checked_state(state, self.state_dict())
        self._turn += 1
        if state["lanes"] != self._sizes.lanes or state["groups"] != self._sizes.groups:
            self._stop_pool()
            self._sizes, self._projection = self._solve(state["lanes"], state["groups"])
        if state["seed"] != self.seed:
            self._stop_pool()
        self.seed, self._epoch = state["seed"], state["epoch"]
        self._position = min(state["batch"] * self.batch_size, self._n_positions())
        self._entered, self._ended, self._pool_at = False, None, None

    def _solve(self, lanes: int | None, groups: int | None = None) -> tuple[LoaderSizes, LoaderProjection]:
        layout, memory, rho = self.dataset.layout, self.memory_bytes, self.dataset.rho
        order: dict[str, Any] = {"shuffle": self.shuffle, "lanes": lanes, "groups": groups}
        sizes, projection = solve(layout, batch_size=self.batch_size, memory=memory, rho=rho, **order)
        if self._carrier is None:
            return sizes, projection
        sizes, fitted = self._carrier.fit(layout, sizes, budget_bytes=memory)
        expected = expect(layout, sizes, rho)
        return sizes, LoaderProjection(budget_bytes=fitted.budget_bytes, terms=fitted.terms, expected=expected)

    def sequential(self) -> StreamLoader:
        """Make a loader over the same dataset in its stored order, all samples, with the same budget."""
        same = {name: getattr(self, name) for name in _SAME}
        ordered = StreamLoader(self.dataset, memory=self.memory_bytes, shuffle=False, **same)
        ordered._quarantine = self._quarantine
        return ordered

    def __iter__(self) -> Iterator[Batch]:
        if self._closed:
            raise UsageError("the loader is closed", fix="make a new one")
        refuse_worker()
        warn_of_ranks()
        self._turn += 1
        if self._entered and self._position:
            self._epoch, self._position = self._epoch + 1, 0
        self._entered = True
        return self._batches(self._turn)

    def _batches(self, turn: int) -> Iterator[Batch]:
        self._check_turn(turn)
        n_positions, first = self._n_positions(), self._position
        with self._telemetry.epoch(self, self._epoch, lambda: self._position - first if self._turn == turn else 0):
            pool = self._running_pool()
            finish = self._carrier.finish(self._last()) if self._carrier else self._last()
            groups: list[BatchGroup] = []
            while self._position < n_positions:
                groups = groups or self._next_groups(pool)
                batches = batches_of(groups.pop(), self.batch_size, self._batch_type._make)
                while batches:
                    self._position = min(self._position + self.batch_size, n_positions)
                    # Nothing here may keep the batch: its memory is lent until the caller releases it.
                    done = [batches.pop() if finish is None else finish(batches.pop())]
                    if done[0] is not EMPTY_BATCH:
                        yield done.pop()
                        self._check_turn(turn)
        self._epoch, self._position, self._ended = self._epoch + 1, 0, self._epoch
        self._pool_at = (self._epoch, 0)

    def _check_turn(self, turn: int) -> None:
        if self._closed:
            raise UsageError("the loader was closed meanwhile", fix="close it when no one iterates it")
        if self._turn != turn:
            raise UsageError("the loader was iterated anew meanwhile", fix="use one iterator at a time")

    def _next_groups(self, pool: Pool) -> list[BatchGroup]:
        """Take the next span's batches in groups, the first one last."""
        started, next_span = time.perf_counter(), partial(pool.next_span, self.timeout)
        tensors = self._carrier.take(next_span) if self._carrier else map(torch.from_numpy, next_span().arrays)
        groups = groups_of(tensors, self.batch_size)
        self.wait_seconds += time.perf_counter() - started
        if self._carrier:
            self.wait_seconds += self._carrier.waited_seconds()
            self._telemetry.look(self._carrier.registered_bytes)
        else:
            self._telemetry.look()
        return groups

    def _last(self) -> Callable[[Batch], Any] | None:
        """Make the function that every batch from here on goes through before it is the caller's."""
        place = {"seed": self.seed, "epoch": self._epoch, "start": self._position, "stop": self._n_positions()}
        order = partial(self._orders(), self._epoch)
        return batch_finisher(self._quarantine, self.transform, order, batch_size=self.batch_size, **place)

    def _orders(self) -> Callable[[int], EpochOrder]:
        return epoch_orders(self.dataset.layout, self._sizes, self.seed, shuffle=self.shuffle, reshuffle=self.reshuffle)

    def _n_positions(self) -> int:
        return len(self) * self.batch_size if self.drop_last else len(self.dataset)

    def _running_pool(self) -> Pool:
        """Give the pool, at the next batch; no seek is needed where an epoch follows on the one before."""
        started = time.perf_counter()
        # A control group may have shrunk since; refused now, no step is lost.
        require_memory(self._projection.host_bytes, held=True)
        if self._pool is None:
            pool = Pool(
                reader_of(self.dataset, self._quarantine, besides=self._projection.host_bytes),
                self.dataset.layout,
                self._sizes,
                self._orders(),
                n_positions=self._n_positions(),
                # At least two: one thread reads while another waits.
                threads=min(self._sizes.threads, max(2, n_cores())),
                memory=self._carrier.memory(self.dataset.layout, self._sizes) if self._carrier else None,
            )
            self._stop, self._pool = weakref.finalize(self, self._closer(pool)), pool
        if self._pool_at != (self._epoch, self._position):
            self._pool.seek(self._epoch, self._position, self.timeout)
        self._pool_at = None
        self.wait_seconds += time.perf_counter() - started
        return self._pool

    def _closer(self, pool: Pool) -> Callable[[], None]:
        return partial(self._carrier.close, pool.close) if self._carrier else pool.close

    def _stop_pool(self) -> None:
        if self._pool is None:
            return
        pool, self._pool, self._pool_at = self._pool, None, None
        self._stop.detach()
        try:
            self._closer(pool)()
        finally:
            self._work_before += pool.work()
            self._blocks_read_before += pool.n_read

    def close(self) -> None:
        """Stop the threads, release the memory, and close all files; the loader cannot be iterated any more.

        Raises
        ------
        DeviceError
            The device has failed. The loader is closed all the same.
        """
        self._turn += 1
        self._closed = True
        try:
            self._stop_pool()
        finally:
            self._telemetry.closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except DeviceError:
            # Every call to a device that has failed fails: the first error has the reason.
            if error is None:
                raise
