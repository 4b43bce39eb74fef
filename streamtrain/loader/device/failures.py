"""Errors of a device, and their meaning: out of memory, broken, or busy with a capture."""

from __future__ import annotations

import re
from typing import Final

import torch

from streamtrain.errors import Argument, DeviceError, Fix, first_line

_ACCELERATOR_ERROR: Final[type[Exception] | tuple[()]] = getattr(torch, "AcceleratorError", ())
"""Torch 2.8 and later have a class for it; before, and for libraries of the device, only the text shows it."""

_BROKEN: Final = re.compile(
    r"\A\W*(?:CUDA|HIP|cuDNN|MIOpen|XPU|MPS)\b[\w ]* (?:error|failed)|CUBLAS_STATUS|CUDNN_STATUS"
)
_CAPTURES: Final = re.compile(r"stream is capturing|capturing (?:blocking )?stream|StreamCapture")
NO_KERNEL: Final = re.compile(r"no kernel image|invalid device function|PTX")
BUSY: Final = re.compile(r"busy or unavailable|in use|exclusive")
CPU: Final = Argument("device", "cpu")
_REMEDIES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"device-side assert"), "labels and indexes within their range; CUDA_LAUNCH_BLOCKING=1 names the call"),
    (re.compile(r"ALLOC_FAILED|NOT_INITIALIZED|out of memory"), "a smaller batch_size, or a smaller model"),
    (NO_KERNEL, Fix("a build of torch for this device, or ", CPU)),
    (BUSY, Fix("end the process that uses the device exclusively, or ", CPU)),
)
_ANY_REMEDY: Final = "start a new process; if it happens again, the log of the device's driver has more"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "backend out of memory" in str(error)
    )


def is_device_failure(error: BaseException) -> bool:
    """Whether a device, or a library of it, has failed; the program's own request is not at fault."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, _ACCELERATOR_ERROR) or (
        isinstance(error, RuntimeError) and not isinstance(error, DeviceError) and bool(_BROKEN.search(str(error)))
    )


def is_capture_conflict(error: BaseException) -> bool:
    """Whether a call was refused during a graph capture; it can be made again afterwards."""
    return isinstance(error, RuntimeError) and bool(_CAPTURES.search(str(error)))


def device_failure(error: BaseException, device: torch.device) -> DeviceError:
    """Make the error shown to a user from one of a device's own."""
    fix = next((remedy for pattern, remedy in _REMEDIES if pattern.search(str(error))), _ANY_REMEDY)
    return DeviceError(f"the device failed: {first_line(error)[:200]}", where=str(device), fix=fix)
