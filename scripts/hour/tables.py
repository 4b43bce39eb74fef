"""Tables that the rows are run on, made by rules, and written as files that a stranger would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv

ALL_FLIGHTS: Final = 336_776
N_DISTANCES: Final = 214

Columns = dict[str, Any]
"""Columns of a table by name: arrays, or lists of texts."""


def write(columns: Columns, path: Path) -> Path:
    """Write a table as CSV: no quotes around numbers, nothing where a value is missing."""
    pyarrow.csv.write_csv(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def flights(n_rows: int) -> Columns:
    """A year of flights out of three airports: integers, texts, a time, and holes where a flight was cancelled."""
    chance = np.random.default_rng(0)
    carriers = np.array(
        ["UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX", "FL", "AS", "F9", "YV", "HA", "OO"]
    )
    origins, dests = np.array(["EWR", "JFK", "LGA"]), np.array([f"D{number:02d}" for number in range(70)])
    origin, dest = chance.choice(3, n_rows, p=[0.36, 0.33, 0.31]), chance.integers(0, 70, n_rows)
    distances = np.sort(chance.choice(np.arange(17, 4984), N_DISTANCES, replace=False))
    distances[[0, -1]] = 17, 4983
    distance = distances[(dest * 3 + origin) % N_DISTANCES]
    # Each airport has carriers of its own, as the real ones have.
    carrier = (chance.geometric(0.25, n_rows) - 1 + 5 * origin) % len(carriers)
    hour, day = chance.integers(5, 24, n_rows), chance.integers(0, 365, n_rows)
    dep_delay = np.round(chance.exponential(25, n_rows) * (chance.random(n_rows) < 0.4) + chance.normal(-4, 4, n_rows))
    air_time = np.round(distance / 7.5 + 20 + chance.normal(0, 5, n_rows))
    arr_delay = np.round(dep_delay - 4 + 0.5 * (hour - 14) + chance.normal(0, 9, n_rows))
    cancelled, diverted = chance.random(n_rows) < 0.0245, chance.random(n_rows) < 0.0035
    times = np.datetime64("2013-01-01T00:00:00") + day * np.timedelta64(86_400, "s") + hour * np.timedelta64(3_600, "s")
    return {
        "month": day // 31 + 1,
        "day": day % 31 + 1,
        "sched_dep_time": hour * 100,
        "dep_delay": with_holes(dep_delay, cancelled),
        "arr_delay": with_holes(arr_delay, cancelled | diverted),
        "carrier": carriers[carrier],
        "origin": origins[origin],
        "dest": dests[dest],
        "air_time": with_holes(air_time, cancelled | diverted),
        "distance": distance,
        "hour": hour,
        "time_hour": [f"{text}Z" for text in np.datetime_as_string(times, "s")],
    }


def with_holes(values: Any, missing: Any) -> Any:
    """Whole numbers that are missing here and there."""
    return pa.array(values.astype(np.int64), mask=missing)


def inputs(n_rows: int, *, seed: int = 0) -> tuple[Columns, Any]:
    """Four columns of numbers, as a table and as an array."""
    x = np.random.default_rng(seed).normal(size=(n_rows, 4)).round(3)
    return dict(zip("abcd", x.T, strict=True)), x


def qualities(n_rows: int) -> Columns:
    """Marks from 3 to 9, as wine is given: classes to one, quantities to another."""
    columns, x = inputs(n_rows)
    return columns | {"quality": np.clip(np.round(6 + x[:, 0] + x[:, 1]), 3, 9).astype(np.int64)}


def labels(n_rows: int) -> Columns:
    """Three columns of 0 and 1."""
    columns, x = inputs(n_rows)
    return columns | {name: (x[:, number] > 0).astype(np.int64) for number, name in enumerate("rst")}


def targets(n_rows: int) -> Columns:
    """Two columns of fractions."""
    columns, x = inputs(n_rows)
    return columns | {"u": (2 * x[:, 0] + 0.1).round(3), "v": (x[:, 1] - x[:, 2]).round(3)}


def prices(n_rows: int) -> Columns:
    """Prices of houses up to a million, by their size, rooms, age and distance."""
    columns, x = inputs(n_rows)
    price = np.clip(400_000 + 150_000 * x[:, 0] + 60_000 * x[:, 1] - 40_000 * x[:, 2], 20_000, 1_000_000)
    return columns | {"price": price.astype(np.int64)}


def noisy(n_rows: int) -> Columns:
    """Two classes, one label in four turned over, among inputs that say nothing: a large net learns it by heart."""
    columns, x = inputs(n_rows)
    chance = np.random.default_rng(1)
    columns |= {f"n{number}": chance.normal(size=n_rows).round(3) for number in range(12)}
    return columns | {"y": ((x[:, 0] > 0) ^ (chance.random(n_rows) < 0.25)).astype(np.int64)}


def kinds(n_rows: int, *, seed: int = 0) -> Columns:
    """Three classes with names."""
    columns, x = inputs(n_rows, seed=seed)
    return columns | {"kind": np.array(["red", "green", "blue"])[np.argmax(x[:, :3], axis=1)]}
