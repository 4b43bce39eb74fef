"""The event bus between loaders, trainers and meters: a few frozen event values, published to subscribers.

A subscriber receives every later event of the process, on the thread that publishes it. Events are rare (a loader
opens, an epoch ends) and never one for each batch or block; without subscribers an event costs about a microsecond.

`streamtrain profile` runs a command of the user's, maybe a shell script that starts Python in turn. No argument of ours
reaches that process, but its environment does. So here, and nowhere else, an environment variable counts: a process
started with ``STREAMTRAIN_EVENTS`` naming a file appends every event to it, one JSON object a line, with the time and
the process id. The file must exist already, so nothing is left behind once the profiler has gone.
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

EVENTS_VARIABLE: Final = "STREAMTRAIN_EVENTS"
"""The variable of the environment that names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSeconds:
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
    >>> (ThreadSeconds(disk=3.0, decode=1.0) - ThreadSeconds(disk=0.5)).total
    3.5
    >>> ThreadSeconds(gather=0.5).named("_seconds")["gather_seconds"]
    0.5
    """

    disk: float = 0.0
    decode: float = 0.0
    gather: float = 0.0
    index: float = 0.0
    transfer: float = 0.0

    def __add__(self, other: ThreadSeconds) -> ThreadSeconds:
        theirs = other.named()
        return ThreadSeconds(**{name: seconds + theirs[name] for name, seconds in self.named().items()})

    def __sub__(self, other: ThreadSeconds) -> ThreadSeconds:
        theirs = other.named()
        return ThreadSeconds(**{name: seconds - theirs[name] for name, seconds in self.named().items()})

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
    work : ThreadSeconds
        What the loader's threads did meanwhile.
    """

    loader: int
    epoch: int
    n_samples: int
    seconds: float
    wait_seconds: float
    work: ThreadSeconds


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
    """Bytes that torch holds now, pinned and on devices; and those of plain memory that are page-locked in place."""

    pinned_bytes: int
    device_bytes: int
    registered_bytes: int = 0


EVENT_TYPES: Final[dict[str, type[Event]]] = {kind.__name__: kind for kind in Event.__subclasses__()}
"""Name -> event."""

Listener = Callable[[Event], object]

_listeners: tuple[Listener, ...] = ()
_numbers = itertools.count(1)


def next_loader_id() -> int:
    """A number that nothing else in the process has."""
    return next(_numbers)


def has_subscribers() -> bool:
    """Whether anybody hears; for what would cost something to find out only to tell it."""
    return bool(_listeners)


def publish_event(event: Event) -> None:
    """Tell an event to everybody who listens."""
    for listener in _listeners:
        listener(event)


@contextmanager
def publish_around(began: Event, ended: Callable[[], Event]) -> Iterator[None]:
    """Tell one event now, and another at the end of the block, in whatever way that comes."""
    publish_event(began)
    try:
        yield
    finally:
        publish_event(ended())


@contextmanager
def subscribe(listener: Listener) -> Iterator[None]:
    """Hear every event of this process while the block runs.

    Examples
    --------
    >>> heard = []
    >>> with subscribe(heard.append):
    ...     publish_event(LoaderClosed(loader=1))
    >>> publish_event(LoaderClosed(loader=2))
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
class RecordedEvent:
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
        >>> told = RecordedEvent(time=1.5, pid=7, event=LoaderClosed(loader=1))
        >>> told.to_line()
        '{"time": 1.5, "pid": 7, "event": "LoaderClosed", "loader": 1}'
        >>> RecordedEvent.from_line(told.to_line()) == told
        True
        """
        head = {"time": self.time, "pid": self.pid, "event": type(self.event).__name__}
        return json.dumps(head | asdict(self.event))

    @classmethod
    def from_line(cls, line: str | bytes) -> Self | None:
        """Read one line back; None for what is no event known here."""
        try:
            values = json.loads(line)
            kind = EVENT_TYPES[values["event"]]
            known = {field.name: values[field.name] for field in fields(kind)}
            return cls(time=float(values["time"]), pid=int(values["pid"]), event=kind(**_revived(known)))
        except (ValueError, KeyError, TypeError):
            return None


def _revived(values: dict[str, Any]) -> dict[str, Any]:
    return values | ({"work": ThreadSeconds(**values["work"])} if "work" in values else {})


def file_appender(path: str | Path) -> Listener:
    """A listener that appends to a file, as long as that is there."""

    def append(event: Event) -> None:
        line = RecordedEvent(time=time.monotonic(), pid=os.getpid(), event=event).to_line() + "\n"
        # Who watches must not disturb: a full disk or a vanished profiler is no matter of the training's. And one
        # write to a file opened for appending keeps the lines of several processes apart.
        with suppress(OSError):
            file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)

    return append


def read_events(path: Path) -> list[RecordedEvent]:
    """The events of a file in order of time; lines that were cut short are left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sorted(filter(None, map(RecordedEvent.from_line, lines)), key=lambda told: told.time)


if EVENTS_VARIABLE in os.environ:
    _add(file_appender(os.environ[EVENTS_VARIABLE]))
