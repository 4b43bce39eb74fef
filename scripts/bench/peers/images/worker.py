"""Workers of images: the files of a case, their decoding, and whole epochs against the clock.

A case's ``source`` is the folder of the JPEGs, whose names are their numbers. Every sample is decoded by streamtrain's
own function with its number as the key, which needs numpy and Pillow and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from scripts.bench.peers.worker import Batch, Case, Variant, Worker, as_case
from streamtrain.loader.decode.images import Images, decode_into

HOW = Images(224)


def files(case: Case) -> list[Path]:
    """The JPEGs by their numbers."""
    return sorted(case.source.rglob("*.jpg"), key=lambda path: path.stem)


def decoded(data: bytes, number: int) -> tuple[torch.Tensor, int]:
    """A sample: its crop, (height, width, channels), and its number."""
    target = np.empty(HOW.shape, np.uint8)
    decode_into(target, data, HOW, number)
    return torch.from_numpy(target), number


def collate(samples: list[tuple[torch.Tensor, int]]) -> Batch:
    """A batch (B, 3, 224, 224), channels last as streamtrain's: one plain copy, a worker's into shared memory."""
    images, numbers = default_collate(samples)
    return images.permute(0, 3, 1, 2), numbers


class ImageWorker(Worker):
    """The requests of images: the loader stays open, and goes through its epochs one by one."""

    def start(self, case: dict[str, Any], variant: Variant) -> dict[str, Any]:
        """Open the loader."""
        self.case = as_case(case)
        self.epoch_of: Callable[[int], Iterator[Batch]] = self.peer.loader(self.case, variant)
        self.n_epochs = 0
        return {}

    def epoch(self, compare: bool = False) -> dict[str, Any]:
        """Go through an epoch: its seconds, and which samples came; compare every image with the source's if asked."""
        paths = files(self.case) if compare else []
        numbers: list[Any] = []
        n_wrong = 0
        started = time.perf_counter()
        for images, of_batch in self.epoch_of(self.n_epochs):
            numbers.append(np.asarray(of_batch))
            for image, number in zip(images, numbers[-1].tolist(), strict=True) if compare else ():
                wanted, _ = decoded(paths[number].read_bytes(), number)
                n_wrong += not torch.equal(image, wanted.permute(2, 0, 1))
        seconds = time.perf_counter() - started
        self.n_epochs += 1
        seen = np.concatenate(numbers)
        return {
            "seconds": seconds,
            "samples": self.case.n_samples,
            "yielded": len(seen),
            "distinct": len(np.unique(seen)),
            "wrong": n_wrong,
            "shuffled": bool((np.diff(seen) != 1).mean() > 0.5),
        }
