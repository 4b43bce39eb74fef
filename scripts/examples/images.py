#!/usr/bin/env python3
"""Train a small ResNet on a folder of images, and then its last layer alone on other classes."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import streamtrain as st


class Block(nn.Module):
    """Two convolutions, and what came in added to what they give."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.layers = nn.Sequential(first, nn.GroupNorm(4, n_out), nn.ReLU(), second)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, H / 2, W / 2)."""
        return torch.relu(self.layers(x) + self.shortcut(x))


def store_stripes(folder: Path, *widths: int) -> st.Dataset:
    """Write JPEGs of stripes, in a folder for each width, and store them."""
    rng = np.random.default_rng(0)
    for number in range(40 * len(widths)):
        width, size = widths[number % len(widths)], rng.integers(40, 60, 2).tolist()
        stripes = np.indices(size).sum(axis=0) // width % 2
        (place := folder / f"{width}").mkdir(parents=True, exist_ok=True)
        Image.fromarray((stripes[..., None] * rng.integers(60, 255, 3)).astype(np.uint8)).save(place / f"{number}.jpg")
    return st.ingest(folder, f"{folder}.zarr", progress=False)


def main() -> None:
    """Train on one folder, and keep all but the last layer for another."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        body = nn.Sequential(Block(3, 16), Block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for folder, widths in (Path(name) / "first", (2, 5, 12)), (Path(name) / "second", (3, 9)):
            dataset, network = store_stripes(folder, *widths), nn.Sequential(body, nn.Linear(32, len(widths)))
            trainer = st.Trainer(network, lr=0.01, inputs=("image",), normalize="auto", device="cpu")
            trainer.fit(dataset, decode={"image": st.Images(24)}, max_epochs=10, batch_size=20, progress=False)
            print(f"{folder.name}: accuracy {trainer.evaluate(dataset).score:.3f}")
            torch.save(body.state_dict(), f"{folder}.pt")  # tensors, which run no code when they are read
            body.requires_grad_(False).load_state_dict(torch.load(f"{folder}.pt", weights_only=True))


if __name__ == "__main__":
    main()
