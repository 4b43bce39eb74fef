"""The timeline of a profile: samples and loader events on one axis of time, and the figures from them.

*Measured* is the peak of anonymous, pinned and device memory of a loader's process while the loader was open, less what
the process held just before. Where the process reported the memory of a training step
(`streamtrain.system.events.Reserved`), it is counted from there. Loaders of a process that are open at the same time
are measured together, and their budgets added up.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from streamtrain.diagnostics.profile_command import CommandRecord, HeldMemory, MemorySample
from streamtrain.system.events import (
    DeviceMemory,
    EpochBegan,
    EpochEnded,
    LoaderClosed,
    LoaderOpened,
    RecordedEvent,
    Reserved,
    ThreadSeconds,
)

MEMORY_KINDS: Final = ("anonymous", "shared", "pinned", "device")
"""Kinds of memory that count as held, from the bottom of the drawing to its top; pages of files are drawn apart."""

_NOTHING: Final = HeldMemory(anonymous=0, shared=0, file=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSpan:
    """An epoch of a loader, in seconds from the command's start; ``ended`` is None where it never did."""

    epoch: int
    start: float
    stop: float
    ended: EpochEnded | None


@dataclass(slots=True, kw_only=True)
class LoaderSpan:
    """A loader's life, in seconds from the command's start."""

    pid: int
    opened: LoaderOpened
    start: float
    stop: float
    epochs: list[EpochSpan] = field(default_factory=list)

    @property
    def projected_bytes(self) -> int:
        """The sum of the projection's terms."""
        return sum(self.opened.terms.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevel:
    """Bytes that hold from one time to another, in seconds from the command's start."""

    start: float
    stop: float
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpan:
    """Budget against projected against measured, of a process while it had loaders open without a break.

    Budget and projection are the most at one time; measured is the peak above ``held_bytes``, which the process held
    before the first loader was opened. Times are in seconds from the command's start.
    """

    pid: int
    budget_bytes: int
    projected_bytes: int
    measured_bytes: int
    held_bytes: int
    start: float
    stop: float

    @property
    def ratio(self) -> float:
        """Measured ÷ budget."""
        return self.measured_bytes / self.budget_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All of it, in seconds from the command's start: the samples' times, and the bytes of all processes at them.

    ``held`` is by kind, one of `MEMORY_KINDS`; loaders are in order of their opening, and ``kept`` has one span for
    each time that a process had loaders open.
    """

    watched: CommandRecord
    times: list[float]
    held: dict[str, list[int]]
    file: list[int]
    loaders: list[LoaderSpan]
    kept: list[BudgetSpan]

    @property
    def seconds(self) -> float:
        """How long the command ran."""
        return self.watched.stop - self.watched.start

    @property
    def totals(self) -> list[int]:
        """All that was held, at each time."""
        return [sum(values) for values in zip(*self.held.values(), strict=True)]

    @property
    def peak_bytes(self) -> int:
        """The most that was held."""
        return max(self.totals, default=0)

    @property
    def was_seen(self) -> bool:
        """Whether there was a process whose memory could be read, at any time."""
        return any(sample.held for sample in self.watched.samples)

    @property
    def work(self) -> ThreadSeconds:
        """What the loaders' threads did in all epochs."""
        return sum((ended.work for ended in self.ended_epochs()), ThreadSeconds())

    def ended_epochs(self) -> list[EpochEnded]:
        """All epochs that came to an end."""
        return [epoch.ended for loader in self.loaders for epoch in loader.epochs if epoch.ended]

    def others_at(self, pid: int, time: float) -> int:
        """What all processes but this one held at the last sample before a time."""
        at = max(bisect.bisect_right(self.times, time) - 1, 0)
        if not self.times:
            return 0
        mine = self.watched.samples[at].held.get(pid, _NOTHING)
        return max(self.held["anonymous"][at] + self.held["shared"][at] - mine.anonymous - mine.shared, 0)

    def levels(self, of: Callable[[BudgetSpan], int]) -> list[MemoryLevel]:
        """Lines to draw on the sum of all processes: where a process reaches this many bytes above its own start."""
        return [
            MemoryLevel(start=k.start, stop=k.stop, n_bytes=self.others_at(k.pid, k.start) + k.held_bytes + of(k))
            for k in self.kept
        ]


def build_timeline(watched: CommandRecord) -> Timeline:
    """Put samples and events together."""
    loaders = _loaders(watched)
    device = _Device(watched.events)
    held: dict[str, list[int]] = {kind: [] for kind in MEMORY_KINDS}
    for sample in watched.samples:
        pinned, on_device, registered = device.at(sample)
        # What is page-locked in place is counted as plain memory by the system.
        plain = sum(each.anonymous for each in sample.held.values())
        moved = min(plain, registered)
        held["anonymous"].append(plain - moved)
        held["shared"].append(sum(each.shared for each in sample.held.values()))
        held["pinned"].append(pinned + moved)
        held["device"].append(on_device)
    return Timeline(
        watched=watched,
        times=[sample.time - watched.start for sample in watched.samples],
        held=held,
        file=[sum(each.file for each in sample.held.values()) for sample in watched.samples],
        loaders=loaders,
        kept=[_kept(watched, loaders) for loaders in _together(loaders)],
    )


def _loaders(watched: CommandRecord) -> list[LoaderSpan]:
    found: dict[tuple[int, int], LoaderSpan] = {}
    for told in watched.events:
        now, event = told.time - watched.start, told.event
        if isinstance(event, LoaderOpened):
            end = _last_seen(watched, told.pid, told.time) - watched.start
            found[told.pid, event.loader] = LoaderSpan(pid=told.pid, opened=event, start=now, stop=max(end, now))
        elif isinstance(event, LoaderClosed | EpochBegan | EpochEnded):
            loader = found.get((told.pid, event.loader))
            if loader is not None:
                _note(loader, event, now)
    return list(found.values())


def _note(loader: LoaderSpan, event: LoaderClosed | EpochBegan | EpochEnded, now: float) -> None:
    if isinstance(event, LoaderClosed):
        loader.stop = now
    elif isinstance(event, EpochBegan):
        loader.epochs.append(EpochSpan(epoch=event.epoch, start=now, stop=loader.stop, ended=None))
    elif loader.epochs and loader.epochs[-1].epoch == event.epoch:
        loader.epochs[-1] = EpochSpan(epoch=event.epoch, start=loader.epochs[-1].start, stop=now, ended=event)


def _last_seen(watched: CommandRecord, pid: int, default: float) -> float:
    """When the process was last there: a loader that is never closed ends with it."""
    return max([s.time for s in watched.samples if pid in s.held] or [default])


def _together(loaders: list[LoaderSpan]) -> list[list[LoaderSpan]]:
    """Loaders of one process that were open without a break between them, in order of their opening."""
    found: list[list[LoaderSpan]] = []
    for loader in sorted(loaders, key=lambda loader: loader.start):
        for others in found:
            if others[0].pid == loader.pid and max(other.stop for other in others) > loader.start:
                others.append(loader)
                break
        else:
            found.append([loader])
    return found


def _kept(watched: CommandRecord, mine: list[LoaderSpan]) -> BudgetSpan:
    pid, start, stop = mine[0].pid, mine[0].start, max(loader.stop for loader in mine)
    own = [told for told in watched.events if told.pid == pid]
    reserved = [t.event.held_bytes for t in own if isinstance(t.event, Reserved) and t.time - watched.start <= start]
    before = max([mine[0].opened.held_bytes, *reserved[-1:]])
    device = _Device(own)
    while_open = [s for s in watched.samples if start <= s.time - watched.start <= stop]
    return BudgetSpan(
        pid=pid,
        budget_bytes=_most_at_once(mine, lambda loader: loader.opened.budget_bytes),
        projected_bytes=_most_at_once(mine, lambda loader: loader.projected_bytes),
        measured_bytes=max([0, *(_total(s, pid) + sum(device.at(s)[:2]) - before for s in while_open)]),
        held_bytes=before,
        start=start,
        stop=stop,
    )


def _total(sample: MemorySample, pid: int) -> int:
    held = sample.held.get(pid, _NOTHING)
    return held.anonymous + held.shared


def _most_at_once(loaders: list[LoaderSpan], of: Callable[[LoaderSpan], int]) -> int:
    return max(
        sum(of(other) for other in loaders if other is at or other.start <= at.start < other.stop) for at in loaders
    )


class _Device:
    """What torch told of pinned and device memory: each process's last word holds until its next."""

    def __init__(self, events: Iterable[RecordedEvent]) -> None:
        self._told: dict[int, list[tuple[float, DeviceMemory]]] = {}
        for each in events:
            if isinstance(each.event, DeviceMemory):
                self._told.setdefault(each.pid, []).append((each.time, each.event))

    def at(self, sample: MemorySample) -> tuple[int, int, int]:
        """Pinned, device and registered bytes of all processes that are in a sample, at its time."""
        last = [self._last(pid, sample.time) for pid in sample.held if pid in self._told]
        return (
            sum(each.pinned_bytes for each in last),
            sum(each.device_bytes for each in last),
            sum(each.registered_bytes for each in last),
        )

    def _last(self, pid: int, time: float) -> DeviceMemory:
        told = self._told[pid]
        after = bisect.bisect_right(told, time, key=lambda each: each[0])
        return told[after - 1][1] if after else _NO_DEVICE_MEMORY


_NO_DEVICE_MEMORY: Final = DeviceMemory(pinned_bytes=0, device_bytes=0)
