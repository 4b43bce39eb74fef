"""Worlds of what lies in memory as no plain array: data frames and Arrow tables, sparse matrices, labels of text."""

from __future__ import annotations

import warnings
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tests.advice.sources import check, ingest
from tests.advice.world import World, X, world

_FRAMES = "ingestion/sources/tables/frames.py:"
_LABELS = "ingestion/sources/text_labels.py:TextLabels."


class LazyFrame:
    """A query of polars."""

    def collect_schema(self) -> dict[str, Any]:
        return {"a": float}

    def collect(self) -> Any:
        return pa.table({"a": [1.0, 2.0]})


@world("ingestion/sources/sparse.py:_not_by_rows: make it dense, x.{}()")
def sparse_arrays(w: World) -> None:
    tensor = torch.from_numpy(X).to_sparse()
    said = w.refused(ingest, {"x": tensor})
    assert "x.to_dense()" in said
    assert "x.to_sparse_csr()" in said
    ingest({"x": tensor.to_dense()})
    with warnings.catch_warnings(action="ignore"):  # torch calls it a beta
        by_rows = tensor.to_sparse_csr()
    ingest({"x": by_rows}, "rows.zarr")


@world(f"{_FRAMES}open_frame: frame.collect(), or frame.sink_parquet(FILE)")
def lazy_frames(w: World) -> None:
    check(w, LazyFrame(), LazyFrame().collect())


@world(f"{_FRAMES}_once: hold it in memory, pyarrow.table(x); or write it to a Parquet file")
def text_in_a_stream(w: World) -> None:
    table = pa.table({"a": [1.0, 2.0], "k": ["u", "v"]})
    check(w, table.to_reader(), pa.table(table.to_reader()), label_column="k")


@world(f"{_FRAMES}_items: fill it in or leave its row out of the stream")
def missing_in_a_stream(w: World) -> None:
    table = pa.table({"a": [1.0, None]})
    check(w, table.to_reader(), table.slice(0, 1).to_reader())


@world(
    "ingestion/sources/tables/typed_columns.py:_from_decimal: leave the column out, or split the number over two columns"
)
def long_decimals(w: World) -> None:
    table = pa.table({"a": [1.0], "b": [Decimal("1234567890.12345678901")]})
    w.refused(ingest, table)
    ingest(table, columns=["a"])


@world(
    f"{_LABELS}_texts: fill it in or leave its row out",
    f"{_LABELS}_texts: write all labels as text",
)
def labels_of_text(w: World) -> None:
    for number, bad in enumerate((None, 3)):
        wrong, right = (np.array(["u", label], object) for label in (bad, "3"))
        w.refused(ingest, {"x": np.zeros(2), "y": wrong})
        ingest({"x": np.zeros(2), "y": right}, f"{number}.zarr")


@world(f"{_LABELS}__init__: give other labels")
def too_many_texts(w: World) -> None:
    texts = np.arange(100_001).astype("U6")
    check(w, {"x": np.zeros(len(texts)), "y": texts}, {"x": np.zeros(len(texts)), "y": np.arange(len(texts)) % 10})
