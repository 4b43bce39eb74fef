"""The transfer of batches from the pool to a device, chosen and sized once for a loader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from streamtrain.errors import Argument, BudgetError, DeviceError, Fix, StallError, UsageError
from streamtrain.loader.batch import Batch
from streamtrain.loader.budget import LoaderSizes
from streamtrain.loader.decode.delivery import Gather
from streamtrain.loader.device.accelerator import Accelerator, QueueMark, QueueWait
from streamtrain.loader.device.device_pool import DeviceSpan, PoolOnDevice, PoolOnHost, keep
from streamtrain.loader.device.failures import device_failure, is_device_failure, is_out_of_memory
from streamtrain.loader.device.memory_terms import fit_to_device
from streamtrain.loader.device.resolve import make_accelerator, resolve_device
from streamtrain.loader.reading.pool_memory import PoolMemory, Span
from streamtrain.store.layout import Layout
from streamtrain.system.memory import Projection
from streamtrain.system.units import format_bytes

PoolPlace = Literal["auto", "host", "device"]
_PLACES: Final = ("auto", "host", "device")
_WIDE: Final = ("float64", "complex128")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A device, and where the blocks wait for their batches.

    ``pool="host"`` gathers rows on the host and copies them; on the ``"device"`` the gather costs next to nothing.
    ``"auto"`` takes the device where the pool needs at most half of the memory that is free on it.
    """

    device: str | torch.device = "auto"  # "auto" is CUDA where there is any, else the CPU
    pool: PoolPlace = "auto"

    def __post_init__(self) -> None:
        if self.pool not in _PLACES:
            raise UsageError(f"pool is {self.pool!r}", fix=f"one of {', '.join(_PLACES)}")


