"""The memory of odd shapes, in processes of their own: within the budget, or refused with the least that does."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest

from scripts.proofs import odd_shapes

FEWER = {"wide": 10, "blocks": 50, "group": 12, "categories": 16, "classes": 20}
"""Divisors of the rows here: a shape has to be odd, and not large."""
WITH_LOADER = {("wide", "npz"), ("long", "npz"), ("cells", "csv"), ("categories", "parquet"), ("blocks", "arrays")}
"""Shapes whose loader is measured too, in a process of its own: to it, datasets of any source are the same."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status tells the memory")
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *(("wide", kind) for kind in ("csv", "parquet", "npz")),
        *((shape, kind) for shape in ("classes", "cells", "categories") for kind in odd_shapes.TABLES),
        *(("long", kind) for kind in ("npz", "idx-gz")),
        ("group", "parquet"),
        ("blocks", "arrays"),
    ],
)
def test_an_odd_shape_keeps_to_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, kind: str
) -> None:
    monkeypatch.setattr(odd_shapes, "QUICK", odd_shapes.QUICK | FEWER)
    # A row group larger than the budget, and texts, in the least that a refusal names.
    is_least = shape in ("group", "classes", "categories")
    parts = ["ingest", "loader"] if (shape, kind) in WITH_LOADER else ["ingest"]
    results = list(islice(odd_shapes.cases(tmp_path, shape, kind, quick=True, least=is_least), len(parts)))
    assert [result["part"] for result in results] == parts
    assert all(result["ratio"] <= odd_shapes.BAR for result in results), results
