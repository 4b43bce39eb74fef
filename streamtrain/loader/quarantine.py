"""The quarantine of damaged blocks: their samples are left out and named, and the run continues.

A block that cannot be read, or is not what was written, loses its samples over all fields; nothing takes their place.
The order of the others stays, and so do the bounds of the batches: a batch is shorter by the samples it lost, and one
that lost all is not yielded. So batch k has the same samples whatever else is damaged, and a run resumes where it
stood. A block stays out for the loader's life from the first failed read: in the epoch under way, its samples that
waited in a finished batch are left out too.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import Argument, DamagedBlock, Fix, StreamtrainWarning, printable
from streamtrain.loader.augmentation import Transform, batch_samples, sample_keys, takes_keys, transformed
from streamtrain.loader.batch import Batch, channels_first
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.store.byte_ranges import RESTORE
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Layout
from streamtrain.system.memory import memory_limit

EMPTY_BATCH: Final = object()  # a batch all of whose samples are left out


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedBlock:
    """A block that is left out of every field, found damaged in one."""

    field: str  # in which damage was found
    block: int
    file: str
    samples: tuple[int, int]  # half-open range
    why: str

    def __str__(self) -> str:
        start, stop = self.samples
        file = printable(f"{self.file}: {self.why}")
        return f"block {self.block} of field {self.field} (samples {start} to {stop - 1}), {file}"


@contextmanager
def telling_of_quarantine() -> Iterator[None]:
    """Say of damage that ends a training how it goes on without those samples."""
    try:
        yield
    except DamagedBlock as error:
        if error.fix == RESTORE:
            way = Argument("on_bad_block", "quarantine")
            error.fix = Fix(RESTORE, "; or train with ", way, ", which leaves its samples out")
        raise


class Quarantine:
    """The blocks of a dataset that are left out; any thread may add to them."""

    def __init__(self, layout: Layout) -> None:
        self._block_rows = layout.block_rows
        self._is_out = np.zeros(layout.n_blocks, np.bool_)
        self._found: dict[int, QuarantinedBlock] = {}
        self._n_told = 0
        self._adding = threading.Lock()

    @property
    def found(self) -> tuple[QuarantinedBlock, ...]:
        """The blocks left out so far, in the order of their finding."""
        with self._adding:
            return tuple(self._found.values())

    def add(self, error: DamagedBlock) -> None:
        """Leave a block out from now on."""
        out = QuarantinedBlock(
            field=error.field,
            block=error.block,
            file=error.where or "",
            samples=error.samples,
            why=(error.why or error.what).rstrip("."),
        )
        with self._adding:
            self._found.setdefault(error.block, out)
            self._is_out[error.block] = True

    def take(self, found: Iterable[QuarantinedBlock]) -> None:
        """Leave out what other ranks have found, too, and warn of it."""
        with self._adding:
            for out in found:
                self._found.setdefault(out.block, out)
                self._is_out[out.block] = True
        self.tell()

    def kept(self, samples: I64) -> I64 | None:
        """Find the places in a batch of the samples that stay; None where all do."""
        is_out = self._is_out[samples // self._block_rows]
        return np.flatnonzero(~is_out) if is_out.any() else None

    def tell(self) -> bool:
        """Warn of blocks found since the last time; return whether anything ever was."""
        if len(self._found) > self._n_told:
            for out in self.found[self._n_told :]:
                self._n_told += 1
                warnings.warn(f"left out: {out}", StreamtrainWarning, stacklevel=4)
        return self._n_told > 0


class QuarantiningReader(BlockReader):
    """Hands damaged blocks to a quarantine; the contents of their slots must not be used then."""

    def __init__(self, dataset: Dataset, quarantine: Quarantine, *, keep_cached: bool) -> None:
        super().__init__(dataset, keep_cached=keep_cached)
        self._quarantine = quarantine

    def read(self, block: int, slots: Sequence[memoryview]) -> float:
        """Read a block, or leave it out; see `BlockReader.read`."""
        try:
            return super().read(block, slots)
        except DamagedBlock as error:
            self._quarantine.add(error)
            return 0.0


def reader_of(dataset: Dataset, quarantine: Quarantine | None, *, besides: int) -> BlockReader:
    """Make the reader, strict or with a quarantine, on a machine where ``besides`` more bytes will be taken."""
    keep_cached = dataset.stored_bytes <= memory_limit().free_bytes - besides
    if quarantine is None:
        return BlockReader(dataset, keep_cached=keep_cached)
    return QuarantiningReader(dataset, quarantine, keep_cached=keep_cached)


def first_rows(dataset: Dataset, n_rows: int, *, forgiving: bool) -> dict[str, npt.NDArray[Any]]:
    """Read the first rows of a dataset, up to ``n_rows``; where damage is forgiven, those after it."""
    start = 0
    while True:
        try:
            return dataset[start : start + n_rows]
        except DamagedBlock as error:
            if not forgiving or error.samples[1] >= len(dataset):
                raise
            start = error.samples[1]


def batch_finisher(
    quarantine: Quarantine | None,
    transform: Transform | None,
    order: Callable[[], EpochOrder],
    *,
    seed: int,
    epoch: int,
    start: int,
    stop: int,
    batch_size: int,
) -> Callable[[Batch], Any] | None:
    """Make the function that the batches at positions [start, stop) of an epoch go through one after the other.

    It gives the batch without the samples that are left out, transformed, or `EMPTY_BATCH`. The order is only worked
    out when it matters: where the transform takes keys, and from the first damage on.
    """
    with_keys = takes_keys(transform)
    if quarantine is None and not with_keys:
        return None if transform is None else partial(transformed, transform)
    at, samples_of = start, None

    def finish(batch: Batch) -> Any:
        nonlocal at, samples_of
        harmed = quarantine if quarantine is not None and quarantine.tell() else None
        if samples_of is None and (with_keys or harmed):
            samples_of = batch_samples(order(), at, stop, batch_size)
        at += batch_size
        samples = None if samples_of is None else next(samples_of)
        if harmed and samples is not None and (kept := harmed.kept(samples)) is not None:
            if not len(kept):
                return EMPTY_BATCH
            batch, samples = _rows(batch, kept), samples[kept]
        if transform is None:
            return batch
        if not with_keys or samples is None:
            return transformed(transform, batch)
        return transformed(transform, batch, _beside(batch, sample_keys(seed, epoch, samples)))

    return finish


def batch_without_samples(
    layout: Layout,
    decode: Decode | None,
    make: Callable[[Iterable[Tensor]], Batch],
    transform: Transform | None,
    device: torch.device | None,
) -> Any:
    """Make a batch of no samples, for a rank whose share of the last batch is empty, transformed as any other."""
    fields = (torch.from_numpy(np.empty((0, *each.shape), each.dtype)).to(device) for each in layout.batch_fields)
    batch = make(channels_first(fields, layout, decode))
    if transform is None:
        return batch
    keys = (torch.empty(0, dtype=torch.int64, device=device),) if takes_keys(transform) else ()
    return transformed(transform, batch, *keys)


def _rows(batch: Batch, kept: I64) -> Batch:
    places = _beside(batch, torch.from_numpy(kept))
    return batch._make(field[places] for field in batch)


def _beside(batch: Batch, small: Tensor) -> Tensor:
    """Move a small tensor to a batch's device; to a GPU it is copied without waiting for it."""
    device = batch[0].device
    return small.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else small.to(device)
