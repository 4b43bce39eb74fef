"""The task rule on columns of public tables: no quantity becomes classes, no classes a quantity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamtrain.store.schema.task import Labels, task_of

COLUMNS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("public_columns.json").read_text())
"""Columns that `scripts/proofs/public_columns.py` found in packages that hold them, and what each column is."""


def task_by_rule(column: dict[str, Any]) -> str | None:
    facts = {name: value for name, value in column.items() if name in Labels.__slots__}
    n_values = column["n_values"]
    values = None if n_values is None else range(n_values)
    return task_of(Labels(**{**facts, "shape": tuple(facts["shape"]), "values": values})).name


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column["name"])
def test_what_a_column_is_taken_for(column: dict[str, Any]) -> None:
    found = task_by_rule(column)
    assert found == column["task"], "as when it was ingested"
    if column["of"] == "class":
        assert found != "regression"
    if column["of"] == "quantity" and (column["n_values"] is None or column["n_values"] > 20):
        assert found != "classification"


def test_few_are_asked_about() -> None:
    assert len(COLUMNS) == 40
    assert sum(task_by_rule(column) is None for column in COLUMNS) <= 12