class DeviceTransfer:
    """Brings a loader's batches to a device; ``pool_on_device`` is what became of ``pool``."""

    def __init__(self, accelerator: Accelerator, pool: PoolPlace, *, timeout: float | None = None) -> None:
        self._accelerator = accelerator
        self._pool = pool
        self._timeout = timeout
        self._process = os.getpid()
        self._traits = accelerator.traits
        self.pool_on_device = pool == "device"
        self._projection: Projection | None = None
        self._span: DeviceSpan | None = None
        self._queue: object = None
        self._taken: QueueMark | None = None
        self._waits: list[QueueWait] = []

    @property
    def device(self) -> torch.device:
        """The device where batches end."""
        return self._accelerator.device

    @property
    def registered_bytes(self) -> int:
        """Page-locked memory of this process that is counted as plain memory."""
        return self._accelerator.registered_bytes

    def fit(self, layout: Layout, sizes: LoaderSizes, *, budget_bytes: int) -> tuple[LoaderSizes, Projection]:
        """Choose where the pool lies, and make room in the budget for the device's needs."""
        self._check_dtypes(layout)
        place = self._place_of(layout)
        free = self._accelerator.free_bytes()
        how: dict[str, Any] = {"budget_bytes": budget_bytes, "traits": self._traits}
        if place == "auto" and free is not None:
            try:
                _, projection = fit_to_device(layout, sizes, pool_on_device=True, **how)
                self.pool_on_device = 2 * self._on_device(projection) <= free
            except BudgetError:
                self.pool_on_device = False
        sizes, projection = fit_to_device(layout, sizes, pool_on_device=self.pool_on_device, **how)
        if free is not None and self._on_device(projection) > free:
            raise self._too_small(projection, free)
        self._projection = projection
        return sizes, projection

    def _place_of(self, layout: Layout) -> PoolPlace:
        """Return where the blocks are to lie; images are decoded by the host."""
        if not layout.decoder_bytes:
            return self._pool
        if self._pool == "device":
            raise UsageError(
                "images are decoded on the host, and so their blocks lie there",
                where=str(self.device),
                fix=Fix(Argument("pool", "host")),
            )
        return "host"

    def _on_device(self, projection: Projection) -> int:
        return projection.terms[self._traits.term]

    def _check_dtypes(self, layout: Layout) -> None:
        wide = [field for field in layout.fields if field.dtype.name in _WIDE]
        if self.device.type == "mps" and wide:
            raise UsageError(
                f"field {wide[0].name} is {wide[0].dtype.name}, which MPS does not have",
                where=str(self.device),
                fix=Fix(
                    "batches on the CPU (",
                    Argument("device", "cpu"),
                    ") with a transform that casts it, or data of float32",
                ),
            )

    def memory(self, layout: Layout, sizes: LoaderSizes, gathers: Sequence[Gather] = ()) -> PoolMemory:
        """Make the pool's memory."""
        make = PoolOnDevice if self.pool_on_device else PoolOnHost
        # A loader that was made before a fork may first be used after it.
        self._process = os.getpid()
        with self._explained():
            return make(self._accelerator, layout, sizes, gathers)

    def take(self, next_span: Callable[[], Span]) -> tuple[Tensor, ...]:
        """Take the next span's fields on the device; their batches go through ``hand_over`` one by one."""
        with self._explained():
            span = next_span()
        assert isinstance(span, DeviceSpan)
        self._span, self._queue = span, None
        return span.tensors

    def waited_seconds(self) -> float:
        """Count seconds, since the last call, that the caller's queues are known to have stood still for spans."""
        with self._explained():
            told = [(wait, wait.seconds()) for wait in self._waits]
        self._waits = [wait for wait, seconds in told if seconds is None]
        return sum(seconds for _, seconds in told if seconds is not None)

    def finish(self, transform: Callable[[Batch], Any] | None) -> Callable[[Batch], Any]:
        """Make the function that a batch goes through on its way to the caller."""
        return self.hand_over if transform is None else lambda batch: transform(self.hand_over(batch))

    def hand_over(self, batch: Batch) -> Batch:
        """Let the queue that the caller now computes in have a batch of the latest span.

        A caller that queues much and waits for nothing would need ever more memory: spans that it has released are
        still computed on. So the device may be one span behind the caller, and no more, within the timeout.
        """
        if self._span is not None:
            queue = self._accelerator.current()
            # Torch's streams answer False to both != and == beside None.
            if self._queue is None or queue != self._queue:
                with self._explained():
                    self._admit(self._span, is_first=self._queue is None)
                self._queue = queue
        return batch

    def _admit(self, span: DeviceSpan, *, is_first: bool) -> None:
        self._waits.append(self._accelerator.admit(span.memory, span.marks))
        if not is_first:
            return
        before, self._taken = self._taken, self._accelerator.mark()
        if before is not None and not before.wait(self._timeout):
            raise StallError(
                f"the device did not finish its work within {self._timeout:g} seconds",
                where=str(self.device),
                why="What was queued on it before the last batches is not done yet",
                fix=Fix("look at what the device does (nvidia-smi), or wait longer: ", Argument("timeout")),
            )

    def close(self, close_pool: Callable[[], None]) -> None:
        """Keep no memory of the device any more, and close the pool."""
        if os.getpid() != self._process:
            # It is all the parent's, and its release would call the device.
            keep(self, close_pool)
            return
        try:
            with self._explained():
                # A device that has failed says so here, while its memory is still held.
                self._accelerator.mark()
        finally:
            self._span = self._taken = None
            self._waits = []
            with self._explained():
                close_pool()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a device's lack of room into the budget that would fit, and its failure into ours."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error) and self._projection is not None:
                raise self._too_small(self._projection, self._accelerator.free_bytes() or 0) from error
            if is_device_failure(error):
                # 1. The caller's queue was recorded for the memory. 2. The device fails. 3. The last reference goes,
                # and the allocator asks the device when that queue is through. 4. That ends the process.
                keep(self._span, self._taken, self._waits)
                raise device_failure(error, self.device) from error
            raise

    def _too_small(self, projection: Projection, free: int) -> DeviceError:
        needed = self._on_device(projection)
        # Free memory may lie in pieces too small to be of use: then half of the budget is suggested.
        fits = projection.budget_bytes * free // needed if free < needed else projection.budget_bytes // 2
        memory = Argument("memory", n_bytes=fits)
        where = "pool and batches" if self.pool_on_device else "batches"
        return DeviceError(
            f"the loader's {where} need {format_bytes(needed)} on the device, and {format_bytes(free)} are free",
            where=str(self.device),
            why=f"What the loader owns: {projection}",
            fix=Fix(memory, " or ", Argument("pool", "host"))
            if self.pool_on_device
            else Fix(memory, " or a smaller ", Argument("batch_size")),
        )


def make_transfer(
    device: str | torch.device | Placement | None, *, timeout: float | None = None
) -> DeviceTransfer | None:
    """Make the transfer of batches to a device; None where they stay on the CPU."""
    if device is None:
        return None
    placement = device if isinstance(device, Placement) else Placement(device=device)
    resolved = resolve_device(placement.device)
    if resolved.type == "cpu" and placement.pool == "auto":
        return None
    return DeviceTransfer(make_accelerator(resolved), placement.pool, timeout=timeout)
