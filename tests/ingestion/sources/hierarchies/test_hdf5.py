"""HDF5 files of h5py: every layout and filter, fields named and found, rows in slabs, each chunk decoded once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import streamtrain as st
from streamtrain.errors import Fix, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.hierarchies import hdf5
from streamtrain.ingestion.sources.hierarchies.stored_array import StoredArray
from streamtrain.ingestion.sources.registry import open_source

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 3, 5, 4)).astype("f4")
Y = RNG.integers(0, 10, 100)

LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (7, 3, 5, 4)},
    "across": {"chunks": (30, 2, 2, 3)},
    "gzip": {"chunks": (16, 3, 2, 4), "compression": "gzip"},
    "all three": {"chunks": (16, 3, 2, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": (16, 3, 2, 4), "compression": "lzf", "shuffle": True},
    "scale-offset": {"chunks": (16, 3, 5, 4), "scaleoffset": 12},
}


def write(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def ingest(source: Any, dest: Path, **options: Any) -> dict[str, Any]:
    dataset = st.ingest(source, dest, progress=False, codec="none", **options)
    return dict(dataset[: len(dataset)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_every_layout_gives_the_rows_that_h5py_gives(
    tmp_path: Path, layout: str, dtype: str, read_all: Callable[..., Any]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", data=X, dtype=dtype, **LAYOUTS[layout])
        file["y"] = Y.astype("i2")
        expected = x[:].astype("f4")
    source = open_source(tmp_path / "a.h5")
    assert source.seekable == (layout == "contiguous")
    rows = read_all(source)
    np.testing.assert_array_equal(rows["x"], expected, strict=True)
    np.testing.assert_array_equal(rows["y"], Y, strict=True)
    assert source.where(17) == f"{tmp_path / 'a.h5'} row 17"


def test_any_range_of_contiguous_arrays_is_read(tmp_path: Path, check_ranges: Callable[..., None]) -> None:
    path = write(tmp_path / "a.h5", x=X, y=Y)
    check_ranges(open_source(path), {"x": X, "y": Y}, [(0, 100), (3, 4), (50, 99)])


@pytest.mark.parametrize("dtype", ["bool", "i1", "u2", ">i4", "u8", "f2", "f8"])
def test_every_dtype_of_numbers(tmp_path: Path, dtype: str, read_all: Callable[..., Any]) -> None:
    values = (np.arange(40).reshape(20, 2) % 2).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(6, 1), compression="gzip")
    rows = read_all(open_source(tmp_path / "a.h5"))
    np.testing.assert_array_equal(rows["x"], values.astype(np.dtype(dtype).newbyteorder("=")), strict=True)


def test_the_content_tells_the_format_whatever_the_name(tmp_path: Path) -> None:
    for name in ("a.npy", "b", "c.csv", "d.nc"):
        write(tmp_path / name, x=X)
        assert open_source(tmp_path / name).provenance[0]["format"] == "hdf5"


def test_a_block_of_the_user_may_stand_before_the_content(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["x"] = X
        file.create_dataset("z", data=X, chunks=(10, 3, 5, 4), compression="gzip")
    rows = read_all(open_source(tmp_path / "a.h5"))
    assert np.array_equal(rows["x"], X)
    assert np.array_equal(rows["z"], X)


def test_elements_that_are_not_stored_as_numpy_has_them(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    narrow = h5py.h5t.STD_I16LE.copy()
    narrow.set_precision(12)
    narrow.set_offset(2)
    half = h5py.h5t.IEEE_F32LE.copy()
    half.set_fields(15, 7, 8, 0, 7)
    half.set_size(2)
    half.set_ebias(127)
    values = np.array([[-3, 5], [100, -200]])
    for name, kind in (("narrow", narrow), ("bfloat16", half)):
        with h5py.File(tmp_path / name, "w") as file:
            made = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((2, 2)))
            h5py.Dataset(made)[:] = values
            expected = file["x"][:]
        rows = read_all(open_source(tmp_path / name))
        np.testing.assert_array_equal(rows["x"], expected.astype(rows["x"].dtype))
        np.testing.assert_array_equal(rows["x"], values)


def test_what_was_never_written_takes_no_more_memory_than_a_megabyte(tmp_path: Path, peak_of_reading: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4000, 1000), "f4")
    source = open_source(tmp_path / "a.h5", options=SourceOptions(memory=30_000_000, n_workers=1))
    assert source.n_samples == 4000
    assert peak_of_reading(source, 1 << 16) < 8_000_000


def test_fields_are_named_by_path_in_python_and_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **{"train/images": X, "train/labels": Y, "test/images": X[:9]})
    rows = ingest(path, tmp_path / "a.zarr", fields={"x": "/train/images", "y": "train/labels"})
    assert np.array_equal(rows["x"], X)
    assert np.array_equal(rows["y"], Y)
    with h5py.File(path, "a") as file:
        file["soft"] = h5py.SoftLink("/train/images")
    assert np.array_equal(ingest(path, tmp_path / "b.zarr", fields={"x": "soft"})["x"], X)


def test_without_names_all_arrays_of_the_longest_axis_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", x=X, y=Y, mean=np.zeros(4), names=np.array([b"a"] * 100), title=3.0)
    said: list[str] = []
    assert set(ingest(path, tmp_path / "a.zarr", say=said.append)) == {"x", "y"}
    assert f"{path}: x is /x, float32 (100, 3, 5, 4)" in said
    left_out = "/mean (4 rows), /names (it holds text), /title (it is a single value, without an axis of samples)"
    assert f"{path}: left out {left_out}" in said


def test_options_of_columns_are_refused_with_the_fields_that_say_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **{"in/x": X}, next_mean=np.arange(100.0), time=np.arange(100))
    for given in ({"label_column": "next_mean", "id_column": "time"}, {"columns": ["x"], "id_column": "time"}):
        with pytest.raises(UsageError, match="does not apply to HDF5 files") as caught:
            ingest(path, tmp_path / "a.zarr", **given)
        assert isinstance(caught.value.fix, Fix)
        fields = caught.value.fix.argument("fields").value
        expected = {"x": "/in/x", "y": "/next_mean", "id": "/time"}
        assert fields == {name: expected[name] for name in fields}
        assert set(ingest(path, tmp_path / "a.zarr", fields=fields)) == set(fields) >= {"x", "id"}
        shutil.rmtree(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"x_train": X, "x_test": X[:9]}, "/x_test is like those of the longest axis, but for its 9 rows"),
        ({"t2m": X[:9], "mask": np.ones((12, 4))}, "/t2m holds more than those of the longest axis, 12 rows"),
        ({"a/x": X, "b/x": X}, "2 arrays are called 'x'"),
        ({"name": 3.0}, "no array of numbers has an axis of samples"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_list(tmp_path: Path, arrays: dict[str, Any], what: str) -> None:
    path = write(tmp_path / "a.h5", **arrays)
    with pytest.raises(UsageError, match="it is not clear which arrays are the samples") as caught:
        open_source(path)
    assert what in caught.value.what
    assert all(f"/{name}" in str(caught.value.why) for name in arrays)


def test_files_are_concatenated_and_resumed_and_appended(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.h5", x=X, y=Y), tmp_path / "2.h5"
    with h5py.File(two, "w") as file:
        file.create_dataset("x", data=X + 1, chunks=(9, 1, 5, 4))
        file.create_dataset("y", data=Y, chunks=(50,))
    rows = ingest([one, two], tmp_path / "a.zarr", block="4KB", shard="16KB")
    assert np.array_equal(rows["x"], np.concatenate([X, X + 1]))
    assert np.array_equal(
        ingest([one, two], tmp_path / "a.zarr", resume=True, block="4KB", shard="16KB")["x"], rows["x"]
    )
    ingest(one, tmp_path / "b.zarr")
    assert np.array_equal(ingest(two, tmp_path / "b.zarr", append=True)["x"], rows["x"])


def test_splits_and_labels_beside(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(9, 1, 5, 4))
    np.save(tmp_path / "y.npy", Y)
    st.ingest(tmp_path / "a.h5", tmp_path / "s.zarr", labels=tmp_path / "y.npy", split={"val": 0.45}, progress=False)
    parts = [st.open(tmp_path / "s.zarr", split=name) for name in ("train", "val")]
    assert sum(map(len, parts)) == 100
    assert {row.tobytes() for part in parts for row in part[: len(part)]["x"]} == {row.tobytes() for row in X}


@pytest.mark.parametrize("n_workers", [1, 3])
def test_each_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_workers: int) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(30, 2, 2, 3), compression="gzip")
    decoded: Counter[Any] = Counter()
    chunk = hdf5.Hdf5Array.chunk

    def counted(array: StoredArray, index: Any) -> Any:
        decoded[index] += 1
        return chunk(array, index)  # type: ignore[arg-type]

    monkeypatch.setattr(hdf5.Hdf5Array, "chunk", counted)
    rows = ingest(tmp_path / "a.h5", tmp_path / "a.zarr", n_workers=n_workers, block="2KB", shard="8KB", memory="40MB")
    assert np.array_equal(rows["x"], X)
    assert set(decoded.values()) == {1}
    assert len(decoded) == 4 * 2 * 3 * 2


def test_chunks_that_were_never_written_are_the_fill_value_and_counted(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", shape=(40, 6), dtype="f4", chunks=(10, 3), fillvalue=7)
        x[:10] = 1
    said: list[str] = []
    path = tmp_path / "a.h5"
    dataset = st.ingest(path, tmp_path / "a.zarr", progress=False, say=said.append)
    assert f"{path}: 6 of 8 chunks of /x are absent and read as 7" in said
    assert dataset.manifest.sources[0]["missing_chunks"] == {"/x": 6}
    assert dataset[:]["x"].sum() == 10 * 6 + 30 * 6 * 7


def test_a_csv_needs_neither_h5py_nor_pillow(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n1,0\n2,1\n")
    code = (
        "import sys, streamtrain as st; st.ingest(sys.argv[1], sys.argv[2], label_column='y', progress=False); "
        "sys.exit(bool({'h5py', 'PIL'} & {name.split('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.csv"), str(tmp_path / "d.zarr")]
    assert subprocess.run(command, check=False).returncode == 0


def test_options_of_other_formats_and_of_this_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", x=X)
    np.save(tmp_path / "x.npy", X)
    for source, options in (
        (path, {"dtype": "f4"}),
        (path, {"label_column": "y"}),
        (path, {"na": "drop"}),
        (tmp_path / "x.npy", {"decode": "raw"}),
        (X, {"decode": "raw"}),
        (path, {"decode": "yes"}),
        (path, {"sample_axis": -1}),
    ):
        with pytest.raises(UsageError):
            st.ingest(source, tmp_path / "d.zarr", **options)
    assert open_source(path, options=SourceOptions(sample_axis=0)).n_samples == 100
