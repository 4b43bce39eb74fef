#!/usr/bin/env python3
"""From a NetCDF grid to a forecast: packed numbers are decoded, and a network learns tomorrow's field from today's."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

import streamtrain as st

N_DAYS, N_LAT, N_LON = 1500, 12, 24


def write_grid(path: Path) -> None:
    """Write a warm spot that moves east, as a NetCDF file would hold it: 16-bit integers with scale and offset."""
    rng = np.random.default_rng(0)
    lat, lon = np.meshgrid(np.linspace(-1, 1, N_LAT), np.arange(N_LON), indexing="ij")
    day = np.arange(N_DAYS + 1)[:, None, None]
    field = 10 * np.cos((lon - day) * 2 * np.pi / N_LON) * np.exp(-(lat**2)) + rng.normal(0, 0.5, day.shape)
    packed = np.round(field / 0.01).astype("i2")
    with h5py.File(path, "w") as file:
        for name, days in (("today", packed[:-1]), ("tomorrow", packed[1:])):
            # One chunk a day of the whole grid, as models write them.
            values = file.create_dataset(name, data=days, chunks=(1, N_LAT, N_LON), compression="gzip", shuffle=True)
            values.attrs.update({"scale_factor": 0.01, "add_offset": 280.0, "_FillValue": np.int16(-32768)})


def main() -> None:
    """Store the grid, train, and compare the forecast with the guess that tomorrow is like today."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "grid.nc", Path(folder) / "grid.zarr"
        write_grid(source)
        fields = {"x": "/today", "y": "/tomorrow"}
        train = st.ingest(source, path, fields=fields, split={"val": 0.2}, task="regression", progress=False)
        val = st.open(path, split="val")
        print(f"{len(train):,} days of {train.fields[0].dtype.name} {train.fields[0].shape}, {len(val):,} to compare")
        torch.manual_seed(0)
        size = N_LAT * N_LON
        net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(size, size), torch.nn.Unflatten(1, (N_LAT, N_LON))
        )
        trainer = st.Trainer(
            net, loss="mse", optimizer="adam", lr=1e-3, normalize="auto", normalize_target="auto", device="cpu"
        )
        trainer.fit(train, max_epochs=8, batch_size=50, memory="32MB", progress=False)
        rows = val[:]
        forecast = trainer.predict({"x": rows["x"]})
    error, guess = (float(np.sqrt(np.mean((given - rows["y"]) ** 2))) for given in (forecast, rows["x"]))
    print(f"forecast off by {error:.2f} K; tomorrow like today: {guess:.2f} K")


if __name__ == "__main__":
    main()
