"""The transfer of batches from the pool to a device, chosen and sized once for a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from streamtrain.errors import BudgetError, DeviceError, UsageError
from streamtrain.loader.budget import LoaderSizes
from streamtrain.loader.device.accelerator import Accelerator, QueueMark, make_accelerator, resolve_device
from streamtrain.loader.device.device_pool import DeviceSpan, PoolOnDevice, PoolOnHost
from streamtrain.loader.device.memory_terms import fit_to_device
from streamtrain.loader.pool_memory import PoolMemory, Span
from streamtrain.store.layout import Layout
from streamtrain.system.memory import Projection
from streamtrain.system.units import format_bytes

PoolPlace = Literal["auto", "host", "device"]
_PLACES: Final = ("auto", "host", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A device, and where the blocks wait for their batches.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` is CUDA where there is any, else the CPU.
    pool : {"auto", "host", "device"}
        Blocks on the host, whose rows are gathered there and copied; or on the device, where the gather costs next to
        nothing. ``"auto"`` takes the device where the pool needs at most half of the memory that is free on it.

    Raises
    ------
    UsageError
        ``pool`` is none of these.
    """

    device: str | torch.device = "auto"
    pool: PoolPlace = "auto"

    def __post_init__(self) -> None:
        if self.pool not in _PLACES:
            raise UsageError(f"pool is {self.pool!r}", fix=f"one of {', '.join(_PLACES)}")


class DeviceTransfer:
    """Brings a loader's batches to a device.

    Parameters
    ----------
    accelerator : Accelerator
        The device.
    pool : {"auto", "host", "device"}
        As in `Placement`.

    Attributes
    ----------
    pool_on_device : bool
        What became of ``pool``.
    """

    def __init__(self, accelerator: Accelerator, pool: PoolPlace) -> None:
        self._accelerator = accelerator
        self._pool = pool
        self.pool_on_device = pool == "device"
        self._projection: Projection | None = None
        self._span: DeviceSpan | None = None
        self._queue: object = None
        self._taken: QueueMark | None = None

    @property
    def device(self) -> torch.device:
        """Where batches end."""
        return self._accelerator.device

    def fit(self, layout: Layout, sizes: LoaderSizes, *, budget_bytes: int) -> tuple[LoaderSizes, Projection]:
        """Choose where the pool lies, and make room in the budget for what the device needs.

        Raises
        ------
        BudgetError
            The budget is too small for that.
        DeviceError
            The device's free memory is.
        """
        free = self._accelerator.free_bytes()
        if self._pool == "auto" and free is not None:
            try:
                _, projection = fit_to_device(layout, sizes, budget_bytes=budget_bytes, pool_on_device=True)
                self.pool_on_device = 2 * projection.terms["device"] <= free
            except BudgetError:
                self.pool_on_device = False
        sizes, projection = fit_to_device(layout, sizes, budget_bytes=budget_bytes, pool_on_device=self.pool_on_device)
        if free is not None and projection.terms["device"] > free:
            raise self._too_small(projection, free)
        self._projection = projection
        return sizes, projection

    def memory(self, layout: Layout, sizes: LoaderSizes) -> PoolMemory:
        """The pool's memory.

        Raises
        ------
        DeviceError
            The device has no room for it, or host memory cannot be page-locked.
        """
        make = PoolOnDevice if self.pool_on_device else PoolOnHost
        with self._explained():
            return make(self._accelerator, layout, sizes)

    def take(self, next_span: Callable[[], Span]) -> tuple[Tensor, ...]:
        """The next span's fields on the device; their batches go through ``hand_over`` one by one.

        Raises
        ------
        DeviceError
            A thread found no room on the device.
        """
        with self._explained():
            span = next_span()
        assert isinstance(span, DeviceSpan)
        self._span, self._queue = span, None
        return span.tensors

    def finish(self, transform: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
        """What a batch goes through on its way to the caller."""
        return self.hand_over if transform is None else lambda batch: transform(self.hand_over(batch))

    def hand_over(self, batch: Any) -> Any:
        """Let the queue that the caller now computes in have a batch of the latest span.

        A caller that queues much and waits for nothing would need ever more memory: spans that it has let go of are
        still computed on. So the device may be one span behind the caller, and no more.
        """
        if self._span is not None and (queue := self._accelerator.current()) != self._queue:
            self._accelerator.admit(self._span.memory, self._span.marks)
            if self._queue is None:
                before, self._taken = self._taken, self._accelerator.mark()
                if before is not None:
                    before.wait()
            self._queue = queue
        return batch

    def let_go(self) -> None:
        """Keep no memory of the device any more."""
        self._span = self._taken = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of a device without room what would fit."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            assert self._projection is not None
            raise self._too_small(self._projection, self._accelerator.free_bytes() or 0) from error

    def _too_small(self, projection: Projection, free: int) -> DeviceError:
        needed = projection.terms["device"]
        # Free memory may lie in pieces too small to be of use: less than half of it is never asked of.
        fits = projection.budget_bytes * free // needed if free < needed else projection.budget_bytes // 2
        where = "pool and batches" if self.pool_on_device else "batches"
        return DeviceError(
            f"the loader's {where} need {format_bytes(needed)} on the device, and {format_bytes(free)} are free",
            where=str(self.device),
            why=f"What the loader owns: {projection}",
            fix=f"memory='{fits}B'" + (" or pool='host'" if self.pool_on_device else " or a smaller batch_size"),
        )


def make_transfer(device: str | torch.device | Placement | None) -> DeviceTransfer | None:
    """Who brings batches to a device; nobody where they stay on the CPU.

    Raises
    ------
    UsageError
        The text names no kind of device.
    DeviceError
        The machine has no such device.

    Examples
    --------
    >>> make_transfer("cpu") is None
    True
    >>> make_transfer(Placement(device="cpu", pool="device")).pool_on_device
    True
    """
    if device is None:
        return None
    placement = device if isinstance(device, Placement) else Placement(device=device)
    resolved = resolve_device(placement.device)
    if resolved.type == "cpu" and placement.pool == "auto":
        return None
    return DeviceTransfer(make_accelerator(resolved), placement.pool)
