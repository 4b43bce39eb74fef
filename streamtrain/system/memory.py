"""Memory limits of the process, the peak meter, the allocator's settings, and projections as named terms.

*Limits.* A control group (version 1 or 2) limits a container or a batch job, and the kernel kills a process that
exceeds it, however much RAM the machine has. Every group from the process's own up to the root counts, and the smallest
limit holds. Clean file pages do not count as used: the kernel reclaims them when others need the memory; ZFS does the
same with its own cache, down to a least size. A limit of the process itself (``ulimit``) is one more.

*Meter.* The peak is that of anonymous memory, private and shared (Python's ``mmap(-1, n)`` is shared), and of pinned
and CUDA memory held by torch. Resident pages of files are left out where the system counts them apart (Linux).

*Allocator.* glibc raises the size from which memory is mapped separately as such pieces are freed, up to 32 MiB, and
keeps twice that at the end of its heap. Large tensors that come and go with every step then share a heap with small
ones that stay, and the heap grows. Fixed limits return large tensors at once; huge pages make up for most of the cost
of mapping them anew.

Sources: the kernel's ``cgroup-v2.rst`` (memory.max, memory.high, memory.stat, cpu.max), ``cgroup-v1/memory.rst`` and
``sched-bwc.rst``; getrlimit(2), mallopt(3), malloc_trim(3), proc_pid_mountinfo(5), and torch's
``c10/core/impl/alloc_cpu.cpp``; OpenZFS's ``arc.c`` (arcstats: size, c_min).
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psutil

from streamtrain.errors import Argument, BudgetError, Fix
from streamtrain.system.syscalls import TOO_MANY_OPEN, with_room
from streamtrain.system.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The memory that a loader will own, as named terms in bytes; ``str()`` prints it as a sum."""

    budget_bytes: int
    terms: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """The sum of the terms."""
        return sum(self.terms.values())

    @property
    def host_bytes(self) -> int:
        """The host's part of the sum: all but a device's own memory."""
        return self.total_bytes - self.terms.get("device", 0)

    def __str__(self) -> str:
        terms = " + ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in self.terms.items())
        return f"{terms} = {format_bytes(self.total_bytes)} of {format_bytes(self.budget_bytes)}"


_ROOT: Final = Path("/")
_NO_LIMIT: Final = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """The limit on a process's memory."""

    limit_bytes: int
    free_bytes: int  # page cache counts as free
    source: str  # "RAM", or a cgroup file


def memory_limit(root: Path = _ROOT) -> MemoryLimit:
    """Return the tightest limit on this process, read anew at every call, since groups may shrink."""
    ram = with_room(psutil.virtual_memory)
    available = min(ram.available + _zfs_cache_bytes(root), ram.total)
    limits = [MemoryLimit(limit_bytes=ram.total, free_bytes=available, source="RAM")]
    for folder in control_groups("memory", root):
        limits += _limits_at(folder)
    limits += _limits_of_process()
    limit = min(limits, key=lambda each: each.limit_bytes)
    # The group may allow what other processes of the machine hold already.
    return MemoryLimit(
        limit_bytes=limit.limit_bytes, free_bytes=min(each.free_bytes for each in limits), source=limit.source
    )


def _zfs_cache_bytes(root: Path) -> int:
    """Read what ZFS gives back of its cache, which the system does not count as available."""
    lines = map(str.split, _read(root / "proc/spl/kstat/zfs/arcstats").splitlines())
    stats = {words[0]: int(words[2]) for words in lines if len(words) == 3 and words[2].isdecimal()}
    return max(0, stats.get("size", 0) - stats.get("c_min", 0))


def is_in_memory(folder: Path, root: Path = _ROOT) -> bool:
    """Say whether files in a folder are held in memory (tmpfs), where the system tells."""
    device = folder.stat().st_dev
    here = f"{os.major(device)}:{os.minor(device)}"
    mounts = [line.split(" ") for line in _read(root / "proc/self/mountinfo").splitlines()]
    kinds = (words[words.index("-") + 1] for words in mounts if words[2:3] == [here] and "-" in words[:-1])
    return next(kinds, "") in ("tmpfs", "ramfs")


