"""The layout of a dataset: its fields, and the arithmetic of rows, blocks, shards and bytes.

A dataset is a few *fields* over the same samples. A *block* is the same run of ``block_rows`` samples in every field,
one Zarr inner chunk per field; a *shard* is one file of ``shard_blocks`` blocks of one field. The last block is stored
at its full size, padded with zeros, as Zarr does.

The samples of an *encoded* field are the bytes of a file each. A block holds them end to end, in as many bytes as the
largest block needs; how long each is stands in a field of its own. A row of such a field is an equal share of a block,
so that the arithmetic of rows and blocks is that of every other field.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from streamtrain.errors import UsageError
from streamtrain.system.calls.public import public
from streamtrain.system.json_values import objects, whole_number

Codec = Literal["none", "lz4", "zstd"]
CODECS: Final[tuple[Codec, ...]] = ("none", "lz4", "zstd")

_DTYPES: Final = frozenset(
    {
        "bool",
        "float16",
        "float32",
        "float64",
        *(f"{sign}int{n_bits}" for sign in ("", "u") for n_bits in (8, 16, 32, 64)),
    }
)
_MOST_AXES: Final = 31  # of a sample: with that of the samples what every NumPy can hold

PAGE_BYTES: Final = 4096
CHECKSUM_BYTES: Final = 4
UNKNOWN_SAMPLES: Final = 2**62
"""The row count of a layout whose end is not known yet."""

_BLOCK_BYTES: Final = 512 * 2**10
_BLOCK_BYTES_LEAST: Final = 16 * 2**10
_BLOCKS_WANTED: Final = 2_000
_RESERVED: Final = frozenset({"count", "index"})
_DEVICES: Final = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))})
_MOST_NAME_BYTES: Final = 255  # what file systems allow a name
_ENCODED_BLOCK_BYTES: Final = 2**20
ENCODED_CODEC: Final[Codec] = "lz4"
"""That of encoded fields: it takes the zeros after a block's last sample, and leaves what is packed as it is."""

Check = Literal["full", "header"]
CHECKS: Final[tuple[Check, ...]] = ("full", "header")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Facts of a field whose samples are the bytes of an image file each.

    Parameters
    ----------
    lengths : str
        The field that holds the length of each sample.
    check : {"full", "header"}
        Whether every image was decoded when it was stored, which also gave its channels' statistics, or opened only.
    """

    lengths: str
    check: Check = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One named array; its first axis (samples) is left out of ``shape``.

    Parameters
    ----------
    name : str
        An identifier; not ``count`` or ``index``, which a named tuple needs, and not starting with ``_``.
    dtype : numpy.dtype
        A bool, integer or float type in native byte order.
    shape : tuple of int
        The shape of one sample; ``()`` for a scalar.
    encoded : Encoded, optional
        Where a sample is the bytes of a file: facts of it. Then ``shape`` is a sample's equal share of its block.

    Examples
    --------
    >>> Field(name="x", dtype=np.dtype("uint8"), shape=(28, 28)).row_bytes
    784
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    encoded: Encoded | None = None

    @public
    def __post_init__(self) -> None:
        if (
            not isinstance(self.name, str)
            or not self.name.isidentifier()
            or self.name.startswith("_")
            or self.name in _RESERVED
        ):
            raise UsageError(
                f"field name {self.name!r} is not usable",
                why="A field name is a Python identifier without a leading underscore, and not 'count' or 'index'",
                fix="rename the field",
            )
        if len(self.name.encode()) > _MOST_NAME_BYTES:
            raise UsageError(
                f"field name {self.name[:20]!r}... is not usable: it takes {len(self.name.encode())} bytes",
                why=f"A field is a folder of its name, which has at most {_MOST_NAME_BYTES}",
                fix="rename the field",
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample of this field."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def sample_kind(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of a sample in memory: one object of type bytes, where it is encoded."""
        return (np.dtype(object), ()) if self.encoded else (self.dtype, self.shape)

    @property
    def kind_text(self) -> str:
        """Dtype and shape of a sample, in words."""
        return "images" if self.encoded else f"{self.dtype.name}{list(self.shape) or ''}"

    def empty(self, n_samples: int) -> npt.NDArray[Any]:
        """Make room for so many samples."""
        dtype, shape = self.sample_kind
        return np.empty((n_samples, *shape), dtype)


