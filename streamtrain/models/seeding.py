"""torch's global random state, seeded inside a ``with`` block and restored at its end.

Initial weights and dropout can only draw from torch's global generators. Here they draw from a state that depends on
the seed and the purpose, and code outside does not notice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor

_CPU: Final = torch.device("cpu")
_DEVICES: Final = ("cuda", "xpu", "mps")
"""Kinds of devices that have random generators of their own."""


@contextmanager
def borrowed_random(device: torch.device = _CPU) -> Iterator[None]:
    """Restore the random state of the CPU, and of the device where it has one, at the end of the block."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


@contextmanager
def seeded_random(seed: int, *key: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch inside the block from a seed and a key, such as the epoch, and restore its state afterwards."""
    word = int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
    with borrowed_random(device):
        torch.default_generator.manual_seed(word)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(word)
        elif device.type in _DEVICES:
            getattr(torch, device.type).manual_seed(word)
        yield


def random_state(device: torch.device = _CPU) -> dict[str, Tensor]:
    """The state of torch's random generators: the CPU's, and the device's where it has one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in _DEVICES:
        states[device.type] = getattr(torch, device.type).get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device = _CPU) -> None:
    """Restore the generators; a state of a device that is not in use is ignored."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type in _DEVICES and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type].cpu(), device)
