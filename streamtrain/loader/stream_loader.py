"""`StreamLoader`: shuffled batches of a stored dataset in bounded memory, with ``state_dict``."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch.utils.data import IterableDataset

from streamtrain.errors import Argument, DeviceError, Fix, NotASequence, UsageError
from streamtrain.loader.augmentation import Transform, check_transform, named
from streamtrain.loader.batch import Batch, BatchGroup, batch_type, batches_of, channels_first, groups_of
from streamtrain.loader.budget import LoaderProjection, LoaderSizes, solve
from streamtrain.loader.deal import Deal
from streamtrain.loader.decode.delivery import Decode, decode_entry, gathers_of
from streamtrain.loader.decode.image_dataset import with_images
from streamtrain.loader.device.transfer import Placement, make_transfer
from streamtrain.loader.loader_state import LOADER_STATE_VERSION, checked_state
from streamtrain.loader.quarantine import (
    EMPTY_BATCH,
    Quarantine,
    QuarantinedBlock,
    batch_finisher,
    batch_without_samples,
    reader_of,
)
from streamtrain.loader.reading.pool import Pool
from streamtrain.loader.telemetry import LoaderTelemetry
from streamtrain.loader.world import OfOneProcess, present_rank, refuse_reader, refuse_worker, told_rank, warn_of_ranks
from streamtrain.shuffle.order import I64, ORDER_VERSION, EpochOrder
from streamtrain.shuffle.positions import samples_at
from streamtrain.shuffle.share import Rank
from streamtrain.store.dataset import Dataset, opened
from streamtrain.system.arguments import (
    check_batch_size,
    check_dataset,
    check_flags,
    check_int,
    check_reading,
    check_seed,
)
from streamtrain.system.calls.public import PublicIterator, public
from streamtrain.system.display.notebook_html import clipped, clipped_left
from streamtrain.system.events import ThreadSeconds
from streamtrain.system.memory import n_cores, require_memory
from streamtrain.system.units import counted, format_bytes, parse_bytes

_ORDER = ("seed", "batch_size", "shuffle", "reshuffle", "drop_last")
_SAME = ("batch_size", "seed", "decode", "transform", "as_dict", "device", "on_bad_block", "timeout")


class StreamLoader(OfOneProcess, IterableDataset[Batch]):
    """Iterate over a dataset in shuffled batches without loading it.

    Each ``iter()`` is the next epoch. A batch belongs to the caller: its memory is never rewritten while anything
    refers to it. A few threads keep reading ahead until ``close()``, the end of a ``with`` block, or garbage
    collection.

    Parameters
    ----------
    dataset : Dataset or path
        From ``streamtrain.open``.
    batch_size : int
        Samples of a batch, of all ranks together; the last of an epoch may be shorter.
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
    decode : dict of str to Images, optional
        How fields of images become pixels, ``{"image": st.Images(224)}``: (B, 3, 224, 224), uint8, channels last.
    transform : callable, optional
        Called with each `Batch` on the loader's device, returns what is yielded instead: a tensor, or tensors in a
        tuple, list or dict. One that takes two arguments also gets a key for each sample, for `streamtrain.uniform`.
    as_dict : bool
        Whether batches are dicts of tensors by field name, which the Trainer of transformers needs, and not `Batch`es.
    device : str, torch.device or Placement, optional
        The device that batches are put on; ``"auto"`` is CUDA where there is any. By default they stay on the CPU.
    on_bad_block : {"error", "quarantine"}
        ``"error"`` raises before a batch that needs a damaged block; ``"quarantine"`` leaves the block's samples out,
        with a warning, and lists it in ``quarantined``. Batches are then shorter, and an empty one is not yielded.
    timeout : float, optional
        Seconds that a read may take, or that nothing may happen, before a `StallError`; None waits forever.
    rank, world_size : int, optional
        Share each epoch between ``world_size`` ranks, of which this is one: all their batches together are the same for
        any number. By default those of ``torch.distributed``, asked when an epoch begins. ``memory`` is one rank's.

    Raises
    ------
    UsageError
        An argument is wrong, or ``drop_last`` leaves no batch.
    BudgetError
        ``memory`` is too small; the message names every term and the smallest budget that works. Or it is more than
        the machine, or the process's control group, has free.
    DeviceError
        The device is missing, or has too little memory; the message has the budget that would fit.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> dataset = st.ingest({"x": np.arange(10.0), "y": np.arange(10)}, tempfile.mkdtemp() + "/d.zarr")
    >>> with StreamLoader(dataset, batch_size=4, seed=0) as loader:
    ...     [len(y) for x, y in loader], sorted(int(v) for x, y in loader for v in y)
    ([4, 4, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    _instead = "pass the dataset, which can be pickled, and make a loader of it there"

    @public
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
        decode: Decode | None = None,
        transform: Transform | None = None,
        as_dict: bool = False,
        device: str | torch.device | Placement | None = None,
        on_bad_block: str = "error",
        timeout: float | None = 300.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_dataset(dataset := opened(dataset))
        dataset = with_images(dataset, decode)
        check_batch_size(batch_size, len(dataset), drop_last=drop_last)
        check_seed(seed)
        check_reading(on_bad_block, timeout, reshuffle)
        check_flags(shuffle=shuffle, as_dict=as_dict)
        check_transform(transform)
        self._telemetry = LoaderTelemetry()
        self.dataset, self.decode, self._layout = dataset, getattr(dataset, "decode", None), dataset.layout
        self.batch_size, self.seed = batch_size, seed
        self.shuffle, self.reshuffle, self.drop_last = shuffle, reshuffle, drop_last
        self.memory_bytes, self.transform, self.as_dict = parse_bytes(memory, name="memory"), transform, as_dict
        self._finishing = named(transform) if as_dict else transform
        self.device, self.on_bad_block, self.timeout = device, on_bad_block, timeout
        self._quarantine = Quarantine(dataset.layout) if on_bad_block == "quarantine" else None
        self._carrier = make_transfer(device, timeout=timeout)
        self._told_rank = told_rank(rank, world_size)
        how: dict[str, Any] = {"layout": self._layout, "shuffle": shuffle, "drop_last": drop_last}
        self._deal = Deal(rank=self._told_rank or Rank(), batch_size=batch_size, **how)
        self._solve(lanes, groups)
        require_memory(self._projection.host_bytes)
        self._batch_type = batch_type([field.name for field in self._layout.batch_fields])
        self._epoch = self._batch = self._turn = 0
        self._pool: Pool | None = None
        self._pool_at: tuple[int, int] | None = None
        self._entered = self._closed = False
        self._ended: int | None = None
        self._work_before, self._blocks_read_before, self.wait_seconds = ThreadSeconds(), 0, 0.0
        self._telemetry.opened(self)
        weakref.finalize(self, self._telemetry.closed)

    def __len__(self) -> int:
        """Batches of an epoch, the same on all ranks."""
        return self._deal.n_batches

    @public
    def __getitem__(self, index: object) -> NoReturn:
        samples = f"loader.dataset[{index!r:.20}] reads samples"
        fix = f"iterate it, without a DataLoader around it; next(iter(loader)) is a batch, {samples}"
        raise NotASequence("a StreamLoader is a stream, and is not indexed", fix=fix)

    def __repr__(self) -> str:
        order = counted(self._sizes.lanes, "lane") if self.shuffle else "in stored order"
        memory = format_bytes(self.memory_bytes).replace(".0 ", " ").replace(" ", "")
        place = f"{counted(len(self), 'batch', 'batches')}, {order}, epoch {self._epoch}"
        what = f", batch_size={self.batch_size}, memory='{memory}', seed={self.seed}: {place})"
        return clipped(f"StreamLoader('{clipped_left(str(self.dataset.path), 85 - len(what))}'{what}", 100)

    @property
    def rank(self) -> int:
        """The number of this process among those that share the epoch."""
        return self._present_deal().rank.rank

    @property
    def world_size(self) -> int:
        """The number of processes that share the epoch."""
        return self._present_deal().rank.world_size

    @property
    def local_batch_size(self) -> int:
        """Samples of this rank in a whole batch."""
        return self._present_deal().local_batch_size

    @property
    def grad_scale(self) -> float:
        """The factor for the mean loss of the last batch, so that the mean over ranks is that over the whole batch.

        1.0 unless ranks have different numbers of samples of a short last batch, and 0.0 where this one has none.

        Raises
        ------
        UsageError
            Damaged blocks are left out, so the other ranks' numbers of samples are not known.
        """
        if self._quarantine is not None and self.world_size > 1:
            raise UsageError(
                "grad_scale is not known where on_bad_block is 'quarantine'",
                why="Other ranks may have left out samples of the batch",
                fix=Fix(Argument("on_bad_block", "error")),
            )
        return self._deal.grad_scale(max(self._place()[1] - 1, 0))

    @property
    def projection(self) -> LoaderProjection:
        """The planned bound of the loader's memory, as a sum of named terms, and what to expect of the order."""
        self._present_deal()
        return self._projection

    @property
    def sizes(self) -> LoaderSizes:
        """The lanes, groups, slots and spans solved from the budget, lanes and groups those of all ranks."""
        of_all, own = self._sizes, self._own_sizes
        return replace(own, batch_size=of_all.batch_size, lanes=of_all.lanes, groups=of_all.groups)

    @property
    def work(self) -> ThreadSeconds:
        """Seconds of work of the threads so far; ``wait_seconds`` is the consumer's own."""
        return self._work_before + self._pool.work() if self._pool else self._work_before

    @property
    def blocks_read(self) -> int:
        """Block reads so far; a block that is still in memory is not read again."""
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
        """The current epoch, or between two the next one, counted from 0."""
        return self._epoch

    @public
    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next ``iter()``, counted from 0, which then starts at its beginning."""
        check_int(epoch, "epoch", least=0)
        self._turn += 1
        self._epoch, self._batch, self._entered, self._ended = epoch, 0, False, None

    def last_samples(self) -> I64:
        """Return the row number in the dataset of each sample of the batch that was yielded last, (B,) int64."""
        epoch, batch = self._place()
        found = samples_at(self._orders()(epoch), self._deal.start(max(batch - 1, 0)), self._deal.start(batch))
        kept = self._quarantine.kept(found) if self._quarantine else None
        return found if kept is None else found[kept]

    def _place(self) -> tuple[int, int]:
        """Give the epoch of the batch that was yielded last, and the batches of it so far."""
        if not self._batch and self._ended is not None:
            return self._ended, len(self)
        return self._epoch, self._batch

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's place, epoch and yielded batches counted from 0: a few numbers and the dataset's id."""
        self._take_rank()
        place = {"epoch": self._epoch, "batch": self._batch}
        lanes = {"lanes": self._sizes.lanes, "groups": self._sizes.groups}
        order = {name: getattr(self, name) for name in _ORDER}
        kind = {"version": LOADER_STATE_VERSION, "dataset": self.dataset.id, "order": self.order_version}
        return kind | place | lanes | order | decode_entry(self.decode)

    @public
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where ``state_dict`` was taken, with the lanes and groups of the state, not those of the budget.

        Raises
        ------
        UsageError
            The state is of another dataset or of other parameters, or is not a loader state.
        CheckpointError
            The state was taken inside an epoch whose order an earlier release made.
        BudgetError
            The state's lanes do not fit the budget.
        """
        state = checked_state(state, self.state_dict())
        self._turn += 1
        if state["lanes"] != self._sizes.lanes or state["groups"] != self._sizes.groups:
            self._stop_pool()
            self._solve(state["lanes"], state["groups"])
        self._epoch = state["epoch"]
        self._batch = min(state["batch"], len(self))
        self._entered, self._ended, self._pool_at = False, None, None

    def _solve(self, lanes: int | None, groups: int | None = None) -> None:
        """Solve the sizes of the whole order, and those of this rank's pool with their projection."""
        layout, memory, rho = self._layout, self.memory_bytes, self.dataset.rho
        order: dict[str, Any] = {"shuffle": self.shuffle, "lanes": lanes, "groups": groups}
        self._sizes, whole = solve(layout, batch_size=self.batch_size, memory=memory, rho=rho, **order)
        self._own_sizes, self._projection = self._deal.solve(self._sizes, whole, memory=memory, rho=rho)
        if self._carrier is not None:
            self._own_sizes, fitted = self._carrier.fit(layout, self._own_sizes, budget_bytes=memory)
            expected = self._deal.expect(self._own_sizes, rho)
            self._projection = LoaderProjection(budget_bytes=fitted.budget_bytes, terms=fitted.terms, expected=expected)

    def _present_deal(self) -> Deal:
        """Give the deal of the epoch that is under way, else that of the next one."""
        if not (self._entered and self._batch):
            self._take_rank()
        return self._deal

    def _take_rank(self) -> None:
        """Take over the rank that torch.distributed gives this process, unless one was given."""
        rank = self._told_rank or present_rank()
        if rank == self._deal.rank:
            return
        if self._entered and self._batch:
            began = self._deal.rank.world_size
            raise UsageError(
                f"torch.distributed has {rank.world_size} ranks, and this epoch began with {began}",
                fix="make or leave the process group between two epochs",
            )
        self._stop_pool()
        self._deal = replace(self._deal, rank=rank)
        self._solve(self._sizes.lanes, self._sizes.groups)

    def sequential(self) -> StreamLoader:
        """Make a loader over the same dataset in its stored order, all samples, with the same budget.

        Several ranks take a range of blocks each, so that each block is read once; their numbers of batches differ.
        """
        same: dict[str, Any] = {name: getattr(self, name) for name in _SAME}
        ordered = StreamLoader(self.dataset, memory=self.memory_bytes, shuffle=False, **same)
        ordered._told_rank, ordered._deal = self._told_rank, replace(ordered._deal, by_blocks=True)
        ordered._quarantine = self._quarantine
        return ordered

    @public
    def __iter__(self) -> Iterator[Batch]:
        if self._closed:
            raise UsageError("the loader is closed", fix="make a new one")
        refuse_worker()
        refuse_reader(self.world_size)
        if self._told_rank is None:
            warn_of_ranks()
        self._turn += 1
        if self._entered and self._batch:
            self._epoch, self._batch = self._epoch + 1, 0
        self._take_rank()
        self._entered = True
        return PublicIterator(self._batches(self._turn), length="len(loader) is the number of batches")

    def _batches(self, turn: int) -> Iterator[Batch]:
        self._check_turn(turn)
        deal, first = self._deal, self._batch

        def taken() -> int:
            return deal.start(self._batch) - deal.start(first) if self._turn == turn else 0

        with self._telemetry.epoch(self, self._epoch, taken):
            pool = self._running_pool() if first < deal.n_with_samples else None
            finish = self._carrier.finish(self._last()) if self._carrier else self._last()
            groups: list[BatchGroup] = []
            device, make = self._carrier.device if self._carrier else None, self._batch_type._make
            empty = partial(batch_without_samples, self._layout, self.decode, make, self._finishing, device)
            while pool is not None and self._batch < deal.n_with_samples:
                groups = groups or self._next_groups(pool)
                batches = batches_of(groups.pop(), deal.local_batch_size, self._batch_type._make)
                while batches:
                    self._batch += 1
                    # Nothing here may keep the batch: its memory is lent until the caller releases it.
                    done = [batches.pop() if finish is None else finish(batches.pop())]
                    if deal.rank.world_size > 1 and done[0] is EMPTY_BATCH:
                        done = [empty()]  # every rank takes as many steps
                    if done[0] is not EMPTY_BATCH:
                        yield done.pop()
                        self._check_turn(turn)
            if self._batch < deal.n_batches:
                self._batch += 1  # other ranks have the last samples
                yield empty()
                self._check_turn(turn)
        self._epoch, self._batch, self._ended = self._epoch + 1, 0, self._epoch
        self._pool_at = (self._epoch, 0) if self._pool else None

    def _check_turn(self, turn: int) -> None:
        if self._closed:
            raise UsageError("the loader was closed meanwhile", fix="close it when no one iterates it")
        if self._turn != turn:
            raise UsageError("a new iteration of the loader began meanwhile", fix="use one iterator at a time")

    def _next_groups(self, pool: Pool) -> list[BatchGroup]:
        """Take the next span's batches in groups, the first one last."""
        started, next_span = time.perf_counter(), partial(pool.next_span, self.timeout)
        tensors = self._carrier.take(next_span) if self._carrier else map(torch.from_numpy, next_span().arrays)
        groups = groups_of(channels_first(tensors, self._layout, self.decode), self._deal.local_batch_size)
        self.wait_seconds += time.perf_counter() - started
        if self._carrier:
            self.wait_seconds += self._carrier.waited_seconds()
            self._telemetry.look(self._carrier.registered_bytes)
        else:
            self._telemetry.look()
        return groups

    def _orders(self) -> Callable[[int], EpochOrder]:
        return self._deal.order_of(self._sizes, self.seed, self.reshuffle)

    def _last(self) -> Callable[[Batch], Any] | None:
        """Make the function that every batch from here on goes through before it is the caller's."""
        deal, start = self._deal, self._deal.start(self._batch)
        place = {"seed": self.seed, "epoch": self._epoch, "start": start, "stop": deal.n_positions}
        order = partial(self._orders(), self._epoch)
        return batch_finisher(self._quarantine, self._finishing, order, batch_size=deal.local_batch_size, **place)

    def _running_pool(self) -> Pool:
        """Give the pool, at the next batch; no seek is needed where an epoch follows on the one before."""
        started = time.perf_counter()
        # A control group may have shrunk since; refused now, no step is lost.
        require_memory(self._projection.host_bytes, held=True)
        if self._pool is None:
            spoilt = self._quarantine.add if self._quarantine else None
            gathers = gathers_of(self.dataset, self._layout, self.decode, seed=self.seed, forgive=spoilt)
            pool = Pool(
                reader_of(self.dataset, self._quarantine, besides=self._projection.host_bytes),
                self._layout,
                self._own_sizes,
                self._orders(),
                n_positions=self._deal.n_positions,
                # At least two: one thread reads while another waits.
                threads=min(self._own_sizes.threads, max(2, n_cores())),
                memory=self._carrier.memory(self._layout, self._own_sizes, gathers) if self._carrier else None,
                gathers=gathers,
            )
            self._stop, self._pool = weakref.finalize(self, self._closer(pool)), pool
        if self._pool_at != (self._epoch, self._batch):
            self._pool.seek(self._epoch, self._deal.start(self._batch), self.timeout)
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
