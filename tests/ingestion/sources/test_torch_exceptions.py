"""Exceptions of the user's own code in data of torch: they bear the number of the sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

import streamtrain as st

N, BAD = 200, 137


def _sample(number: int) -> tuple[Any, int]:
    if number == BAD:
        raise KeyError("no such label")
    return np.ones(3, np.float32), number % 2


class Indexed(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return _sample(number)


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return map(_sample, range(N))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (Indexed(), f"sample {BAD} of the Indexed"),
        (Streamed(), f"sample {BAD} of the Streamed"),
        (DataLoader(Indexed(), batch_size=10), f"batch {BAD // 10} of the DataLoader"),
    ],
)
def test_an_exception_bears_the_number_of_its_sample(data: Any, where: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no such label") as raised:
        st.ingest(data, tmp_path / "d.zarr", progress=False)
    assert raised.value.__notes__ == [f"at {where}"]
    assert not (tmp_path / "d.zarr").exists()
