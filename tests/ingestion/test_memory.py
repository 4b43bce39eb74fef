"""The memory of an ingest, in a process of its own: below what it projects, and that below its budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import streamtrain
from streamtrain.errors import BudgetError
from streamtrain.ingestion import request
from streamtrain.ingestion.row_stream import part_ranges, part_rows
from streamtrain.store.layout import Field, Layout


@pytest.mark.parametrize(("memory", "head", "run"), [(64 * 2**20, 2**24, 2**21), (10**12, 256_000_000, 2**24)])
def test_what_is_held_and_asked_for_follows_the_budget_up_to_a_limit(memory: int, head: int, run: int) -> None:
    assert (request.head_bytes(memory), request.run_bytes(memory)) == (head, run)


def test_parts_are_whole_blocks_and_end_with_their_shard() -> None:
    x = Field(name="x", dtype=np.dtype("uint8"), shape=(3072,))
    layout = Layout(fields=(x,), n_samples=1000, block_rows=100, shard_blocks=8, codec="none")
    assert part_rows(layout) == 600
    assert list(part_ranges(layout, 0, 1000)) == [(0, 600), (600, 800), (800, 1000)]


_MEASURE = """
import sys, tempfile, threading
import numpy as np
import streamtrain
from streamtrain.ingestion import request

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def items():
    for start in range(220):
        yield {"x": np.full((1000, 1000), start % 256, np.uint8), "y": np.arange(1000)}

def chunks():
    return da.arange(2000 * 50_000, chunks=2000 * 1000, dtype=np.float32).reshape(50_000, 2000)

data = {"items": items, "dask": chunks}

projections = []
solve = request.solve_ingest
def noted(*args, **kwargs):
    sizes, projection = solve(*args, **kwargs)
    projections.append(projection.total_bytes)
    return sizes, projection
request.solve_ingest = noted

source, dest, budget, codec = sys.argv[1:]
if source == "dask":
    import dask.array as da  # the user's import, and of all that is installed beside it
streamtrain.ingest({"x": np.arange(9.0)}, tempfile.mkdtemp(dir=dest) + "/first", codec="lz4")  # imports all there is
peak = base = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
try:
    streamtrain.ingest(data.get(source, lambda: source)(), dest + "/d.zarr", memory=budget, codec=codec)
finally:
    done.set()
    watcher.join()
print(peak - base, projections[-1])
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    x = np.arange(210_000_000 // 3000 * 3000, dtype=np.uint8).reshape(-1, 3000)
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", x=x, y=np.arange(len(x)) % 10)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status tells the memory")
@pytest.mark.parametrize(("kind", "codec"), [("x.npy", "lz4"), ("x.npz", "none"), ("items", "lz4"), ("dask", "none")])
def test_measured_is_below_projected_is_below_budget(big: Path, tmp_path: Path, kind: str, codec: str) -> None:
    source = str(big / kind) if kind.startswith("x.") else kind
    command = [sys.executable, "-c", _MEASURE, source, str(tmp_path), "64MB" if kind == "dask" else "48MB", codec]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    measured, projected = map(int, done.stdout.split())
    assert measured <= projected <= (64_000_000 if kind == "dask" else 48_000_000)


def test_a_chunk_that_takes_more_than_the_budget_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    def made(rows: Any) -> Any:
        assert not rows.size, "dask asks for the type of no rows, and ingest for no row"
        return rows

    x = da.zeros((1000, 100_000), chunks=(500, 100_000)).map_blocks(made, dtype="f8")
    message = r"source 1\.\d\d GB.*Fix: memory='.*MB', chunks of at most \d+ rows"
    with pytest.raises(BudgetError, match=message) as caught:
        streamtrain.ingest({"x": x}, tmp_path / "d.zarr", memory="64MB")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "d.zarr").exists()
