#!/usr/bin/env python3
"""Proof that predicting takes the memory it is given, whatever the rows and the file, under a limit of the kernel.

A linear model of one target is trained on a few rows of bytes. `streamtrain predict` then runs on each number of rows
and writes each kind of file, in a cgroup whose limit is what a process holds that only loads the model, plus --memory,
plus --slack for what the kernel charges besides, such as page tables. Every prediction is compared with a plain forward
pass. Prints a line a file on stderr and a JSON line on stdout; ends with 1 if one was killed, took more, or was wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import numpy.typing as npt
import pyarrow.csv
import pyarrow.parquet
import torch

import streamtrain as st
from scripts.data.synthetic import Recipe, write_dataset
from scripts.proofs.cgroup import Ended, NoGroup, run_within
from scripts.runner import Result, new_parser, require_disk, run
from streamtrain.system.units import format_bytes, parse_bytes

ROOT: Final = str(Path(__file__).resolve().parents[2])
N_COLUMNS: Final = 784
SUFFIXES: Final = ("csv", "parquet", "npy", "zarr")
MOST_OFF: Final = 1e-6
LESS: Final = "fewer --rows, or another --folder"
_FEW: Final = 2_000
_PART: Final = 50_000
_SECONDS: Final = 3_600
_MAIN: Final = f"import sys; sys.path.insert(0, {ROOT!r}); from streamtrain.cli.main import main; sys.exit(main())"
_COMMAND: Final = (sys.executable, "-c", _MAIN)
_HELD: Final = f"""
import sys
sys.path.insert(0, {ROOT!r})
import streamtrain.cli.inference.predict, streamtrain.training.inference.writers.parquet
import streamtrain as st
from streamtrain.system.memory import anonymous_bytes
st.load(sys.argv[1], device="cpu")
print(anonymous_bytes())
"""


def main() -> None:
    """Predict each number of rows into each kind of file."""
    parser = new_parser(__doc__, folder=None, memory="64MB")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6], help="rows (default: 100000 1000000)")
    parser.add_argument("--files", nargs="+", choices=SUFFIXES, default=SUFFIXES, help="kinds of file (default: all)")
    parser.add_argument("--slack", default="16MB", help="of the limit, for the kernel (default: 16MB)")
    parser.add_argument("--no-limit", action="store_true", help="measure without a cgroup")
    arguments = parser.parse_args()
    try:
        results = run(arguments, measure, describe, fix=LESS)
    except NoGroup as error:
        print(f"error: {error}\nWithout a limit, where nothing ends what takes more: --no-limit", file=sys.stderr)
        raise SystemExit(5) from None
    if not all(
        result["finished"] and result["within"] and result["largest_difference"] <= MOST_OFF for result in results
    ):
        raise SystemExit(1)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Train on a few rows, then predict; what is not needed any more is removed."""
    require_disk(folder, 2 * max(arguments.rows) * N_COLUMNS, fix=LESS)
    model = trained(folder)
    held = int(done(run_within([sys.executable, "-c", _HELD, str(folder / "run")], None, timeout=_SECONDS)))
    budget, slack = (parse_bytes(getattr(arguments, name), name=f"--{name}") for name in ("memory", "slack"))
    limit = None if arguments.no_limit else held + budget + slack
    for n_rows in arguments.rows:
        write_dataset(
            Recipe(n_samples=n_rows, shape=(N_COLUMNS,), compressibility=4, n_classes=10), folder / "rows", codec="lz4"
        )
        wanted = forward(model, st.open(folder / "rows"))
        for suffix in arguments.files:
            place = {"rows": n_rows, "file": suffix, "memory_bytes": budget, "held_bytes": held, "limit_bytes": limit}
            yield {"bench": "predicting", **place, **predicted(folder, suffix, wanted, limit, budget)}
        shutil.rmtree(folder / "rows")


def trained(folder: Path) -> torch.nn.Module:
    """Train a linear model of one target, and load it."""
    x = np.random.default_rng(0).integers(0, 256, (_FEW, N_COLUMNS), dtype=np.uint8)
    st.ingest({"x": x, "y": x[:, :8].mean(axis=1).astype(np.float32)}, folder / "few", progress=False)
    words = ["train", str(folder / "few"), "--model", "linear", "--epochs", "1", "--out", str(folder / "run")]
    done(run_within([*_COMMAND, *words], None, timeout=_SECONDS))
    return st.load(folder / "run", device="cpu")


def done(ended: Ended) -> str:
    """Return what a command printed; stop where it failed."""
    if ended.code:
        raise SystemExit(f"exit code {ended.code}: {ended.errors[-600:]}")
    return ended.output


def forward(model: torch.nn.Module, rows: st.Dataset) -> npt.NDArray[np.float32]:
    """Predict all rows by the model alone."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(rows[start : start + _PART]["x"])).reshape(-1)
            for start in range(0, len(rows), _PART)
        ]
    return torch.cat(parts).numpy()


def predicted(
    folder: Path, suffix: str, wanted: npt.NDArray[np.float32], limit: int | None, budget: int
) -> dict[str, Any]:
    """Predict into a file of one kind, and compare it."""
    file = folder / f"predictions.{suffix}"
    words = [
        "predict",
        str(folder / "run"),
        str(folder / "rows"),
        "--out",
        str(file),
        "--memory",
        f"{budget}B",
        "--json",
    ]
    ended = run_within([*_COMMAND, *words], limit, timeout=_SECONDS)
    found: dict[str, Any] = {"finished": ended.code == 0, "killed": ended.was_killed, "peak_of_group": ended.peak_bytes}
    if ended.code:
        return found | {"within": False, "largest_difference": float("inf"), "errors": ended.errors[-400:]}
    told = json.loads(ended.output)
    off = float(np.abs(values_in(file) - wanted).max())
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    measured = told["memory"]["measured"]
    return found | {
        "measured_bytes": measured,
        "within": measured <= budget,
        "largest_difference": off,
        "seconds": told["seconds"],
    }


def values_in(file: Path) -> npt.NDArray[Any]:
    """Read the predictions of a file."""
    match file.suffix:
        case ".npy":
            return np.asarray(np.load(file)).reshape(-1)
        case ".zarr":
            return np.asarray(st.open(file)[:]["prediction"]).reshape(-1)
        case ".parquet":
            return np.asarray(pyarrow.parquet.read_table(file, columns=["prediction"])["prediction"]).reshape(-1)
        case _:
            return np.asarray(pyarrow.csv.read_csv(file)["prediction"]).reshape(-1)


def describe(result: Result) -> str:
    """Write a line for people."""
    what = f"{result['rows']:>12,} rows to {result['file']:<8}"
    if not result["finished"]:
        return f"{what}{'KILLED' if result['killed'] else 'FAILED'} {result['errors']}"
    within = "within" if result["within"] else "MORE THAN"
    measured, budget = (format_bytes(result[name]) for name in ("measured_bytes", "memory_bytes"))
    return f"{what}{measured}, {within} {budget}; off by {result['largest_difference']:.1g}; {result['seconds']:.1f} s"


if __name__ == "__main__":
    main()
