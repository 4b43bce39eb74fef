"""Columns of every declared type in every role: taken, or refused in our words."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamtrain.errors import InputError, StreamtrainError
from streamtrain.ingestion.request import source_options
from streamtrain.ingestion.sources.registry import open_source

N = 6


def columns() -> Mapping[str, Any]:
    moments = pa.array([1, 2, 3] * 2, pa.timestamp("us"))
    found = {
        "binary": pa.array([b"x", b"\xff", b"z"] * 2),
        "binary of one size": pa.array([b"xy", b"\xff\xff", b"zz"] * 2, pa.binary(2)),
        "binary in a dictionary": pa.array([b"x", b"y", b"z"] * 2).dictionary_encode(),
        "list": pa.array([[1], [2], [3]] * 2),
        "struct": pa.array([{"a": 1}] * N),
        "map": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())),
        "moments": moments,
        "moments in a dictionary": moments.dictionary_encode(),
        "days": pa.array([1, 2, 3] * 2, pa.date32()),
        "times": pa.array([1, 2, 3] * 2, pa.time32("s")),
        "durations": pa.array([1, 2, 3] * 2, pa.duration("s")),
        "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((N, 2), np.float32)),
        "nothing": pa.array([None] * N, pa.null()),
    }
    if hasattr(pa, "json_"):
        found["json"] = pa.array(['{"a": 1}', "{}", "[]"] * 2, pa.json_(pa.string()))
    if hasattr(pa, "uuid"):
        found["uuid"] = pa.array([b"0" * 16, b"1" * 16, b"2" * 16] * 2, pa.uuid())
    return found


COLUMNS = columns()
ROLES: Mapping[str, Mapping[str, Any]] = {
    "feature": {"label_column": "y"},
    "label": {"label_column": "c"},
    "label beside a weight": {"label_column": "c", "weight_column": "w"},
    "label of rows to drop": {"label_column": "c", "drop_unlabelled": True},
    "one of the targets": {"label_column": ["c", "w"]},
    "category": {"label_column": "y", "categorical": ["c"]},
    "hashed category": {"label_column": "y", "hash": {"c": 9}},
    "date": {"label_column": "y", "dates": ["c"]},
    "weight": {"label_column": "y", "weight_column": "c"},
    "id": {"label_column": "y", "id_column": "c"},
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("role", ROLES)
def test_a_column_of_any_type_is_taken_or_refused(kind: str, role: str, tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(float(N)), "w": np.ones(N), "c": COLUMNS[kind], "y": np.arange(N) % 3})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    for source in (path, table):
        with suppress(StreamtrainError):
            assert open_source(source, options=source_options(**ROLES[role])).n_samples == N


@pytest.mark.parametrize("kind", ["binary", "moments", "list"])
def test_a_label_of_another_type_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"w": np.ones(N), "c": COLUMNS[kind]}), path)
    with pytest.raises(InputError, match=r"label column 'c' is .*, which is not supported") as caught:
        open_source(path, options=source_options(**ROLES["label beside a weight"]))
    assert caught.value.where == str(path)
