"""Sparse matrices in compressed rows: the dense dataset, a run of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import streamtrain
from streamtrain.errors import InputError
from streamtrain.ingestion.sources.sparse import compressed_rows

DENSE = np.arange(12, dtype="f4").reshape(4, 3) % 3


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@given(x=arrays("f4", (7, 3), elements=st.sampled_from([0.0, 1.0, 2.5])), cut=st.integers(0, 7))
def test_a_run_of_rows_is_that_of_the_dense_matrix(x: Any, cut: int) -> None:
    rows = compressed_rows(torch.from_numpy(x.copy()).to_sparse_csr(), "array 'x'")
    np.testing.assert_array_equal(np.concatenate([rows[:cut], rows[cut:]]), x)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_of_torch(tmp_path: Path) -> None:
    sparse = torch.from_numpy(DENSE).to_sparse_csr()
    for number, source in enumerate((sparse, {"x": sparse}, iter([{"x": sparse}]))):
        found = streamtrain.ingest(source, tmp_path / f"{number}.zarr")[:]["x"]
        np.testing.assert_array_equal(found, DENSE)


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array"])
def test_of_scipy(tmp_path: Path, kind: str) -> None:
    scipy = pytest.importorskip("scipy.sparse")
    found = streamtrain.ingest(getattr(scipy, kind)(DENSE), tmp_path / "d.zarr")[:]["x"]
    np.testing.assert_array_equal(found, DENSE)
    for other in ("tocsc", "tocoo"):
        with pytest.raises(InputError, match=r"is sparse.*x\.tocsr\(\)"):
            streamtrain.ingest(getattr(getattr(scipy, kind)(DENSE), other)(), tmp_path / "e.zarr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A matrix of SciPy's by its parts, which nobody checked."""

    indptr: Any
    indices: Any
    data: Any
    shape: tuple[int, int] = (2, 2)
    format: str = "csr"

    def toarray(self) -> None:
        raise AssertionError("it is not made dense as a whole")


@pytest.mark.parametrize(
    ("starts", "columns"), [([0, 1, 2], [0, 2]), ([0, 1, 2], [-1, 0]), ([0, 3, 2], [0, 1]), ([0, 2], [0, 1])]
)
def test_a_broken_one_is_refused(tmp_path: Path, starts: list[int], columns: list[int]) -> None:
    parts = Parts(indptr=np.array(starts), indices=np.array(columns), data=np.ones(2))
    with pytest.raises(InputError, match="the sparse matrix is damaged"):
        streamtrain.ingest(parts, tmp_path / "d.zarr")
