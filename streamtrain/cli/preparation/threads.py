"""The hint that other programs take the cores that torch's threads wait for.

Torch divides an operation evenly among its threads and waits for the last. Where another program holds one of the
cores, all threads wait for that share, again in each operation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil
import torch

from streamtrain.cli.output import note

_LEAST_SECONDS: Final = 1.0
_GOOD_PART: Final = 0.25
_SPARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReading:
    """Time that went by, and CPU time on the cores that this process may use: of all programs, and its own."""

    seconds: float
    busy_seconds: float
    own_seconds: float
    n_cores: int


def read_cpu() -> CpuReading:
    """Read the clocks of the cores that this process may use."""
    times = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    cores = [times[core] for core in usable if core < len(times)] or times
    kinds = ("user", "nice", "system", "irq", "softirq")
    return CpuReading(
        seconds=time.perf_counter(),
        busy_seconds=sum(getattr(core, kind, 0.0) for core in cores for kind in kinds),
        own_seconds=time.process_time(),
        n_cores=len(cores),
    )


def crowded(before: CpuReading, now: CpuReading, n_threads: int) -> str | None:
    """Say between two readings that other programs take cores that torch's threads need; None where they do not."""
    seconds = now.seconds - before.seconds
    others = (now.busy_seconds - before.busy_seconds - (now.own_seconds - before.own_seconds)) / seconds
    is_good_part = others >= _GOOD_PART * now.n_cores
    if n_threads == 1 or not is_good_part or n_threads + others <= now.n_cores + _SPARE:
        return None
    return (
        f"other programs use {min(others, now.n_cores):.1f} of {now.n_cores} cores, and torch's threads wait for one "
        "another: --threads 1 may be several times faster"
    )


class CoreWatch:
    """A look at the cores now and then, from when it was made on; it hints once."""

    def __init__(self, read: Callable[[], CpuReading] | None = None) -> None:
        self._read = read or read_cpu
        self._before = self._read()
        self._is_told = False

    def look(self) -> None:
        """Hint that other programs take the cores, unless that was done, or the last look was just now."""
        if self._is_told:
            return
        now = self._read()
        if now.seconds - self._before.seconds < _LEAST_SECONDS:
            return
        found = crowded(self._before, now, torch.get_num_threads())
        self._before = now
        if found is not None:
            self._is_told = True
            note(f"hint: {found}")
