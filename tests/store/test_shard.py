"""A shard's blocks through any byte ranges: whole or refused, however the system hands out their bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import streamtrain
import streamtrain.store.verify
from streamtrain.errors import DamagedBlock, DatasetError
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import CODECS
from streamtrain.store.shard import LocalFile, ShardReader

X = np.random.default_rng(0).integers(0, 9, (50, 16), np.uint8)


@pytest.fixture(params=CODECS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return streamtrain.ingest({"x": X}, tmp_path / "d.zarr", block=16 * 7, shard=16 * 21, codec=request.param)


@pytest.fixture(params=["preadv", "seek and read"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "preadv":
        monkeypatch.delattr("os.preadv")


class Memory:
    """Byte ranges that are no file."""

    def __init__(self, path: Path) -> None:
        self.where, self.data = f"memory:{path.name}", path.read_bytes()
        self.n_bytes = len(self.data)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        found = self.data[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def expect_random(self) -> None: ...

    def is_near(self, offset: int) -> bool:
        return True

    def announce(self, offset: int, n_bytes: int) -> None: ...

    def drop(self, offset: int, n_bytes: int) -> None: ...

    def close(self) -> None: ...


def rows_of(reader: ShardReader, dataset: Dataset, block: int) -> np.ndarray:
    rows = np.empty((dataset.layout.block_rows, 16), np.uint8)
    expected = int(dataset.block_checksums[block, 0])
    reader.decode(block, reader.check_stored(block, reader.fetch_stored(block), expected), rows)
    return rows


def test_ranges_that_are_no_file(dataset: Dataset) -> None:
    stored = Memory(dataset.shard_path("x", 1))
    reader = ShardReader(stored, dataset.layout, dataset.fields[0], 1)
    for block in range(reader.first, reader.end):
        start, stop = dataset.layout.block_range(block)
        np.testing.assert_array_equal(rows_of(reader, dataset, block)[: stop - start], X[start:stop])
    stored.data = stored.data[:20]
    with pytest.raises(DamagedBlock, match=r"memory:0: block 4 of field x .*The file ends \d+ bytes early"):
        reader.fetch_stored(reader.first + 1)


@pytest.mark.usefixtures("system")
def test_a_file_by_range(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    file, buffer = LocalFile(tmp_path / "a"), memoryview(bytearray(10))
    assert (file.n_bytes, file.read_into(buffer, 33), bytes(buffer)) == (100, 10, bytes(range(33, 43)))
    assert (file.read_into(buffer, 96), bytes(buffer[:4])) == (4, bytes(range(96, 100)))
    assert file.read_into(buffer, 1000) == 0
    assert isinstance(file.is_near(50), bool)
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read_into(buffer, 0)


def test_bytes_that_come_in_pieces(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, *args: preadv(fd, [buffers[0][:5]], *args))
    np.testing.assert_array_equal(dataset[:]["x"], X)


@pytest.mark.usefixtures("system")
def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("pipe", "link", "absent"):
        with pytest.raises(DatasetError, match="the file cannot be read") as caught:
            LocalFile(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def test_a_disk_that_fails(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with dataset.open_shard("x", 0) as reader:
        monkeypatch.setattr(LocalFile, "read_into", failing)
        with pytest.raises(DamagedBlock, match=r"block 0 of field x .*The disk says: Input/output error"):
            reader.fetch_stored(0)
    with pytest.raises(DamagedBlock, match=r"block 0 of field x .*Input/output error"):
        dataset.read_block("x", 0)
    assert {error.exit_code for error in streamtrain.store.verify.verify(dataset.path, full=True).damage} == {4}


def test_files_are_closed_whatever_happens(dataset: Dataset) -> None:
    before = n_open_files()
    shard = dataset.shard_path("x", 0)
    data = shard.read_bytes()
    for harmed in (data[:-1] + bytes([data[-1] ^ 1]), bytes([data[0] ^ 1]) + data[1:], b""):
        shard.write_bytes(harmed)
        with pytest.raises(DamagedBlock):
            dataset.read_block("x", 0)
    assert n_open_files() == before


def n_open_files() -> int:
    open_files = Path("/proc/self/fd")
    return len(list(open_files.iterdir())) if open_files.exists() else 0


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the question that some file systems do not know")
@pytest.mark.parametrize(("number", "near"), [(errno.EOPNOTSUPP, False), (errno.EAGAIN, False), (errno.EINVAL, True)])
def test_where_the_cache_is_not_told_a_block_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, near: bool
) -> None:
    def unknown(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "shard").write_bytes(bytes(100))
    monkeypatch.setattr(os, "preadv", unknown)
    assert LocalFile(tmp_path / "shard").is_near(50) is near
