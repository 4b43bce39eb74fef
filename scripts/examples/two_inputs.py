#!/usr/bin/env python3
"""Train a model of two inputs, an image and a row of a table, with a transform of one's own.

The transform draws its noise from the key of each sample, so it depends on neither order nor threads nor resumption.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import streamtrain as st


class ImageAndTable(nn.Module):
    """Logits from images (B, 8, 8) and rows (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.out = nn.Linear(16 + 3, 4)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        """Join what is seen with what is known."""
        return torch.as_tensor(self.out(torch.cat([self.image(image), row], dim=1)))


def augment(batch: st.Batch, keys: Tensor) -> st.Batch:
    """Scale bytes to [0, 1], and add noise of each sample's own."""
    return batch._replace(image=batch.image / 255 + 0.05 * st.normal(keys, (8, 8)))


def main() -> None:
    """Learn four classes that it takes both inputs to tell: which half is bright, and the sign of the first number."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    row = rng.normal(size=(8_000, 3))
    is_upper = rng.integers(0, 2, 8_000)
    image = rng.integers(0, 100, (8_000, 8, 8))
    image[np.arange(8_000), np.where(is_upper, 1, 6)] += 150
    fields = {"image": image.astype(np.uint8), "row": row.astype(np.float32), "y": 2 * is_upper + (row[:, 0] > 0)}
    with tempfile.TemporaryDirectory() as folder:
        dataset = st.ingest(fields, Path(folder) / "pairs.zarr", progress=False)
        torch.manual_seed(0)
        trainer = st.Trainer(ImageAndTable(), loss="cross_entropy", lr=0.01, inputs=("image", "row"), device="cpu")
        with st.StreamLoader(dataset, batch_size=100, memory="16MB", transform=augment) as loader:
            for n, epoch in enumerate(trainer.fit(loader, max_epochs=5, progress=False), 1):
                print(f"epoch {n}: accuracy {epoch.train.score:.3f}")


if __name__ == "__main__":
    main()
