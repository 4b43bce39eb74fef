"""Delivery of the stored fields in batches: each as it is stored, or its images decoded.

The budget and the pool know a dataset by its layout; that of a loader which decodes also says what its batches hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, DamagedBlock, DamagedSample, Fix, UsageError, unknown_name
from streamtrain.loader.decode.images import Images, crop_into, decode_into
from streamtrain.shuffle.order import I64
from streamtrain.store.byte_ranges import RESTORE
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field, Layout
from streamtrain.store.media.encoded import sample_ends
from streamtrain.system.counter_rng import random_key, words

Decode = Mapping[str, Images]
"""Fields whose images are decoded, and how."""

SAMPLE_KEYS: Final = 4
"""The purpose of the words that are samples' keys. The row orders of an epoch draw the same ones; draws from a key mix
it again."""
_PIXEL_BYTES: Final = 4
_COPIES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedLayout(Layout):
    """The layout of a dataset whose images a loader decodes."""

    delivered: tuple[Field, ...]
    image_bytes: int

    @property
    def batch_fields(self) -> tuple[Field, ...]:
        """The fields of a batch, as they lie in memory."""
        return self.delivered

    @property
    def decoder_bytes(self) -> int:
        """Bytes that a thread takes for the image it decodes."""
        return self.image_bytes


def check_decode(decode: object) -> Decode:
    """Refuse what does not say how fields of images are decoded."""
    if decode is None:
        return {}
    if not isinstance(decode, Mapping) or not all(isinstance(how, Images) for how in decode.values()):
        fix = Fix(Argument("decode", {"image": Images(224)}), ", say")
        raise UsageError(f"decode is {decode!r:.80}; it maps fields of images to how they are decoded", fix=fix)
    return decode


def delivered_layout(dataset: Dataset, decode: Decode | None) -> Layout:
    """Give a dataset's layout what a loader delivers; refuse images that nobody says how to decode."""
    layout, decode = dataset.layout, check_decode(decode)
    _check(decode, layout)
    for field in layout.encoded_fields:
        if field.name not in decode:
            raise UsageError(
                f"field {field.name} holds images as they are stored, and batches hold pixels of one size",
                where=str(dataset.path),
                fix=Fix(Argument("decode", {field.name: Images(224)}), ", say"),
            )
    if not decode:
        return layout
    return DecodedLayout(
        fields=layout.fields,
        n_samples=layout.n_samples,
        block_rows=layout.block_rows,
        shard_blocks=layout.shard_blocks,
        codec=layout.codec,
        delivered=tuple(_delivered(field, decode.get(field.name)) for field in layout.own_fields),
        image_bytes=max(_pixels_of(dataset, name) for name in decode) * _PIXEL_BYTES * _COPIES,
    )


def _check(decode: Decode, layout: Layout) -> None:
    for name in decode:
        found = next((field for field in layout.own_fields if field.name == name), None)
        if found is None:
            raise unknown_name("field", str(name), (field.name for field in layout.own_fields))
        if found.encoded is None and not is_pixels(found):
            raise UsageError(
                f"field {name} is {found.dtype.name} {found.shape}, which are no images",
                why="Images are stored as they are, or as uint8 (height, width, 3)",
                fix=Fix("leave ", Argument("decode"), " out"),
            )


def decode_entry(decode: Decode | None) -> dict[str, str]:
    """Write how images are decoded, as a loader's state keeps it: in one entry, of a loader that decodes any."""
    return {"decode": ", ".join(f"{name}: {how!r}" for name, how in decode.items())} if decode else {}


def is_pixels(field: Field) -> bool:
    """Whether a field holds decoded images, channels last."""
    return field.dtype == np.uint8 and len(field.shape) == 3 and field.shape[2] in (1, 3) and not field.encoded


def _delivered(field: Field, how: Images | None) -> Field:
    return field if how is None else Field(name=field.name, dtype=np.dtype(np.uint8), shape=how.shape)


def _pixels_of(dataset: Dataset, name: str) -> int:
    images = dataset.manifest.statistics[name].images
    height, width, *_ = dataset.layout.field(name).shape if images is None else (images.most_pixels, 1)
    return height * width


class Drawn(NamedTuple):
    """The samples that are gathered, and the epoch they are gathered for."""

    epoch: int
    samples: I64


