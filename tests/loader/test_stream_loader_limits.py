import os
from dataclasses import replace

import numpy as np
import pytest

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import BudgetError
from streamtrain.loader import quarantine
from streamtrain.system import memory
from streamtrain.system.memory import MemoryLimit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("limits") / "d.zarr"
    return streamtrain.ingest({"x": np.arange(3000.0), "y": np.arange(3000)}, path, block="160B", codec="lz4")


def test_a_budget_above_what_the_machine_has_free_is_refused(dataset, monkeypatch):
    limit = MemoryLimit(limit_bytes=3_000_000, free_bytes=1_000_000, source="memory.max")
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)
    with pytest.raises(BudgetError, match=r"1\.0 MB are free of the 3\.0 MB that memory\.max allows"):
        StreamLoader(dataset, batch_size=8, memory="64MB")


def test_a_group_that_shrank_stops_the_next_epoch_and_not_the_process(dataset, monkeypatch):
    with StreamLoader(dataset, batch_size=8, memory="64MB") as loader:
        assert len(list(loader)) == len(loader)
        small = MemoryLimit(limit_bytes=1_000_000, free_bytes=0, source="memory.max")
        monkeypatch.setattr(memory, "memory_limit", lambda: small)
        with pytest.raises(BudgetError, match="are needed"):
            next(iter(loader))
        monkeypatch.undo()
        assert len(list(loader)) == len(loader)


def test_data_larger_than_the_free_memory_is_not_kept_in_the_page_cache(dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: asked.append(advice))
    roomy = MemoryLimit(limit_bytes=10**9, free_bytes=10**9, source="RAM")
    for free_bytes, dropped in ((10**9, False), (dataset.stored_bytes, True)):
        monkeypatch.setattr(quarantine, "memory_limit", lambda free=free_bytes: replace(roomy, free_bytes=free))
        with StreamLoader(dataset, batch_size=8, memory="64MB") as loader:
            assert len(list(loader)) == len(loader)
        assert (os.POSIX_FADV_DONTNEED in asked) == dropped
