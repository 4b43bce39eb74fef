"""Ctrl-C and SIGTERM, held back until a step is done: the first asks for a stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end of a run.

    Parameters
    ----------
    number : int
        The signal's.
    saved : str, optional
        Where the run was saved before it stopped.

    Attributes
    ----------
    exit_code : int
        What a shell expects: 128 + number.
    """

    def __init__(self, number: int, saved: str | None = None) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}" + (f"; saved {saved}" if saved else ""))
        self.number = number
        self.exit_code = 128 + number


class Interrupts:
    """What was asked for while signals are held back.

    Attributes
    ----------
    number : int or None
        The signal that came, if any.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def stop_if_asked(self, saved: Path | None) -> None:
        """End the run if a signal came.

        Raises
        ------
        Interrupted
            One did.
        """
        if self.number is not None:
            raise Interrupted(self.number, str(saved) if saved else None)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number


@contextmanager
def held_back() -> Iterator[Interrupts]:
    """Hold signals back inside the block; outside the main thread, where none can be taken, do nothing.

    Examples
    --------
    >>> with held_back() as interrupts:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupts.number == signal.SIGTERM
    True
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts._take) for number in _SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
