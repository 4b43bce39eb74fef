#!/usr/bin/env python3
"""Random pairs of tables, the second ingested like the first: its numbers mean the same, or it is refused.

A pair is a table with numbers, dates, categories, hashed categories and labels, and another one whose columns are
permuted and whose file is of any kind. In some pairs something is otherwise: categories unseen, further classes,
classes numbered otherwise, a column left out, renamed, or of another type, dates written otherwise. What is right is
computed in plain Python from the texts of the two tables. Prints a line for each pair that went wrong and one JSON line
of counts; "silent" are those whose numbers are others than they should be; ends with 1 if there is any.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

import streamtrain as st
from scripts.runner import Result, new_parser, run
from streamtrain.store.dataset import Dataset

FIRST: Final = date(1970, 1, 1)
HASH: Final = 97
KINDS: Final = ("csv", "tsv", "parquet", "arrow", "pandas")
CHANGES: Final = (
    *("none", "none", "none", "none", "category", "missing", "further"),
    *("class", "left_out", "renamed", "type", "date", "number"),
)
"""Differences of the second table; the first five it may be ingested with, and "missing" of a column."""

Table = dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two tables of text, and what is otherwise in the second."""

    first: Table
    second: Table
    change: str
    kind: str
    is_number_label: bool

    @property
    def must_be_refused(self) -> bool:
        """Whether the second does not fit the first."""
        return self.change in ("class", "left_out", "renamed", "type", "date", "number")


def table_of(rng: random.Random, n_rows: int, *, categories: str, is_number_label: bool) -> Table:
    """Draw a table; each category and class occurs."""
    days = [FIRST + timedelta(days=rng.randint(0, 20_000)) for _ in range(n_rows)]
    labels = [str(n) for n in (3, 4, 7)] if is_number_label else ["no", "perhaps", "yes"]
    drawn = {
        "a": [rng.choice(["", "2", "0.25", "-7", "1e3"]) for _ in range(n_rows)],
        "b": [str(rng.randint(-50, 50)) for _ in range(n_rows)],
        "c": [rng.choice([*categories, ""]) for _ in range(n_rows)],
        "h": [rng.choice("pqrs") for _ in range(n_rows)],
        "t": [day.isoformat() for day in days],
        "y": [rng.choice(labels) for _ in range(n_rows)],
    }
    drawn["y"][: len(labels)] = labels
    drawn["a"][0] = "1.5"
    return drawn


def draw_pair(rng: random.Random) -> Pair:
    """Draw a pair, and change the second table."""
    is_number_label = rng.random() < 0.3
    first = table_of(rng, rng.randint(8, 60), categories="uvwx"[: rng.randint(1, 4)], is_number_label=is_number_label)
    second = table_of(rng, rng.randint(4, 30), categories="uvwx"[: rng.randint(1, 4)], is_number_label=is_number_label)
    change, row = rng.choice(CHANGES), rng.randrange(4)
    match change:
        case "category":
            second["c"][row] = "new"
        case "missing":
            second["a"][row] = "NA"
        case "further":
            second["z"] = ["9"] * len(second["y"])
        case "class":
            second["y"][row] = "1.5" if is_number_label else "maybe"
        case "left_out":
            del second[rng.choice("abchty")]
        case "renamed":
            name = rng.choice("abchty")
            second[f"{name}2"] = second.pop(name)
        case "type":
            second[rng.choice("ab")][row] = "many"
        case "date":
            second["t"][row] = rng.choice(["once", "13/02/2020", "2020-13-01"])
        case "number":
            second["b"][row] = "inf"
    names = rng.sample([*second], len(second))
    return Pair(
        first=first,
        second={name: second[name] for name in names},
        change=change,
        kind=rng.choice(KINDS),
        is_number_label=is_number_label,
    )


def written(table: Table, folder: Path, kind: str) -> Any:
    """Write a table as a file, or make what holds it in memory."""
    text = "\n".join([",".join(table), *map(",".join, zip(*table.values(), strict=True))]) + "\n"
    path = folder / f"t.{kind}"
    if kind in ("csv", "tsv"):
        path.write_text(text.replace(",", "\t") if kind == "tsv" else text)
        return path
    strings = pyarrow.csv.ConvertOptions(strings_can_be_null=True, null_values=["", "NA"])
    read = pyarrow.csv.read_csv(pa.BufferReader(text.encode()), convert_options=strings)
    if kind == "parquet":
        pq.write_table(read, path)
        return path
    return read.to_pandas() if kind == "pandas" else read


