"""Data and a model that comparisons are made of: two float64 features and what they add up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import streamtrain as st

N = 90


def ingested(folder: Path) -> st.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)) * [1.0, 3.0]
    source = {"x": x, "y": x @ [1.0, -0.5] + rng.normal(0, 0.1, N)}
    return st.ingest(source, folder / "d.zarr", progress=False)


def line() -> nn.Linear:
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.5, 1.0]]))
    return model
