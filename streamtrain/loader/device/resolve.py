"""A device from its name, tried before anything is put there, and its accelerator."""

from __future__ import annotations

import os
import warnings
from typing import Final

import torch

from streamtrain.errors import Argument, DeviceError, Fix, StreamtrainWarning, UsageError, first_line
from streamtrain.loader.device.accelerator import Accelerator, SynchronousAccelerator
from streamtrain.loader.device.cuda import CudaAccelerator
from streamtrain.loader.device.failures import BUSY, CPU, NO_KERNEL
from streamtrain.system.arguments import is_int

_MOST_DEVICES: Final = 127  # torch numbers them in a byte
_AUTO: Final = Fix(Argument("device", "auto"))
_working: set[tuple[int, torch.device]] = set()  # the devices that have computed something, by process


def make_accelerator(device: torch.device) -> Accelerator:
    """Make the accelerator of a device."""
    return CudaAccelerator(device) if device.type == "cuda" else SynchronousAccelerator(device)


def resolve_device(device: str | torch.device | int) -> torch.device:
    """Turn a name into a device that is there, and works; ``"auto"`` is CUDA where it works, else the CPU."""
    if not isinstance(device, str | torch.device) and not is_int(device, 0, _MOST_DEVICES):
        raise UsageError(f"device is {device!r:.80}, which is not a device", fix=Fix(_AUTO, ", cpu, cuda or cuda:0"))
    if device == "auto":
        return _best_device()
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"torch knows no device {device!r}", fix=Fix(_AUTO, ", cpu, cuda or cuda:0")) from error
    if resolved.type == "meta":
        raise UsageError("device 'meta' holds no data, so nothing can be trained there", fix=_AUTO)
    if resolved.type == "cuda":
        n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= n_cuda:
            found = ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(n_cuda))])
            why = f"{_why_no_cuda()}Found: {found}"
            raise DeviceError(f"there is no device {str(device)!r}", why=why, fix=_AUTO)
        _try_cuda(resolved)
    elif resolved.type != "cpu":
        _try(resolved)
    return resolved


def _best_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        _try_cuda(torch.device("cuda"))
    except DeviceError as error:
        text = f"there is a GPU, but it does not work, so the CPU is used. {error.told()}"
        warnings.warn(StreamtrainWarning(text, fix=error.fix), stacklevel=3)
        return torch.device("cpu")
    return torch.device("cuda")


def _why_no_cuda() -> str:
    """Explain why torch sees no CUDA device, as far as it can be known; empty where it sees some."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"This torch, {torch.__version__}, is built without CUDA. "
    if not torch.cuda.is_available():
        return "The driver is missing, too old for this torch, or shows the process no GPU (CUDA_VISIBLE_DEVICES). "
    return ""


def _try_cuda(device: torch.device) -> None:
    """Compute something: a GPU that is too old for torch, or taken, is there and can be copied to."""
    if (os.getpid(), device) in _working:
        return
    try:
        (torch.ones(1, device=device) + 1).item()
    except RuntimeError as error:
        raise DeviceError(f"the device {str(device)!r} does not work", **_explained(device, error)) from error
    _working.add((os.getpid(), device))


def _explained(device: torch.device, error: RuntimeError) -> dict[str, str]:
    text = str(error)
    first = first_line(error)[:200]
    if NO_KERNEL.search(text):
        built = ", ".join(torch.cuda.get_arch_list()) or "none"
        major, minor = torch.cuda.get_device_capability(device)
        why = f"It is of sm_{major}{minor}, and torch {torch.__version__} has kernels for {built}: {first}"
        return {"why": why, "fix": Fix("a build of torch for it, or ", CPU)}
    if BUSY.search(text):
        why = f"Another process uses it exclusively: {first}"
        return {"why": why, "fix": Fix("end that process, another GPU, or ", CPU)}
    return {"why": first, "fix": Fix("look at the driver (nvidia-smi), or ", CPU)}


def _try(device: torch.device) -> None:
    """Allocate a little memory: torch knows names of devices that are not there, or not built in."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise DeviceError(f"there is no device {str(device)!r}", why=first_line(error)[:200], fix=_AUTO) from error
