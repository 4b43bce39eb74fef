"""The event bus between loaders, trainers and meters: a few frozen event values, published to subscribers.

A subscriber receives every later event of the process, on the thread that publishes it. Events are rare (a loader
opens, an epoch ends) and never one for each batch or block; without subscribers an event costs about a microsecond.

`streamtrain profile` runs a user's command, perhaps a shell script that starts Python in turn. Our arguments do not
reach that process, but the environment does. So an environment variable of ours counts here, and nowhere else: a
process started with ``STREAMTRAIN_EVENTS`` naming a file appends every event to it, one JSON object per line, with the
time and the process id. The file must exist already, so nothing is left behind once the profiler has gone.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from streamtrain.system.arguments import MOST_INT, is_int, is_number

EVENTS_VARIABLE: Final = "STREAMTRAIN_EVENTS"
"""The environment variable that names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSeconds:
    """Seconds that threads spent at work, summed over the threads, by kind of work."""

    disk: float = 0.0  # reading stored bytes, from the disk or the page cache
    decode: float = 0.0  # checking and decompressing, and images
    gather: float = 0.0  # collecting samples into batches
    index: float = 0.0  # finding out which sample comes next, and where it is
    transfer: float = 0.0  # copying to a device, beside the training

    def __add__(self, other: ThreadSeconds) -> ThreadSeconds:
        theirs = other.named()
        return ThreadSeconds(**{name: seconds + theirs[name] for name, seconds in self.named().items()})

    def __sub__(self, other: ThreadSeconds) -> ThreadSeconds:
        theirs = other.named()
        return ThreadSeconds(**{name: seconds - theirs[name] for name, seconds in self.named().items()})

    def named(self, ending: str = "") -> dict[str, float]:
        """Return every kind's seconds by its name and an ending."""
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
    """A loader was made."""

    loader: int  # its number in this process
    dataset: str
    n_samples: int
    batch_size: int
    budget_bytes: int
    terms: dict[str, int]  # the projection, in bytes by name
    held_bytes: int  # by the process, just before


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderClosed(Event):
    """A loader was closed, and its memory released."""

    loader: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBegan(Event):
    """The first batch of an epoch was requested, or the next batch of an epoch that was resumed."""

    loader: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Event):
    """An epoch's last batch was taken, or the epoch was left early."""

    loader: int
    epoch: int
    n_samples: int
    seconds: float
    wait_seconds: float  # the part of them that the consumer waited for batches
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
    """Memory of the process before a loader was made, that of a training step included: *measured* begins here."""

    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory(Event):
    """Bytes that torch holds now, pinned and on devices; and bytes of plain memory page-locked in place."""

    pinned_bytes: int
    device_bytes: int
    registered_bytes: int = 0


EVENT_TYPES: Final[dict[str, type[Event]]] = {kind.__name__: kind for kind in Event.__subclasses__()}
"""Name -> event."""

Listener = Callable[[Event], object]

_listeners: tuple[Listener, ...] = ()
_numbers = itertools.count(1)


def next_loader_id() -> int:
    """Return a number that no other loader of the process has."""
    return next(_numbers)


def has_subscribers() -> bool:
    """Say whether anyone subscribes, for publishers whose event is expensive to make."""
    return bool(_listeners)


def publish_event(event: Event) -> None:
    """Publish an event to all subscribers."""
    for listener in _listeners:
        listener(event)


@contextmanager
def publish_around(began: Event, ended: Callable[[], Event]) -> Iterator[None]:
    """Publish one event now, and another at the end of the block, in whatever way it ends."""
    publish_event(began)
    try:
        yield
    finally:
        publish_event(ended())


@contextmanager
def subscribe(listener: Listener) -> Iterator[None]:
    """Receive every event of this process while the block runs."""
    _add(listener)
    try:
        yield
    finally:
        _remove(listener)


def _add(listener: Listener) -> None:
    global _listeners
    # A new tuple each time: a thread that is publishing finishes with the one it has.
    _listeners = (*_listeners, listener)


def _remove(listener: Listener) -> None:
    global _listeners
    _listeners = tuple(other for other in _listeners if other is not listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event as a file holds it."""

    time: float  # seconds on the system's monotonic clock, which all its processes share
    pid: int
    event: Event

    def to_line(self) -> str:
        """Write the event as one line of JSON, without a line end."""
        head = {"time": self.time, "pid": self.pid, "event": type(self.event).__name__}
        return json.dumps(head | asdict(self.event))

    @classmethod
    def from_line(cls, line: str | bytes) -> Self | None:
        """Read one line back; return None for a line that is not a known event."""
        try:
            values = json.loads(line)
            kind = EVENT_TYPES[values["event"]]
            time, pid = _value(values["time"], "float"), _value(values["pid"], "int")
            return cls(time=time, pid=pid, event=_revived(kind, values))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def _revived(kind: type[Any], values: Mapping[str, object]) -> Any:
    # What a field's annotation says: an event holds nothing else, so whoever hears of it need not look.
    return kind(**{field.name: _value(values[field.name], str(field.type)) for field in fields(kind)})


def _value(value: Any, kind: str) -> Any:
    if kind == ThreadSeconds.__name__ and isinstance(value, dict):
        return _revived(ThreadSeconds, value)
    if kind == "dict[str, int]" and isinstance(value, dict):
        return {name: _value(number, "int") for name, number in value.items()}
    if (
        (kind == "str" and isinstance(value, str))
        or (kind == "int" and is_int(value, 0, MOST_INT))
        or (kind == "float" and is_number(value) and value >= 0)
    ):
        return value
    raise ValueError(f"{value!r:.60} is not of the kind {kind}")


def file_appender(path: str | Path) -> Listener:
    """Make a listener that appends to a file while the file exists."""

    def append(event: Event) -> None:
        line = RecordedEvent(time=time.monotonic(), pid=os.getpid(), event=event).to_line() + "\n"
        # A full disk or a vanished profiler must not disturb the training. And one write to a file opened for
        # appending keeps the lines of several processes apart.
        with suppress(OSError):
            file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)

    return append


def read_events(path: Path) -> list[RecordedEvent]:
    """Read the events of a file in order of time; leave out lines that were cut short."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sorted(filter(None, map(RecordedEvent.from_line, lines)), key=lambda told: told.time)


if EVENTS_VARIABLE in os.environ:
    _add(file_appender(os.environ[EVENTS_VARIABLE]))
