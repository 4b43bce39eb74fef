"""What this process may take of the machine: its memory, and its cores.

Of memory that is the cgroup's limit, version 1 or 2, before the machine's RAM.

A container or a batch job is held to a control group's limit, and the kernel kills what exceeds it; RAM is then no
answer. Every group from the process's own up to the root counts, and the smallest limit holds. What was read from
files does not count as used: the kernel gives it back when others need the room.

Sources: the kernel's ``cgroup-v2.rst`` (memory.max, memory.high, memory.stat) and ``cgroup-v1/memory.rst``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from streamtrain.errors import BudgetError
from streamtrain.units import format_bytes

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
            fix=f"memory='{max(1, there * 9 // 10 // 10**6)}MB' or less",
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
