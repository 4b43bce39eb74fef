"""Statistics of the channels of images, every image counting alike, gathered when they are decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.store.layout import Check, Encoded
from streamtrain.store.media.encoded import ImageFacts
from streamtrain.store.media.pillow import MEDIA, open_image
from streamtrain.store.moments import Moments

if TYPE_CHECKING:
    from streamtrain.store.media.pillow import Image

N_CHANNELS: Final = 3
_LEVELS: Final = np.arange(256, dtype=np.int64)

Figures = npt.NDArray[np.float64]
"""Of one image, by channel: the mean of its values, that of their squares, the least and the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMeasures:
    """Measures of one image; without figures its header alone was read."""

    media: str
    n_pixels: int
    figures: Figures | None


class MeasuredImage(bytes):
    """The bytes of an image that was measured when it was read, so that it need not be decoded again."""

    measures: ImageMeasures


def measure(image: Image, check: Check) -> ImageMeasures:
    """Measure an image; a full check decodes it."""
    media, (width, height) = MEDIA[image.format or ""], image.size
    figures = _figures(image) if check == "full" else None
    return ImageMeasures(media=media, n_pixels=width * height, figures=figures)


def _figures(image: Image) -> Figures:
    # A gray image has the same three channels.
    pixels = image if image.mode in ("RGB", "L") else image.convert("RGB")
    counts = np.array(pixels.histogram(), np.int64).reshape(-1, len(_LEVELS))
    n_pixels = image.size[0] * image.size[1]
    found = counts > 0
    least, most = found.argmax(axis=1), len(_LEVELS) - 1 - found[:, ::-1].argmax(axis=1)
    figures = np.stack([counts @ _LEVELS / n_pixels, counts @ _LEVELS**2 / n_pixels, least, most])
    return np.broadcast_to(figures, (len(figures), N_CHANNELS)).astype(np.float64)


class ImageTally:
    """The running statistics of an encoded field."""

    def __init__(self, facts: Encoded) -> None:
        self._check = facts.check
        self._count = 0
        self._mean, self._squares = np.zeros(N_CHANNELS), np.zeros(N_CHANNELS)
        self._min, self._max = np.full(N_CHANNELS, np.inf), np.full(N_CHANNELS, -np.inf)
        self._media: Counter[str] = Counter()
        self._most_pixels = 0

    def add(self, samples: npt.NDArray[Any]) -> None:
        """Count images: those that were not measured yet are."""
        for sample in samples:
            is_measured = isinstance(sample, MeasuredImage)
            self._add(sample.measures if is_measured else measure(open_image(sample), self._check))

    def _add(self, image: ImageMeasures) -> None:
        self._media[image.media] += 1
        self._most_pixels = max(self._most_pixels, image.n_pixels)
        if image.figures is not None:
            mean, squares, least, most = image.figures
            self._count += 1
            self._mean += mean
            self._squares += squares
            np.minimum(self._min, least, out=self._min)
            np.maximum(self._max, most, out=self._max)

    def merge(self, other: ImageTally) -> None:
        """Add the statistics of other images."""
        self._count += other._count
        self._mean += other._mean
        self._squares += other._squares
        np.minimum(self._min, other._min, out=self._min)
        np.maximum(self._max, other._max, out=self._max)
        self._media.update(other._media)
        self._most_pixels = max(self._most_pixels, other._most_pixels)

    @property
    def images(self) -> ImageFacts:
        """The facts of all images so far."""
        return ImageFacts(media=dict(self._media), most_pixels=max(self._most_pixels, 1))

    def finish(self) -> Moments:
        """Turn the sums into moments of the channels."""
        moments = Moments(N_CHANNELS)
        if self._count:
            moments.count = np.full(1, self._count)
            moments.mean = self._mean / self._count
            moments.m2 = np.maximum(self._squares - self._count * moments.mean**2, 0)
            moments.min, moments.max = self._min.copy(), self._max.copy()
        return moments
