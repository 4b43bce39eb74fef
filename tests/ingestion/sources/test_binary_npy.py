"""The .npy family: what numpy wrote is read back, what a header claims is held against the file."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source

ORDERS = ("C", "F")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npy")


@given(
    n_rows=st.integers(1, 40),
    shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(["?", "u1", "<i2", ">i2", ">u8", "f2", ">f4", "f8"]),
    order=st.sampled_from(ORDERS),
    max_bytes=st.integers(1, 3000),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_blocks_and_ranges_equal_the_array(
    folder: Path,
    read_all: Callable[..., Any],
    n_rows: int,
    shape: tuple[int, ...],
    dtype: str,
    order: Any,
    max_bytes: int,
    cut: tuple[int, int],
) -> None:
    bits = np.random.default_rng(n_rows).integers(0, 2 if dtype == "?" else 100, (n_rows, *shape))
    array = np.asarray(bits.astype(dtype), order=order)
    np.save(folder / "x.npy", array)
    source = open_source(folder / "x.npy")
    native = array.astype(array.dtype.newbyteorder("="))
    np.testing.assert_array_equal(read_all(source, max_bytes)["x"], native, strict=True)
    start, stop = sorted(min(bound, n_rows) for bound in cut)
    assert source.seekable
    np.testing.assert_array_equal(source.read(start, stop)["x"], native[start:stop], strict=True)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header(tmp_path: Path, read_all: Callable[..., Any], version: tuple[int, int]) -> None:
    array = np.arange(6, dtype="f4").reshape(3, 2)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    np.testing.assert_array_equal(read_all(open_source(tmp_path / "x.npy"))["x"], array)


@pytest.mark.parametrize("order", ORDERS)
def test_a_file_larger_than_the_memory_is_read_within_it(
    tmp_path: Path, peak_of_reading: Callable[..., int], order: Any
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((64_000, 125), "f8", order=order))
    source = open_source(tmp_path / "x.npy")
    assert source.fields[0].row_bytes * 64_000 == 64_000_000
    assert peak_of_reading(source, 1_000_000) < 2_500_000


def test_where_names_file_and_row(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    source = open_source(tmp_path / "x.npy")
    assert source.where(3) == f"{tmp_path / 'x.npy'} row 3"
    assert source.classes is None
    status = (tmp_path / "x.npy").stat()
    facts = {"format": "npy", "path": str(tmp_path / "x.npy"), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    assert source.provenance == (facts,)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([object()], dtype=object), "Python objects"),
        (np.zeros(3, [("a", "f4"), ("b", "i4")]), "structured"),
        (np.zeros((3, 2), "c8"), "complex"),
        (np.zeros(3, "datetime64[D]"), "dates"),
        (np.zeros(3, "timedelta64[s]"), "durations"),
        (np.array(["a", "b"]), "text"),
        (np.zeros(3, np.longdouble), "wider than 64 bits"),
    ],
)
def test_other_dtypes_are_refused_with_those_supported(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path / "x.npy")
    assert caught.value.exit_code == 3
    assert "Supported: bool, int8-int64" in str(caught.value)
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.float32(1), "0-d array"),
        (np.zeros((0, 3)), "no samples"),
        (np.zeros((3, 0)), "holds no elements"),
    ],
)
def test_arrays_without_samples_are_refused(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x.npy")


@pytest.mark.parametrize(("change", "state"), [(-1, "truncated"), (-390, "truncated"), (7, "longer than its header")])
def test_a_size_other_than_the_header_claims(tmp_path: Path, change: int, state: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((10, 10), "f4"))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(InputError, match=f"{state}.*{len(data) + change:,} bytes found, {len(data):,} expected"):
        open_source(path)


def header_of(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header_of("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n"), "8000.00 TB"),
        (header_of("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2)}\n"), "not one of whole numbers"),
        (header_of("{'descr': '<f8', 'shape': (1,)}\n"), "header is not valid"),
        (header_of("__import__('os').system('false')\n"), "header is not valid"),
        (header_of("{" + " " * 20_000 + "}"), "header is not valid"),
        (b"\x93NUMPY\x09\x00", "header is not valid"),
        (b"\x93NUMPY\x01", "header is not valid"),
        (b"1,2,3\n4,5,6\n", "header is not valid"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
    assert "pickle" not in str(caught.value)


def test_a_file_truncated_while_it_is_read_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((1000, 10)))
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"ends at byte 5,000.*changed while it was read"):
        list(source.iter_blocks(10_000))


def test_bools_that_are_neither_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 2), bool))
    data = bytearray(buffer.getvalue())
    data[-1] = 7
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"row 3: a bool is stored as a byte other than 0 and 1"):
        list(open_source(tmp_path / "x.npy").iter_blocks(1000))


def test_ranges_outside_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(5))
    source = open_source(tmp_path / "x.npy")
    assert source.seekable
    for start, stop in [(0, 6), (-1, 2), (3, 2)]:
        with pytest.raises(UsageError, match="not among the source's 5"):
            source.read(start, stop)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (SourceOptions(label_column="y"), "label_column"),
        (SourceOptions(columns=("a",)), "columns"),
        (SourceOptions(dtype=np.dtype("f4")), "dtype"),
        (SourceOptions(shape=(3,)), "shape"),
    ],
)
def test_options_of_other_families_are_refused(tmp_path: Path, options: SourceOptions, name: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros(5))
    with pytest.raises(UsageError, match=f"{name} does not apply to .npy files") as caught:
        open_source(tmp_path / "x.npy", options=options)
    assert caught.value.exit_code == 2
