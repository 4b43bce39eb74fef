"""Rows of chunks larger than memory: in order over disk, each chunk decoded once, within the budget, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

import streamtrain as st
from streamtrain.errors import BudgetError, InputError, ResourceError
from streamtrain.ingestion.sources.hierarchies import zarr_arrays
from streamtrain.system.syscalls import Syscalls

SHAPES = {
    "default chunks of images": ((400, 3, 96, 64), (150, 1, 48, 32)),
    "a column of all times": ((2500, 24, 40), (2500, 1, 1)),
    "several columns of all times": ((2500, 24, 40), (2000, 1, 7)),
    "across": ((700, 50, 60), (650, 7, 11)),
    "one axis more": ((500, 4, 5, 6, 50), (450, 1, 5, 4, 50)),
}
MEMORY = "30MB"
SMALL: dict[str, Any] = {"memory": MEMORY, "progress": False, "block": "100KB", "n_workers": 2}


def write(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str = "f4") -> Any:
    values = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    zarr.create_array(path, data=values, chunks=chunks, compressors=None)
    return values


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """How often each chunk is decoded."""
    counts: Counter[Any] = Counter()
    chunk = zarr_arrays.ZarrArray.chunk

    def counted(array: zarr_arrays.ZarrArray, index: Any) -> Any:
        counts[index] += 1
        return chunk(array, index)

    monkeypatch.setattr(zarr_arrays.ZarrArray, "chunk", counted)
    return counts


@pytest.mark.parametrize("kind", SHAPES)
def test_the_rows_are_those_of_zarr_and_each_chunk_is_decoded_once(
    tmp_path: Path, decoded: Counter[Any], kind: str
) -> None:
    values = write(tmp_path / "x", *SHAPES[kind])
    said: list[str] = []
    dataset = st.ingest(tmp_path / "x", tmp_path / "d.zarr", **SMALL, say=said.append)
    assert any("goes over disk, which needs" in text and str(tmp_path) in text for text in said)
    assert all(np.array_equal(dataset[at : at + 64]["x"], values[at : at + 64]) for at in range(0, len(values), 64))
    n_chunks = np.prod([-(-length // chunk) for length, chunk in zip(*SHAPES[kind], strict=True)])
    assert len(decoded) == n_chunks
    assert set(decoded.values()) == {1}
    assert {path.name for path in tmp_path.iterdir()} == {"x", "d.zarr"}


def test_hdf5_packed_numbers_and_splits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-99, 99, (700, 50, 60)).astype(">i2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", data=values, chunks=(650, 7, 11), shuffle=True)
        x.attrs["scale_factor"] = 0.5
        file.create_dataset("n", data=np.arange(700), chunks=(100,))
    st.ingest(tmp_path / "a.h5", tmp_path / "d.zarr", **{**SMALL, "memory": "32MB"}, split={"val": 0.5})
    for name in ("train", "val"):
        rows = st.open(tmp_path / "d.zarr", split=name)[:]
        assert np.array_equal(rows["x"], values[rows["n"]] * np.float32(0.5))


def test_absent_chunks_are_the_fill_value(tmp_path: Path) -> None:
    x = zarr.create_array(tmp_path / "x", shape=(700, 50, 60), chunks=(650, 7, 11), dtype="f4", fill_value=3)
    x[:, :7] = 1
    dataset = st.ingest(tmp_path / "x", tmp_path / "d.zarr", **SMALL)
    assert dataset.stats("x").overall.mean == pytest.approx((7 * 1 + 43 * 3) / 50)


def test_a_disk_without_room_is_refused_before_a_chunk_is_read(
    tmp_path: Path, decoded: Counter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x", *SHAPES["across"])
    monkeypatch.setattr(Syscalls, "free", lambda system, path: (5_000_000, None))
    with pytest.raises(ResourceError, match=r"7\.8 MB are needed, and 5\.0 MB are free.*goes over disk") as caught:
        st.ingest(tmp_path / "x", tmp_path / "d.zarr", **SMALL)
    assert caught.value.exit_code == 5
    assert not decoded
    assert not (tmp_path / "d.zarr").exists()


def test_a_disk_that_fails_or_gives_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", *SHAPES["across"])
    pwrite = Syscalls.pwrite

    def damaged(system: Syscalls, fd: int, data: Any, offset: int) -> int:
        return pwrite(system, fd, bytes([data[0] ^ 1]) + bytes(data[1:]), offset)

    def full(system: Syscalls, fd: int, data: Any, offset: int) -> int:
        raise OSError(28, os.strerror(28))

    for wrong, kind, code in ((damaged, InputError, 3), (full, ResourceError, 5)):
        with monkeypatch.context() as patch:
            patch.setattr(Syscalls, "pwrite", wrong)
            with pytest.raises(kind) as caught:
                st.ingest(tmp_path / "x", tmp_path / "d.zarr", **SMALL)
        assert caught.value.exit_code == code
        assert {path.name for path in tmp_path.iterdir()} == {"x"}


def test_what_is_killed_leaves_nothing_beside_and_is_resumed(tmp_path: Path, decoded: Counter[Any]) -> None:
    values = write(tmp_path / "x", *SHAPES["across"])
    options = {**SMALL, "shard": "1MB", "codec": "none"}
    code = (
        "import os, sys, streamtrain as st\n"
        "from streamtrain.store.writing.journal import Journal\n"
        "add = Journal.add\n"
        "def killed(journal, *given):\n"
        "    add(journal, *given)\n"
        "    if journal.n_shards == 3: os.kill(os.getpid(), 9)\n"
        "Journal.add = killed\n"
        f"st.ingest(sys.argv[1], sys.argv[2], **{options!r})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "d.zarr")]
    assert subprocess.run(command, check=False).returncode == -9
    assert {path.name for path in tmp_path.iterdir()} == {"x", "d.zarr", ".d.zarr.lock"}
    said: list[str] = []
    dataset = st.ingest(tmp_path / "x", tmp_path / "d.zarr", **options, resume=True, say=said.append)
    assert any("resumes; 3 of" in text for text in said)
    assert np.array_equal(dataset[:]["x"], values)
    assert dataset.id == st.ingest(tmp_path / "x", tmp_path / "e.zarr", **options).id
    assert set(decoded.values()) == {2}, "once in each of the two"


def test_the_smallest_budget_that_a_refusal_names_works(tmp_path: Path) -> None:
    write(tmp_path / "x", *SHAPES["across"])
    with pytest.raises(BudgetError) as caught:
        st.ingest(tmp_path / "x", tmp_path / "d.zarr", **{**SMALL, "memory": "10MB"})
    least = caught.value.fix.argument("memory").value  # type: ignore[union-attr]
    st.ingest(tmp_path / "x", tmp_path / "d.zarr", **{**SMALL, "memory": least})


_MEASURE = """
import sys, threading
import numpy as np
import streamtrain

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

