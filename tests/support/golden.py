"""The makings of the golden files: rows by arithmetic, and orders. Of the package it knows the public face alone.

`tests/golden/make.py` makes the files with it and with `golden_runs`; the tests beside them make the same again and
compare. Neither imports a module of the package but the command line, so that both stay as they are while modules move.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numcodecs import blosc

import streamtrain as st
from streamtrain.cli.main import main

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden"
DATASETS: Final = ("none", "lz4", "zstd", "appended", "classes")
Rows = dict[str, Any]

# Rows ----------------------------------------------------------------------------------------------------------------

N_SAMPLES: Final = {"none": 400, "lz4": 230, "zstd": 130, "appended": 170, "classes": 90}
APPENDED_AT: Final = 101
SPECIES: Final = ("setosa", "virginica", "versicolor")
CSV: Final = "sources/flowers.csv"
CSV_TIME: Final = 1_700_000_000
"""The file's time of change, which an ingest keeps in the manifest, and git does not."""


def plain_rows(start: int, stop: int) -> Rows:
    """Four features, a label, a weight and the sample's number; all are binary fractions, so that sums are exact."""
    i = np.arange(start, stop)
    y = i // 20 % 3
    x = (i[:, None] * np.array([7, 11, 13, 17]) + np.array([0, 3, 5, 1])) % 32 / 8.0 - 2
    x[:, 0] += y
    x[:, 1] -= y
    return {"x": x.astype(np.float32), "y": y, "w": i % 4 / 4 + 0.25, "i": i.astype(np.int32)}


def many_kinds(n: int) -> Rows:
    """A field of every kind of number; zero with a sign, the smallest and a large one among them."""
    i = np.arange(n)
    level = i / 4 - 10
    level[3::40], level[7::40], level[9::40] = -0.0, 2.0**-1074, -(2.0**300)
    return {
        "image": ((i[:, None, None] * 5 + np.arange(6).reshape(3, 2) * 40) % 256).astype(np.uint8),
        "flag": i % 3 == 0,
        "half": (i % 16 / 8 - 1).astype(np.float16),
        "code": (i * 509 % 65_536).astype(np.uint16),
        "small": (i % 256 - 128).astype(np.int8),
        "large": i * 2**55 - 2**61,
        "level": level,
        "i": i.astype(np.int32),
    }


