"""The memory a piece of work takes: the peak of what the process holds for itself, above where it began.

That is anonymous memory, private and shared (Python's ``mmap(-1, n)`` is shared), and what torch holds in pinned memory
and on CUDA devices. Resident pages of files are left out where the system tells them apart (Linux): they are the page
cache's, and go when others need the room.
"""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import Any, Final, Self

import psutil

_STATUS: Final = Path("/proc/self/status")
_ANONYMOUS: Final = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


def anonymous_bytes() -> int:
    """Bytes of anonymous memory that the process holds now; all its resident memory where that is not told apart.

    Examples
    --------
    >>> anonymous_bytes() > 1_000_000
    True
    """
    try:
        kibibytes = _ANONYMOUS.findall(_STATUS.read_bytes())
    except OSError:
        kibibytes = []
    return sum(map(int, kibibytes)) * 1024 if kibibytes else int(psutil.Process().memory_info().rss)


def device_bytes() -> tuple[int, int]:
    """Bytes of pinned host memory, and of CUDA devices, that torch holds in this process.

    Nothing is held where torch has not begun to use CUDA, so torch need not be there.

    Examples
    --------
    >>> pinned, on_devices = device_bytes()
    >>> pinned >= 0, on_devices >= 0
    (True, True)
    """
    # Another thread may be amid its import of torch, which then has no such part yet.
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)():
        return 0, 0
    # Of the host allocator's figures older versions of torch tell none.
    host: dict[str, int] = getattr(cuda, "host_memory_stats", dict)()
    on_devices = sum(cuda.memory_allocated(i) for i in range(cuda.device_count()))
    return host.get("allocated_bytes.current", 0), on_devices


def held_bytes() -> int:
    """Bytes that the process holds for itself now: anonymous, pinned, and on devices."""
    return anonymous_bytes() + sum(device_bytes())


class MemoryMeter:
    """Sample the memory of the process while a ``with`` block runs.

    Parameters
    ----------
    interval_seconds : float
        Between two samples; a peak shorter than that may be missed.

    Examples
    --------
    >>> with MemoryMeter() as meter:
    ...     held = bytearray(b"x") * 50_000_000
    >>> 49_000_000 < meter.peak_bytes < 90_000_000
    True
    """

    def __init__(self, interval_seconds: float = 0.02) -> None:
        self._interval_seconds = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="streamtrain-memory-meter", daemon=True)
        self._before = self._peak = 0

    @property
    def before_bytes(self) -> int:
        """What the process held on entry."""
        return self._before

    @property
    def peak_bytes(self) -> int:
        """The highest value seen, above the one on entry."""
        return self._peak - self._before

    def __enter__(self) -> Self:
        self._before = self._peak = held_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            self._sample()

    def _sample(self) -> None:
        self._peak = max(self._peak, held_bytes())
