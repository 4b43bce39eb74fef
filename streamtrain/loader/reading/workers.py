"""Worker threads, their jobs, and stall deadlines.

Jobs are chosen under one lock; the work is done outside of it. An error of a job, or of choosing one, is kept for the
thread that waits for the results, and no further job begins: a thread that ended silently would leave the consumer
waiting for ever.

Each read has its deadline from its own start, and so has all other work. A slow disk that answers does not time out,
however long a batch takes. A read that does not return is named by field, block, samples and file, even while other
blocks still arrive and nobody waits for this one yet.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, Fix, Lines, StallError, UsageError
from streamtrain.loader.reading.block_reader import BlockReader, PendingRead
from streamtrain.system.events import ThreadSeconds

_JOIN_SECONDS: Final = 3.0
_STALLED_JOIN_SECONDS: Final = 0.5

Seconds = dict[str, float]  # seconds of a job by kind of work; the rest of its time is the job's own kind
Job = tuple[str, Callable[[], Any], Callable[[Any], Seconds | None]]
"""The kind of work, the act without the lock, and the use of its result under the lock."""


class Workers:
    """Threads that do jobs, in the order in which ``next_job`` gives them.

    ``next_job`` is called under ``lock``, with whether the thread is the one that plans; None is no job. ``changed`` is
    notified whenever a job has ended, at ``ended`` on the monotonic clock. A job or its planning raised ``error``.
    """

    def __init__(self, next_job: Callable[[bool], Job | None], n_threads: int) -> None:
        # 1. Condition.__enter__, which is Python, takes the lock. 2. A Ctrl-C is raised before it returns. 3. No one
        # ever releases the lock. The lock itself is taken in C, where nothing comes in between: so every with uses it.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.error: BaseException | None = None
        self._next_job = next_job
        self._seconds = dict.fromkeys(("disk", "decode", "gather", "index", "transfer"), 0.0)
        self._n_busy = 0
        self._paused = True
        self.closed = False
        self.ended = time.monotonic()
        self._process = os.getpid()
        self._join_seconds = _JOIN_SECONDS
        self._threads = [
            threading.Thread(target=self._work, args=(i == 0,), name=f"streamtrain-{i}", daemon=True)
            for i in range(n_threads)
        ]

    def pause(self, left: Callable[[], float | None]) -> None:
        """Let no further job begin, and wait until none is under way; the lock is held by the caller.

        ``left`` gives the seconds to wait before it is called again, None for ever, or raises what ends the waiting.
        """
        self._paused = True
        while self._n_busy:
            self.wait(left())

    def wait(self, timeout: float | None) -> None:
        """Wait for a change; the lock is held by the caller, and still is when a Ctrl-C ends the waiting."""
        try:
            self.changed.wait(timeout)
        except BaseException:
            # Interrupted just after wait released the lock, nothing in there takes it again.
            if not self.lock._is_owned():  # type: ignore[attr-defined]
                self.lock.acquire()
            raise

    def give_up(self) -> None:
        """Wait only a moment for jobs under way when the threads are ended: one of them does not return."""
        self._join_seconds = _STALLED_JOIN_SECONDS

    def resume(self) -> None:
        """Let jobs begin, as if nothing had gone wrong; the lock is held by the caller."""
        self.error, self._paused = None, False
        # Not before somebody can close them: a Ctrl-C during their making would leave them running.
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        self.changed.notify_all()

    def work(self) -> ThreadSeconds:
        """Report the work of the threads so far; in a forked process, before the fork."""
        # There, the copy of the lock may never be free.
        with self.lock if os.getpid() == self._process else nullcontext():
            return ThreadSeconds(**self._seconds)

    def check_process(self) -> None:
        """Refuse to wait in a process that was forked: threads stay behind in the one that made them."""
        if os.getpid() != self._process:
            raise UsageError("a loader does not survive a fork", fix="make one in the child, or spawn it")

    def close(self) -> bool:
        """End the threads and return whether they have ended; one that never returns from a call is left behind.

        In a forked process there are none, and its copy of the lock may never be free.
        """
        if os.getpid() != self._process:
            return True
        with self.lock:
            self.closed = True
            self.changed.notify_all()
        deadline = time.monotonic() + self._join_seconds
        others = [thread for thread in self._threads if thread.is_alive() and thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _work(self, plans: bool) -> None:
        while (job := self._wait_for_job(plans)) is not None:
            kind, act, note = job
            started = time.perf_counter()
            try:
                result = act()
                error: BaseException | None = None
            except BaseException as caught:
                result, error = None, caught
            seconds = time.perf_counter() - started
            # Once noted, a span is the consumer's: a thread that still held it would keep its memory from being lent.
            del job, act
            with self.lock:
                self._n_busy -= 1
                self.ended = time.monotonic()
                if error is None:
                    error = self._note(kind, seconds, note, result)
                if error is not None:
                    self.error, self._paused = error, True
                self.changed.notify_all()
            # An idle thread must keep nothing alive.
            del kind, note, result, error

    def _note(
        self, kind: str, seconds: float, note: Callable[[Any], Seconds | None], result: Any
    ) -> BaseException | None:
        try:
            self._count(kind, seconds, note(result))
        except BaseException as caught:
            return caught
        return None

    def _count(self, kind: str, seconds: float, others: Seconds | None) -> None:
        self._seconds[kind] += seconds
        for other, part in (others or {}).items():
            self._seconds[other] += part
            self._seconds[kind] -= part

    def _wait_for_job(self, plans: bool) -> Job | None:
        with self.lock:
            while not self.closed:
                job = None if self._paused else self._plan(plans)
                if job is not None:
                    self._n_busy += 1
                    return job
                self.changed.wait()
        return None

    def _plan(self, plans: bool) -> Job | None:
        try:
            return self._next_job(plans)
        except BaseException as caught:
            self.error, self._paused = caught, True
            self.changed.notify_all()
            return None


_FRAMES: Final = 4


def thread_stacks() -> Lines:
    """List the innermost calls of every thread, by the thread's name, the innermost one first."""
    frames = sys._current_frames()  # the one way to another thread's calls
    lines = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        calls = traceback.extract_stack(frame)[: -_FRAMES - 1 : -1] if frame else []
        places = [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls]
        lines.append(f"  {thread.name}: {' < '.join(places)}")
    return Lines.of(lines)


