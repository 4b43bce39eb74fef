"""A dataset seen with its images decoded: fields, samples and statistics are those of pixels of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.loader.decode.delivery import Decode, check_decode, damaged_sample, delivered_layout
from streamtrain.loader.decode.images import Images, crop_into, decode_into, images_of
from streamtrain.store.dataset import Dataset, opened
from streamtrain.store.layout import Field, Layout
from streamtrain.store.statistics import FieldStats

Array = npt.NDArray[Any]
_MEAN, _STD, _MIN, _MAX = range(4)
_GREY: Final = np.array([0.299, 0.587, 0.114])
"""The weights of red, green and blue in gray (ITU-R BT.601)."""


class ImageDataset(Dataset):
    """A stored dataset whose images a loader decodes; samples by index are cropped in the middle."""

    def __init__(self, dataset: Dataset, decode: Decode) -> None:
        super().__init__(path=dataset.path, manifest=dataset.manifest, block_checksums=dataset.block_checksums)
        self.decode = dict(decode)
        self._delivered = delivered_layout(dataset, decode)

    @property
    def layout(self) -> Layout:
        """The stored layout, with what batches hold."""
        return self._delivered

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a batch, images with their channels first."""
        return tuple(self._seen(field) for field in self.layout.batch_fields)

    def _seen(self, field: Field) -> Field:
        if field.name not in self.decode:
            return field
        height, width, n_channels = field.shape
        return replace(field, shape=(n_channels, height, width))

    def stats(self, field: str) -> FieldStats:
        """Return the statistics of a field; those of images are of their channels."""
        found = super().stats(field)
        if field not in self.decode:
            return found
        channels = _of_channels(found.features) if found.features.ndim != 2 else found.features
        return replace(found, features=_grey(channels) if self.decode[field].mode == "L" else channels)

    def __getitem__(self, key: int | slice) -> dict[str, Any]:
        found, numbers = super().__getitem__(key), range(len(self))[key]
        if isinstance(numbers, range):
            return {name: self._images(name, values, numbers) for name, values in found.items()}
        return self._decoded_sample(found, numbers)

    def _images(self, name: str, samples: Any, numbers: Sequence[int]) -> Any:
        """Decode some samples of a field, cropped in the middle, (n, channels, height, width)."""
        if name not in self.decode:
            return samples
        how = self.decode[name].centered()
        pixels = np.empty((len(samples), *how.shape), np.uint8)
        for target, sample, number in zip(pixels, samples, numbers, strict=True):
            put: Callable[..., None] = crop_into if isinstance(sample, np.ndarray) else decode_into
            try:
                put(target, sample, how, 0)
            except Exception as error:  # a hostile file makes Pillow raise anything
                raise damaged_sample(self, name, number, error) from error
        return pixels.transpose(0, 3, 1, 2)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """Read samples for torch's ``DataLoader``."""
        return list(map(self._decoded_sample, super().__getitems__(keys), keys))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._decoded_sample, super().__iter__(), range(len(self)))

    def _decoded_sample(self, sample: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {name: self._images(name, [value], [number])[0] for name, value in sample.items()}

    def __reduce__(self) -> tuple[Callable[..., Dataset], tuple[Any, ...]]:
        """Pickle the place, the id and how images are decoded."""
        opened, place = super().__reduce__()
        return _seen_again, (opened, place, decode_config(self.decode))


def _seen_again(opened: Callable[..., Dataset], place: tuple[str, str], decode: dict[str, Any]) -> ImageDataset:
    return ImageDataset(opened(*place), decode_of_config(decode))


def with_images(dataset: Dataset, decode: Decode | None) -> Dataset:
    """See a dataset with its images decoded, anew where it was seen so already; refuse images nobody decodes."""
    if decode is None and isinstance(dataset, ImageDataset):
        return dataset
    if not check_decode(decode):
        delivered_layout(dataset, decode)
        return dataset
    assert decode is not None, "which it is then"
    return ImageDataset(_as_stored(dataset), decode)


def opened_with_images(given: Any, decode: Decode | None) -> Any:
    """Open a dataset that is given as a path, its images decoded; other data stays as it is."""
    found = opened(given)
    if isinstance(found, Dataset):
        return with_images(found, decode)
    return found


def _as_stored(dataset: Dataset) -> Dataset:
    if not isinstance(dataset, ImageDataset):
        return dataset
    manifest = dataset.manifest
    return Dataset(path=dataset.path, manifest=manifest, block_checksums=dataset.block_checksums)


def decode_config(decode: Decode) -> dict[str, Any]:
    """Return how images are decoded, as a run's configuration keeps it."""
    return {name: how.as_json() for name, how in decode.items()}


def decode_of_config(found: Mapping[str, Any]) -> dict[str, Images]:
    """Read it back; UsageError where it is none."""
    return {name: images_of(how) for name, how in found.items()}


def decode_to_measure(decode: Decode | None) -> Decode | None:
    """Return how the images of a training are decoded where a model is measured: without chance."""
    return None if decode is None else {name: how.centered() for name, how in check_decode(decode).items()}


def _of_channels(features: Array) -> Array:
    """Merge the statistics of pixels, (6, height, width, channels), or of the whole, to those of channels."""
    if features.ndim != 4:
        return np.repeat(features.reshape(len(features), 1), 3, axis=1)
    axes = (0, 1)
    mean = features[_MEAN].mean(axis=axes)
    squares = (features[_STD] ** 2 + features[_MEAN] ** 2).mean(axis=axes)
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    least, most = features[_MIN].min(axis=axes), features[_MAX].max(axis=axes)
    merged = np.stack([mean, std, least, most, *(np.zeros_like(mean) for _ in features[_MAX + 1 :])])
    return np.repeat(merged, 3, axis=1) if merged.shape[1] == 1 else merged


def _grey(channels: Array) -> Array:
    """Weigh the channels as gray does; its spread is at most that of them."""
    return np.asarray((channels * _GREY).sum(axis=1, keepdims=True))
