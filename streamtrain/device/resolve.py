"""Which device: from a name to one that is there."""

from __future__ import annotations

import torch

from streamtrain.errors import DeviceError, UsageError


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn a name into a device that is there.

    Raises
    ------
    UsageError
        The text names no kind of device, or one that holds no data.
    DeviceError
        The machine has no such device.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {device!r} is none that torch knows", fix="auto, cpu, cuda or cuda:0") from error
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resolved.type == "cuda" and (resolved.index or 0) >= n_cuda:
        found = ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(n_cuda))])
        raise DeviceError(f"there is no device {str(device)!r}", why=f"Found: {found}", fix="device='auto'")
    if resolved.type == "meta":
        raise UsageError("device 'meta' holds no data, so nothing can be trained there", fix="device='auto'")
    if resolved.type not in ("cpu", "cuda"):
        _probe(resolved)
    return resolved


def _probe(device: torch.device) -> None:
    """Ask a device for a little memory: torch knows names of devices that are not there, or not built in."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"there is no device {str(device)!r}", why=why[:200], fix="device='auto'") from error