def check_rows(pair: Pair, base: Dataset, found: Dataset) -> list[str]:
    """Compare every value with what plain Python makes of the texts; list the columns that differ."""
    texts, rows = pair.second, found[:]
    known = [text for text in pair.first["a"] if text]
    mean = sum(map(float, known)) / len(known)
    counts = Counter(text for text in pair.first["c"] if text)
    names = sorted(counts, key=lambda text: (-counts[text], text))
    codes = {"": 0, **{name: code for code, name in enumerate(names, 2)}}
    classes = sorted(set(pair.first["y"]))
    days = [(date.fromisoformat(text) - FIRST).days for text in texts["t"]]
    expected: dict[str, list[float]] = {
        "a": [mean if text in ("", "NA") else float(text) for text in texts["a"]],
        "b": list(map(float, texts["b"])),
        "t": list(map(float, days)),
        "c": [codes.get(text, 1) for text in texts["c"]],
        "h": [2 + int.from_bytes(hashlib.blake2b(text.encode()).digest()[:8], "little") % HASH for text in texts["h"]],
        "y": [int(text) if pair.is_number_label else classes.index(text) for text in texts["y"]],
    }
    stored = {"a": rows["x"][:, 0], "b": rows["x"][:, 1], "t": rows["x"][:, 2], "c": rows["cat"][:, 0]}
    stored |= {"h": rows["cat"][:, 1], "y": rows["y"]}
    wrong = [name for name, values in expected.items() if not is_same(stored[name].tolist(), values)]
    return wrong + (["schema"] if found.schema != base.schema or found.task != base.task else [])


def is_same(found: list[float], expected: list[float]) -> bool:
    """Compare numbers; a mean may be rounded otherwise."""
    return len(found) == len(expected) and all(
        abs(ours - theirs) <= 1e-12 * max(1, abs(theirs)) for ours, theirs in zip(found, expected, strict=True)
    )


def try_pair(pair: Pair, folder: Path) -> str:
    """Ingest both tables; say what came of the second."""
    roles: dict[str, Any] = {"categorical": ["c"], "hash": {"h": HASH}, "dates": {"t": "days"}}
    roles |= {"na": "fill=mean", "na_mask": True}
    quiet: dict[str, Any] = {"progress": False, "say": lambda _: None, "overwrite": True}
    base = st.ingest(written(pair.first, folder, "csv"), folder / "first.zarr", label_column="y", **roles, **quiet)
    try:
        found = st.ingest(written(pair.second, folder, pair.kind), folder / "second.zarr", like=base, **quiet)
    except (st.InputError, st.UsageError) as error:
        return "refused" if pair.must_be_refused else f"refused though it fits: {error}"
    wrong = check_rows(pair, base, found) if not pair.must_be_refused else ["accepted"]
    return f"silent: {', '.join(wrong)}" if wrong else "same"


def measure(folder: Path, arguments: Any) -> Iterator[Result]:
    """Try pairs, and count what came of them."""
    counts: Counter[str] = Counter()
    for number in range(arguments.pairs):
        pair = draw_pair(random.Random(f"{arguments.seed}/{number}"))
        came = try_pair(pair, folder)
        if came not in ("same", "refused"):
            print(f"pair {number} ({pair.change}, {pair.kind}): {came}", file=sys.stderr)
        counts[came.partition(":")[0]] += 1
    of_names = ("same", "refused", "refused though it fits", "silent")
    yield {"pairs": arguments.pairs, **{name.replace(" ", "_"): counts[name] for name in of_names}}


def describe(result: Result) -> str:
    """Write the counts as a line."""
    return f"{result['pairs']} pairs: {result['same']} the same, {result['refused']} refused, {result['silent']} silent"


if __name__ == "__main__":
    parser = new_parser(__doc__, seed=0, folder=None)
    parser.add_argument("--pairs", type=int, default=300, help="pairs to try (default: 300)")
    (outcome,) = run(parser.parse_args(), measure, describe, packages=("pyarrow",))
    sys.exit(int(outcome["silent"] + outcome["refused_though_it_fits"] > 0))
