"""What readers, loader and trainer tell the meters: a few frozen event values and one bus.

Whoever wants to hear subscribes, and hears every event of the process from then on, on the thread that tells it. Events
are rare, a loader's opening or an epoch's end, and never one for each batch or block: with nobody listening, telling
one costs about a microsecond.

`streamtrain profile` runs a command of the user's, maybe a shell script that starts Python in turn, and wants to hear
what happens in there. No argument of ours reaches that process, and what a parent hands to all its descendants is its
environment. So here, and nowhere else, a variable of the environment counts: a process that is started with
``STREAMTRAIN_EVENTS`` naming a file appends every event to it, one JSON object a line, with the time and the process's
id. The file has to be there already: when the profiler has gone, nothing is left behind for it.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

VARIABLE: Final = "STREAMTRAIN_EVENTS"
"""The variable of the environment that names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Seconds that threads spent at work, summed over the threads, by what they did.

    Parameters
    ----------
    disk : float
        Reading stored bytes, from the disk or from the page cache.
    decode : float
        Checking and decompressing them.
    gather : float
        Putting samples together into batches.
    index : float
        Working out which sample comes next, and where it is.
    transfer : float
        Copying to a device, beside the training.

    Examples
    --------
    >>> (Work(disk=3.0, decode=1.0) - Work(disk=0.5)).total
    3.5
    >>> Work(gather=0.5).named("_seconds")["gather_seconds"]
    0.5
    """

    disk: float = 0.0
    decode: float = 0.0
    gather: float = 0.0
    index: float = 0.0
    transfer: float = 0.0

    def __add__(self, other: Work) -> Work:
        theirs = other.named()
        return Work(**{name: seconds + theirs[name] for name, seconds in self.named().items()})

    def __sub__(self, other: Work) -> Work:
        theirs = other.named()
        return Work(**{name: seconds - theirs[name] for name, seconds in self.named().items()})

    def named(self, ending: str = "") -> dict[str, float]:
        """Every kind's seconds by its name and an ending."""
        return {f"{name}{ending}": seconds for name, seconds in asdict(self).items()}

    @property
    def total(self) -> float:
        """The seconds of all kinds."""
        return self.disk + self.decode + self.gather + self.index + self.transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOpened(Event):
    """A loader was made.

    Parameters
    ----------
    loader : int
        Its number in this process; the other events name it by that.
    dataset : str
        The path of the dataset.
    n_samples, batch_size : int
        The samples of the dataset, and those of a batch.
    budget_bytes : int
        What the user allows.
    terms : dict of str to int
        The projection: bytes by name.
    held_bytes : int
        What the process held just before.
    """

    loader: int
    dataset: str
    n_samples: int
    batch_size: int
    budget_bytes: int
    terms: dict[str, int]
    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderClosed(Event):
    """A loader was closed; its memory is given back."""

    loader: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBegan(Event):
    """A loader was asked for the first batch of an epoch, or for the next one inside it."""

    loader: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Event):
    """An epoch's last batch was taken, or the epoch was left early.

    Parameters
    ----------
    loader, epoch, n_samples : int
        Which loader and epoch, and the samples that were taken.
    seconds, wait_seconds : float
        Wall time from the epoch's beginning, and what of it the consumer waited for batches.
    work : Work
        What the loader's threads did meanwhile.
    """

    loader: int
    epoch: int
    n_samples: int
    seconds: float
    wait_seconds: float
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBegan(Event):
    """A training run began."""

    update: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """A training run ended, in whatever way."""

    n_steps: int
    n_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved(Event):
    """What the process held with a training step's memory in it, before a loader was made: where *measured* begins."""

    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory(Event):
    """Bytes that torch holds now, in pinned host memory and on devices."""

    pinned_bytes: int
    device_bytes: int


KINDS: Final[dict[str, type[Event]]] = {kind.__name__: kind for kind in Event.__subclasses__()}
"""Name -> event."""

Listener = Callable[[Event], object]

_listeners: tuple[Listener, ...] = ()
_numbers = itertools.count(1)


def next_number() -> int:
    """A number that nothing else in the process has."""
    return next(_numbers)


def listening() -> bool:
    """Whether anybody hears; for what would cost something to find out only to tell it."""
    return bool(_listeners)


def tell(event: Event) -> None:
    """Tell an event to everybody who listens."""
    for listener in _listeners:
        listener(event)


@contextmanager
def between(began: Event, ended: Callable[[], Event]) -> Iterator[None]:
    """Tell one event now, and another at the end of the block, in whatever way that comes."""
    tell(began)
    try:
        yield
    finally:
        tell(ended())


@contextmanager
def subscribed(listener: Listener) -> Iterator[None]:
    """Hear every event of this process while the block runs.

    Examples
    --------
    >>> heard = []
    >>> with subscribed(heard.append):
    ...     tell(LoaderClosed(loader=1))
    >>> tell(LoaderClosed(loader=2))
    >>> heard
    [LoaderClosed(loader=1)]
    """
    _add(listener)
    try:
        yield
    finally:
        _remove(listener)


def _add(listener: Listener) -> None:
    global _listeners
    # A new tuple each time: a thread that is telling goes on over the one it has.
    _listeners = (*_listeners, listener)


def _remove(listener: Listener) -> None:
    global _listeners
    _listeners = tuple(other for other in _listeners if other is not listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event as a file holds it.

    Parameters
    ----------
    time : float
        Seconds on the system's monotonic clock, which all its processes share.
    pid : int
        The process that told it.
    event : Event
        What it told.
    """

    time: float
    pid: int
    event: Event

    def to_line(self) -> str:
        """One line of JSON, without its end.

        Examples
        --------
        >>> told = Told(time=1.5, pid=7, event=LoaderClosed(loader=1))
        >>> told.to_line()
        '{"time": 1.5, "pid": 7, "event": "LoaderClosed", "loader": 1}'
        >>> Told.from_line(told.to_line()) == told
        True
        """
        head = {"time": self.time, "pid": self.pid, "event": type(self.event).__name__}
        return json.dumps(head | asdict(self.event))

    @classmethod
    def from_line(cls, line: str | bytes) -> Self | None:
        """Read one line back; None for what is no event known here."""
        try:
            values = json.loads(line)
            kind = KINDS[values["event"]]
            known = {field.name: values[field.name] for field in fields(kind)}
            return cls(time=float(values["time"]), pid=int(values["pid"]), event=kind(**_revived(known)))
        except (ValueError, KeyError, TypeError):
            return None


def _revived(values: dict[str, Any]) -> dict[str, Any]:
    return values | ({"work": Work(**values["work"])} if "work" in values else {})


def appender(path: str | Path) -> Listener:
    """A listener that appends to a file, as long as that is there."""

    def append(event: Event) -> None:
        line = Told(time=time.monotonic(), pid=os.getpid(), event=event).to_line() + "\n"
        # Who watches must not disturb: a full disk or a vanished profiler is no matter of the training's. And one
        # write to a file opened for appending keeps the lines of several processes apart.
        with suppress(OSError):
            file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)

    return append


def read_events(path: Path) -> list[Told]:
    """The events of a file in order of time; lines that were cut short are left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sorted(filter(None, map(Told.from_line, lines)), key=lambda told: told.time)


if VARIABLE in os.environ:
    _add(appender(os.environ[VARIABLE]))