def parse_field(name: object, dtype: object, shape: object, encoded: object = None) -> Field:
    """Make a field of what a file says of it; refuse with ValueError whatever no field of ours is."""
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.60} is not the name of a field")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{dtype!r:.60} is not a dtype that streamtrain stores")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise ValueError(f"{shape!r:.60} is not the shape of a sample")
    sizes = tuple(whole_number(n, 1) for n in shape)
    facts = None if encoded is None else _parse_encoded(encoded)
    if facts is not None and (dtype != "uint8" or len(sizes) != 1):
        raise ValueError(f"{name!r:.60} does not hold encoded samples")
    return Field(name=name, dtype=np.dtype(dtype), shape=sizes, encoded=facts)


def _parse_encoded(found: object) -> Encoded:
    facts = objects([found])[0]
    lengths, check = facts.get("lengths"), facts.get("check")
    if facts.keys() != {"lengths", "check"} or not isinstance(lengths, str) or check not in CHECKS:
        raise ValueError("the facts of an encoded field make no sense")
    return Encoded(lengths=lengths, check=check)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The facts of a stored dataset that reading it depends on.

    Examples
    --------
    >>> x = Field(name="x", dtype=np.dtype("uint8"), shape=(28, 28))
    >>> y = Field(name="y", dtype=np.dtype("int64"), shape=())
    >>> layout = Layout(fields=(x, y), n_samples=1000, block_rows=64, shard_blocks=8, codec="lz4")
    >>> layout.n_blocks, layout.n_shards, layout.block_bytes, layout.block_range(15)
    (16, 2, 50688, (960, 1000))
    """

    fields: tuple[Field, ...]
    n_samples: int
    block_rows: int
    shard_blocks: int
    codec: Codec

    @property
    def n_blocks(self) -> int:
        """Blocks of the dataset; the last may hold fewer than ``block_rows`` samples."""
        return -(-self.n_samples // self.block_rows)

    @property
    def n_shards(self) -> int:
        """Shard files of each field."""
        return -(-self.n_blocks // self.shard_blocks)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample over all fields."""
        return sum(field.row_bytes for field in self.fields)

    @property
    def block_bytes(self) -> int:
        """Decoded bytes of one block over all fields."""
        return self.row_bytes * self.block_rows

    @property
    def n_bytes(self) -> int:
        """Decoded bytes of all samples."""
        return self.row_bytes * self.n_samples

    def block_range(self, block: int) -> tuple[int, int]:
        """The samples of a block, as a half-open range."""
        start = block * self.block_rows
        return start, min(start + self.block_rows, self.n_samples)

    def shard_blocks_range(self, shard: int) -> tuple[int, int]:
        """The blocks of a shard, as a half-open range."""
        start = shard * self.shard_blocks
        return start, min(start + self.shard_blocks, self.n_blocks)

    def field(self, name: str) -> Field:
        """The field of that name."""
        return next(field for field in self.fields if field.name == name)

    def codec_of(self, field: Field) -> Codec:
        """The compression of a field."""
        return ENCODED_CODEC if field.encoded else self.codec

    @property
    def is_compressed(self) -> bool:
        """Whether any field is."""
        return any(self.codec_of(field) != "none" for field in self.fields)

    @property
    def encoded_fields(self) -> tuple[Field, ...]:
        """The fields whose samples are the bytes of a file each."""
        return tuple(field for field in self.fields if field.encoded)

    @property
    def own_fields(self) -> tuple[Field, ...]:
        """The fields that say something of a sample: not the lengths of encoded ones."""
        lengths = {field.encoded.lengths for field in self.fields if field.encoded}
        return tuple(field for field in self.fields if field.name not in lengths)

    @property
    def batch_fields(self) -> tuple[Field, ...]:
        """The fields of a loader's batch, as they lie in memory."""
        return self.own_fields

    @property
    def batch_row_bytes(self) -> int:
        """Bytes of one sample in a batch."""
        return sum(field.row_bytes for field in self.batch_fields)

    @property
    def decoder_bytes(self) -> int:
        """Bytes that a thread of a loader takes to decode a sample for its batch."""
        return 0


