"""Labels read from a store, in their form, and nothing else with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.loader.plan import StoredLabels
from streamtrain.shuffle.quality import label_population

N = 1000


def stored(folder: Path, y: np.ndarray, codec: str = "lz4") -> st.Dataset:
    x = np.zeros((len(y), 5), np.float32)
    return st.ingest({"x": x, "y": y}, folder / "d.zarr", block="280B", shard="2KB", codec=codec)


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize(
    "y",
    [np.arange(N) % 7 * 3 + 4, np.arange(N) % 2 == 0, np.arange(N) % 300, np.random.default_rng(0).normal(3, 2, N)],
    ids=["gaps", "bool", "two bytes", "numbers"],
)
def test_labels_are_what_they_would_be_in_memory(tmp_path: Path, y: np.ndarray, codec: str) -> None:
    population, expected = label_population(y)
    samples = np.random.default_rng(1).integers(0, N, 3000)
    with StoredLabels(stored(tmp_path, y, codec)) as labels:
        found = labels.take(samples)
        assert labels.population.n_samples == N
        assert np.array_equal(labels.population.shares, population.shares)
    assert found.dtype == expected.dtype
    assert np.allclose(found, expected[samples], atol=1e-6)


def test_only_the_labels_of_the_blocks_asked_for_are_read(tmp_path: Path) -> None:
    dataset = stored(tmp_path, np.arange(N) % 4)
    for file in (dataset.path / "x").rglob("c/*"):
        if file.is_file():
            file.unlink()
    damaged = dataset.shard_path("y", 3)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    start = 3 * dataset.layout.shard_blocks * dataset.layout.block_rows
    with StoredLabels(dataset) as labels:
        assert labels.take(np.arange(start)).tolist() == (np.arange(start) % 4).tolist()
        with pytest.raises(st.DatasetError, match="y"):
            labels.take(np.array([start]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"x": np.arange(4.0)}, "there is no field y"), ({"y": np.zeros((4, 2))}, "field y has 1 axes per sample")],
)
def test_what_has_no_labels_says_so(tmp_path: Path, fields: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(st.UsageError, match=message):
        StoredLabels(st.ingest(fields, tmp_path / "d.zarr"))
