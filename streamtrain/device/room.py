"""What a device without room for a training step is told by: the batch size that would fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from streamtrain.errors import DeviceError
from streamtrain.system.units import format_bytes

_WANTED: Final = re.compile(r"[Tt]ried to allocate ([0-9.]+) (bytes|[KMGT]iB)")
_UNITS: Final = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def batch_that_fits(batch_size: int, *, room_bytes: int, needed_bytes: int) -> int:
    """The batch size for a step that needs at least ``needed_bytes`` now: at most half, less where the room says so.

    Examples
    --------
    >>> batch_that_fits(256, room_bytes=3 * 10**9, needed_bytes=4 * 10**9)
    128
    >>> batch_that_fits(256, room_bytes=10**9, needed_bytes=8 * 10**9)
    32
    >>> batch_that_fits(256, room_bytes=0, needed_bytes=8 * 10**9)
    0
    """
    return min(batch_size // 2, batch_size * max(0, room_bytes) // max(1, needed_bytes))


def wanted_bytes(error: Exception) -> int:
    """The bytes of the allocation that failed, as torch's message has them.

    Examples
    --------
    >>> wanted_bytes(RuntimeError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ..."))
    1610612736
    """
    found = _WANTED.search(str(error))
    return int(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0


@contextmanager
def room_for_a_step(device: torch.device, *, batch_size: int, optimizer: Optimizer) -> Iterator[None]:
    """Turn torch's error about memory into one that says which batch size would fit.

    Parameters
    ----------
    device : torch.device
        Where the steps are taken.
    batch_size : int
        Samples of a batch.
    optimizer : torch.optim.Optimizer
        Its parameters, their gradients and its state stay from step to step.

    Raises
    ------
    DeviceError
        The device is out of memory. No weight was changed by the step that failed.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        # While the error is handled, its frames still hold what the step took so far.
        held, most = _usage(device)
        kept = sum(tensor.nbytes for tensor in _kept(optimizer) if tensor.device.type == device.type)
        needed = max(held - kept, 0) + wanted_bytes(error)
        fits = batch_that_fits(batch_size, room_bytes=most - kept, needed_bytes=needed)
        raise DeviceError(
            f"the device is out of memory at batch_size {batch_size}",
            where=str(device),
            why=f"Beside the {format_bytes(kept)} that the model and its optimizer keep, the step needs more than "
            f"{format_bytes(needed)}, and {format_bytes(max(0, most - kept))} are there for it",
            fix=f"batch_size={fits}" if fits else "a smaller model, or device='cpu'",
        ) from error


def _usage(device: torch.device) -> tuple[int, int]:
    """Bytes of the device that this process uses, and the most it could."""
    if device.type != "cuda":
        return 0, 0
    held = torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return held, int(free) + torch.cuda.memory_reserved(device)


def _kept(optimizer: Optimizer) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
