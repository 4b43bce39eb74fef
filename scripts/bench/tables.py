#!/usr/bin/env python3
"""Tables: the rate of an ingest with categories, what a split costs, and a wide table beside pandas.

``categories``: MB/s of a tab-separated file of click records, 26 columns of hexadecimal categories and 13 of numbers,
a fifth of them empty, which is read twice. ``split``: seconds of an ingest that sets validation data aside ÷ without,
from CSV, from .npy and from idx files. ``wide``: a CSV file of 20 columns of numbers and 20 of categories, in a process
of its own: its peak above what it held before, and MB/s beside pandas, which reads all and makes the one-hot columns.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.bench.ingest import clear
from scripts.runner import Result, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.system.units import format_bytes, parse_bytes

CLICK_RATE: Final = 40.0
"""MB/s of click records, at least."""
SPLIT_RATIO: Final = 1.5
"""Seconds with a split ÷ without, at most."""
N_NUMBERS, N_CATEGORIES = 20, 20
_ROWS_AT_ONCE: Final = 20_000
_IDX_UBYTE: Final = 0x08

WIDE: Final = """
import sys, time
import streamtrain as st
from streamtrain.system.memory import MemoryMeter

source, target, memory, columns = sys.argv[1:]
st.ingest({"x": [[0.0], [1.0]], "y": [0, 1]}, target + ".first", progress=False)  # imports all there is
start = time.perf_counter()
with MemoryMeter() as meter:
    st.ingest(source, target, memory=memory, categorical=columns.split(","), progress=False)
print(meter.peak_bytes, time.perf_counter() - start)
"""
PANDAS: Final = """
import sys, time
import pandas
from streamtrain.system.memory import MemoryMeter

start = time.perf_counter()
with MemoryMeter() as meter:
    table = pandas.get_dummies(pandas.read_csv(sys.argv[1]), columns=sys.argv[2].split(","))
print(meter.peak_bytes, time.perf_counter() - start)
"""


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe, packages=("pyarrow",))


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the data of each figure, and measure it."""
    size = parse_bytes(arguments.size, name="--size")
    require_disk(folder, 4 * size)
    st.ingest({"x": np.arange(9.0)}, folder / "first.zarr")  # imports all there is
    if "categories" in arguments.figures:
        yield clicks(folder, size, arguments)
    if "split" in arguments.figures:
        for kind, write in (("csv", write_csv), ("npy", write_npy), ("idx", write_idx)):
            yield split(kind, write(folder / kind, size), folder / "target", arguments)
            clear(folder / kind)
    if "wide" in arguments.figures:
        yield wide(folder, size, arguments)


def clicks(folder: Path, size: int, arguments: argparse.Namespace) -> Result:
    """Measure an ingest of click records."""
    path = folder / "clicks.tsv"
    names = write_clicks(path, size)
    options = {
        "label_column": "label",
        "categorical": names,
        "na": "fill=mean",
        "memory": arguments.memory,
        "n_workers": 2,
        "progress": False,
    }
    seconds = []
    for _ in range(arguments.repeats):
        seconds.append(timed(partial(st.ingest, path, folder / "target", **options)))
        clear(folder / "target")
    n_bytes = path.stat().st_size
    path.unlink()
    return {
        "bench": "categories",
        "source": "tsv",
        "source_bytes": n_bytes,
        "seconds": round(statistics.median(seconds), 2),
        "mb_s": round(n_bytes / 1e6 / statistics.median(seconds), 1),
        "bar": CLICK_RATE,
    }


def write_clicks(path: Path, size: int) -> list[str]:
    """Write click records of at least so many bytes; return the names of the categories' columns."""
    chance = np.random.default_rng(0)
    numbers, names = [f"i{i}" for i in range(13)], [f"c{i}" for i in range(26)]
    # From a few categories to many thousands, most of which are rare.
    known = [np.array([f"{v:08x}" for v in chance.integers(0, 2**32, 10 + i**3)], object) for i in range(26)]
    with path.open("w") as file:
        file.write("\t".join(["label", *numbers, *names]) + "\n")
        while file.tell() < size:
            columns = [chance.integers(0, 2, _ROWS_AT_ONCE).astype(str).astype(object)]
            columns += [chance.integers(0, 1000, _ROWS_AT_ONCE).astype(str).astype(object) for _ in numbers]
            columns += [all_of[(len(all_of) * chance.random(_ROWS_AT_ONCE) ** 3).astype(int)] for all_of in known]
            for column in columns[1:]:
                column[chance.random(_ROWS_AT_ONCE) < 0.2] = ""
            file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    return names


