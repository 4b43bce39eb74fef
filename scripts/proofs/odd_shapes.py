#!/usr/bin/env python3
"""Memory of odd shapes: measured ÷ budget of an ingest and of a loader, for every kind of source.

Shapes: ``long`` (one column), ``wide`` (30,000 columns), ``classes`` (labels of 2 KB of text), ``cells`` (a column of
2 KB of text in quotes, not read), ``categories`` (such a column, as categories), ``group`` (one row group of 128 MB),
``shards`` (10,000 files a field), ``blocks`` (a million blocks of a sample).
Kinds: CSV, Parquet, .npz, idx, idx under gzip, arrays.

*Measured* is the peak of the anonymous memory of a process that has imported all there is, less what it held before.
Each case runs in a process of its own, forked from one that has imported all there is and done nothing. A case that is
refused is run again with the least that the refusal names, which must do. One that takes more than its budget, or is
refused twice, makes the script end with exit code 1.

Prints a table on stderr and one JSON line per case on stdout.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import multiprocessing
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.runner import Result, new_parser, run
from streamtrain.errors import Argument, Fix
from streamtrain.system.memory import MemoryMeter, return_freed
from streamtrain.system.units import format_bytes, parse_bytes

KINDS: Final = ("csv", "parquet", "npz", "idx", "idx-gz", "arrays")
TABLES: Final = ("csv", "parquet")
BAR: Final = 1.0
SAMPLING_SECONDS: Final = 0.001
BATCHES_READ: Final = 300
TEXT_BYTES: Final = 2000
LOADER_MEMORY: Final = "64MB"
NOTHING: Final = "1KB"
IMPORTED: Final = [
    "streamtrain.ingestion.ingest",
    "streamtrain.loader.stream_loader",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.parquet",
    "pandas",
    "zarr",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape of data, and how it is cut."""

    n_rows: int
    n_columns: int
    memory: str  # of the ingest
    kinds: tuple[str, ...] = KINDS
    n_texts: int = 0  # distinct ones of 2 KB: labels, or categories
    has_cells: bool = False
    has_categories: bool = False
    options: Mapping[str, str] | None = None


SHAPES: Final = {
    "long": Shape(n_rows=10**7, n_columns=1, memory="64MB"),
    "wide": Shape(n_rows=1000, n_columns=30_000, memory="256MB"),
    "classes": Shape(n_rows=20_000, n_columns=4, memory="64MB", kinds=TABLES, n_texts=2000),
    "cells": Shape(n_rows=20_000, n_columns=4, memory="64MB", kinds=TABLES, has_cells=True),
    "categories": Shape(n_rows=20_000, n_columns=4, memory="128MB", kinds=TABLES, n_texts=2000, has_categories=True),
    "group": Shape(n_rows=4 * 10**6, n_columns=8, memory="48MB", kinds=("parquet",)),
    "shards": Shape(n_rows=10**5, n_columns=1, memory="64MB", options={"block": "12B", "shard": "80B"}),
    "blocks": Shape(n_rows=10**6, n_columns=1, memory="256MB", options={"block": "12B", "shard": "62.5KB"}),
}
QUICK: Final = {
    "long": 10,
    "wide": 2,
    "classes": 10,
    "cells": 10,
    "categories": 4,
    "group": 4,
    "shards": 100,
    "blocks": 20,
}
"""The number that ``--quick`` divides the rows by."""


def main() -> None:
    """Run every case."""
    results = run(parse_arguments(), measure_all, describe, fix="another --folder")
    over = [result for result in results if result["ratio"] is None or result["ratio"] > BAR]
    for result in over:
        print(f"over the budget: {describe(result)}", file=sys.stderr)
    raise SystemExit(1 if over else 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, folder=None)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="(default all)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="(default all)")
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    parser.add_argument("--least", action="store_true", help="with the least that a refusal names")
    return parser.parse_args()


