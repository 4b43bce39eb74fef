import os
import threading

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain.errors import DamagedBlock, DatasetError
from streamtrain.loader.reading.block_reader import BlockReader


@pytest.fixture(params=["none", "lz4", "zstd"])
def dataset(request, tmp_path):
    generator = np.random.default_rng(0)
    source = {
        "x": generator.integers(0, 50, (1003, 7, 5)).astype(np.float32),
        "y": generator.integers(0, 9, 1003),
        "flag": generator.integers(0, 2, 1003).astype(bool),
    }
    return streamtrain.ingest(source, tmp_path / "d.zarr", block="4KB", shard="40KB", codec=request.param)


@pytest.fixture(params=["preadv", "seek and read"])
def system(request, monkeypatch):
    if request.param != "preadv":
        monkeypatch.delattr("os.preadv")


def read(reader, dataset, block):
    """All fields of a block, as arrays of the samples it really has."""
    layout = dataset.layout
    slots = [np.empty(layout.block_rows * field.row_bytes, np.uint8) for field in layout.fields]
    reader.read(block, [memoryview(slot) for slot in slots])
    start, stop = layout.block_range(block)
    return {
        field.name: slot.view(field.dtype).reshape(-1, *field.shape)[: stop - start]
        for field, slot in zip(layout.fields, slots, strict=True)
    }


@pytest.mark.usefixtures("system")
def test_every_read_gives_what_stock_zarr_does(dataset):
    reader, stock = BlockReader(dataset, keep_cached=False), zarr.open_group(dataset.path, mode="r")
    assert dataset.layout.n_shards > 2
    reader.announce(range(dataset.layout.n_blocks))
    for block in range(dataset.layout.n_blocks):
        found = read(reader, dataset, block)
        for field in dataset.fields:
            theirs = stock[field.name][slice(*dataset.layout.block_range(block))]
            assert np.array_equal(found[field.name], theirs)
            assert np.array_equal(dataset.read_block(field.name, block), theirs)
    reader.close()


@given(
    n_samples=st.integers(1, 200),
    shape=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    dtype=st.sampled_from(["u1", "i2", "f2", "f4", "f8", "i8", "?"]),
    block=st.integers(1, 3000),
    codec=st.sampled_from(["none", "lz4", "zstd"]),
)
def test_parity_over_shapes_and_dtypes(tmp_path_factory, n_samples, shape, dtype, block, codec):
    values = np.random.default_rng(n_samples).integers(0, 2, (n_samples, *shape)).astype(dtype)
    path = tmp_path_factory.mktemp("parity") / "d.zarr"
    dataset = streamtrain.ingest({"x": values}, path, block=block, codec=codec)
    reader = BlockReader(dataset)
    found = np.concatenate([read(reader, dataset, b)["x"] for b in range(dataset.layout.n_blocks)])
    assert np.array_equal(found, values)


@pytest.mark.usefixtures("system")
def test_a_flipped_bit_is_named_with_field_block_file_and_samples(dataset):
    path = dataset.shard_path("x", 1)
    data = bytearray(path.read_bytes())
    data[10] ^= 4
    path.write_bytes(data)
    block = dataset.layout.shard_blocks
    start, stop = dataset.layout.block_range(block)
    for attempt in (lambda: read(BlockReader(dataset), dataset, block), lambda: dataset.read_block("x", block)):
        with pytest.raises(DamagedBlock) as caught:
            attempt()
        message = str(caught.value)
        for part in (str(path), "field x", f"block {block}", f"samples {start} to {stop - 1}"):
            assert part in message
        assert caught.value.exit_code == 4


@pytest.mark.usefixtures("system")
def test_a_truncated_shard_is_reported(dataset):
    path = dataset.shard_path("x", 0)
    os.truncate(path, path.stat().st_size // 2)
    last = dataset.layout.shard_blocks - 1
    with pytest.raises(DatasetError, match="restore it from a copy"):
        read(BlockReader(dataset), dataset, last)


def test_swapped_shards_are_reported(dataset):
    a, b = dataset.shard_path("x", 0), dataset.shard_path("x", 1)
    a_data, b_data = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_data)
    b.write_bytes(a_data)
    with pytest.raises(DamagedBlock):
        read(BlockReader(dataset), dataset, 0)


def test_a_missing_shard_is_reported(dataset):
    dataset.shard_path("y", 0).unlink()
    with pytest.raises(DatasetError, match="No such file"):
        read(BlockReader(dataset), dataset, 0)


@pytest.mark.usefixtures("system")
def test_many_threads_and_few_open_files(dataset, monkeypatch):
    monkeypatch.setattr("streamtrain.loader.reading.block_reader._MOST_OPEN_FILES", 2)
    reader, failures = BlockReader(dataset), []
    expected = {b: dataset.read_block("x", b) for b in range(dataset.layout.n_blocks)}

    def work(seed):
        for block in np.random.default_rng(seed).integers(0, dataset.layout.n_blocks, 200).tolist():
            if not np.array_equal(read(reader, dataset, block)["x"], expected[block]):
                failures.append(block)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(reader._shards) <= 2
    reader.close()