def flowers(n: int) -> Rows:
    """What the CSV file holds: two columns and the name of a class."""
    i = np.arange(n)
    x = np.stack([i % 8 / 4, (i * 3 % 16) / 2 - 1], axis=1)
    return {"x": x, "species": [SPECIES[k] for k in i * 5 // 7 % 3]}


def csv_text(n: int) -> str:
    """The CSV file itself."""
    rows = flowers(n)
    lines = [f"{width},{height},{name}" for (width, height), name in zip(rows["x"], rows["species"], strict=True)]
    return "\n".join(["width,height,species", *lines]) + "\n"


def rows_of(name: str) -> Rows:
    """What a golden dataset holds, worked out without it."""
    n = N_SAMPLES[name]
    if name == "zstd":
        return many_kinds(n)
    if name == "classes":
        rows = flowers(n)
        # Text is sorted and numbered.
        y = np.array([sorted(SPECIES).index(species) for species in rows["species"]])
        return {"x": rows["x"], "y": y}
    return plain_rows(0, n)


def ingest(name: str) -> None:
    """Make a golden dataset anew at ``datasets/NAME.zarr``, below the current folder."""
    dest = f"datasets/{name}.zarr"
    how: dict[str, Any] = {"codec": name if name in ("none", "lz4", "zstd") else "none", "progress": False}
    match name:
        case "none":
            st.ingest(rows_of(name), dest, block=2 * 36, shard=100 * 16, **how)
        case "lz4":
            st.ingest(rows_of(name), dest, block=16 * 36, shard=64 * 16, **how)
        case "zstd":
            st.ingest(rows_of(name), dest, block=16 * 32, shard=64 * 8, **how)
        case "appended":
            st.ingest(plain_rows(0, APPENDED_AT), dest, block=8 * 36, shard=32 * 16, **how)
            st.ingest(plain_rows(APPENDED_AT, N_SAMPLES[name]), dest, append=True, **how)
        case "classes":
            os.utime(CSV, (CSV_TIME, CSV_TIME))
            sizes = ("--block", "192B", "--shard", "512B")
            run_command("ingest", CSV, dest, "--label-column", "species", *sizes, "--codec", "none")


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def writers() -> dict[str, str]:
    """The versions of what puts the bytes of a dataset together."""
    import zarr

    return {"zarr": zarr.__version__, "blosc": blosc.VERSION_STRING}


def run_command(*words: str, exit_code: int = 0) -> str:
    """Run the command line in this process; what it printed on stdout."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(words)
    assert code == exit_code, f"streamtrain {' '.join(words)}: exit code {code}"
    return out.getvalue()


# Orders --------------------------------------------------------------------------------------------------------------

N_EPOCHS: Final = 3
ORDERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "spare memory": ("none", {"batch_size": 16, "memory": "64MB", "seed": 0}),
    "tight memory": ("none", {"batch_size": 16, "memory": "3312KB", "seed": 0}),
    "few lanes": ("none", {"batch_size": 25, "memory": "8MB", "seed": 7, "lanes": 6}),
    "many groups": ("none", {"batch_size": 64, "memory": "8MB", "seed": 1, "lanes": 128}),
    "drop last": ("lz4", {"batch_size": 50, "memory": "8MB", "seed": 2**40, "drop_last": True}),
    "never anew": ("appended", {"batch_size": 32, "memory": "8MB", "seed": 3, "reshuffle": "never"}),
    "one sample": ("zstd", {"batch_size": 1, "memory": "8MB", "seed": 4}),
    "all settings default": ("appended", {}),
    "as stored": ("lz4", {"batch_size": 48, "memory": "8MB", "shuffle": False}),
}
"""Dataset and settings of the loaders whose orders are kept."""
STOPPED_IN: Final = (1, 3)
"""Epoch and batch of the place at which a loader's state is kept."""
KEYED_EPOCHS: Final = (0, 5)
N_KEYS: Final = 20


def open_golden(name: str) -> st.Dataset:
    """A dataset below the current folder."""
    return st.open(f"datasets/{name}.zarr")


def read_orders(dataset: st.Dataset, how: dict[str, Any], n_epochs: int = N_EPOCHS) -> list[list[list[int]]]:
    """The numbers of the samples: epoch by epoch, batch by batch."""
    with st.StreamLoader(dataset, **how) as loader:
        return [[batch.i.tolist() for batch in loader] for _ in range(n_epochs)]


def state_inside(dataset: st.Dataset, how: dict[str, Any]) -> dict[str, Any]:
    """A loader's state at the place where it is kept."""
    epoch, n_batches = STOPPED_IN
    with st.StreamLoader(dataset, **how) as loader:
        loader.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(n_batches):
            next(batches)
        return loader.state_dict()


def keys_of(dataset: st.Dataset, epoch: int) -> dict[str, list[Any]]:
    """The first samples' keys in an epoch, and what is drawn from them: by sample, whatever the epoch's order is."""
    found: dict[int, tuple[int, list[float], list[float]]] = {}

    def draw(batch: Any, keys: torch.Tensor) -> Any:
        uniform, normal = st.uniform(keys, (2,)), st.normal(keys, (2,), draw=1)
        drawn = zip(keys.tolist(), uniform.tolist(), normal.tolist(), strict=True)
        found.update(zip(batch.i.tolist(), drawn, strict=True))
        return batch

    with st.StreamLoader(dataset, batch_size=32, memory="8MB", seed=11, transform=draw) as loader:
        loader.set_epoch(epoch)
        for _ in loader:
            pass
    columns = zip(*(found[i] for i in range(N_KEYS)), strict=True)
    return dict(zip(("keys", "uniform", "normal"), map(list, columns), strict=True))
