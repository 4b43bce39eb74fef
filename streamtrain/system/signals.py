"""Ctrl-C, SIGTERM and SIGHUP, deferred to the end of a step: the first asks for a stop, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

_TOGETHER: Final = 2.0
"""Seconds in which a launcher may hand on the signal that its ranks were sent as well: it is one, and not a second."""
_SIGNALS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal ended a run; the exit code is what a shell expects, 128 + the signal's number."""

    def __init__(self, number: int, saved: str | None = None, *, go_on: str | None = None) -> None:
        parts = [f"interrupted by {signal.Signals(number).name}", saved and f"saved {saved}"]
        super().__init__("; ".join(filter(None, [*parts, go_on and f"resume with: {go_on}"])))
        self.number = number
        self.saved = saved
        self.exit_code = 128 + number


class DeferredSignals:
    """The first signal that came while signals are held back; a second one interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._is_released = False
        self._came = 0.0

    def stop(self, number: int | None, saved: Path | None) -> None:
        """Raise `Interrupted` if a signal asked for it, here or at another rank."""
        if number is not None:
            raise Interrupted(number, str(saved) if saved else None)

    def release(self) -> None:
        """Raise `Interrupted` if a signal has come, and from here on where one comes."""
        self._is_released = True
        self.stop(self.number, None)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._is_released:
            raise Interrupted(number)
        if self.number is None:
            self.number, self._came = number, time.monotonic()
        elif not (number == self.number and time.monotonic() - self._came < _TOGETHER and "WORLD_SIZE" in os.environ):
            raise Interrupted(number)


@contextmanager
def terminated_cleanly() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise `Interrupted` at once inside the block, so that open resources are closed.

    A signal that has a handler already, or is ignored, stays as it is; so do both outside the main thread.
    """
    in_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in _SIGNALS if in_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def defer_signals() -> Iterator[DeferredSignals]:
    """Hold signals back inside the block; outside the main thread, which alone receives them, do nothing."""
    interrupts = DeferredSignals()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    # nohup, and a shell for what it runs in the background, have some of them ignored.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts._take) for number in heeded}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