def write_csv(folder: Path, size: int) -> tuple[Path, dict[str, Any]]:
    """Write twenty columns of numbers and a label."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    path = folder / "a.csv"
    with path.open("w") as file:
        file.write(",".join([*(f"x{i}" for i in range(20)), "y"]) + "\n")
        while file.tell() < size:
            rows = np.column_stack(
                [chance.normal(size=(_ROWS_AT_ONCE, 20)).round(4), chance.integers(0, 3, _ROWS_AT_ONCE)]
            )
            np.savetxt(file, rows, "%.7g", ",")
    return path, {"label_column": "y"}


def write_npy(folder: Path, size: int) -> tuple[Path, dict[str, Any]]:
    """Write 784 bytes a sample, and labels."""
    folder.mkdir()
    x, y = pixels(size)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y.astype("i8"))
    return folder / "x.npy", {"labels": folder / "y.npy"}


def write_idx(folder: Path, size: int) -> tuple[Path, dict[str, Any]]:
    """Write the same as idx files."""
    folder.mkdir()
    for name, array in zip(("x-idx3-ubyte", "y-idx1-ubyte"), pixels(size), strict=True):
        head = bytes([0, 0, _IDX_UBYTE, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (folder / name).write_bytes(head + array.tobytes())
    return folder / "x-idx3-ubyte", {"labels": folder / "y-idx1-ubyte"}


def pixels(size: int) -> tuple[Any, Any]:
    """Make images that compress to about a half, and their classes."""
    chance, n = np.random.default_rng(0), max(1, size // 785)
    return chance.integers(0, 16, (n, 28, 28), np.uint8), chance.integers(0, 10, n).astype(np.uint8)


def split(kind: str, given: tuple[Path, dict[str, Any]], target: Path, arguments: argparse.Namespace) -> Result:
    """Measure an ingest with and without a split."""
    source, options = given
    ways: dict[str, dict[str, Any]] = {"without": {}, "with": {"split": {"val": 0.1}}}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for counts, order in rounds(list(ways), arguments.repeats):
        for name in order:
            act = partial(st.ingest, source, target, memory=arguments.memory, progress=False, **options, **ways[name])
            took = timed(act)
            clear(target)
            seconds[name] += [took] if counts else []
    return {
        "bench": "split",
        "source": kind,
        "source_bytes": sum(file.stat().st_size for file in source.parent.iterdir()),
        **{f"seconds_{name}": round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": median_ratio(seconds["with"], seconds["without"]),
        "bar": SPLIT_RATIO,
    }


def wide(folder: Path, size: int, arguments: argparse.Namespace) -> Result:
    """Measure a table of numbers and categories in a new process, beside pandas in another."""
    path = folder / "wide.csv"
    names, n_rows = write_wide(path, size, arguments.rows)
    columns = ",".join(names)
    peak, seconds = in_new_process(WIDE, str(path), str(folder / "wide.zarr"), arguments.wide_memory, columns)
    found: Result = {
        "bench": "wide",
        "source": "csv",
        "rows": n_rows,
        "source_bytes": path.stat().st_size,
        "peak_bytes": int(peak),
        "seconds": round(seconds, 1),
        "mb_s": round(path.stat().st_size / 1e6 / seconds, 1),
        "bar": parse_bytes(arguments.wide_memory),
    }
    if arguments.pandas:
        peak, seconds = in_new_process(PANDAS, str(path), columns)
        found |= {"pandas_peak_bytes": int(peak), "pandas_mb_s": round(path.stat().st_size / 1e6 / seconds, 1)}
    return found


def write_wide(path: Path, size: int, rows: int | None) -> tuple[list[str], int]:
    """Write rows of fractions and categories, so many or of so many bytes; return the categories' columns."""
    chance, n_rows = np.random.default_rng(0), 0
    names = [f"c{i}" for i in range(N_CATEGORIES)]
    words = [np.array([f"v{k}" for k in range(3 + 5 * i)], object) for i in range(N_CATEGORIES)]
    with path.open("w") as file:
        file.write(",".join([*(f"x{i}" for i in range(N_NUMBERS)), *names]) + "\n")
        while n_rows < rows if rows is not None else file.tell() < size:
            n = _ROWS_AT_ONCE if rows is None else min(_ROWS_AT_ONCE, rows - n_rows)
            numbers = [chance.integers(0, 10**4, n).astype(str).astype(object) for _ in range(N_NUMBERS)]
            columns = [*numbers, *(all_of[chance.integers(0, len(all_of), n)] for all_of in words)]
            file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))
            n_rows += n
    return names, n_rows


def in_new_process(program: str, *words: str) -> tuple[float, float]:
    """Run a program that prints the bytes and the seconds it took."""
    command = [sys.executable, "-c", program, *words]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(done.stderr)
    peak, seconds = done.stdout.split()[-2:]
    return float(peak), float(seconds)


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    head = f"{result['bench']:>10}  {result['source']}, {format_bytes(result['source_bytes'])}:"
    if result["bench"] == "categories":
        return f"{head} {result['mb_s']} MB/s (bar {result['bar']})"
    if result["bench"] == "split":
        seconds = f"{result['seconds_with']} s with a split, {result['seconds_without']} s without"
        return f"{head} {seconds}: ratio {result['ratio']} (bar {result['bar']})"
    line = f"{head} {result['rows']:,} rows, {result['mb_s']} MB/s, peak {format_bytes(result['peak_bytes'])}"
    line += f" above idle (bar {format_bytes(result['bar'])})"
    if "pandas_mb_s" in result:
        line += f"; pandas {result['pandas_mb_s']} MB/s, {format_bytes(result['pandas_peak_bytes'])}"
    return line


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, size="500MB", memory="256MB", repeats=3, folder=None)
    figures = ["categories", "split", "wide"]
    parser.add_argument("--figures", nargs="+", default=figures, choices=figures, help="which (all)")
    parser.add_argument("--rows", type=int, help="rows of the wide table (default: of --size)")
    parser.add_argument("--wide-memory", default="128MB", help="its budget (default 128MB)")
    parser.add_argument("--pandas", action="store_true", help="read the wide table with pandas, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
