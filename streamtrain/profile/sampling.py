"""The memory of a tree of processes, sampled: what each holds for itself, shares, and has mapped from files.

On Linux the kernel tells the kinds apart (``status``), at next to no cost. Where several processes are large, they may
share much of what they hold, as after a fork; then those are asked for proportional figures (``smaps_rollup``), where
a page that n processes share counts an nth for each, so that the sum is right. That takes the kernel some milliseconds.
Elsewhere there is one figure for each process, its resident set.

Source: the kernel's ``Documentation/filesystems/proc.rst``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from streamtrain.system.memory import memory_groups

_PROC: Final = Path("/proc")
_COUNTED: Final = re.compile(rb"^Rss(Anon|Shmem|File):\s+(\d+) kB", re.MULTILINE)
_PROPORTIONAL: Final = re.compile(rb"^Pss_(Anon|Shmem|File):\s+(\d+) kB", re.MULTILINE)
_LARGE_BYTES: Final = 32_000_000
_MOST_SAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes that a process holds.

    Parameters
    ----------
    anonymous : int
        Its own: heap, stacks, private mappings.
    shared : int
        Shared memory without a file, and files in memory.
    file : int
        Mapped from files: libraries and data in the page cache, which go when others need the room.
    """

    anonymous: int
    shared: int
    file: int

    def higher(self, other: Held) -> Held:
        """The higher of two values of each kind."""
        return Held(
            anonymous=max(self.anonymous, other.anonymous),
            shared=max(self.shared, other.shared),
            file=max(self.file, other.file),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What every process of the tree held at a time of the monotonic clock."""

    time: float
    held: dict[int, Held]

    def merged(self, later: Sample) -> Sample:
        """The highest values of this sample and the one after it, at the time of this one."""
        held = {pid: self.held.get(pid, mine).higher(mine) for pid, mine in (self.held | later.held).items()}
        return Sample(time=self.time, held=held)


class Samples:
    """Samples in order of time, as many as can be drawn: when there are more, neighbours become one that has the peaks.

    Examples
    --------
    >>> samples = Samples(most=4)
    >>> for i, n_bytes in enumerate([1, 9, 2, 3, 5]):
    ...     samples.add(Sample(time=float(i), held={7: Held(anonymous=n_bytes, shared=0, file=0)}))
    >>> [(sample.time, sample.held[7].anonymous) for sample in samples.kept]
    [(0.0, 9), (2.0, 3), (4.0, 5)]
    """

    def __init__(self, most: int = _MOST_SAMPLES) -> None:
        self._most = most
        self.kept: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Add the latest."""
        if len(self.kept) >= self._most:
            pairs = zip(self.kept[::2], [*self.kept[1::2], self.kept[-1]], strict=False)
            self.kept = [a if a is b else a.merged(b) for a, b in pairs]
        self.kept.append(sample)


def sample(processes: Iterable[psutil.Process]) -> Sample:
    """What some processes hold now; those that have ended hold nothing."""
    now = time.monotonic()
    held = {process.pid: found for process in processes if (found := _counted(process))}
    large = [pid for pid, each in held.items() if each.anonymous + each.shared >= _LARGE_BYTES]
    if len(large) > 1:
        held |= {pid: found for pid in large if (found := _told(_PROC / str(pid) / "smaps_rollup", _PROPORTIONAL))}
    return Sample(time=now, held=held)


def _counted(process: psutil.Process) -> Held | None:
    held = _told(_PROC / str(process.pid) / "status", _COUNTED)
    with suppress(psutil.Error):
        if held is None and (rss := int(process.memory_info().rss)):
            return Held(anonymous=rss, shared=0, file=0)
    return held


def _told(path: Path, pattern: re.Pattern[bytes]) -> Held | None:
    """What a file of the kernel's tells; None where it is not there, or not for us, or the process has ended."""
    try:
        kinds = {kind: int(kibibytes) * 1024 for kind, kibibytes in pattern.findall(path.read_bytes())}
        return Held(anonymous=kinds[b"Anon"], shared=kinds[b"Shmem"], file=kinds[b"File"])
    except (OSError, KeyError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What the control group of this process tells, page cache included.

    Parameters
    ----------
    peak_bytes : int or None
        The most there ever was in it.
    n_killed : int
        Processes that the kernel has killed for want of memory: in the system, or in the group where it tells no more.
    """

    peak_bytes: int | None
    n_killed: int


def group(root: Path = Path("/")) -> Group:
    """Ask the innermost control group that counts memory.

    Examples
    --------
    >>> group().n_killed >= 0
    True
    """
    killed, peak = _counter(root / "proc/vmstat", "oom_kill"), None
    for folder in memory_groups(root):
        for name in ("memory.events", "memory.oom_control"):
            killed = _counter(folder / name, "oom_kill") if killed is None else killed
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            peak = _number(folder / name) if peak is None else peak
    return Group(peak_bytes=peak, n_killed=killed or 0)


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _counter(path: Path, name: str) -> int | None:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return None
