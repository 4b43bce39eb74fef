"""Labels of text in memory: sorted and numbered, whatever holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import InputError

TEXTS = ["v", "u", "v"]

KINDS: dict[str, Callable[[], Any]] = {
    "array": lambda: np.array(TEXTS),
    "objects": lambda: np.array(TEXTS, object),
    "arrow": lambda: pytest.importorskip("pyarrow").array(TEXTS),
    "arrow, chunked": lambda: pytest.importorskip("pyarrow").chunked_array([TEXTS[:1], TEXTS[1:]]),
    "arrow, dictionary": lambda: pytest.importorskip("pyarrow").array(TEXTS).dictionary_encode(),
    "pandas": lambda: pytest.importorskip("pandas").Series(TEXTS, index=[7, 5, 6]),
    "pandas, category": lambda: pytest.importorskip("pandas").Series(TEXTS, dtype="category"),
    "polars": lambda: pytest.importorskip("polars").Series(TEXTS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_labels_are_sorted_and_numbered(tmp_path: Path, kind: str) -> None:
    x, y = np.arange(6.0).reshape(3, 2), KINDS[kind]()
    beside = streamtrain.ingest(x, tmp_path / "d.zarr", labels=y)
    within = streamtrain.ingest({"x": x, "y": y}, tmp_path / "e.zarr")
    assert beside.classes == within.classes == ("u", "v")
    assert beside.id == within.id
    assert beside[:]["y"].tolist() == within[:]["y"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "a label is missing"),
        (float("nan"), "missing"),
        (" ", "missing"),
        (3, "a label is 3, and others are text"),
    ],
)
def test_a_label_that_is_no_text_is_refused_by_its_row(tmp_path: Path, bad: Any, message: str) -> None:
    y = np.array(["u", bad, "v"], object)
    with pytest.raises(InputError, match=f"array 'y' row 1: .*{message}"):
        streamtrain.ingest({"x": np.zeros(3), "y": y}, tmp_path / "d.zarr")
