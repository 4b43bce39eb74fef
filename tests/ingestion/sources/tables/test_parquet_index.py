"""The index that pandas stores in a Parquet file: left out of the features, told, and taken where it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamtrain
from streamtrain.cli.main import main
from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source


def pandas_facts(index: list[object]) -> dict[bytes, bytes]:
    return {b"pandas": json.dumps({"index_columns": index, "columns": []}).encode()}


RANGE = {"kind": "range", "name": None, "start": 0, "stop": 6, "step": 1}
TABLE = pa.table({"a": [0.5, 1.5, 2.5], "id": [7, 8, 9], "__index_level_0__": [4, 0, 2], "y": [0, 1, 0]})


def with_facts(path: Path, facts: dict[bytes, bytes] | None, table: Any = TABLE) -> Path:
    pq.write_table(table.replace_schema_metadata(facts), path)
    return path


@pytest.mark.parametrize(
    ("facts", "columns"),
    [
        (pandas_facts(["__index_level_0__"]), ["a", "id"]),
        (pandas_facts(["id"]), ["a"]),
        (pandas_facts(["id", "__index_level_0__"]), ["a"]),
        (pandas_facts([RANGE]), ["a", "id"]),
        (None, ["a", "id"]),  # as left by a program that keeps the column and drops what pandas said of it
        ({b"pandas": b"{not JSON"}, ["a", "id"]),
        ({b"pandas": b"[" * 100_000}, ["a", "id"]),
        ({b"pandas": b"7"}, ["a", "id"]),
        ({b"pandas": b'{"index_columns": 7}'}, ["a", "id"]),
        ({b"other": b"x"}, ["a", "id"]),
    ],
)
def test_an_index_of_pandas_is_no_feature(tmp_path: Path, facts: dict[bytes, bytes] | None, columns: list[str]) -> None:
    source = open_source(with_facts(tmp_path / "t.parquet", facts), options=SourceOptions(label_column="y"))
    assert source.provenance[0]["columns"] == columns
    left_out = [name for name in ("id", "__index_level_0__") if name not in columns]
    assert source.provenance[0]["left_out"] == left_out
    np.testing.assert_array_equal(next(source.iter_blocks(1000))["x"][:, 0], [0.5, 1.5, 2.5])


def test_an_index_that_is_named_is_taken(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = with_facts(tmp_path / "t.parquet", pandas_facts(["id"]))
    source = open_source(path, options=SourceOptions(columns=("id", "__index_level_0__"), label_column="y"))
    assert read_all(source)["x"].tolist() == [[7, 4], [8, 0], [9, 2]]
    assert "left_out" not in source.provenance[0]
    assert read_all(open_source(path, options=SourceOptions(columns=("a",), label_column="id")))["y"].tolist() == [
        7,
        8,
        9,
    ]


def test_an_index_beside_a_lone_column_of_labels(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    table = pa.table({"kind": ["b", "a"], "id": [8, 9]})
    labels = with_facts(tmp_path / "y.parquet", pandas_facts(["id"]), table)
    assert read_all(open_source(np.zeros((2, 1)), labels=labels))["y"].tolist() == [1, 0]


def test_a_table_of_an_index_alone(tmp_path: Path) -> None:
    path = with_facts(tmp_path / "t.parquet", pandas_facts(["id"]), pa.table({"id": [8, 9]}))
    with pytest.raises(UsageError, match=r"no column is left to read. id is an index. Fix: name columns"):
        open_source(path)
    assert open_source(path, options=SourceOptions(columns=("id",))).n_samples == 2


def test_files_with_and_without_a_stored_index_are_one_table(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    plain = TABLE.drop_columns(["id", "__index_level_0__"])
    files = [
        with_facts(tmp_path / "a.parquet", pandas_facts([RANGE]), plain),
        with_facts(tmp_path / "b.parquet", pandas_facts(["id"])),
    ]
    rows = read_all(open_source(files, options=SourceOptions(label_column="y")))
    assert rows["x"].tolist() == [[0.5], [1.5], [2.5]] * 2


def test_an_index_of_text_or_dates_stands_in_nobodys_way(tmp_path: Path) -> None:
    dates = pa.array([0, 1, 2], pa.timestamp("s"))
    for column in (dates, pa.array(["p", "q", "r"])):
        table = TABLE.set_column(1, "id", column)
        assert open_source(with_facts(tmp_path / "t.parquet", pandas_facts(["id"]), table)).n_samples == 3


def test_the_command_tells_of_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_facts(tmp_path / "t.parquet", pandas_facts(["id"]))
    assert main(["ingest", str(path), str(tmp_path / "d.zarr"), "--label-column", "y"]) == 0
    assert (
        "t.parquet: left out id, __index_level_0__, an index and no feature; name the columns"
        in capsys.readouterr().err
    )
    words = ["--label-column", "y", "--columns", "a,id"]
    assert main(["ingest", str(path), str(tmp_path / "e.zarr"), *words]) == 0
    assert streamtrain.open(tmp_path / "e.zarr").fields[0].shape == (2,)


def test_a_csv_made_of_such_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("__index_level_0__,a,y\n4,0.5,0\n0,1.5,1\n")
    assert open_source(tmp_path / "t.csv", options=SourceOptions(label_column="y")).fields[0].shape == (1,)
    (tmp_path / "t.csv").write_text(",a,y\n0,0.5,0\n1,1.5,1\n")
    with pytest.raises(InputError, match=r"column 1 has no name in the header. Fix: name it; .*index=False"):
        open_source(tmp_path / "t.csv")
