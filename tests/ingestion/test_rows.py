"""Raw rows in the terms of a dataset: the same numbers as an ingest like it, read once, nothing stored."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamtrain as st
from streamtrain.ingestion.rows import RawRows, rows

HEAD = "a,b,c,t,y"


def lines(n: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [
        [f"{draw.gauss(0, 1):.5f}", draw.choice(["", "7", "-2"]), draw.choice("uvw"), f"2020-02-{1 + row % 28:02}",
         draw.choice(["no", "yes"])]
        for row in range(n)
    ]  # fmt: skip


def write(path: Path, found: list[list[str]], order: list[int] | None = None) -> Path:
    places = order or list(range(5))
    text = [[line[place] for place in places] for line in [HEAD.split(","), *found]]
    path.write_text("\n".join(map(",".join, text)) + "\n")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    folder = tmp_path_factory.mktemp("base")
    options: dict[str, Any] = {"categorical": ["c"], "dates": {"t": "days"}, "na": "fill=mean", "na_mask": True}
    return st.ingest(write(folder / "t.csv", lines(200, 0)), folder / "t.zarr", label_column="y", **options)


def joined(found: RawRows) -> dict[str, Any]:
    runs = list(found)
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_rows_are_those_of_an_ingest_like_it(tmp_path: Path, base: st.Dataset, kind: str, seed: int) -> None:
    found = [*lines(50, seed), ["1", "", "never", "2020-03-01", "no"]]
    order = list(range(5))
    random.Random(seed).shuffle(order)
    source: Any = write(tmp_path / "n.csv", found, order)
    stored = st.ingest(source, tmp_path / "n.zarr", like=base)[:]
    if kind != "csv":
        columns = dict(zip(HEAD.split(","), zip(*found, strict=True), strict=True))
        numbers = {name: [float(cell) if cell else None for cell in columns[name]] for name in "ab"}
        source = pa.table({name: numbers.get(name, columns[name]) for name in ("c", "b", "t", "a")})
        if kind == "parquet":
            pq.write_table(source, tmp_path / "n.parquet")
            source = tmp_path / "n.parquet"
    raw = joined(rows(source, like=base))
    assert set(raw) == {"x", "cat", "x_missing"}
    assert all(np.array_equal(raw[name], stored[name]) for name in raw)


def test_several_files_and_a_path_of_the_dataset(tmp_path: Path, base: st.Dataset) -> None:
    files = [write(tmp_path / f"{n}.csv", lines(5, n), order) for n, order in enumerate([None, [4, 3, 2, 1, 0]])]
    found = joined(rows(files, like=base.path))
    assert np.array_equal(found["x"][5:], joined(rows(files[1], like=base))["x"])


def test_rows_that_were_dropped_at_the_ingest_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,0\n,1\n3,1\n")
    dropped = st.ingest(tmp_path / "t.csv", tmp_path / "t.zarr", label_column="y", na="drop", say=str)
    assert len(dropped) == 2
    with pytest.raises(st.InputError, match=r"t\.csv:3: values are missing in column 'a'"):
        list(rows(tmp_path / "t.csv", like=dropped))


def test_what_is_ignored_is_told_once(tmp_path: Path, base: st.Dataset) -> None:
    columns = {"a": [1.0], "b": [2.0], "c": ["u"], "t": ["2020-01-01"], "y": ["no"]}
    told: list[str] = []
    list(rows(pa.table(columns), like=base, say=told.append))
    assert told == []
    table = pa.table({**columns, "z": [1], "w": ["x"]})
    list(rows(table, like=base, say=told.append))
    assert told == ["the Table: ignored, since the dataset has no such columns: 'z', 'w'"]
    with pytest.warns(st.StreamtrainWarning, match="ignored"):
        rows(table, like=base)


def test_like_of_like_has_the_same_terms(tmp_path: Path, base: st.Dataset) -> None:
    first = st.ingest(write(tmp_path / "a.csv", lines(9, 1)), tmp_path / "a.zarr", like=base)
    second = st.ingest(write(tmp_path / "b.csv", lines(9, 2), [3, 1, 0, 2, 4]), tmp_path / "b.zarr", like=first)
    assert second.schema == base.schema
    assert np.array_equal(second[:]["x"], joined(rows(tmp_path / "b.csv", like=base))["x"])


@pytest.mark.parametrize("values", [np.ones((4, 3)), np.ones((4, 3), np.float16)])
def test_arrays_match_by_shape_and_are_rounded_as_stored(tmp_path: Path, values: Any) -> None:
    stored = st.ingest({"x": np.ones((4, 3), np.float32)}, tmp_path / "d.zarr")
    assert joined(rows(values, like=stored))["x"].dtype == np.float32
    for wrong in (np.ones((4, 2)), np.ones((4, 3), int), {"z": values}):
        with pytest.raises(st.UsageError):
            rows(wrong, like=stored)


def test_text_is_read_as_that_of_the_training_was_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,?,no\n2,5,yes\n3,4,no\n", "utf-16")
    options: dict[str, Any] = {"header": "none", "na_values": "?", "encoding": "utf-16"}
    options |= {"names": ["a", "b", "Y"], "label_column": "Y", "na": "fill=0"}
    stored = st.ingest(tmp_path / "t.csv", tmp_path / "t.zarr", **options)
    assert np.array_equal(joined(rows(tmp_path / "t.csv", like=stored))["x"], stored[:]["x"])
    (tmp_path / "n.csv").write_text("b,a\n8,9\n")
    said: dict[str, Any] = {"encoding": "utf-8"}
    assert joined(rows(tmp_path / "n.csv", like=stored, **said))["x"].tolist() == [[9, 8]]
    pq.write_table(pa.table({"b": [8], "a": [9]}), tmp_path / "n.parquet")
    assert joined(rows(tmp_path / "n.parquet", like=stored))["x"].tolist() == [[9, 8]]