Rows = Sequence[npt.NDArray[Any]]
"""The rows of the slots, an array of each stored field."""
Gather = Callable[[Rows, I64, npt.NDArray[Any], Drawn], None]
"""Puts rows of the slots, those of some samples, into memory of a batch, (n, ...)."""
Forgive = Callable[[DamagedBlock], None]


def gathers_of(
    dataset: Dataset, layout: Layout, decode: Decode | None, *, seed: int, forgive: Forgive | None
) -> tuple[Gather, ...]:
    """Make what gathers each field of a batch; a damaged sample is raised, or handed to ``forgive``."""
    how = {} if decode is None else decode
    return tuple(
        ImageGather(dataset, field.name, how[field.name], seed=seed, forgive=forgive)
        if field.name in how
        else plain_gather(layout, field)
        for field in layout.own_fields
    )


def plain_gathers(layout: Layout) -> tuple[Gather, ...]:
    """Make what gathers fields as they are stored."""
    return tuple(plain_gather(layout, field) for field in layout.own_fields)


def row_dtype(row_bytes: int) -> np.dtype[Any]:
    """Choose the dtype in which whole rows move fastest: an integer of their size, else raw bytes."""
    return np.dtype(f"u{row_bytes}") if row_bytes in (1, 2, 4, 8) else np.dtype((np.void, row_bytes))


def plain_gather(layout: Layout, field: Field) -> Gather:
    """Make what copies rows of a field."""
    return partial(_take_rows, layout.fields.index(field), row_dtype(field.row_bytes))


def _take_rows(
    place: int, dtype: np.dtype[Any], stored: Rows, rows: I64, target: npt.NDArray[Any], drawn: Drawn
) -> None:
    np.take(stored[place], rows, axis=0, out=target.reshape(len(target), -1).view(dtype)[:, 0], mode="clip")


class ImageGather:
    """Decodes images from the slots into the memory of a batch, one after the other; any number of threads may."""

    def __init__(self, dataset: Dataset, name: str, how: Images, *, seed: int, forgive: Forgive | None) -> None:
        layout = dataset.layout
        field = layout.field(name)
        self._dataset, self._field, self._how, self._seed, self._forgive = dataset, field, how, seed, forgive
        self._place, self._block_rows = layout.fields.index(field), layout.block_rows
        self._capacity = layout.block_rows * field.row_bytes
        lengths = None if field.encoded is None else layout.field(field.encoded.lengths)
        self._lengths = None if lengths is None else layout.fields.index(lengths)

    def __call__(self, stored: Rows, rows: I64, target: npt.NDArray[Any], drawn: Drawn) -> None:
        keys = words(random_key(self._seed, drawn.epoch, SAMPLE_KEYS), drawn.samples).tolist()
        for place, (row, sample, key) in enumerate(zip(rows.tolist(), drawn.samples.tolist(), keys, strict=True)):
            try:
                self._put(stored, row, target[place], key)
            except (MemoryError, UsageError):
                raise
            except Exception as error:  # a hostile file makes Pillow raise anything
                damage = damaged_sample(self._dataset, self._field.name, sample, error)
                if self._forgive is None:
                    raise damage from error
                self._forgive(damage)
                target[place] = 0

    def _put(self, stored: Rows, row: int, target: npt.NDArray[np.uint8], key: int) -> None:
        if self._lengths is None:
            pixels = stored[self._place][row : row + 1].view(np.uint8).reshape(self._field.shape)
            crop_into(target, pixels, self._how, key)
            return
        first = row - row % self._block_rows
        lengths = stored[self._lengths][first : row + 1]
        end = int(sample_ends(lengths, self._capacity)[-1])
        start = end - int(lengths[-1])
        block = stored[self._place][first : first + self._block_rows].view(np.uint8)
        decode_into(target, block[start:end].data, self._how, key)


def damaged_sample(dataset: Dataset, name: str, sample: int, error: Exception) -> DamagedSample:
    """Say of a sample that its bytes are as they were stored, and no image that decodes."""
    layout, block = dataset.layout, sample // dataset.layout.block_rows
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DamagedSample(
        f"sample {sample} of field {name} (block {block}) is not an image that decodes",
        where=str(dataset.shard_path(name, block // layout.shard_blocks)),
        why=f"{told:.200}. Its bytes are those that were stored",
        fix=RESTORE,
        field=name,
        block=block,
        sample=sample,
        samples=layout.block_range(block),
    )
