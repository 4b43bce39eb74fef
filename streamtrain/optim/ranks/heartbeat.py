"""The heartbeat of the ranks: one that waits for another, however slow, knows whether that is still at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_PREFIX: Final = "streamtrain/at/"
_BEAT_EVERY: Final = 5.0
_LOOK_EVERY: Final = 1.0
_LONGEST_PAUSE: Final = 0.02


class Silent(RuntimeError):
    """Ranks that give no sign of life, or a store that does not answer."""

    def __init__(self, ranks: list[int], why: str) -> None:
        super().__init__(why)
        self.ranks = ranks
        self.why = why


class Heartbeat:
    """Signs of life that the ranks of a process group leave in its store, and waiting for one another by them.

    A rank is gone if it beats and stops doing so, and hangs if the thread that trains takes no time of the processor:
    a long read has an end of its own before that.
    """

    GONE_SECONDS = 60.0
    HANGS_SECONDS = 360.0

    def __init__(
        self, store: Callable[[], Any], name: str, rank: int, world_size: int, near: Mapping[int, int] | None = None
    ) -> None:
        self._store = store
        self._prefix = f"{_PREFIX}{name}/"
        self._own = rank
        self._others = [each for each in range(world_size) if each != rank]
        # The processes of ranks beside this one, by their numbers.
        self._near = near or {}
        self._n_met = 0
        self._n_inside = 0

    @property
    def is_outermost(self) -> bool:
        """Whether a block of `beating` is in no other."""
        return self._n_inside == 1

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Show the others inside the block, by a thread of its own, that this thread is at work."""
        self._n_inside += 1
        ended = threading.Event()
        beats = threading.Thread(
            target=self._beat, args=(ended, threading.get_ident()), name="streamtrain-heartbeat", daemon=True
        )
        if self.is_outermost:
            beats.start()
        try:
            yield
        finally:
            ended.set()
            if self.is_outermost and beats.ident is not None:
                # It does not end where the store's host is stopped.
                beats.join(_LOOK_EVERY)
            self._n_inside -= 1

    def _beat(self, ended: threading.Event, worker: int) -> None:
        key, n_beats = f"{self._prefix}beat/{self._own}", 0
        # A store that is gone is not told again: torch prints a page each time.
        with suppress(RuntimeError, ValueError):
            while not ended.is_set():
                n_beats += 1
                self._store().set(key, f"{n_beats} {_cpu_seconds(worker):.6f}")
                ended.wait(_BEAT_EVERY)
            self._store().set(key, "")

    def wait_for_all(self, look: Callable[[], BaseException | None]) -> None:
        """Wait until all ranks have come here as often as this one, or ``look`` has found an error, which is raised.

        Raises
        ------
        Silent
            A rank is gone or hangs.
        """
        self._n_met += 1
        ended = threading.Event()
        try:
            self._guarded(lambda answered: self._meet(ended, answered, look), self.GONE_SECONDS)
        finally:
            ended.set()

    def ask(self, act: Callable[[], _T], seconds: float) -> _T:
        """Return what the store answers; Silent where it does not in time, as when its host is stopped."""
        return self._guarded(lambda _: act(), seconds)

    def _guarded(self, act: Callable[[Callable[[], None]], _T], seconds: float) -> _T:
        """Act in a thread of its own, which is given up if it neither ends nor calls what it is given for so long."""
        done, found, last = threading.Event(), list[Any](), [0]

        def answered() -> None:
            last[0] += 1

        def work() -> None:
            try:
                found.append((act(answered), None))
            except BaseException as error:
                found.append((None, error))
            done.set()

        threading.Thread(target=work, name="streamtrain-ranks", daemon=True).start()
        # Counted while this process runs: all ranks may be suspended together.
        seen, quiet = 0, 0.0
        while not done.wait(_LOOK_EVERY):
            seen, quiet = last[0], 0.0 if last[0] > seen else quiet + _LOOK_EVERY
            if quiet >= seconds:
                raise Silent(self._others[:1], f"The store of the process group has not answered for {quiet:.0f} s")
        value, error = found[0]
        if error is not None:
            raise error
        result: _T = value
        return result

    def _meet(
        self, ended: threading.Event, answered: Callable[[], None], look: Callable[[], BaseException | None]
    ) -> None:
        store, place = self._store(), f"{self._prefix}{self._n_met}/"
        store.set(f"{place}{self._own}", "")
        if self._n_met > 1:
            # All who are here have been there.
            self._forget(store, self._n_met - 2)
        waited_for = [f"{place}{rank}" for rank in self._others]
        pause, looked, signs = 0.0005, time.monotonic(), dict[int, _Signs]()
        while not ended.is_set() and not store.check(waited_for):
            answered()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            if time.monotonic() - looked < _LOOK_EVERY:
                continue
            looked = time.monotonic()
            if (error := look()) is not None:
                raise error
            for rank in self._others:
                if not store.check([f"{place}{rank}"]):
                    if rank in self._near and _has_ended(self._near[rank]):
                        # It may have told why, and then ended.
                        raise look() or Silent([rank], "Its process has ended, and left no reason")
                    key = f"{self._prefix}beat/{rank}"
                    beat = store.get(key).decode() if store.check([key]) else ""
                    signs.setdefault(rank, _Signs()).see(rank, beat, self.GONE_SECONDS, self.HANGS_SECONDS)

    def _forget(self, store: Any, n_met: int) -> None:
        if n_met > 0:
            with suppress(RuntimeError):
                store.delete_key(f"{self._prefix}{n_met}/{self._own}")


class _Signs:
    """What is seen of another rank, once a second."""

    def __init__(self) -> None:
        self._beat, self._cpu = "", ""
        self._quiet = self._idle = 0.0

    def see(self, rank: int, beat: str, gone_seconds: float, hangs_seconds: float) -> None:
        cpu = beat.partition(" ")[2]
        self._quiet = self._quiet + _LOOK_EVERY if beat == self._beat else 0.0
        self._idle = self._idle + _LOOK_EVERY if cpu == self._cpu else 0.0
        self._beat, self._cpu = beat, cpu
        if beat and self._quiet >= gone_seconds:
            raise Silent([rank], f"It has given no sign of life for {self._quiet:.0f} s")
        if self._idle >= hangs_seconds:
            raise Silent([rank], f"It has done nothing for {self._idle:.0f} s")


def place_of_processes() -> str | None:
    """Name the running system and the numbering of processes that this one is in; None where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return not Path(f"/proc/{pid}").exists()
    return state in "ZX"


def _cpu_seconds(thread: int) -> float:
    """Return the processor's seconds that a thread has had, or its process where they are not counted by thread."""
    clock = getattr(time, "pthread_getcpuclockid", None)
    return time.process_time() if clock is None else time.clock_gettime(clock(thread))