dest, budget, *sources = sys.argv[1:]
streamtrain.ingest(sources.pop(), dest + "/first", progress=False)  # imports all there is
for number, source in enumerate(sources):
    peak = base = anonymous()
    done = threading.Event()
    def watch():
        global peak
        while not done.wait(0.003):
            peak = max(peak, anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        streamtrain.ingest(source, f"{dest}/{number}", memory=budget, progress=False, codec="none")
    finally:
        done.set()
        watcher.join()
    print(peak - base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status tells the memory")
def test_measured_is_below_the_budget(tmp_path: Path) -> None:
    large = {
        "images": ((400, 3, 96, 96), (250, 1, 48, 48)),
        "columns": ((3000, 40, 40), (3000, 1, 5)),
    }
    for name, (shape, chunks) in large.items():
        write(tmp_path / name, shape, chunks)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (300, 3, 80, 80), "i2", chunks=(200, 1, 40, 40), compression="gzip", shuffle=True)
        file["x"][::7] = 5
        file["x"].attrs["scale_factor"] = 0.5
    zarr.create_array(tmp_path / "small", data=np.ones(5, "f4"))
    sources = [str(tmp_path / name) for name in (*large, "a.h5", "small")]
    command = [sys.executable, "-c", _MEASURE, str(tmp_path), "40MB", *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    measured = [int(line) for line in done.stdout.split()]
    assert len(measured) == 3
    assert max(measured) <= 40_000_000, measured