Capacity = Callable[[Field, int], int]
"""Bytes of the largest block of an encoded field, of so many rows."""


def plan_layout(
    fields: tuple[Field, ...],
    n_samples: int | None,
    *,
    block_bytes: int | None = None,
    shard_bytes: int,
    codec: Codec,
    capacity: Capacity | None = None,
) -> Layout:
    """Choose the rows of a block and the blocks of a shard.

    A block is 512 KiB over all fields, 1 MiB where one is encoded; less for small data, so that there are about 2,000
    to shuffle, down to 16 KiB. Where a block holds enough rows, their number is such that a block of the largest field
    is whole pages, which direct reads need to be fast.
    """
    n_rows = UNKNOWN_SAMPLES if n_samples is None else n_samples
    _check_names(fields)
    is_encoded = any(field.encoded for field in fields)
    row_bytes = sum(field.row_bytes for field in fields)
    largest = max(field.row_bytes for field in fields)
    most = _ENCODED_BLOCK_BYTES if is_encoded else _BLOCK_BYTES
    target = max(_BLOCK_BYTES_LEAST, min(most, row_bytes * n_rows // _BLOCKS_WANTED))
    block_rows = max(1, (block_bytes or target) // row_bytes)
    if is_encoded:
        # A power of two, so that a row's share of whole pages is whole bytes.
        block_rows = 1 << min(block_rows, n_rows, PAGE_BYTES).bit_length() - 1
    else:
        block_rows = max(1, min(_page_aligned(block_rows, largest), n_rows))
    if capacity is not None:
        fields = tuple(with_capacity(field, block_rows, capacity) for field in fields)
        largest = max(field.row_bytes for field in fields)
    n_blocks = -(-n_rows // block_rows)
    shard_blocks = max(1, min(shard_bytes // (block_rows * largest), n_blocks))
    return Layout(fields=fields, n_samples=n_rows, block_rows=block_rows, shard_blocks=shard_blocks, codec=codec)


def with_capacity(field: Field, block_rows: int, capacity: Capacity) -> Field:
    """Give an encoded field blocks of whole pages that hold the largest; leave others as they are."""
    if field.encoded is None:
        return field
    pages = max(1, -(-capacity(field, block_rows) // PAGE_BYTES))
    return replace(field, shape=(pages * PAGE_BYTES // block_rows,))


def _check_names(fields: tuple[Field, ...]) -> None:
    """Refuse names that some file systems take for one and the same, or for a device."""
    taken: dict[str, str] = {}
    for name in (field.name for field in fields):
        folded = unicodedata.normalize("NFKC", name).casefold()
        fix = "rename the field"
        if folded in _DEVICES:
            raise UsageError(f"field name {name!r} is not usable: Windows reserves it for a device", fix=fix)
        if (other := taken.setdefault(folded, name)) is not name:
            what = f"fields {other!r} and {name!r} would share a folder on a disk that ignores case"
            raise UsageError(what, fix=fix)


def _page_aligned(block_rows: int, row_bytes: int) -> int:
    """Round to the nearest number of rows that fills whole pages, where there are enough rows."""
    step = PAGE_BYTES // math.gcd(PAGE_BYTES, row_bytes)
    return block_rows if block_rows < step else (block_rows + step // 2) // step * step
