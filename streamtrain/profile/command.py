"""Run a command and watch it: its process tree is sampled and its events are heard, until all of it has ended.

Signals that reach the profiler go on to the command, which decides what to make of them. Ctrl-C in a terminal reaches
the command by itself, as one of the terminal's foreground processes, and is not sent a second time. What the command
leaves running when it ends is ended, too: where the system allows it (Linux), processes that have lost their parent
become children of the profiler, so none is overlooked.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from streamtrain.errors import UsageError
from streamtrain.profile.sampling import Sample, Samples, group, sample
from streamtrain.system.events import VARIABLE, Told, read_events

_FORWARDED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_ALSO_FROM_THE_TERMINAL: Final = ("SIGINT", "SIGQUIT")
_GRACE_SECONDS: Final = 3.0
_SHARE: Final = 0.1
_SEARCH_SECONDS: Final = 0.2
_SET_CHILD_SUBREAPER: Final = 36
_NOT_FOUND: Final = "is it on the PATH, and spelled like that?"
_NOT_A_PROGRAM: Final = "name a program first; for a script that may not be one: python SCRIPT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was seen of a command.

    Parameters
    ----------
    command : tuple of str
        Its words.
    exit_code : int
        Its own; 128 + n where signal n ended it.
    start, stop : float
        When it ran, on the monotonic clock.
    samples : tuple of Sample
        The memory of its processes, in order of time.
    events : tuple of Told
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
    samples: tuple[Sample, ...]
    events: tuple[Told, ...]
    group_peak_bytes: int | None
    n_killed_for_memory: int

    @property
    def was_killed_for_memory(self) -> bool:
        """Whether the command itself ended by the kernel's hand."""
        return self.n_killed_for_memory > 0 and self.exit_code == 128 + 9


def watch(command: Sequence[str], *, interval_seconds: float = 0.05, stdout: IO[str] | None = None) -> Watched:
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
        before = group()
        orphans = stack.enter_context(_adopted())
        start = time.monotonic()
        process = _start(command, {**os.environ, VARIABLE: str(events)}, stdout)
        try:
            with _signals_for(process):
                samples = _sample_until_end(process, orphans, interval_seconds)
        finally:
            _end_all(process, orphans)
        after = group()
        risen = after.peak_bytes is not None and after.peak_bytes > (before.peak_bytes or 0)
        return Watched(
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


def _sample_until_end(process: subprocess.Popen[bytes], orphans: _Orphans, interval_seconds: float) -> Samples:
    samples = Samples()
    known: list[psutil.Process] = []
    searched = -math.inf
    while True:
        started = time.perf_counter()
        # To find new processes all of the system's are looked at, which costs a hundred times a sample.
        if started - searched >= _SEARCH_SECONDS:
            known, searched = [psutil.Process(process.pid), *orphans.descendants(process.pid)], started
        samples.add(sample(known))
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
