"""How many threads torch computes with on the CPU, as ``--threads`` says."""

from __future__ import annotations

import os

import torch

from streamtrain.errors import UsageError


def most_threads() -> int:
    """The most that may be asked for: far more than is of use, and far fewer than end a process."""
    return max(64, 4 * (os.cpu_count() or 1))


def set_threads(threads: int | None) -> None:
    """Have torch compute with so many threads; with None, with as many as it finds right.

    Raises
    ------
    UsageError
        There are fewer than 1, or more than `most_threads`.

    Examples
    --------
    >>> set_threads(0)
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: threads is 0; it must be at least 1
    """
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    if threads > most_threads():
        raise UsageError(
            f"threads is {threads}; it may be at most {most_threads()} here",
            why=f"The machine has {os.cpu_count() or 1} cores",
            fix="leave it out, for one thread a core",
        )
    torch.set_num_threads(threads)
