"""The start of a deadline, by a clock that the tests turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streamtrain.errors import StallError
from streamtrain.loader.reading import workers
from streamtrain.loader.reading.block_reader import PendingRead
from streamtrain.loader.reading.workers import Deadline

TIMEOUT = 10.0


@dataclass
class Clock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Reader:
    """The part of a `BlockReader` that a `Deadline` uses."""

    path: Path = Path("d.zarr")
    reads: list[PendingRead] = field(default_factory=list)

    def begin(self, block: int, since: float) -> None:
        samples = (block * 10, block * 10 + 10)
        self.reads.append(PendingRead(field="x", block=block, samples=samples, file=Path("d.zarr/x/c/0"), since=since))
        self.reads.sort(key=lambda read: read.since)

    def oldest(self) -> float | None:
        return self.reads[0].since if self.reads else None

    def under_way(self) -> list[PendingRead]:
        return self.reads


@dataclass
class Threads:
    """The part of the `Workers` that it uses."""

    ended: float = 0.0
    gave_up: bool = False

    def give_up(self) -> None:
        self.gave_up = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def threads() -> Threads:
    return Threads()


def deadline_of(reader: Any, threads: Any, timeout: float | None = TIMEOUT) -> Deadline:
    return Deadline(reader, threads, timeout, "no batch came")


def test_a_read_counts_from_its_own_start(clock: Clock, reader: Reader, threads: Threads) -> None:
    reader.begin(7, since=93.0)
    waiting = deadline_of(reader, threads)
    assert (waiting.left(), waiting.hangs()) == (3.0, False)
    reader.begin(9, since=99.0)
    clock.now = 103.5
    assert waiting.hangs()
    assert waiting.left() == 0.5, "a moment for a thread whose read came back while the process was stopped"
    clock.now = 104.0
    match = r"d.zarr/x/c/0: block 7 of field x \(samples 70 to 79\) was not read within 10 seconds"
    with pytest.raises(StallError, match=match) as caught:
        waiting.left()
    assert "Being read: block 7 of x for 11.0 s, block 9 of x for 5.0 s. Fix: look at the disk" in str(caught.value)
    assert threads.gave_up


def test_reads_that_come_back_are_waited_for(clock: Clock, reader: Reader, threads: Threads) -> None:
    waiting = deadline_of(reader, threads)
    for block in range(20):
        reader.reads.clear()
        reader.begin(block, since=clock.now)
        assert waiting.left() == TIMEOUT
        clock.now += 9.0
        assert (waiting.left(), waiting.hangs()) == (1.0, False)
    assert clock.now > 100.0 + 10 * TIMEOUT


def test_a_read_that_came_back_within_the_moment_is_forgiven(clock: Clock, reader: Reader, threads: Threads) -> None:
    reader.begin(7, since=0.0)
    waiting = deadline_of(reader, threads)
    assert waiting.left() == 0.5
    clock.now += 0.4
    reader.reads.clear()
    reader.begin(8, since=clock.now)
    assert waiting.left() == TIMEOUT
    clock.now += TIMEOUT
    assert waiting.left() == 0.5, "the next one has a moment of its own"


def test_without_a_read_it_counts_from_the_last_thing_that_happened(
    clock: Clock, reader: Reader, threads: Threads
) -> None:
    waiting = deadline_of(reader, threads)
    assert waiting.left() == TIMEOUT
    threads.ended = clock.now = 108.0
    assert waiting.left() == TIMEOUT
    clock.now = 118.0
    assert not waiting.hangs()
    assert waiting.left() == 0.5
    clock.now = 119.0
    with pytest.raises(StallError, match=r"d.zarr: no batch came within 10 seconds[\s\S]*Being read: nothing"):
        waiting.left()


def test_a_short_deadline_has_a_short_moment(clock: Clock, reader: Reader, threads: Threads) -> None:
    waiting = deadline_of(reader, threads, 0.1)
    clock.now += 0.2
    assert waiting.left() == pytest.approx(0.1)


def test_no_deadline_is_for_ever(clock: Clock, reader: Reader, threads: Threads) -> None:
    reader.begin(7, since=0.0)
    waiting = deadline_of(reader, threads, None)
    clock.now = 1e9
    assert (waiting.left(), waiting.hangs()) == (None, False)
