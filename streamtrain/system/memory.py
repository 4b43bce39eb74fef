"""Memory limits of the process, the peak meter, the allocator's settings, and projections as named terms.

*Limits.* A container or a batch job is held to a control group's limit (version 1 or 2), and the kernel kills what
exceeds it; the RAM of the machine is then no answer. Every group from the process's own up to the root counts, and the
smallest limit holds. File pages do not count as used: the kernel reclaims them when others need the room.

*Meter.* The peak is that of anonymous memory, private and shared (Python's ``mmap(-1, n)`` is shared), and of pinned
and CUDA memory held by torch. Resident pages of files are left out where the system tells them apart (Linux).

*Allocator.* glibc raises the size from which memory is mapped separately as such pieces are freed, up to 32 MiB, and
keeps twice that at the end of its heap. Large tensors that come and go with every step then share a heap with small
ones that stay, and the heap grows. Fixed limits return large tensors at once; huge pages make up for most of the cost
of mapping them anew.

Sources: the kernel's ``cgroup-v2.rst`` (memory.max, memory.high, memory.stat) and ``cgroup-v1/memory.rst``;
mallopt(3), malloc_trim(3), and torch's ``c10/core/impl/alloc_cpu.cpp``.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psutil

from streamtrain.errors import Argument, BudgetError, Fix
from streamtrain.system.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What the loader will own, in bytes, by name; ``str()`` prints it as a sum.

    Attributes
    ----------
    budget_bytes : int
        What the user allows.
    terms : dict of str to int
        The named terms.
    """

    budget_bytes: int
    terms: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """The sum of the terms."""
        return sum(self.terms.values())

    @property
    def host_bytes(self) -> int:
        """What of it is the host's: all but a device's own memory."""
        return self.total_bytes - self.terms.get("device", 0)

    def __str__(self) -> str:
        terms = " + ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in self.terms.items())
        return f"{terms} = {format_bytes(self.total_bytes)} of {format_bytes(self.budget_bytes)}"


_ROOT: Final = Path("/")
_NO_LIMIT: Final = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """What holds a process's memory.

    Attributes
    ----------
    limit_bytes : int
        The most there may be.
    free_bytes : int
        What of it is not taken now, page cache counted as free.
    source : str
        What sets the limit, for people: ``"RAM"``, or a cgroup file.
    """

    limit_bytes: int
    free_bytes: int
    source: str


def memory_limit(root: Path = _ROOT) -> MemoryLimit:
    """The tightest limit on this process, read anew at every call, since groups may shrink.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.

    Examples
    --------
    >>> limit = memory_limit()
    >>> 0 < limit.free_bytes <= limit.limit_bytes
    True
    """
    ram = psutil.virtual_memory()
    limits = [MemoryLimit(limit_bytes=ram.total, free_bytes=min(ram.available, ram.total), source="RAM")]
    for folder in memory_groups(root):
        limits += _limits_at(folder)
    limit = min(limits, key=lambda each: each.limit_bytes)
    # The group may allow what other processes of the machine hold already.
    return MemoryLimit(
        limit_bytes=limit.limit_bytes, free_bytes=min(each.free_bytes for each in limits), source=limit.source
    )


def require_memory(n_bytes: int, *, held: bool = False) -> None:
    """Refuse to begin what would not fit the machine, while there is still something to do about it.

    Parameters
    ----------
    n_bytes : int
        What is to be taken.
    held : bool
        Whether it has been taken already, at least in part: then only the limit counts, not what is free.

    Raises
    ------
    BudgetError
        There is less; the message says how much and what sets the limit.
    """
    limit = memory_limit()
    there = limit.limit_bytes if held else limit.free_bytes
    if n_bytes > there:
        raise BudgetError(
            f"{format_bytes(n_bytes)} are needed; {format_bytes(limit.free_bytes)} are free of the "
            f"{format_bytes(limit.limit_bytes)} that {limit.source} allows",
            fix=Fix(Argument("memory", f"{max(1, there * 9 // 10 // 10**6)}MB"), " or less"),
        )


def n_cores() -> int:
    """The cores that this process may use, at least 2: one thread reads while another waits."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, cores)


def memory_groups(root: Path) -> Iterator[Path]:
    """The folders of the memory groups that the process is in, the innermost first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        name = "memory" if controllers else ""
        # Inside a container the path may be the host's, and the mount show the container's own group as its root.
        for mount in (root / "sys/fs/cgroup" / name, root / "sys/fs/cgroup/unified"):
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(mount):
                    yield folder
            if controllers:
                break


def _limits_at(folder: Path) -> Iterator[MemoryLimit]:
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.high", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit = _number(folder / limit_name)
        if limit is not None and limit < _NO_LIMIT:
            used = (_number(folder / used_name) or 0) - _cached_bytes(folder)
            free = min(max(limit - used, 0), limit)
            yield MemoryLimit(limit_bytes=limit, free_bytes=free, source=str(folder / limit_name))


def _cached_bytes(folder: Path) -> int:
    """The group's file pages, which the kernel can take back."""
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    prefix = "total_" if "total_inactive_file" in stat else ""
    return sum(int(stat.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    # No such file on other systems and with other versions; and a group can go while it is read.
    try:
        return path.read_text()
    except OSError:
        return ""


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


_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 4 << 20
_KEPT_BYTES: Final = 8 << 20
_HUGE_PAGES: Final = "THP_MEM_ALLOC_ENABLE"


def limit_heap_growth() -> bool:
    """Set this process's allocator so; return whether it could be, which is on Linux with glibc.

    Call it before torch makes its first tensor, which is when torch looks whether to ask for huge pages.

    Examples
    --------
    >>> limit_heap_growth() or sys.platform != "linux"
    True
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    # Torch has no other switch for it.
    os.environ.setdefault(_HUGE_PAGES, "1")
    large = library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
    return bool(large and library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def trim_heap() -> bool:
    """Give the system what was freed and is still held, here and in every thread; return whether that could be asked.

    Without it, what the process holds at the beginning of a piece of work tells of the pieces before.

    Examples
    --------
    >>> trim_heap() or sys.platform != "linux"
    True
    """
    gc.collect()
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        return False
    library.malloc_trim(0)
    return True
