"""The round trip of what is written: through the dataset and stock zarr, and zarr's shards through our index."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

import streamtrain
from streamtrain.errors import OutOfRange, UnknownName, UsageError
from streamtrain.store.byte_ranges import LocalFile
from streamtrain.store.codec import checksum
from streamtrain.store.layout import CHECKSUM_BYTES, CODECS, Codec, Field, Layout
from streamtrain.store.shard import ShardReader

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def _values(dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) * 7 % 251 % 2**7).astype(dtype)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    sample=st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]),
    n_samples=st.integers(1, 40),
    block_rows=st.integers(1, 12),
    shard_blocks=st.integers(1, 5),
    codec=st.sampled_from(CODECS),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    sample: tuple[int, ...],
    n_samples: int,
    block_rows: int,
    shard_blocks: int,
    codec: Codec,
) -> None:
    x, y = _values(dtype, (n_samples, *sample)), np.arange(n_samples) % 3
    block = block_rows * (x[0].nbytes + 8)
    shard = shard_blocks * block_rows * max(x[0].nbytes, 8)
    path = tmp_path_factory.mktemp("d") / "d.zarr"
    dataset = streamtrain.ingest({"x": x, "y": y}, path, block=block, shard=shard, codec=codec)
    assert dataset.layout.block_rows == min(block_rows, n_samples)
    stock = zarr.open_group(path, mode="r")
    for name, values in (("x", x), ("y", y)):
        np.testing.assert_array_equal(dataset[:][name], values)
        np.testing.assert_array_equal(stock[name][:], values)
        assert stock[name].dtype == values.dtype
    for block_number in range(dataset.layout.n_blocks):
        a, b = dataset.layout.block_range(block_number)
        np.testing.assert_array_equal(dataset.read_block("x", block_number), x[a:b])


@pytest.mark.parametrize("codec", CODECS)
def test_table_holds_the_checksums_in_the_files(tmp_path: Path, codec: Codec) -> None:
    x = _values("float32", (50, 9))
    dataset = streamtrain.ingest({"x": x}, tmp_path / "d.zarr", block=36 * 4, shard=36 * 12, codec=codec)
    layout = dataset.layout
    for block in range(layout.n_blocks):
        with dataset.open_shard("x", block) as shard:
            offset, size = shard.span(block)
        path = dataset.shard_path("x", block // layout.shard_blocks)
        stored = path.read_bytes()[offset : offset + size + CHECKSUM_BYTES]
        expected = int(dataset.block_checksums[block, 0])
        assert checksum(stored[:-CHECKSUM_BYTES]) == expected
        assert int.from_bytes(stored[-CHECKSUM_BYTES:], "little") == expected
    raw = np.fromfile(dataset.path / "_streamtrain/crc32c/c/0/0", "<u4").reshape(layout.n_blocks, 1)
    np.testing.assert_array_equal(raw, dataset.block_checksums)
    np.testing.assert_array_equal(zarr.open_array(dataset.path / "_streamtrain/crc32c", mode="r")[:], raw)
    np.testing.assert_array_equal(
        zarr.open_array(dataset.path / "_streamtrain/stats/x", mode="r")[0], dataset.stats("x").mean
    )


@pytest.mark.parametrize("codec", CODECS)
def test_shards_written_by_zarr_read_through_our_index(tmp_path: Path, codec: Codec) -> None:
    x = _values("int32", (22, 5)) + 1
    compressors: list[Any] = [Crc32cCodec()]
    if codec != "none":
        compressors.insert(0, BloscCodec(cname=codec, clevel=5, shuffle="bitshuffle", typesize=4))
    theirs = zarr.create_array(
        tmp_path / "z", shape=x.shape, dtype=x.dtype, chunks=(3, 5), shards=(12, 5), compressors=compressors
    )
    theirs[:] = x
    field = Field(name="x", dtype=x.dtype, shape=(5,))
    layout = Layout(fields=(field,), n_samples=22, block_rows=3, shard_blocks=4, codec=codec)
    found = []
    for shard in range(2):
        with ShardReader(LocalFile(tmp_path / "z" / "c" / str(shard) / "0"), layout, field, shard) as blocks:
            assert (blocks.first, blocks.end) == (4 * shard, 4 * shard + 4)
            for number in range(blocks.first, blocks.end):
                block = np.empty((3, 5), np.int32)
                blocks.decode(number, blocks.check_stored(number, blocks.fetch_stored(number)), block)
                found.append(block)
    np.testing.assert_array_equal(np.concatenate(found)[:22], x)


def test_blocks_of_zeros_are_stored(tmp_path: Path) -> None:
    dataset = streamtrain.ingest({"x": np.zeros((8, 4), np.uint8)}, tmp_path / "d.zarr", block=8, codec="none")
    assert dataset.shard_path("x", 0).stat().st_size > 32


def test_listing_with_stock_zarr_does_not_warn(tmp_path: Path) -> None:
    streamtrain.ingest({"x": np.zeros((8, 4))}, tmp_path / "d.zarr")
    group = zarr.open_group(tmp_path / "d.zarr", mode="r")
    assert sorted(name for name, _ in group.members()) == ["_streamtrain", "x"]
    assert group["x"].metadata.dimension_names == ("sample", None)


def test_indexing(tmp_path: Path) -> None:
    x, y = np.arange(46.0).reshape(23, 2), np.arange(23)
    dataset = streamtrain.ingest({"x": x, "y": y}, tmp_path / "d.zarr", block=24 * 4, shard=16 * 8)
    for part in (
        slice(None), slice(3, 9), slice(-4, None), slice(20, 5, -3), slice(None, None, -1), slice(1, 22, 7),
        slice(0, 23, 100), slice(9, 9), slice(30, 40), slice(5, 3),
    ):  # fmt: skip
        np.testing.assert_array_equal(dataset[part]["x"], x[part])
        np.testing.assert_array_equal(dataset[part]["y"], y[part])
    for row in (0, 22, -1, -23, np.int64(7)):
        assert dataset[int(row)]["y"].shape == ()
        assert dataset[int(row)]["y"] == y[row]
        np.testing.assert_array_equal(dataset[int(row)]["x"], x[row])
    for row in (23, -24):
        with pytest.raises(OutOfRange) as caught:
            dataset[row]
        assert isinstance(caught.value, IndexError)
    with pytest.raises(UsageError, match="int or a slice"):
        dataset["x"]  # type: ignore[index]
    assert [int(sample["y"]) for sample in dataset] == y.tolist()
    assert repr(dataset).startswith("Dataset('")
    assert repr(dataset).endswith("/d.zarr': 23 samples, x float64[2], y int64, classification)")


def test_facts(tmp_path: Path) -> None:
    y = np.repeat([0, 1, 4], 10)
    dataset = streamtrain.ingest({"x": np.ones((30, 2)), "y": y}, tmp_path / "d.zarr", block=24 * 5)
    assert (len(dataset), dataset.n_classes, dataset.rho, dataset.classes) == (30, 5, 1.0, None)
    assert dataset.label_histogram is not None
    assert dataset.label_histogram.counts.tolist() == [10, 10, 10]
    assert dataset.nbytes == 30 * 24
    assert dataset.stored_bytes >= sum(p.stat().st_size for p in dataset.path.glob("[xy]/**/*") if p.is_file())
    assert dataset.stats("x").mean.tolist() == [1, 1]
    with pytest.raises(UnknownName, match="Known: x, y"):
        dataset.stats("z")


def test_id_is_pinned(tmp_path: Path) -> None:
    x, y = np.arange(600, dtype=np.float32).reshape(100, 6), np.arange(100) % 7
    dataset = streamtrain.ingest({"x": x, "y": y}, tmp_path / "d.zarr", block=320, shard=1000, codec="none")
    assert dataset.id == "95451af45a3daae935286203c375b700abb713ef1eb031e72f4e5a757d8749b2"
    shard = hashlib.sha256(dataset.shard_path("x", 0).read_bytes()).hexdigest()
    assert shard == "714595baff5d30d36703b12bf5fc0ba984652d3eca5ab28e0137ca065ffd3c45"
