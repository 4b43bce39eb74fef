#!/usr/bin/env python3
"""Train by a plain PyTorch loop: a `StreamLoader` stands where a `DataLoader` would."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import streamtrain as st


def main() -> None:
    """Fit a line to points that are read from disk."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (10_000, 1)).astype(np.float32)
    y = (3 * x + 1 + rng.normal(0, 0.1, x.shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        dataset = st.ingest({"x": x, "y": y}, Path(folder) / "line.zarr", progress=False)
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with st.StreamLoader(dataset, batch_size=50, memory="16MB", seed=0) as loader:
            for epoch in range(1, 4):
                total = 0.0
                for inputs, targets in loader:
                    loss = nn.functional.mse_loss(model(inputs), targets)
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    total += loss.item() * len(inputs)
                print(f"epoch {epoch}: loss {total / len(dataset):.4f}")
        print(f"y = {model.weight.item():.2f} x + {model.bias.item():.2f}")


if __name__ == "__main__":
    main()