def measure_all(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every case, one after another."""
    for name, kind in itertools.product(arguments.shapes, arguments.kinds):
        if kind in SHAPES[name].kinds:
            yield from cases(folder, name, kind, quick=arguments.quick, least=arguments.least)


def cases(folder: Path, name: str, kind: str, *, quick: bool, least: bool = False) -> Iterator[Result]:
    """Write a source, and measure its ingest and the loader of what comes of it."""
    shape = SHAPES[name]
    n_rows = shape.n_rows // (QUICK[name] if quick else 1)
    source, dest = folder / f"source.{kind}", folder / "d.zarr"
    write(shape, n_rows, kind, source)
    options: dict[str, Any] = {**(shape.options or {}), "progress": False}
    if kind in TABLES:
        options |= {"label_column": "y"}
        options |= {"columns": [f"c{i:05d}" for i in range(shape.n_columns)]} if shape.has_cells else {}
        options |= {"categorical": ["note"]} if shape.has_categories else {}
    if "shard" in options:
        options["shard"] = f"{parse_bytes(options['shard']) // (QUICK[name] if quick and name == 'blocks' else 1)}B"
    ingest_memory, loader_memory = (NOTHING, NOTHING) if least else (shape.memory, LOADER_MEMORY)
    about = {"bench": "odd shapes", "shape": name, "kind": kind, "rows": n_rows, "columns": shape.n_columns}
    yield about | {"part": "ingest", **in_a_fresh_process("ingest", source, dest, ingest_memory, options)}
    if dest.exists():
        yield about | {"part": "loader", **in_a_fresh_process("loader", source, dest, loader_memory, {})}
        shutil.rmtree(dest)
    remove(source)


def write(shape: Shape, n_rows: int, kind: str, path: Path) -> None:
    """Write a source of a kind: features ``c00000``, ..., and labels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (n_rows, shape.n_columns)).astype("u1" if kind.startswith("idx") else "f4")
    texts = [f"{i:06d}" + 'text, and "more" ' * (TEXT_BYTES // 17) for i in range(shape.n_texts)]
    of_rows = [texts[i % len(texts)] for i in range(n_rows)] if texts else None
    y: Any = np.arange(n_rows) % 7 if of_rows is None or shape.has_categories else of_rows
    cells = of_rows if shape.has_categories else None
    if shape.has_cells:
        cells = ["a cell,\nof many lines " * (TEXT_BYTES // 22)] * n_rows
    names = [f"c{i:05d}" for i in range(shape.n_columns)]
    WRITERS[kind](path, x, y, names, cells)


def write_csv(path: Path, x: Any, y: Any, names: list[str], cells: list[str] | None) -> None:
    """Write lines, with text in quotes."""

    def quoted(text: Any) -> str:
        return '"' + text.replace('"', '""') + '"' if isinstance(text, str) else str(text)

    with path.open("w") as file:
        file.write(",".join([*names, *(["note"] if cells else []), "y"]) + "\n")
        for number, row in enumerate(x.tolist()):
            note = [quoted(cells[number])] if cells else []
            file.write(",".join([*map(str, row), *note, quoted(y[number])]) + "\n")


def write_parquet(path: Path, x: Any, y: Any, names: list[str], cells: list[str] | None) -> None:
    """Write one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: x[:, number] for number, name in enumerate(names)}
    pq.write_table(pa.table(columns | ({"note": cells} if cells else {}) | {"y": y}), path)


def write_npz(path: Path, x: Any, y: Any, names: list[str], cells: list[str] | None) -> None:
    """Write both arrays, compressed."""
    np.savez_compressed(path, x=x, y=y)


def write_idx(path: Path, x: Any, y: Any, names: list[str], cells: list[str] | None) -> None:
    """Write a folder with a file of features and one of labels."""
    path.mkdir()
    for name, values in (("x", x), ("y", y.astype("u1"))):
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (path / name).with_suffix(".idx").write_bytes(head + values.tobytes())


def write_idx_gz(path: Path, x: Any, y: Any, names: list[str], cells: list[str] | None) -> None:
    """Write the same folder, each file under gzip."""
    write_idx(path, x, y, names, cells)
    for file in list(path.iterdir()):
        file.with_suffix(".idx.gz").write_bytes(gzip.compress(file.read_bytes(), compresslevel=1))
        file.unlink()


def write_arrays(path: Path, x: Any, y: Any, names: list[str], cells: list[str] | None) -> None:
    """Write a folder of .npy files, to be loaded as arrays."""
    path.mkdir()
    np.save(path / "x.npy", x)
    np.save(path / "y.npy", y)


WRITERS: Final = {
    "csv": write_csv,
    "parquet": write_parquet,
    "npz": write_npz,
    "idx": write_idx,
    "idx-gz": write_idx_gz,
    "arrays": write_arrays,
}


def remove(source: Path) -> None:
    """Remove a source, a file or a folder."""
    shutil.rmtree(source) if source.is_dir() else source.unlink()


def in_a_fresh_process(part: str, source: Path, dest: Path, memory: str, options: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a process that has done nothing else; again with what it names, while it is refused."""
    found, refused = _measured(part, source, dest, memory, options), {}
    # Names of classes that do not fit are refused before the rest is known.
    while "least" in found:
        refused = {"refused": memory}
        found = _measured(part, source, dest, found["least"], options)
    return {**refused, **found, "ratio": found.get("ratio")}


def _measured(part: str, source: Path, dest: Path, memory: str, options: dict[str, Any]) -> dict[str, Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    measure = measure_ingest if part == "ingest" else measure_loader
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(measure, source, dest, memory, options).result()


def measure_ingest(source: Path, dest: Path, memory: str, options: dict[str, Any]) -> dict[str, Any]:
    """Ingest, and compare the peak with the budget."""
    given, labels = _opened(source)
    _import_all(source, dest.parent)
    return_freed()
    with MemoryMeter(SAMPLING_SECONDS) as meter:
        try:
            st.ingest(given, dest, labels=labels, memory=memory, **options)
        except st.BudgetError as error:
            return {"what": error.what, "least": _least(error)}
    return _compared(memory, meter)


def measure_loader(source: Path, dest: Path, memory: str, options: dict[str, Any]) -> dict[str, Any]:
    """Read batches in shuffled order, and compare the peak with the budget."""
    loader_class = st.StreamLoader  # Naming it imports torch, which is none of the loader's memory.
    dataset = st.open(dest)
    return_freed()
    with MemoryMeter(SAMPLING_SECONDS) as meter:
        try:
            loader = loader_class(dataset, batch_size=32, memory=memory)
        except st.BudgetError as error:
            return {"what": error.what, "least": _least(error)}
        with loader:
            for _ in itertools.islice(loader, BATCHES_READ):
                pass
    return _compared(memory, meter)


def _opened(source: Path) -> tuple[Any, Any]:
    if source.suffix == ".arrays":
        return {name: np.load(source / f"{name}.npy") for name in ("x", "y")}, None
    if source.suffix.startswith(".idx"):
        x, y = sorted(source.iterdir())
        return x, y
    return source, None


def _import_all(source: Path, folder: Path) -> None:
    st.ingest({"x": np.arange(9.0)}, folder / "first.zarr", codec="lz4", progress=False)
    if source.suffix.removeprefix(".") in TABLES:
        small = folder / f"small{source.suffix}"
        WRITERS[source.suffix[1:]](small, np.ones((9, 1), "f4"), np.arange(9), ["c"], None)
        st.ingest(small, folder / "small.zarr", label_column="y", progress=False)
        small.unlink()
        shutil.rmtree(folder / "small.zarr")
    shutil.rmtree(folder / "first.zarr")


def _least(error: st.BudgetError) -> str:
    assert isinstance(error.fix, Fix), error
    argument = error.fix.argument("memory")
    assert isinstance(argument, Argument), error
    return str(argument.value) if argument.n_bytes is None else f"{argument.n_bytes}B"


def _compared(memory: str, meter: MemoryMeter) -> dict[str, Any]:
    budget = parse_bytes(memory)
    return {
        "budget_bytes": budget,
        "before_bytes": meter.before_bytes,
        "measured_bytes": meter.peak_bytes,
        "ratio": round(meter.peak_bytes / budget, 4),
    }


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    head = f"{result['shape']:>8} {result['rows']:>10,} × {result['columns']:<6,} {result['kind']:<8} {result['part']}"
    head += f"  ({result['refused']} refused)" if "refused" in result else ""
    if result["ratio"] is None:
        return f"{head}  refused: {result['what']}"
    return (
        f"{head}  budget {format_bytes(result['budget_bytes']):>9}"
        f"  measured {format_bytes(result['measured_bytes']):>9}  measured/budget {result['ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