def require_memory(n_bytes: int, *, held: bool = False) -> None:
    """Refuse work that needs more memory than is free, before it begins.

    If the memory is ``held`` already, at least in part, only the limit counts.
    """
    limit = memory_limit()
    there = limit.limit_bytes if held else limit.free_bytes
    if n_bytes > there:
        raise BudgetError(
            f"{format_bytes(n_bytes)} are needed; {format_bytes(limit.free_bytes)} are free of the "
            f"{format_bytes(limit.limit_bytes)} that {limit.source} allows",
            fix=at_most("memory", there),
        )


def at_most(name: str, n_bytes: int) -> Fix:
    """Suggest for an argument what leaves a tenth of some memory free."""
    return Fix(Argument(name, f"{max(1, n_bytes * 9 // 10 // 10**6)}MB"), " or less")


def n_cores(root: Path = _ROOT) -> int:
    """Count the cores that this process may use, by its affinity and by the quotas of its control groups.

    Processes that torchrun started together on this machine share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = filter(None, map(_quota, control_groups("cpu", root)))
    beside = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min([cores, *map(math.ceil, quotas)]) // max(1, int(beside) if beside.isdecimal() else 1))


def _quota(folder: Path) -> float | None:
    """Read how many cores' time a group may take; None where it has no quota."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not period:
        quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    # Version 2 writes "max" for no quota, version 1 -1.
    if not (quota.strip().isdecimal() and period.strip().isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def control_groups(controller: str, root: Path = _ROOT) -> Iterator[Path]:
    """List the folders of the control groups that the process is in for a controller, the innermost first."""
    mounts = list(_mounts(controller, root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount, version in mounts:
            if version != (1 if controllers else 2):
                continue
            # Inside a container the path may be the host's, and the mount show the container's own group as its root.
            inner = mount / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount))


def _mounts(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """List where the hierarchies of a controller are mounted, and their versions; see proc_pid_mountinfo(5)."""
    found = [line.partition(" - ") for line in _read(root / "proc/self/mountinfo").splitlines()]
    mounts = [(left.split(" ")[4], *right.split(" ", 2)) for left, _, right in found if left.count(" ") > 4]
    for place, kind, _, options in (mount for mount in mounts if len(mount) == 4):
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield root / place.replace("\\040", " ").lstrip("/"), 2 if kind == "cgroup2" else 1
    if not mounts:
        groups = root / "sys/fs/cgroup"
        yield from [(groups / controller, 1), (groups, 2), (groups / "unified", 2)]


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
    """Read the bytes of the group's file pages, which the kernel can take back at once."""
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    prefix = "total_" if "total_inactive_file" in stat else ""
    clean = sum(int(stat.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    # What has still to be written, to a slow disk perhaps, cannot be taken back in time.
    unwritten = ("file_dirty", "file_writeback", f"{prefix}dirty", f"{prefix}writeback")
    return max(0, clean - sum(int(stat.get(name, 0)) for name in unwritten))


def _limits_of_process() -> Iterator[MemoryLimit]:
    """Read the limits of the process itself: those of ``ulimit -v`` and ``-d``, which batch systems also set."""
    held = _resident()
    for name, option, used in (("AS", "v", held.vms), ("DATA", "d", getattr(held, "data", held.vms))):
        limit, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        if limit != resource.RLIM_INFINITY:
            yield MemoryLimit(limit_bytes=limit, free_bytes=max(limit - used, 0), source=f"ulimit -{option}")


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    # No such file on other systems and with other versions; and a group can go while it is read.
    try:
        return with_room(path.read_text)
    except OSError as error:
        if error.errno in TOO_MANY_OPEN:
            raise  # the limit is there, and not known
        return ""


_STATUS: Final = Path("/proc/self/status")
_STATUS_BYTES: Final = 1 << 16
_ANONYMOUS: Final = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


def anonymous_bytes() -> int:
    """Measure the anonymous memory of the process; all its resident memory where the system gives no parts."""
    status = _open_status()
    try:
        return _anonymous_bytes(status)
    finally:
        _close_status(status)


def _open_status() -> int | None:
    """Open the kernel's figures of this process; None where there is no such file."""
    try:
        return with_room(lambda: os.open(_STATUS, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return None


def _close_status(status: int | None) -> None:
    if status is not None:
        os.close(status)


def _anonymous_bytes(status: int | None) -> int:
    kibibytes = [] if status is None else _ANONYMOUS.findall(os.pread(status, _STATUS_BYTES, 0))
    return sum(map(int, kibibytes)) * 1024 if kibibytes else int(_resident().rss)


def _resident() -> Any:
    return with_room(lambda: psutil.Process().memory_info())


def device_bytes() -> tuple[int, int]:
    """Return the bytes of pinned host memory, and of CUDA devices, that torch holds; 0 where CUDA is not in use."""
    # Another thread may be importing torch, which then has no such part yet.
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)():
        return 0, 0
    # Older versions of torch have no figures of the host allocator.
    host: dict[str, int] = getattr(cuda, "host_memory_stats", dict)()
    on_devices = sum(cuda.memory_allocated(i) for i in range(cuda.device_count()))
    return host.get("allocated_bytes.current", 0), on_devices


def held_bytes() -> int:
    """Return the bytes that the process holds for itself now: anonymous, pinned, and on devices."""
    return anonymous_bytes() + sum(device_bytes())


class MemoryMeter:
    """Sample the memory of the process while a ``with`` block runs; peaks shorter than the interval may be missed."""

    def __init__(self, interval_seconds: float = 0.02) -> None:
        self._interval_seconds = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="streamtrain-memory-meter", daemon=True)
        self._before = self._peak = 0
        self._status: int | None = None  # open all along: a process may come to have no file to spare

    @property
    def before_bytes(self) -> int:
        """The bytes that the process held on entry."""
        return self._before

    @property
    def peak_bytes(self) -> int:
        """The highest value seen, above the one on entry."""
        return self._peak - self._before

    def __enter__(self) -> Self:
        self._status = _open_status()
        self._before = self._peak = self._held_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        _close_status(self._status)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            self._sample()

    def _sample(self) -> None:
        self._peak = max(self._peak, self._held_bytes())

    def _held_bytes(self) -> int:
        return _anonymous_bytes(self._status) + sum(device_bytes())


_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 4 << 20
_MOST_LARGE_BYTES: Final = 32 << 20  # glibc takes no more
_KEPT_BYTES: Final = 8 << 20
_MOST_KEPT_BYTES: Final = (1 << 31) - 1
_HUGE_PAGES: Final = "THP_MEM_ALLOC_ENABLE"


def limit_heap_growth(reused_bytes: int = 0) -> bool:
    """Fix this process's allocator limits; return whether that is possible, as on Linux with glibc.

    Call it before torch makes its first tensor: only then does torch check whether to use huge pages. Of memory that is
    taken again and again, ``reused_bytes`` are kept: giving it back each time costs more than most work on it.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    # Torch has no other switch for huge pages.
    os.environ.setdefault(_HUGE_PAGES, "1")
    large = library.mallopt(_MMAP_THRESHOLD, min(max(_LARGE_BYTES, reused_bytes), _MOST_LARGE_BYTES))
    return bool(large and library.mallopt(_TRIM_THRESHOLD, min(max(_KEPT_BYTES, reused_bytes), _MOST_KEPT_BYTES)))


def trim_heap() -> bool:
    """Return freed memory of all threads to the system; say whether that is possible.

    Otherwise memory held at the beginning of a piece of work includes what earlier pieces have freed.
    """
    gc.collect()
    return return_freed()


_LEAST_TRIM_SECONDS: Final = 0.002
_TRIM_SHARE: Final = 100


def return_freed() -> bool:
    """Return freed memory to the system as `trim_heap` does, but look for no circles: time grows with all there is."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        return False
    library.malloc_trim(0)
    return True


class FreedMemory:
    """Memory that the process has freed and its allocator keeps, returned in at most a hundredth of the time.

    Between two passes an allocator is left with free pieces of every size, and the next pass takes fresh memory where
    none of them fits: a little more each time.
    """

    def __init__(self) -> None:
        self._due = 0.0

    def give_back(self) -> None:
        """Return it, unless that was done a moment ago."""
        began = time.perf_counter()
        if began >= self._due:
            return_freed()
            ended = time.perf_counter()
            self._due = ended + _TRIM_SHARE * max(ended - began, _LEAST_TRIM_SECONDS)
