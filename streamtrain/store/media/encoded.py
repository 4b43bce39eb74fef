"""Encoded samples: end to end in their block, found again by their lengths; what is known of all of them.

Row r of a block begins at the sum of the lengths before it, and zeros follow the last. No length is believed before it
fits its block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.store.layout import Field, Layout
from streamtrain.system.json_values import objects, whole_number

Array = npt.NDArray[Any]

LENGTHS_SUFFIX = "_bytes"
"""What follows a field's name in that of the field of its lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Facts of all images of a field: their media types, each with a count, and the pixels of the largest."""

    media: Mapping[str, int]
    most_pixels: int

    def as_json(self) -> dict[str, Any]:
        """Return the facts as a manifest holds them."""
        return {"media": dict(sorted(self.media.items())), "most_pixels": self.most_pixels}

    def __str__(self) -> str:
        kinds = sorted(self.media.items(), key=lambda each: -each[1])
        return ", ".join(f"{name.rpartition('/')[2].upper()} {count:,}" for name, count in kinds)


def parse_image_facts(found: object) -> ImageFacts:
    """Read the facts back; ValueError where they are none."""
    facts = objects([found])[0]
    media = objects([facts["media"]])[0]
    return ImageFacts(
        media={name: whole_number(count, 1) for name, count in media.items()},
        most_pixels=whole_number(facts["most_pixels"], 1),
    )


def lengths_field(field: Field) -> Field:
    """Describe the field that holds the lengths of an encoded one's samples."""
    assert field.encoded is not None, "which only an encoded field has"
    return Field(name=field.encoded.lengths, dtype=np.dtype(np.uint32), shape=())


def check_lengths(fields: Sequence[Field]) -> None:
    """Refuse with ValueError an encoded field without a field of lengths of its own."""
    known = {field.name: field for field in fields}
    wanted = [lengths_field(field) for field in fields if field.encoded]
    if any(known.get(each.name) != each for each in wanted) or len({each.name for each in wanted}) < len(wanted):
        raise ValueError("an encoded field has no field of lengths")


def objects_of(samples: Sequence[bytes]) -> Array:
    """Put samples into an array of objects, as rows are."""
    found = np.empty(len(samples), object)
    found[:] = samples
    return found


def byte_lengths(samples: Array) -> npt.NDArray[np.uint32]:
    """Return the length of each sample."""
    return np.fromiter(map(len, samples), np.uint32, len(samples))


def largest_block(lengths: npt.NDArray[np.integer[Any]], block_rows: int) -> int:
    """Compute the bytes of the largest block of so many rows."""
    starts = np.arange(0, len(lengths), block_rows)
    return int(np.add.reduceat(lengths, starts, dtype=np.int64).max(initial=0)) if len(starts) else 0


def pack(samples: Array, capacity: int) -> npt.NDArray[np.uint8]:
    """Lay the samples of a block end to end, with zeros after them."""
    data = b"".join(samples.tolist())
    if len(data) > capacity:
        raise ValueError(f"the samples of a block have {len(data):,} bytes, more than its {capacity:,}")
    block = np.empty(capacity, np.uint8)
    block[: len(data)] = np.frombuffer(data, np.uint8)
    block[len(data) :] = 0
    return block


def sample_ends(lengths: npt.NDArray[np.integer[Any]], capacity: int) -> npt.NDArray[np.int64]:
    """Return where each sample of a block ends; ValueError where they would not fit it."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(ends) and ends[-1] > capacity:
        raise ValueError(f"Its samples would have {int(ends[-1]):,} bytes, more than a block's {capacity:,}")
    return ends


def unpack(block: npt.NDArray[np.uint8], lengths: npt.NDArray[np.integer[Any]]) -> Array:
    """Cut a block into its samples, each an object of type bytes."""
    ends = sample_ends(lengths, len(block)).tolist()
    view = block.data
    return objects_of([bytes(view[start:end]) for start, end in zip([0, *ends], ends, strict=False)])


def unpacked(rows: Mapping[str, Array], layout: Layout) -> dict[str, Array]:
    """Turn the bytes of whole blocks into the samples of encoded fields; other fields stay as they are."""
    found = dict(rows)
    for field in layout.encoded_fields:
        assert field.encoded is not None
        lengths = rows[field.encoded.lengths].reshape(-1, layout.block_rows)
        blocks = rows[field.name].reshape(len(lengths), -1)
        found[field.name] = np.concatenate([unpack(*pair) for pair in zip(blocks, lengths, strict=True)])
    return found
