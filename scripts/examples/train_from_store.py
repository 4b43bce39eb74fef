#!/usr/bin/env python3
"""Train a classifier from a dataset on disk: ingest, load within a byte budget, fit, evaluate."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import streamtrain as st


def main() -> None:
    """Write clouds of points sorted by class, the worst order a file can have, and learn to tell them apart."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 5_000)
    x = (np.eye(4, 16)[y] + rng.normal(0, 0.3, (len(y), 16))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clouds.zarr"
        st.ingest({"x": x, "y": y}, path, progress=False)

        dataset = st.open(path)
        print(f"{len(dataset):,} samples of {dataset.fields[0].shape[0]} numbers in {path.name}")

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        trainer = st.Trainer(model, loss="cross_entropy", optimizer="adam", lr=0.01, device="cpu")
        with st.StreamLoader(dataset, batch_size=100, memory="16MB", seed=0) as loader:
            for n, epoch in enumerate(trainer.fit(loader, max_epochs=3, progress=False), 1):
                print(f"epoch {n}: loss {epoch.train.loss:.3f}")
        with st.StreamLoader(dataset, memory="16MB", shuffle=False) as in_stored_order:
            print(f"accuracy {trainer.evaluate(in_stored_order).score:.3f}")


if __name__ == "__main__":
    main()
