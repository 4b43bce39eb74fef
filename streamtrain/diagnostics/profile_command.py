"""A command run to its end, with the memory of its process tree sampled and its events recorded.

Signals that reach the profiler are forwarded to the command, which decides what to make of them. Ctrl-C in a terminal
reaches the command by itself, as one of the terminal's foreground processes, and is not sent a second time. Processes
that the command leaves running are ended, too: where the system allows it (Linux), processes that have lost their
parent become children of the profiler, so none is overlooked.

On Linux the kernel tells the kinds of memory apart (``status``), at next to no cost. Several large processes may share
much of their memory, as after a fork; then proportional figures are read (``smaps_rollup``), where a page that n
processes share counts an nth for each, so that the sum is right. That takes the kernel some milliseconds. Elsewhere
there is one figure for each process, its resident set.

Source: the kernel's ``Documentation/filesystems/proc.rst``.
"""

from __future__ import annotations

import ctypes
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from streamtrain.errors import UsageError
from streamtrain.system.events import EVENTS_VARIABLE, RecordedEvent, read_events
from streamtrain.system.memory import memory_groups

_PROC: Final = Path("/proc")
_COUNTED: Final = re.compile(rb"^Rss(Anon|Shmem|File):\s+(\d+) kB", re.MULTILINE)
_PROPORTIONAL: Final = re.compile(rb"^Pss_(Anon|Shmem|File):\s+(\d+) kB", re.MULTILINE)
_LARGE_BYTES: Final = 32_000_000
_MOST_SAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
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

    def higher(self, other: HeldMemory) -> HeldMemory:
        """The higher of two values of each kind."""
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
        """The highest values of this sample and the one after it, at the time of this one."""
        held = {pid: self.held.get(pid, mine).higher(mine) for pid, mine in (self.held | later.held).items()}
        return MemorySample(time=self.time, held=held)


