"""torch's global random state, seeded inside a ``with`` block and restored at its end.

Initial weights and dropout draw from torch's global generators and cannot be given another. Here they draw from a state
that depends on the seed and on the purpose, and nobody outside notices.
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
    """Put the random state of the CPU, and of the device where it has one of its own, back at the end of the block.

    Examples
    --------
    >>> before = torch.get_rng_state()
    >>> with borrowed_random():
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


@contextmanager
def seeded_random(seed: int, *key: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch inside the block from a seed and a key, such as the epoch; afterwards all is as it was before.

    Examples
    --------
    >>> with seeded_random(0, 1):
    ...     a = torch.rand(())
    >>> with seeded_random(0, 1):
    ...     b = torch.rand(())
    >>> with seeded_random(0, 2):
    ...     c = torch.rand(())
    >>> bool(a == b), bool(a == c)
    (True, False)
    """
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
    """The state of torch's random generators: the CPU's, and the device's where it has one of its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in _DEVICES:
        states[device.type] = getattr(torch, device.type).get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device = _CPU) -> None:
    """Put the generators back; a state of a device that is not in use is left out."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type in _DEVICES and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type].cpu(), device)
