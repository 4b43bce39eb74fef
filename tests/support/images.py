"""Small images, and folders of classes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("cat", "dog", "emu")


def pixels_of(number: int, *, size: tuple[int, int] = (24, 32), level: int = 0) -> npt.NDArray[np.uint8]:
    """The pixels of image ``number``: smooth, so that JPEG keeps them, and around a level."""
    height, width = size
    down, across = np.mgrid[:height, :width]
    channels = [(down * 2 + across + 7 * number + 20 * channel) % 64 for channel in range(3)]
    return (np.stack(channels, axis=-1) + level).astype(np.uint8)


def encoded(pixels: npt.NDArray[np.uint8], kind: str = "JPEG", **how: Any) -> bytes:
    """The bytes of an image file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **how)
    return out.getvalue()


def class_folders(root: Path, n_of_each: int = 12, classes: Sequence[str] = CLASSES) -> list[Path]:
    """Make folders of images, most of them JPEG; return their paths in the order of an ingest."""
    paths = []
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n_of_each):
            size = (20 + i % 7, 40 - i % 5)
            kind, suffix = ("PNG", "png") if i % 5 == 4 else ("WEBP", "webp") if i % 5 == 3 else ("JPEG", "jpg")
            path = root / name / f"{i:03}.{suffix}"
            path.write_bytes(encoded(pixels_of(i, size=size, level=70 * number), kind))
            paths.append(path)
    return paths
