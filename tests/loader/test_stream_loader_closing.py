"""The remains of a loader that is closed or no longer referred to: nothing."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import UsageError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("closing") / "d.zarr"
    return streamtrain.ingest({"x": np.arange(3000.0), "y": np.arange(3000)}, path, block="160B", codec="lz4")


def test_a_closed_loader_gives_its_memory_back_without_python_s_collector(dataset):
    gc.disable()
    try:
        with StreamLoader(dataset, batch_size=4, memory="16MB") as loader:
            batch = next(iter(loader))
            pool = [weakref.ref(rows) for rows in loader._pool._memory.slots.rows]
            assert all(rows() is not None for rows in pool)
        assert [rows() for rows in pool] == [None] * len(pool)
        assert len(batch.x) == 4
    finally:
        gc.enable()


def test_a_closed_loader_says_so(dataset):
    loader = StreamLoader(dataset, batch_size=64, memory="4MB")
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    with pytest.raises(UsageError, match="the loader is closed"):
        iter(loader)
    with pytest.raises(UsageError):
        next(batches)


def test_a_forgotten_loader_stops_its_threads(dataset):
    before = set(threading.enumerate())
    loader = StreamLoader(dataset, batch_size=64, memory="4MB")
    next(iter(loader))
    assert set(threading.enumerate()) - before
    del loader
    gc.collect()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
