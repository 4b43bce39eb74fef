"""The .npz family: every member a field, all streamed in step."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.compressed import check_ratio
from streamtrain.ingestion.sources.registry import open_source

SAVERS = (np.savez, np.savez_compressed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npz")


@given(
    n_rows=st.integers(1, 50),
    order=st.sampled_from("CF"),
    save=st.sampled_from(SAVERS),
    max_bytes=st.integers(1, 3000),
)
def test_blocks_equal_the_members(
    folder: Path, read_all: Callable[..., Any], n_rows: int, order: Any, save: Any, max_bytes: int
) -> None:
    x = np.asarray(np.random.default_rng(n_rows).normal(size=(n_rows, 3, 2)).astype(">f4"), order=order)
    y = np.arange(n_rows, dtype="u1")
    save(folder / "d.npz", x=x, y=y, weight=np.ones(n_rows, "f2"))
    source = open_source(folder / "d.npz")
    assert not source.seekable
    assert [field.name for field in source.fields] == ["x", "y", "weight"]
    rows = read_all(source, max_bytes)
    np.testing.assert_array_equal(rows["x"], x)
    np.testing.assert_array_equal(rows["y"], y.astype(np.int64), strict=True)


def save_fast(path: Path, method: int, **arrays: Any) -> None:
    """np.savez with the quickest compression."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", ["C", "F"])
def test_members_larger_than_the_memory(
    tmp_path: Path, peak_of_reading: Callable[..., int], method: int, order: Any
) -> None:
    # Column by column a member is gone through once per run, so that case is given a smaller one.
    n_rows = 32_000 if order == "C" else 4_000
    x = np.asarray(np.arange(n_rows * 250, dtype="f8").reshape(n_rows, 250), order=order)
    save_fast(tmp_path / "d.npz", method, x=x, y=np.zeros(n_rows, "u1"))
    assert peak_of_reading(open_source(tmp_path / "d.npz"), 1_000_000) < 4_000_000


def test_where_and_reading_twice(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(10))
    source = open_source(tmp_path / "d.npz")
    assert source.where(7) == f"{tmp_path / 'd.npz'} row 7"
    np.testing.assert_array_equal(read_all(source)["x"], read_all(source)["x"])


def member(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_zip(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


ONE = member(np.arange(4.0))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no members"),
        ([("x.npy", ONE), ("notes.txt", b"hi")], "'notes.txt' is not a .npy array"),
        ([("a/x.npy", ONE)], "field name 'a/x' is not usable"),
        ([("x.npy", b"hello")], "member x.npy: the .npy header is not valid"),
        ([("x.npy", ONE[:-8])], "truncated"),
        ([("x.npy", ONE + b"1")], "longer than its header"),
        ([("x.npy", member(np.array([{}], dtype=object)))], "member x.npy: .*Python objects"),
        ([("x.npy", ONE), ("y.npy", member(np.arange(3)))], "differ in rows: x 4, y 3"),
    ],
)
def test_bad_members_are_refused_by_name(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_zip(tmp_path / "d.npz", members)
    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path / "d.npz")
    assert caught.value.exit_code == 3
    assert str(tmp_path / "d.npz") in str(caught.value)


def test_duplicate_member(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path / "d.npz", [("x.npy", ONE), ("x.npy", ONE)])
    with pytest.raises(InputError, match=r"'x.npy' is there twice"):
        open_source(tmp_path / "d.npz")


def test_encrypted_member(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    write_zip(path, [("x.npy", ONE)])
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        open_source(path)


def test_foreign_compression(tmp_path: Path) -> None:
    write_zip(tmp_path / "d.npz", [("x.npy", ONE)], zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="compression method 14 is not supported"):
        open_source(tmp_path / "d.npz")


def test_overlapping_members(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    write_zip(path, [("x.npy", ONE), ("y.npy", ONE)])
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(InputError, match="overlap"):
        open_source(path)


@pytest.mark.parametrize("keep", [50, 200])
def test_truncated_archive(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "d.npz"
    write_zip(path, [("x.npy", ONE)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="compressed data is damaged"):
        open_source(path)


@pytest.mark.parametrize("save", SAVERS)
def test_a_flipped_byte_in_a_member_is_found_before_the_end(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "d.npz"
    save(path, x=np.random.default_rng(0).integers(0, 255, 5000, np.uint8))
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"member x.npy: .*damaged"):
        list(open_source(path).iter_blocks(1000))


def test_a_bomb_is_refused_from_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros(70_000_000, "u1"))
    with pytest.raises(InputError, match=r"member x.npy: unpacks from 6\d\.\d KB to 70.0 MB, 1,0\d\d to 1"):
        open_source(path)


def test_small_constant_members_are_no_bombs() -> None:
    check_ratio(60_000_000, 60_000, where="d.npz")
    check_ratio(10**12, 10**9, where="d.npz")


def test_a_large_member_by_columns_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.ingestion.sources.compressed._MAX_REREAD_BYTES", 100_000)
    np.savez(tmp_path / "d.npz", x=np.zeros((1000, 10), order="F"))
    with pytest.raises(InputError, match=r"unpack it 10 times.*ascontiguousarray"):
        list(open_source(tmp_path / "d.npz").iter_blocks(8000))
