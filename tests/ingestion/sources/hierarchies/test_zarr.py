"""Zarr directories of zarr-python, versions 2 and 3: codecs, orders, shards, absent chunks, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from privileges import without_privileges
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import streamtrain as st
from streamtrain.errors import BudgetError, DatasetError, InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.hierarchies.chunk_decoding import zstd_bytes
from streamtrain.ingestion.sources.registry import open_source

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 3, 5, 4)).astype("f4")
Y = RNG.integers(0, 10, 100)
ReadAll = Callable[..., dict[str, Any]]

CODECS: dict[str, tuple[int, dict[str, Any]]] = {
    "v2 none": (2, {"compressors": None}),
    "v2 blosc": (2, {"compressors": numcodecs.Blosc(cname="zstd", shuffle=2)}),
    "v2 zlib": (2, {"compressors": numcodecs.Zlib()}),
    "v2 gzip": (2, {"compressors": numcodecs.GZip()}),
    "v2 zstd": (2, {"compressors": numcodecs.Zstd()}),
    "v2 lz4": (2, {"compressors": numcodecs.LZ4()}),
    "v2 bz2": (2, {"compressors": numcodecs.BZ2()}),
    "v2 shuffle": (2, {"compressors": numcodecs.Zstd(), "filters": [numcodecs.Shuffle(4)]}),
    "v2 Fortran": (2, {"compressors": numcodecs.Zstd(), "order": "F"}),
    "v2 big": (2, {"dtype": ">f4"}),
    "v2 slashes": (2, {"chunk_key_encoding": {"name": "v2", "separator": "/"}}),
    "v3 none": (3, {"compressors": None}),
    "v3 blosc": (3, {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")}),
    "v3 gzip": (3, {"compressors": GzipCodec()}),
    "v3 zstd and crc32c": (3, {"compressors": [ZstdCodec(checksum=True), Crc32cCodec()]}),
    "v3 big": (3, {"serializer": BytesCodec(endian="big")}),
    "v3 transposed": (3, {"filters": [TransposeCodec(order=(2, 0, 3, 1))]}),
    "v3 shards": (3, {"shards": (60, 4, 6, 4), "chunks": (30, 2, 2, 4)}),
    "v3 dots": (3, {"chunk_key_encoding": {"name": "default", "separator": "."}}),
    "v3 old keys": (3, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
}


def write(path: Path, zarr_format: Any = 3, **options: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.create_array("x", shape=X.shape, **{"chunks": (30, 2, 2, 3), "dtype": "f4", **options})[:] = X
    group.create_array("y", data=Y, chunks=(50,))
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_gives_the_rows_that_zarr_gives(tmp_path: Path, codec: str, read_all: ReadAll) -> None:
    zarr_format, options = CODECS[codec]
    path = write(tmp_path / "a", zarr_format, **options)
    rows = read_all(open_source(path))
    np.testing.assert_array_equal(rows["x"], X, strict=True)
    np.testing.assert_array_equal(rows["y"], Y, strict=True)
    np.testing.assert_array_equal(read_all(open_source(path / "x"))["x"], X)


def test_a_store_becomes_a_dataset_in_python_and_knows_its_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    dataset = st.ingest(path, tmp_path / "d.zarr", progress=False, fields={"images": "/x", "y": "y"})
    assert np.array_equal(dataset[:]["images"], X)
    assert (
        st.ingest(path, dataset.path, progress=False, fields={"images": "/x", "y": "y"}, resume=True).id == dataset.id
    )
    assert np.array_equal(st.ingest([path, write(tmp_path / "b")], tmp_path / "e.zarr", progress=False)[100:]["x"], X)


def test_a_store_is_neither_a_dataset_nor_a_place_for_one(tmp_path: Path) -> None:
    for zarr_format in (2, 3):
        path = write(tmp_path / str(zarr_format), zarr_format)
        with pytest.raises(UsageError, match="the destination lies inside a source"):
            st.ingest(path, path / "d.zarr", progress=False)
        with pytest.raises(DatasetError, match="a Zarr group or array, but not a streamtrain dataset"):
            st.open(path)


def test_groups_in_groups(tmp_path: Path, read_all: ReadAll) -> None:
    group = zarr.open_group(tmp_path / "a", mode="w", zarr_format=2)
    group.create_group("train").create_array("x", data=X)
    assert np.array_equal(read_all(open_source(tmp_path / "a"))["x"], X)
    with pytest.raises(InputError, match=r"there is no array '/trian/x'.*did you mean '/train/x'"):
        open_source(tmp_path / "a", options=SourceOptions(fields={"x": "trian/x"}))


@pytest.mark.parametrize("shards", [None, (20, 6)])
def test_absent_chunks_are_counted(tmp_path: Path, shards: Any) -> None:
    x = zarr.create_array(tmp_path / "x", shape=(40, 6), chunks=(10, 3), shards=shards, dtype="f4", fill_value=np.nan)
    x[:10] = 1
    with pytest.raises(InputError, match="6 of 8 chunks are absent, for missing values"):
        st.ingest(tmp_path / "x", tmp_path / "d.zarr", progress=False)
    said: list[str] = []
    dataset = st.ingest(tmp_path / "x", tmp_path / "d.zarr", progress=False, nan="keep", say=said.append)
    assert f"{tmp_path / 'x'}: 6 of 8 chunks of / are absent and read as NaN" in said
    assert np.nansum(dataset[:]["x"]) == 60
    assert dataset.stats("x").n_nan.sum() == 180


def metadata(path: Path, **changes: Any) -> None:
    name = next(name for name in ("zarr.json", ".zarray") if (path / name).exists())
    told = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(told | changes))


def peak(function: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", ["v2 none", "v2 blosc", "v2 zlib", "v2 lz4", "v2 bz2", "v2 zstd", "v3 shards"])
@pytest.mark.parametrize("change", [-1, 1, -60])
def test_a_chunk_file_that_is_shorter_or_longer(tmp_path: Path, codec: str, change: int, read_all: ReadAll) -> None:
    zarr_format, options = CODECS[codec]
    path = write(tmp_path / "a", zarr_format, **options)
    (file, *_) = sorted(each for each in (path / "x").rglob("*0*") if each.is_file())
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + b"x")
    with pytest.raises(InputError) as caught:
        read_all(open_source(path))
    assert str(file) in str(caught.value.where)
    assert caught.value.exit_code == 3


def test_a_chunk_that_unpacks_to_more_than_its_shape_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = bytes(40_000_000)
    for name, codec in (("zlib", numcodecs.Zlib(9)), ("bz2", numcodecs.BZ2(9)), ("zstd", numcodecs.Zstd())):
        path = tmp_path / name
        zarr.create_array(path, shape=(10,), chunks=(10,), dtype="f8", zarr_format=2, compressors=codec)[:] = 1
        packed = codec.encode(bomb[: 2_000_000 if name == "zlib" else None])
        (path / "0").write_bytes(packed)
        source = open_source(path)

        def read(source: Any = source) -> None:
            with pytest.raises(InputError):
                list(source.iter_blocks(1000))

        assert peak(read) < 2_000_000


def test_a_zstd_frame_of_unknown_length_is_bounded_by_its_blocks() -> None:
    # Frame without a content size: window descriptor, one RLE block of 5 bytes.
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + (5 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"a"
    assert numcodecs.zstd.decompress(frame) == b"aaaaa"
    assert zstd_bytes(frame) <= 5
    large = b"\x28\xb5\x2f\xfd\x00\x58" + ((1 << 20) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"a"
    assert zstd_bytes(large) > 900_000


def test_hostile_shapes(tmp_path: Path) -> None:
    single_rows = {"name": "regular", "configuration": {"chunk_shape": [1]}}
    for number, changes, kind, what in (
        (1, {"shape": [10**15]}, InputError, "claims"),
        (2, {"shape": [10**8], "chunk_grid": single_rows}, BudgetError, "too many"),
        (6, {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**60]}}}, InputError, "claims"),
        (7, {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**33]}}}, BudgetError, "a chunk"),
        (3, {"shape": [-5]}, InputError, "not readable"),
        (4, {"data_type": "string"}, InputError, "not"),
        (5, {"codecs": [{"name": "magic"}]}, InputError, "not readable"),
    ):
        path = tmp_path / str(number)
        zarr.create_array(path, shape=(100,), chunks=(10,), dtype="i1")[:] = 1
        metadata(path, **changes)

        def opened(path: Path = path, kind: Any = kind, what: str = what) -> None:
            with pytest.raises(kind, match=what) as caught:
                open_source(path)
            assert caught.value.exit_code == (5 if kind is BudgetError else 3)

        assert peak(opened) < 4_000_000


@pytest.mark.parametrize("codec", ["pickle", "json2", "vlen-utf8", "delta"])
def test_a_codec_that_is_not_known_is_not_run(tmp_path: Path, codec: str) -> None:
    zarr.create_array(tmp_path / "x", shape=(10,), chunks=(10,), dtype="i1", zarr_format=2, compressors=None)[:] = 1
    (tmp_path / "x" / "0").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    metadata(tmp_path / "x", filters=[{"id": codec, "dtype": "|i1"}])
    with pytest.raises(InputError):
        open_source(tmp_path / "x")


@pytest.mark.parametrize("hidden", ["x/zarr.json", "x/c", "x/c/0/0/0/0", "x"])
def test_what_may_not_be_read(tmp_path: Path, hidden: str, read_all: ReadAll) -> None:
    path = write(tmp_path / "a.zarr")
    (path / hidden).chmod(0)
    try:
        with without_privileges(), pytest.raises(InputError, match=r"Permission denied.*give this user the permission"):
            read_all(open_source(path, options=SourceOptions(fields={"x": "/x"})))
    finally:
        (path / hidden).chmod(0o755)


def test_a_folder_of_files_is_none_of_zarr(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "x.npy", X)
    assert open_source(tmp_path / "f").provenance[0]["format"] == "npy"
