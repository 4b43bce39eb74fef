"""Failures that stop a loader: nobody is left waiting, and the error names the cause."""

import os
import textwrap
import threading
import time
from itertools import chain

import numpy as np
import pytest
from forked_python import run_forked

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import UsageError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("failures") / "d.zarr"
    return streamtrain.ingest({"x": np.arange(5000.0), "y": np.arange(5000)}, path, block="160B", codec="none")


@pytest.mark.parametrize(
    "change",
    [{"seed": -1}, {"epoch": None}, {"batch": "x"}, {"lanes": 0}, {"groups": True}, {"epoch": 1.0}, {"seed": None}],
)
def test_a_damaged_state_is_refused_at_once(dataset, change):
    with StreamLoader(dataset, batch_size=64, memory="8MB") as loader:
        (name,) = change
        with pytest.raises(UsageError, match=f"the state's {name} is"):
            loader.load_state_dict(loader.state_dict() | change)
        with pytest.raises(UsageError, match="the state is NoneType"):
            loader.load_state_dict(None)
        with pytest.raises(UsageError, match="is of another loader"):
            loader.load_state_dict({})


def test_an_iterator_made_before_another_takes_nothing_from_it(dataset):
    with StreamLoader(dataset, batch_size=64, memory="4MB") as loader:
        stale, live = iter(loader), iter(loader)
        with pytest.raises(UsageError, match="a new iteration of the loader began"):
            next(stale)
        assert len(list(live)) == len(loader)


def test_closing_from_another_thread_wakes_who_waits(dataset, monkeypatch):
    reading = threading.Event()
    read = streamtrain.loader.reading.block_reader.BlockReader.read

    def slow(*arguments):
        reading.set()
        time.sleep(0.05)
        return read(*arguments)

    monkeypatch.setattr(streamtrain.loader.reading.block_reader.BlockReader, "read", slow)
    loader = StreamLoader(dataset, batch_size=64, memory="4MB")
    closer = threading.Thread(target=lambda: reading.wait() and loader.close())
    closer.start()
    with pytest.raises(UsageError, match="closed meanwhile"):
        list(loader)
    closer.join()


def test_what_goes_wrong_between_jobs_reaches_the_consumer(dataset, monkeypatch):
    foresee = streamtrain.loader.reading.pool_memory.Slots.foresee
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError("no room to foresee")
        return foresee(*arguments)

    monkeypatch.setattr(streamtrain.loader.reading.pool_memory.Slots, "foresee", failing)
    with StreamLoader(dataset, batch_size=64, memory="4MB") as loader:
        with pytest.raises(MemoryError, match="no room to foresee"):
            list(chain(loader, loader, loader))
        assert len(list(loader)) == len(loader), "and goes on"


FORK_SCRIPT = """
    import os, sys, warnings, streamtrain as st
    warnings.simplefilter("ignore")
    loader = st.StreamLoader(st.open(sys.argv[1]), batch_size=64, memory="4MB")
    next(iter(loader))
    for child in ("iterates", "leaves"):
        pid = os.fork()
        if not pid:
            if child == "iterates":
                try:
                    list(loader)
                except st.UsageError as error:
                    assert "does not survive a fork" in str(error)
                else:
                    os._exit(9)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0, child
    assert len(list(loader)) == len(loader)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_and_ends(tmp_path):
    streamtrain.ingest({"y": np.arange(4000)}, tmp_path / "d.zarr", block="80B")
    done = run_forked(["-c", textwrap.dedent(FORK_SCRIPT), str(tmp_path / "d.zarr")], timeout=60)
    assert done.returncode == 0, done.stderr
