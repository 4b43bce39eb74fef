#!/usr/bin/env python3
"""Minimize a convex function of the whole dataset by L-BFGS, a pass over the store for each value and gradient.

J is the mean square error plus l2/2 times the sum of the squared weights; its minimum has a closed form.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import streamtrain as st

L2 = 0.01


def main() -> None:
    """Solve a ridge regression of badly scaled columns, in float64."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 8)) * np.logspace(-1, 1, 8)
    y = x @ rng.normal(size=(8, 1)) + rng.normal(0, 0.1, (20_000, 1))
    model = nn.Linear(8, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    trainer = st.Trainer(model, loss="mse", optimizer="lbfgs", update="epoch", l2=L2, grad_tolerance=1e-6, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        dataset = st.ingest({"x": x, "y": y}, Path(folder) / "ridge.zarr", progress=False)
        with st.StreamLoader(dataset, batch_size=1000, memory="16MB", shuffle=False) as loader:
            history = trainer.fit(loader, max_epochs=200, progress=False)
    exact = np.linalg.solve(x.T @ x / len(x) + L2 / 2 * np.eye(8), x.T @ y / len(x))
    error = np.abs(model.weight.detach().numpy().T - exact).max()
    print(f"stopped by {history.stopped_by} after {history.counts.n_steps} steps and {history.counts.n_epochs} passes")
    print(f"largest error of a weight {error:.0e}")


if __name__ == "__main__":
    main()
