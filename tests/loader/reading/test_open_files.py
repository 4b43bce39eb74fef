"""Shards held open: within the process's limit, shared by all readers, the least used closed first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from open_file_limits import at_most, n_open, needs_proc, nothing_left

import streamtrain
from streamtrain.errors import ResourceError
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.store.dataset import Dataset
from streamtrain.store.verify import verify
from streamtrain.system.files import Files

resource = pytest.importorskip("resource")
N = 1200


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    source = {"x": np.arange(N), "y": np.arange(N) % 3}
    return streamtrain.ingest(source, tmp_path_factory.mktemp("many") / "d.zarr", block=80, shard=80, codec="lz4")


def read(reader: BlockReader, block: int) -> None:
    slots = [
        memoryview(np.empty(reader._layout.block_rows * field.row_bytes, np.uint8)) for field in reader._layout.fields
    ]
    reader.read(block, slots)


@needs_proc
def test_two_loaders_of_many_shards_stay_within_the_limit(dataset: Dataset) -> None:
    assert dataset.layout.n_shards * 2 > 200
    options = {"batch_size": 100, "memory": "16MB", "on_bad_block": "quarantine"}
    with (
        at_most(40),
        streamtrain.StreamLoader(dataset, **options) as one,
        streamtrain.StreamLoader(dataset, seed=1, **options) as other,
    ):
        for batch, same in zip(one, other, strict=True):
            assert len(batch.x) == len(same.x) == 100
            assert n_open() < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert one.quarantined == other.quarantined == ()
        assert verify(dataset.path, full=True).damage == ()


@needs_proc
def test_the_least_used_are_closed_for_whatever_else_is_opened(dataset: Dataset, tmp_path: Path) -> None:
    reader = BlockReader(dataset)
    with at_most(60):
        for block in range(8):
            read(reader, block)
        read(reader, 0)
        with nothing_left():
            Files().write_bytes(tmp_path / "a", b"written all the same")
        kept = {shard for _, shard in reader._shards}
    assert 0 in kept
    assert 0 < len(reader._shards) < 16
    reader.close()


@needs_proc
def test_where_nothing_can_be_closed_the_limit_is_named(dataset: Dataset) -> None:
    reader = BlockReader(dataset)
    with at_most(30):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        with nothing_left(), pytest.raises(ResourceError) as caught:
            read(reader, 5)
    reader.close()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert caught.value.what == "block 5 of field x (samples 25 to 29) cannot be read: Too many open files"
    assert caught.value.why == f"This process may have {limit:,} files open (RLIMIT_NOFILE)"
    assert caught.value.where == str(dataset.shard_path("x", 5 // dataset.layout.shard_blocks))
    assert (caught.value.fix or "").startswith("raise the limit: ulimit -n ")
    assert limit < int((caught.value.fix or "").split()[-1]) <= max(hard, 10**9)


def test_readers_share_one_limit(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.loader.reading.block_reader._MOST_OPEN_FILES", 10)
    readers = [BlockReader(dataset) for _ in range(3)]
    for block in range(20):
        for reader in readers:
            read(reader, block)
            assert sum(len(each._shards) for each in readers) <= 10
    for reader in readers:
        reader.close()
