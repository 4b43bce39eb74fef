"""Argument checks shared by loaders, plans and comparisons."""

from __future__ import annotations

import math
from typing import Final, TypeGuard

from streamtrain.errors import UsageError, unknown_name

ON_BAD_BLOCK: Final = ("error", "quarantine")
RESHUFFLE: Final = ("epoch", "never")


def is_number(value: object) -> TypeGuard[float]:
    """Say whether something is a finite number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Say whether something is an integer of at least ``least``; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_int(value: object, name: str, least: int = 1, *, fix: str | None = None) -> None:
    """Refuse what is not an integer of at least ``least``."""
    if not is_int(value, least):
        raise UsageError(f"{name} is {value!r}; it must be an integer of at least {least}", fix=fix)


def check_batch_size(batch_size: int, n_samples: int, *, drop_last: bool) -> None:
    """Refuse a batch size that is not a positive integer, or with which ``drop_last`` leaves nothing."""
    if not is_int(batch_size, 1):
        raise UsageError(f"batch_size is {batch_size!r}; it must be a positive integer", fix="batch_size=256, say")
    if drop_last and batch_size > n_samples:
        raise UsageError(
            f"0 batches: batch_size is {batch_size}, the dataset has {n_samples} samples, and drop_last is set",
            fix=f"batch_size={n_samples}, or drop_last=False",
        )


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer of at least 0."""
    check_int(seed, "seed", least=0)


def check_reading(on_bad_block: str, timeout: float | None, reshuffle: str) -> None:
    """Refuse an unknown policy for damaged blocks, an unknown time to reshuffle, and a timeout that is not positive."""
    if reshuffle not in RESHUFFLE:
        raise unknown_name("reshuffle", str(reshuffle), RESHUFFLE)
    if on_bad_block not in ON_BAD_BLOCK:
        raise unknown_name("on_bad_block", str(on_bad_block), ON_BAD_BLOCK)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise UsageError(f"timeout is {timeout!r}; it must be a positive number of seconds", fix="300, say, or None")
