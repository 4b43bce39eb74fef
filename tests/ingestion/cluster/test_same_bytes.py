"""An ingest on a cluster writes the bytes that threads write, of every source that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_cases import tree

import streamtrain as st
from tests.ingestion.cluster.conftest import SIZES, X, Y


def npy(folder: Path) -> dict[str, Any]:
    return {"source": str(folder / "x.npy"), "labels": str(folder / "y.npy")}


def raw(folder: Path) -> dict[str, Any]:
    X.tofile(folder / "x.bin")
    return {"source": folder / "x.bin", "dtype": "uint8", "shape": (24,)}


def hdf5(folder: Path) -> dict[str, Any]:
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"], file["y"] = X, Y
    return {"source": folder / "a.h5"}


def several_files(folder: Path) -> dict[str, Any]:
    np.save(folder / "first.npy", X[:1500])
    np.save(folder / "second.npy", X[1500:])
    return {"source": [folder / "first.npy", folder / "second.npy"], "labels": folder / "y.npy", "classes": 10}


def table(first: int, stop: int) -> pa.Table:
    columns = {f"c{number}": X[first:stop, number].astype("f4") for number in range(24)}
    return pa.table({**columns, "label": [f" class {y}" if y else "class 0 " for y in Y[first:stop]]})


def parquet(folder: Path) -> dict[str, Any]:
    pq.write_table(table(0, 2500), folder / "a.parquet", row_group_size=700)
    pq.write_table(table(2500, 4000), folder / "b.parquet", row_group_size=4000)
    return {"source": [folder / "a.parquet", folder / "b.parquet"], "label_column": "label"}


def parquet_beside_npy(folder: Path) -> dict[str, Any]:
    pq.write_table(table(0, 4000).drop_columns("label"), folder / "a.parquet", row_group_size=333)
    return {"source": folder / "a.parquet", "labels": folder / "y.npy"}


def memmap(folder: Path) -> dict[str, Any]:
    return {"source": {name: np.load(folder / f"{name}.npy", mmap_mode="r")[100:3900] for name in "xy"}}


def chunks(folder: Path) -> dict[str, Any]:
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    pieces = [da.from_delayed(lazy_rows(folder / "x.npy", n), (500, 24), mapped.dtype) for n in range(8)]
    return {"source": {"x": da.concatenate(pieces), "y": np.load(folder / "y.npy", mmap_mode="r")}}


def lazy_rows(path: Path, number: int) -> Any:
    import dask

    # A function of NumPy: workers know no module of tests.
    rows = dask.delayed(np.load)(str(path))
    return rows[500 * number : 500 * number + 500]


@pytest.mark.parametrize(
    ("given", "codec"),
    [
        *((npy, codec) for codec in ("none", "lz4", "zstd")),
        *((of, "lz4") for of in (raw, hdf5, several_files, parquet_beside_npy, memmap, chunks)),
        *((parquet, codec) for codec in ("auto", "none")),
    ],
)
def test_the_bytes_are_those_of_threads(given: Any, codec: str, client: Any, files: Path) -> None:
    rows = given(files)
    alone = st.ingest(dest=files / "alone", codec=codec, **SIZES, **rows)
    shared = st.ingest(dest=files / "shared", codec=codec, scheduler=client, **SIZES, **rows)
    assert shared.id == alone.id
    assert shared.layout.n_shards > 8
    assert tree(files / "shared") == tree(files / "alone")


def test_relative_paths_and_the_manifest(client: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    st.ingest("x.npy", "alone", labels="./y.npy", **SIZES)
    shared = st.ingest("x.npy", "shared", labels="./y.npy", scheduler=client, **SIZES)
    assert shared.path == Path("shared")
    assert [entry["path"] for entry in shared.manifest.sources] == ["x.npy", "y.npy"]
    assert tree(Path("shared")) == tree(Path("alone"))


def test_append_and_overwrite(client: Any, files: Path) -> None:
    first, more = files / "x.npy", files / "more.npy"
    np.save(more, X[:777])
    for name, scheduler in (("alone", None), ("shared", client)):
        st.ingest(more, files / name, scheduler=scheduler, **SIZES)
        st.ingest(first, files / name, overwrite=True, scheduler=scheduler, **SIZES)
        st.ingest(more, files / name, append=True, scheduler=scheduler, progress=False)
    assert tree(files / "shared") == tree(files / "alone")
