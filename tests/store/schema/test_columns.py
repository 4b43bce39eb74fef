"""The schema that follows from what was read, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import Schema, parse_schema, schema_json, schema_of

X = Field(name="x", dtype=np.dtype("float64"), shape=(2,))
Y = Field(name="y", dtype=np.dtype("int64"), shape=())


@pytest.mark.parametrize(
    ("sources", "columns"),
    [
        ([{"format": "csv", "columns": ["a", "b"], "label_column": "k"}], {"x": ("a", "b"), "y": ("k",)}),
        ([{"format": "csv", "columns": ["a", "b"], "label_column": None}] * 2, {"x": ("a", "b")}),
        # Labels of a file of their own, and rows without names behind those that have some.
        ([{"columns": ["a", "b"]}, {"columns": [], "label_column": "k", "field": "y"}], {"x": ("a", "b"), "y": ("k",)}),
        ([{"columns": ["a", "b"]}, {"format": "npy"}], {"x": ("a", "b")}),
        # What contradicts itself, or does not fit the field, says nothing.
        ([{"columns": ["a", "b"]}, {"columns": ["b", "a"]}], {}),
        ([{"columns": ["a", "b", "c"]}], {}),
        ([{"columns": "ab"}, {"label_column": 5}, {"columns": None}], {}),
        ([{"format": "npy"}], {}),
    ],
)
def test_columns_follow_from_what_was_read(sources: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    assert schema_of((X, Y), sources).columns == columns


def test_a_dataset_knows_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,kind,income\n1.5,cat,2\n3,dog,4\n")
    dataset = st.ingest(tmp_path / "t.csv", tmp_path / "t.zarr", label_column="kind")
    assert dataset.columns == ("age", "income")
    assert dataset.schema == Schema(
        fields=dataset.fields, columns={"x": ("age", "income"), "y": ("kind",)}, classes=("cat", "dog")
    )
    arrays = st.ingest({"x": np.zeros((3, 2)), "y": np.zeros(3)}, tmp_path / "a.zarr")
    assert (arrays.columns, arrays.schema) == (None, Schema(fields=arrays.fields))


def test_it_comes_back_from_json() -> None:
    schema = Schema(fields=(X, Y), columns={"x": ("a", "b"), "y": ("k",)}, classes=("cat", "dog"))
    assert parse_schema(schema_json(schema)) == schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "its version is unknown"),
        ({"fields": [1]}, "AttributeError"),
        ({"fields": {"x": {"dtype": "float64", "shape": [-1]}}}, "-1 is not a positive integer"),
        ({"fields": {"x": {"dtype": "no such", "shape": []}}}, "not a dtype"),
        ({"fields": {"not a name": {"dtype": "float64", "shape": []}}}, "not usable"),
        ({"columns": {"x": "ab"}}, "a list of texts"),
        ({"columns": {"x": [1]}}, "a list of texts"),
        ({"classes": "ab"}, "a list of texts"),
        ({"classes": 5}, "a list of texts"),
    ],
)
def test_what_is_no_schema_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_schema(schema_json(Schema(fields=(X,))) | change)


def test_a_list_is_no_schema() -> None:
    with pytest.raises(ValueError, match="its version is unknown"):
        parse_schema([])
