"""idx and idx.gz: the MNIST family."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.registry import open_source

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx_bytes(array: Any) -> bytes:
    code = CODES[array.dtype.str.lstrip("|")]
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + bytes(array.tobytes())


def images(dtype: str, n_rows: int = 20) -> Any:
    return np.random.default_rng(0).integers(0, 100, (n_rows, 4, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte", "x.idx"])
def test_plain(
    tmp_path: Path, read_all: Callable[..., Any], check_ranges: Callable[..., None], dtype: str, name: str
) -> None:
    x = images(dtype)
    (tmp_path / name).write_bytes(idx_bytes(x))
    source = open_source(tmp_path / name)
    native = x.astype(x.dtype.newbyteorder("="))
    np.testing.assert_array_equal(read_all(source, 100)["x"], native, strict=True)
    check_ranges(source, {"x": native}, [(0, 20), (3, 9)])


@pytest.mark.parametrize("dtype", CODES)
def test_gzipped(tmp_path: Path, read_all: Callable[..., Any], dtype: str) -> None:
    x = images(dtype)
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(x)))
    source = open_source(tmp_path / "x-idx3-ubyte.gz")
    assert not source.seekable
    np.testing.assert_array_equal(read_all(source, 100)["x"], x)


def test_images_and_labels(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    x, y = images("u1"), (np.arange(20) % 7).astype("u1")
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(x)))
    (tmp_path / "y-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(y)))
    source = open_source(tmp_path / "x-idx3-ubyte.gz", labels=tmp_path / "y-idx1-ubyte.gz")
    rows = read_all(source, 77)
    np.testing.assert_array_equal(rows["x"], x, strict=True)
    np.testing.assert_array_equal(rows["y"], y.astype(np.int64), strict=True)


def test_a_gzip_file_of_several_parts(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    data = idx_bytes(images("u1"))
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(data[:99]) + gzip.compress(data[99:]))
    np.testing.assert_array_equal(read_all(open_source(tmp_path / "x.idx.gz"))["x"], images("u1"))


def test_unpacked_within_the_memory(tmp_path: Path, peak_of_reading: Callable[..., int]) -> None:
    x = np.arange(64_000_000 // 8, dtype=">f8").reshape(-1, 125)
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(idx_bytes(x), 1))
    assert peak_of_reading(open_source(tmp_path / "x.idx.gz"), 1_000_000) < 4_000_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x01\x08\x01" + bytes(20), "magic number 0x00010801"),
        (b"\x00\x00\x07\x01" + bytes(20), "magic number 0x00000701"),
        (b"\x00\x00\x08\x00" + bytes(20), "magic number 0x00000800"),
        (b"\x00\x00", "ends at byte 2"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", "ends at byte 4"),
        (struct.pack(">HBBI", 0, 8, 1, 0), "no samples"),
        (struct.pack(">HBB3I", 0, 8, 3, 5, 0, 2), "holds no elements"),
        (struct.pack(">HBB2I", 0, 8, 2, 10, 10) + bytes(99), r"111 bytes found, 112 expected"),
        (struct.pack(">HBB2I", 0, 8, 2, 10, 10) + bytes(101), r"113 bytes found, 112 expected"),
    ],
)
@pytest.mark.parametrize("is_gzip", [False, True])
def test_headers_that_lie(tmp_path: Path, data: bytes, message: str, is_gzip: bool) -> None:
    path = tmp_path / ("x.idx.gz" if is_gzip else "x.idx")
    path.write_bytes(gzip.compress(data) if is_gzip else data)
    with pytest.raises(InputError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)


def test_a_claim_no_gzip_file_can_hold(tmp_path: Path) -> None:
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**20, 2**20)))
    with pytest.raises(InputError, match="Only a decompression bomb"):
        open_source(tmp_path / "x.idx.gz")


@pytest.mark.parametrize("keep", [12, 200, -1])
def test_truncated_gzip(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.idx.gz"
    noise = np.random.default_rng(0).integers(0, 255, (100, 10)).astype("u1")
    path.write_bytes(gzip.compress(idx_bytes(noise))[:keep])
    with pytest.raises(InputError, match="damaged"):
        list(open_source(path).iter_blocks(1000))


def test_a_flipped_byte_in_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.idx.gz"
    data = bytearray(gzip.compress(idx_bytes(images("u1", 500)), 0))
    data[1000] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match="CRC check failed"):
        list(open_source(path).iter_blocks(1000))


def test_uncompressed_under_a_gz_name(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(idx_bytes(images("u1")))
    np.testing.assert_array_equal(read_all(open_source(tmp_path / "x-idx3-ubyte.gz"))["x"], images("u1"))