_GRACE_SECONDS: Final = 0.5


class Deadline:
    """The deadline of one wait for the threads, from when it is made; the workers' lock is held by the caller.

    ``timeout`` is the seconds that a read may take, or that nothing may happen; None is no deadline. ``what`` names the
    failure where no read is to blame.
    """

    def __init__(self, reader: BlockReader, workers: Workers, timeout: float | None, what: str) -> None:
        self._reader = reader
        self._workers = workers
        self._timeout = timeout
        self._what = what
        self._began = time.monotonic()
        self._grace_ends: float | None = None

    def hangs(self) -> bool:
        """Whether a read is past its deadline."""
        since = self._reader.oldest()
        return since is not None and self._timeout is not None and since + self._timeout <= time.monotonic()

    def left(self) -> float | None:
        """Return the seconds after which to ask again, None for never; raise `StallError` where nothing moves."""
        if self._timeout is None:
            return None
        now, since = time.monotonic(), self._reader.oldest()
        left = (max(self._began, self._workers.ended) if since is None else since) + self._timeout - now
        if left > 0:
            self._grace_ends = None
            return left
        # 1. The process is stopped, by Ctrl-Z say, while a read is under way. 2. It continues an hour later. 3. This
        # thread runs before the one whose read has long come back: so that one is given a moment.
        if self._grace_ends is None:
            self._grace_ends = now + min(_GRACE_SECONDS, self._timeout)
        if now < self._grace_ends:
            return self._grace_ends - now
        raise self._stalled(self._timeout)

    def _stalled(self, timeout: float) -> StallError:
        """Describe every thread's place, and wait for the threads no more."""
        self._workers.give_up()
        now, reads = time.monotonic(), self._reader.under_way()
        told = ", ".join(f"block {read.block} of {read.field} for {now - read.since:,.1f} s" for read in reads)
        return StallError(
            f"{_hanging(reads[0]) if reads else self._what} within {timeout:g} seconds",
            where=str(reads[0].file if reads else self._reader.path),
            why=Lines.of(["Where every thread stands:", thread_stacks(), f"Being read: {told or 'nothing'}"]),
            fix=Fix("look at the disk, or wait longer: ", Argument("timeout")),
        )


def _hanging(read: PendingRead) -> str:
    start, stop = read.samples
    return f"block {read.block} of field {read.field} (samples {start} to {stop - 1}) was not read"
