"""Reads that are slow, never return or die, and a Ctrl-C at any moment: an error in time, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_python import Forked, run_forked

import streamtrain
from streamtrain.errors import StallError
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.loader.reading.workers import thread_stacks
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.store.dataset import Dataset
from streamtrain.store.shard import ShardReader

N = 600


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("waiting") / "d.zarr"
    return streamtrain.ingest({"x": np.arange(N), "y": np.arange(N) % 3}, path, block=16 * 20, codec="lz4")


def loader_of(dataset: Dataset, **options: Any) -> StreamLoader:
    return StreamLoader(dataset, **{"batch_size": 16, "memory": "16MB", "lanes": 8, **options})


class Gate:
    """A disk that stops answering at the n-th read, until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n_answered: int) -> None:
        self.open, self._left, self._counting = threading.Event(), n_answered, threading.Lock()
        fetch = ShardReader.fetch

        def gated(shard: ShardReader, *args: Any) -> memoryview:
            with self._counting:
                self._left -= 1
                waits = self._left < 0
            if waits:
                self.open.wait(30)
            return fetch(shard, *args)

        monkeypatch.setattr(ShardReader, "fetch", gated)


@pytest.fixture
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch, request.param)
    yield gate
    gate.open.set()


@pytest.mark.parametrize("gate", [0, 7, 40], indirect=True)
def test_a_read_that_never_returns_is_an_error_with_every_threads_place(dataset: Dataset, gate: Gate) -> None:
    loader = loader_of(dataset, timeout=0.2)
    started = time.monotonic()
    with pytest.raises(StallError) as caught:
        list(loader)
    message = str(caught.value)
    assert caught.value.exit_code == 7
    assert isinstance(caught.value, TimeoutError)
    pattern = r"(/.*): block (\d+) of field ([xy]) \(samples (\d+) to (\d+)\) was not read within 0.2 seconds"
    named = re.match(pattern, message)
    assert named is not None
    block = int(named[2])
    assert named[1] == str(dataset.shard_path(named[3], block // dataset.layout.shard_blocks))
    assert (int(named[4]), int(named[5]) + 1) == dataset.layout.block_range(block)
    for part in (
        "\n  MainThread: ",
        "\n  streamtrain-0: ",
        "gated",
        "Being read: block ",
        "wait longer: timeout=",
    ):
        assert part in message
    assert not gate.open.is_set()
    loader.close()  # which does not wait for it either
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("gate", [7], indirect=True)
def test_a_new_epoch_does_not_wait_for_it_for_ever(dataset: Dataset, gate: Gate) -> None:
    with loader_of(dataset, timeout=0.1) as loader:
        for _ in range(2):
            with pytest.raises(StallError, match=r"was not read within 0\.1 seconds"):
                list(loader)
        gate.open.set()
        assert sum(len(x) for x, _ in loader) == N


@pytest.mark.parametrize("gate", [5], indirect=True)
def test_a_slow_disk_is_waited_for(dataset: Dataset, gate: Gate) -> None:
    with loader_of(dataset, timeout=20.0) as loader:
        timer = threading.Timer(0.2, gate.open.set)
        timer.start()
        assert sum(len(x) for x, _ in loader) == N
        timer.join()


def test_a_disk_that_answers_each_read_in_time_is_waited_for(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch needs 16 reads of 50 ms, by two threads; each of them is in time."""
    fetch = ShardReader.fetch

    def slow(shard: ShardReader, *args: Any) -> memoryview:
        time.sleep(0.05)
        return fetch(shard, *args)

    monkeypatch.setattr(ShardReader, "fetch", slow)
    with loader_of(dataset, timeout=0.3) as loader:
        assert len(next(iter(loader)).x) == 16


def test_slow_reads_change_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with loader_of(dataset) as loader:
        expected = [x.tolist() for x, _ in loader]
    read, random = BlockReader.read, np.random.default_rng(0)

    def slow(reader: BlockReader, block: int, slots: Sequence[memoryview]) -> float:
        time.sleep(random.choice([0.0, 0.004]))
        return read(reader, block, slots)

    monkeypatch.setattr(BlockReader, "read", slow)
    with loader_of(dataset) as loader:
        assert [x.tolist() for x, _ in loader] == expected


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize("n_answered", [0, 9])
def test_a_reader_that_dies_is_heard_of(
    dataset: Dataset, error: type[BaseException], n_answered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, left = BlockReader.read, iter(range(n_answered))

    def dying(reader: BlockReader, block: int, slots: Sequence[memoryview]) -> float:
        if next(left, None) is None:
            raise error("the reader's end")
        return read(reader, block, slots)

    monkeypatch.setattr(BlockReader, "read", dying)
    with loader_of(dataset, timeout=20.0) as loader:
        with pytest.raises(error, match="the reader's end"):
            list(loader)
        monkeypatch.undo()
        loader.set_epoch(0)
        assert sum(len(x) for x, _ in loader) == N


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(12))
def test_ctrl_c_at_any_moment_leaves_nothing(dataset: Dataset, seed: int) -> None:
    """What is left would be found by the fixtures around every test.

    A file that Python's own code was about to close is closed a little later, with a warning; and where the interrupt
    meets a callback of the garbage collector, Python drops it.
    """
    fired, loaders = [], []

    def interrupt(*_: object) -> None:
        fired.append(True)
        raise KeyboardInterrupt

    delay = float(np.random.default_rng(seed).uniform(0.0005, 0.03))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, delay)
            while not fired:
                loaders.append(loader_of(dataset, timeout=20.0))
                for _ in range(3):
                    assert sum(len(x) for x, _ in loaders[0]) == N
                loaders[0].close()
                loaders.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fired
    started = time.monotonic()
    for loader in loaders:
        loader.close()
    assert time.monotonic() - started < 5


def test_an_interpreter_ends_though_a_read_does_not(dataset: Dataset, tmp_path: Path) -> None:
    code = """
import sys, threading, streamtrain
from streamtrain.loader.reading.block_reader import BlockReader
BlockReader.read = lambda *a: threading.Event().wait()
loader = streamtrain.StreamLoader(streamtrain.open(sys.argv[1]), batch_size=16, memory="16MB", timeout=0.2)
next(iter(loader))
"""
    done = run_forked(["-c", code, str(dataset.path)], timeout=60)
    assert done.returncode == 1
    assert "StallError" in done.stderr
    assert "no batch came within 0.2 seconds" in done.stderr


def test_sigint_ends_a_process_that_waits_for_its_disk(dataset: Dataset) -> None:
    code = """
import sys, threading, streamtrain
from streamtrain.loader.reading.block_reader import BlockReader
BlockReader.read = lambda *a: threading.Event().wait()
loader = streamtrain.StreamLoader(streamtrain.open(sys.argv[1]), batch_size=16, memory="16MB")
print("waiting", flush=True)
next(iter(loader))
"""
    with Forked(["-c", code, str(dataset.path)]) as process:
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in stderr


def test_the_stacks_name_every_thread() -> None:
    ready, end = threading.Event(), threading.Event()

    def stand_here() -> None:
        ready.set()
        end.wait()

    thread = threading.Thread(target=stand_here, name="someone")
    thread.start()
    ready.wait()
    lines = thread_stacks().splitlines()
    end.set()
    thread.join()
    assert any(line.startswith("  someone: ") and "stand_here" in line for line in lines)
    assert lines[0].startswith("  MainThread: workers.py:")