class MemorySamples:
    """Samples in order of time, as many as can be drawn: when there are more, neighbours become one that has the peaks.

    Examples
    --------
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
    """What some processes hold now; those that have ended hold nothing."""
    now = time.monotonic()
    held = {process.pid: found for process in processes if (found := _counted(process))}
    large = [pid for pid, each in held.items() if each.anonymous + each.shared >= _LARGE_BYTES]
    if len(large) > 1:
        held |= {pid: found for pid in large if (found := _told(_PROC / str(pid) / "smaps_rollup", _PROPORTIONAL))}
    return MemorySample(time=now, held=held)


def _counted(process: psutil.Process) -> HeldMemory | None:
    held = _told(_PROC / str(process.pid) / "status", _COUNTED)
    with suppress(psutil.Error):
        if held is None and (rss := int(process.memory_info().rss)):
            return HeldMemory(anonymous=rss, shared=0, file=0)
    return held


def _told(path: Path, pattern: re.Pattern[bytes]) -> HeldMemory | None:
    """What a file of the kernel's tells; None where it is not there, or not for us, or the process has ended."""
    try:
        kinds = {kind: int(kibibytes) * 1024 for kind, kibibytes in pattern.findall(path.read_bytes())}
        return HeldMemory(anonymous=kinds[b"Anon"], shared=kinds[b"Shmem"], file=kinds[b"File"])
    except (OSError, KeyError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
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


def cgroup_memory(root: Path = Path("/")) -> CgroupMemory:
    """Ask the innermost control group that counts memory.

    Examples
    --------
    >>> cgroup_memory().n_killed >= 0
    True
    """
    killed, peak = _counter(root / "proc/vmstat", "oom_kill"), None
    for folder in memory_groups(root):
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
_SET_CHILD_SUBREAPER: Final = 36
_NOT_FOUND: Final = "is it on the PATH, and spelled like that?"
_NOT_A_PROGRAM: Final = "name a program first; for a script that may not be one: python SCRIPT"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """What was seen of a command.

    Parameters
    ----------
    command : tuple of str
        Its words.
    exit_code : int
        Its own; 128 + n where signal n ended it.
    start, stop : float
        When it ran, on the monotonic clock.
    samples : tuple of MemorySample
        The memory of its processes, in order of time.
    events : tuple of RecordedEvent
        What loaders and trainers in it told, in order of time.
    group_peak_bytes : int or None
        The most memory there was in the control group, page cache included, where this run set a new peak.
    n_killed_for_memory : int
        How many processes the kernel killed meanwhile for want of memory.
    """

    command: tuple[str, ...]
    exit_code: int
    start: float
    stop: float
    samples: tuple[MemorySample, ...]
    events: tuple[RecordedEvent, ...]
    group_peak_bytes: int | None
    n_killed_for_memory: int

    @property
    def was_killed_for_memory(self) -> bool:
        """Whether the command itself ended by the kernel's hand."""
        return self.n_killed_for_memory > 0 and self.exit_code == 128 + 9


def record_command(
    command: Sequence[str], *, interval_seconds: float = 0.05, stdout: IO[str] | None = None
) -> CommandRecord:
    """Run a command to its end.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; ``streamtrain`` is this one.
    interval_seconds : float
        Between two samples, at least; where sampling itself takes long, so long that it takes a tenth of the time.
    stdout : file, optional
        Where the command's output goes instead of stdout.

    Raises
    ------
    UsageError
        There is no such program, or it cannot be run.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamtrain-profile-")))
        (events := folder / "events.jsonl").touch()
        before = cgroup_memory()
        orphans = stack.enter_context(_adopted())
        start = time.monotonic()
        process = _start(command, {**os.environ, EVENTS_VARIABLE: str(events)}, stdout)
        try:
            with _signals_for(process):
                samples = _sample_until_end(process, orphans, interval_seconds)
        finally:
            _end_all(process, orphans)
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


def _sample_until_end(process: subprocess.Popen[bytes], orphans: _Orphans, interval_seconds: float) -> MemorySamples:
    samples = MemorySamples()
    known: list[psutil.Process] = []
    searched = -math.inf
    while True:
        started = time.perf_counter()
        # To find new processes all of the system's are looked at, which costs a hundred times a sample.
        if started - searched >= _SEARCH_SECONDS:
            known, searched = [psutil.Process(process.pid), *orphans.descendants(process.pid)], started
        samples.add(sample_memory(known))
        cost = time.perf_counter() - started
        try:
            process.wait(max(interval_seconds, cost / _SHARE))
        except subprocess.TimeoutExpired:
            continue
        return samples


class _Orphans:
    """The processes below this one, apart from those that were there before."""

    def __init__(self) -> None:
        self._before = {process.pid for process in psutil.Process().children()}

    def descendants(self, root: int) -> list[psutil.Process]:
        """All that descend from this process, without the command's own first process and what was there before."""
        found: list[psutil.Process] = []
        for child in psutil.Process().children():
            if child.pid not in self._before:
                with suppress(psutil.NoSuchProcess):
                    found += [*([] if child.pid == root else [child]), *child.children(recursive=True)]
        return found


@contextmanager
def _adopted() -> Iterator[_Orphans]:
    """While the block runs, processes below this one that lose their parent become its children."""
    _set_subreaper(1)
    try:
        yield _Orphans()
    finally:
        _set_subreaper(0)


def _set_subreaper(value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, value, 0, 0, 0)


@contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Send the signals that come while the block runs to the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    own = {getattr(signal, name) for name in _ALSO_FROM_THE_TERMINAL if hasattr(signal, name)}

    def forward(number: int, _: object) -> None:
        if not (number in own and _in_foreground()):
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in known}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process and the command are what a terminal sends its signals to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _end_all(process: subprocess.Popen[bytes], orphans: _Orphans) -> None:
    """End whatever is left: politely, then not."""
    for end in ("terminate", "kill"):
        left = orphans.descendants(process.pid)
        if process.poll() is None:
            left.append(psutil.Process(process.pid))
        for each in left:
            with suppress(psutil.Error):
                getattr(each, end)()
        psutil.wait_procs(left, timeout=_GRACE_SECONDS)
    process.wait()
