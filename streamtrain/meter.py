"""The memory a piece of work takes: the peak of what the process holds for itself, above where it began.

That is anonymous memory, private and shared (Python's ``mmap(-1, n)`` is shared). Resident pages of files are left out
where the system tells them apart (Linux): they are the page cache's, and go when others need the room.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Final, Self

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


class MemoryMeter:
    """Sample the memory of the process while a ``with`` block runs.

    Parameters
    ----------
    interval_seconds : float
        Between two samples; a peak shorter than that may be missed.

    Examples
    --------
    >>> with MemoryMeter() as meter:
    ...     held = bytearray(b"x") * 20_000_000
    >>> 19_000_000 < meter.peak_bytes < 60_000_000
    True
    """

    def __init__(self, interval_seconds: float = 0.02) -> None:
        self._interval_seconds = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="streamtrain-memory-meter", daemon=True)
        self._before = self._peak = 0

    @property
    def peak_bytes(self) -> int:
        """The highest value seen, above the one on entry."""
        return self._peak - self._before

    def __enter__(self) -> Self:
        self._before = self._peak = anonymous_bytes()
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
        self._peak = max(self._peak, anonymous_bytes())
