"""Statistics of samples of very many values: the bits of one group of columns, and no more memory than is projected."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import streamtrain as st
from streamtrain.ingestion.request import IngestSizes, project_ingest
from streamtrain.store import statistics
from streamtrain.store.layout import Field
from streamtrain.store.statistics import FieldStats, FieldTally

N_COLUMNS = 2**16 + 2**15 + 5


def _rows(kind: str, dtype: str) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 50, (7, N_COLUMNS))
    if kind == "far from 0":
        rows = 1e4 + rows / 1e4
    if kind == "some constant":
        rows[:, ::3], rows[:, -9:] = 7, 1e6
    if kind == "all constant":
        rows[:] = 3
    if kind == "NaN in the last group":
        rows[5, -1], rows[2, -2] = np.nan, np.inf
    if kind == "huge in the last group":
        rows[:, -1] *= 1e200
    return rows.astype(dtype)


def _counted(rows: npt.NDArray[Any]) -> tuple[FieldStats, tuple[int, ...]]:
    total = FieldTally(Field(name="x", dtype=rows.dtype, shape=rows.shape[1:]))
    for shard in (rows[:5], rows[5:]):
        tally = FieldTally(total.field)
        for start in range(0, len(shard), 3):
            first = start if shard.base is rows and len(shard) == 5 else 5 + start
            tally.add_part(shard[start : start + 3], first_row=first, block_rows=1)
        total.merge(tally)
    return total.finish(), total.nonfinite_rows


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("near 0", dtype) for dtype in ("uint8", "int16", "int64", "float16", "float32", "float64")),
        *((kind, "float32") for kind in ("far from 0", "some constant", "all constant", "NaN in the last group")),
        ("huge in the last group", "float64"),
    ],
)
def test_groups_of_columns_give_the_bits_of_all_at_once(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(kind, dtype)
    found, nonfinite = _counted(rows)
    monkeypatch.setattr(statistics, "_WIDE", 2**18)
    whole, at_once = _counted(rows)
    assert found.features.tobytes() == whole.features.tobytes()
    assert repr(found.overall) == repr(whole.overall)
    assert nonfinite == at_once == ((2, 5) if kind.startswith("NaN") else ())


def test_an_ingest_keeps_within_what_is_projected(tmp_path: Path) -> None:
    rows = {name: np.full((6, 2**18), number, np.float32) for number, name in enumerate("abc")}
    for values in rows.values():
        values[::2, ::2] = np.nan
        values[1, 1::2] = np.inf
        values[3] += 1
    st.ingest({"x": np.zeros((9, 3))}, tmp_path / "first", progress=False)  # imports all there is
    tracemalloc.start()
    try:
        dataset = st.ingest(rows, tmp_path / "d", memory="150MB", n_workers=1, nan="keep", progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = IngestSizes(n_workers=1, n_wave=1)
    terms = project_ingest(dataset.layout, sizes, seekable=True, held_bytes=0, budget_bytes=1).terms
    assert terms["statistics"] <= 170 * 3 * 2**18
    assert peak <= 113_000_000
    assert dataset.stats("a").overall.n_nan == 3 * 2**17
