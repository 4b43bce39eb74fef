"""Statistics of constants in datasets of earlier versions, which stored the rounding of their sums as a spread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.store.statistics import FieldStats, FieldTally, settle_features
from streamtrain.training.batch_stream import normalize_fields

ROUNDING = 1.4e-15


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> st.Dataset:
    """Two columns, of which the second is 0.1 and has a stored std that is not 0; ``y`` is 0.7."""
    finish = FieldTally.finish

    def as_it_was(tally: FieldTally) -> FieldStats:
        stats = finish(tally)
        features = stats.features.copy()
        features[:2] += np.where(features[2] == features[3], ROUNDING, 0)
        overall = stats.overall
        if overall.min == overall.max:
            overall = replace(overall, mean=overall.mean + ROUNDING, std=ROUNDING)
        return replace(stats, features=features, overall=overall)

    monkeypatch.setattr(FieldTally, "finish", as_it_was)
    x = np.stack([np.arange(200.0), np.full(200, 0.1)], 1)
    return st.ingest({"x": x, "y": np.full(200, 0.7)}, tmp_path / "old.zarr")


def test_they_are_0_when_they_are_read(old: st.Dataset) -> None:
    assert old.stats("x").std.tolist() == [np.arange(200.0).std(), 0]
    assert old.stats("x").mean[1] == 0.1
    assert (old.stats("y").overall.mean, old.stats("y").overall.std) == (0.7, 0)
    assert st.open(old.path).manifest.statistics["y"].overall.std == 0


def test_they_do_no_harm_in_front_of_a_model(old: st.Dataset) -> None:
    rescale = normalize_fields(old, ("x",))["x"]
    assert rescale(torch.tensor([[0.0, 0.1001]], dtype=torch.float64))[0, 1] == pytest.approx(1e-4)
    trainer = st.Trainer(nn.Linear(2, 1), loss="mse", normalize="auto", device="cpu", lr=0.01)
    with st.StreamLoader(old, batch_size=20, memory="8MB") as loader:
        trainer.fit(loader, max_epochs=1)
    assert trainer.model.weight.abs().max() < 10


def test_the_command_line_tells_them_as_0(old: st.Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(old.path), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)["fields"]["y"]
    assert (told["mean"], told["std"]) == (0.7, 0)


@pytest.mark.parametrize(
    ("mean", "std", "least", "most", "dtype", "settled"),
    [
        (0.1, 1e-15, 0.1, 0.1, "float64", (0.1, 0)),
        (0.1 + 1e-16, 1e-15, 0.1, 0.1, "float32", (0.1, 0)),
        (1e15, 40.0, 1e15, 1e15 + 1, "float64", (1e15, 0.5)),
        (1e9, 3.0, 1e9, 1e9, "int64", (1e9, 0)),
        (2.0**62, 0.5, 2.0**62, 2.0**62, "int64", (2.0**62, 0.5)),
        (2.0, 0.5, 1.0, 3.0, "float32", (2.0, 0.5)),
    ],
)
def test_nothing_is_spread_further_than_its_extremes(
    mean: float, std: float, least: float, most: float, dtype: str, settled: tuple[float, float]
) -> None:
    found = settle_features(np.array([mean, std, least, most, 0, 0]), np.dtype(dtype))
    assert tuple(found[:2].tolist()) == settled
