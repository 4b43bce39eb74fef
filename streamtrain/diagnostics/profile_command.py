"""A command run to its end, with the memory of its process tree sampled and its events recorded.

Signals that reach the profiler are forwarded to the command, which decides what to make of them. Ctrl-C in a terminal
reaches the command by itself, as one of the terminal's foreground processes, and is not sent a second time. Processes
that were seen below the command, and that it leaves running, are ended with it.

On Linux the kernel tells the kinds of memory apart (``status``), at next to no cost. Several large processes may share
much of their memory, as after a fork; then proportional figures are read (``smaps_rollup``), where a page that n
processes share counts an nth for each, so that the sum is right. That takes the kernel some milliseconds. Elsewhere
there is one figure for each process, its resident set.

Source: the kernel's ``Documentation/filesystems/proc.rst``.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from streamtrain.errors import UsageError
from streamtrain.system.events import EVENTS_VARIABLE, RecordedEvent, read_events
from streamtrain.system.memory import control_groups

_PROC: Final = Path("/proc")
_COUNTED: Final = re.compile(rb"^Rss(Anon|Shmem|File):\s+(\d+) kB", re.MULTILINE)
_PROPORTIONAL: Final = re.compile(rb"^Pss_(Anon|Shmem|File):\s+(\d+) kB", re.MULTILINE)
_LARGE_BYTES: Final = 32_000_000
_MOST_SAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """Bytes that a process holds."""

    anonymous: int
    """Its own: heap, stacks, private mappings."""
    shared: int
    """Shared memory without a file, and files in memory."""
    file: int
    """Mapped from files: libraries and data in the page cache, which go when others need the room."""

    def higher(self, other: HeldMemory) -> HeldMemory:
        """Return the higher of two values of each kind."""
        return HeldMemory(
            anonymous=max(self.anonymous, other.anonymous),
            shared=max(self.shared, other.shared),
            file=max(self.file, other.file),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """What every process of the tree held at a time of the monotonic clock."""

    time: float
    held: dict[int, HeldMemory]

    def merged(self, later: MemorySample) -> MemorySample:
        """Return the highest values of this sample and the one after it, at the time of this one."""
        held = {pid: self.held.get(pid, mine).higher(mine) for pid, mine in (self.held | later.held).items()}
        return MemorySample(time=self.time, held=held)


class MemorySamples:
    """Samples in order of time, as many as can be drawn: when there are more, neighbours become one that has the peaks.

    >>> samples = MemorySamples(most=4)
    >>> for i, n_bytes in enumerate([1, 9, 2, 3, 5]):
    ...     samples.add(MemorySample(time=float(i), held={7: HeldMemory(anonymous=n_bytes, shared=0, file=0)}))
    >>> [(sample_memory.time, sample_memory.held[7].anonymous) for sample_memory in samples.kept]
    [(0.0, 9), (2.0, 3), (4.0, 5)]
    """

    def __init__(self, most: int = _MOST_SAMPLES) -> None:
        self._most = most
        self.kept: list[MemorySample] = []

    def add(self, sample: MemorySample) -> None:
        """Add the latest."""
        if len(self.kept) >= self._most:
            pairs = zip(self.kept[::2], [*self.kept[1::2], self.kept[-1]], strict=False)
            self.kept = [a if a is b else a.merged(b) for a, b in pairs]
        self.kept.append(sample)


def sample_memory(processes: Iterable[psutil.Process]) -> MemorySample:
    """Sample what some processes hold now; those that have ended hold nothing."""
    now = time.monotonic()
    held = {process.pid: found for process in processes if (found := _counted(process))}
    large = [pid for pid, each in held.items() if each.anonymous + each.shared >= _LARGE_BYTES]
    if len(large) > 1:
        held |= {pid: found for pid in large if (found := _read(_PROC / str(pid) / "smaps_rollup", _PROPORTIONAL))}
    return MemorySample(time=now, held=held)


def _counted(process: psutil.Process) -> HeldMemory | None:
    held = _read(_PROC / str(process.pid) / "status", _COUNTED)
    with suppress(psutil.Error):
        if held is None and (rss := int(process.memory_info().rss)):
            return HeldMemory(anonymous=rss, shared=0, file=0)
    return held


def _read(path: Path, pattern: re.Pattern[bytes]) -> HeldMemory | None:
    """Read a file of the kernel's; None where it is missing, not for us, or of a process that has ended."""
    try:
        kinds = {kind: int(kibibytes) * 1024 for kind, kibibytes in pattern.findall(path.read_bytes())}
        return HeldMemory(anonymous=kinds[b"Anon"], shared=kinds[b"Shmem"], file=kinds[b"File"])
    except (OSError, KeyError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
    """The memory of this process's control group, page cache included."""

    peak_bytes: int | None
    """The most there ever was in it."""
    n_killed: int
    """Processes that the kernel has killed for want of memory: in the system, or in the group where that is all."""


def cgroup_memory(root: Path = Path("/")) -> CgroupMemory:
    """Ask the innermost control group that counts memory.

    >>> cgroup_memory().n_killed >= 0
    True
    """
    killed, peak = _counter(root / "proc/vmstat", "oom_kill"), None
    for folder in control_groups("memory", root):
        for name in ("memory.events", "memory.oom_control"):
            killed = _counter(folder / name, "oom_kill") if killed is None else killed
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            peak = _number(folder / name) if peak is None else peak
    return CgroupMemory(peak_bytes=peak, n_killed=killed or 0)


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


_FORWARDED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_ALSO_FROM_THE_TERMINAL: Final = ("SIGINT", "SIGQUIT")
_GRACE_SECONDS: Final = 3.0
_SHARE: Final = 0.1
_SEARCH_SECONDS: Final = 0.2
_NOT_FOUND: Final = "is it on the PATH, and spelled like that?"
_NOT_A_PROGRAM: Final = "name a program first; for a script that may not be one: python SCRIPT"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """What was seen of a command, with times on the monotonic clock."""

    command: tuple[str, ...]
    exit_code: int
    """The command's own; 128 + n where signal n ended it."""
    start: float
    stop: float
    samples: tuple[MemorySample, ...]
    events: tuple[RecordedEvent, ...]
    """Those of the loaders and trainers in it, in order of time."""
    group_peak_bytes: int | None
    """The most memory there was in the control group, page cache included, where this run set a new peak."""
    n_killed_for_memory: int
    """Processes that the kernel killed meanwhile for want of memory."""

    @property
    def was_killed_for_memory(self) -> bool:
        """Whether the kernel killed the command itself."""
        return self.n_killed_for_memory > 0 and self.exit_code == 128 + 9


def record_command(
    command: Sequence[str], *, interval_seconds: float = 0.05, stdout: IO[str] | None = None
) -> CommandRecord:
    """Run a command to its end; ``streamtrain`` as its first word is this one.

    Between two samples there is at least the interval, and so much time that sampling takes a tenth of all. A program
    that is not there, or cannot be run, is a UsageError. The command's output goes to ``stdout`` where that is given.
    """
    with tempfile.TemporaryDirectory(prefix="streamtrain-profile-") as folder:
        (events := Path(folder) / "events.jsonl").touch()
        before = cgroup_memory()
        start = time.monotonic()
        process = _start(command, {**os.environ, EVENTS_VARIABLE: str(events)}, stdout)
        tree, samples = [psutil.Process(process.pid)], MemorySamples()
        try:
            with _signals_for(process):
                _sample_until_end(process, tree, samples, interval_seconds)
        finally:
            _end_all(process, tree)
        after = cgroup_memory()
        risen = after.peak_bytes is not None and after.peak_bytes > (before.peak_bytes or 0)
        return CommandRecord(
            command=tuple(command),
            exit_code=process.returncode if process.returncode >= 0 else 128 - process.returncode,
            start=start,
            stop=time.monotonic(),
            samples=tuple(samples.kept),
            events=tuple(read_events(events)),
            group_peak_bytes=after.peak_bytes if risen else None,
            n_killed_for_memory=max(0, after.n_killed - before.n_killed),
        )


def _start(command: Sequence[str], environment: dict[str, str], stdout: IO[str] | None) -> subprocess.Popen[bytes]:
    words = list(command)
    if words[0] == "streamtrain":
        words[:1] = [sys.executable, "-m", "streamtrain"]
    try:
        return subprocess.Popen(words, env=environment, stdout=stdout)
    except FileNotFoundError:
        raise UsageError(f"there is no command {command[0]!r}", fix=_NOT_FOUND) from None
    except OSError as error:
        raise UsageError(f"{command[0]!r} cannot be run: {error.strerror}", fix=_NOT_A_PROGRAM) from error


def _sample_until_end(
    process: subprocess.Popen[bytes], tree: list[psutil.Process], samples: MemorySamples, interval_seconds: float
) -> None:
    searched = -math.inf
    while True:
        started = time.perf_counter()
        # To find new processes all of the system's are looked at, which costs a hundred times a sample.
        if started - searched >= _SEARCH_SECONDS:
            tree[:], searched = _search(tree), started
        samples.add(sample_memory(tree))
        cost = time.perf_counter() - started
        try:
            process.wait(max(interval_seconds, cost / _SHARE))
        except subprocess.TimeoutExpired:
            continue
        return


def _search(known: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Find those of some processes that still run, also without their parents, and all that descend from them."""
    found: dict[psutil.Process, None] = {}
    for process in known:
        with suppress(psutil.Error):
            if process not in found and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found |= dict.fromkeys([process, *process.children(recursive=True)])
    return list(found)


@contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Send the signals that come while the block runs to the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _: object) -> None:
        if not (signal.Signals(number).name in _ALSO_FROM_THE_TERMINAL and _in_foreground()):
            process.send_signal(number)

    known = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    before = {number: signal.signal(number, forward) for number in known}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process and the command are what a terminal sends its signals to."""
    try:
        with Path("/dev/tty").open("rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _end_all(process: subprocess.Popen[bytes], tree: Iterable[psutil.Process]) -> None:
    """End whatever is left: politely, then not."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = _search(tree)
        for each in left:
            with suppress(psutil.Error):
                end(each)
        psutil.wait_procs(left, timeout=_GRACE_SECONDS)
    process.wait()
