#!/usr/bin/env python3
"""From a data frame to predictions: a table is stored and trained on; new rows are matched by the names of columns."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import streamtrain as st


def flights(n: int, seed: int) -> pa.Table:
    """Make flights that are late in the evening, with some distances missing; a frame of pandas would do as well."""
    rng = np.random.default_rng(seed)
    hour = rng.integers(5, 23, n)
    distance = [None if draw < 0.1 else 100 + 1000 * draw for draw in rng.random(n)]
    return pa.table({"hour": hour, "distance": distance, "delay": 3.0 * hour + rng.normal(0, 5, n)})


def main() -> None:
    """Train on one table, and compare what is predicted of another with what came."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "flights.zarr", Path(folder) / "run"
        dataset = st.ingest(flights(20_000, seed=0), path, label_column="delay", na="fill=mean", progress=False)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        trainer = st.Trainer(net, loss="mse", lr=0.05, normalize="auto", device="cpu")
        trainer.fit(dataset, max_epochs=5, memory="16MB", checkpoint=run, progress=False)
        model = st.load(run, model=net, device="cpu")
        new = flights(1_000, seed=1)
        predicted = model.predict(st.rows(new.select(["distance", "hour"]), like=model))
    delay = new["delay"].to_numpy()
    error = float(np.sqrt(np.mean((predicted - delay) ** 2)))
    print(f"{len(predicted):,} predictions, off by {error:.1f} where delays vary by {np.std(delay):.1f}")


if __name__ == "__main__":
    main()
