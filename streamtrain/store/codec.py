"""The codec chain of a stored block: little-endian bytes, blosc (or nothing), crc32c.

The encoded bytes are followed by their crc32c, four bytes, little-endian: Zarr's ``crc32c`` codec. The same number
stands in the dataset's checksum table, so a block that was swapped for another valid one is detected. Blosc runs on the
calling thread alone.

The checksum of joined bytes follows from those of the parts. A crc is linear: that of ``a + b`` is the crc of ``a``,
shifted by the length of ``b``, xor the crc of ``b``. A shift is a 32 × 32 matrix over the integers modulo 2; those for
powers of two are kept as tables of bytes. (The idea is that of Mark Adler's crc32_combine in zlib.)
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from numcodecs import blosc

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.store.layout import CHECKSUM_BYTES, CODECS, Codec, Layout

Array = npt.NDArray[Any]
BytesLike = bytes | bytearray | memoryview
CodecChoice = Literal["auto", "none", "lz4", "zstd"]

LEVELS: Final[dict[Codec, int]] = {"lz4": 5, "zstd": 3}
SHUFFLE: Final = "bitshuffle"
NO_SHUFFLE: Final = "noshuffle"
MOST_ENCODABLE_BYTES: Final = 2**31 - 1 - 16
"""Blosc takes no larger buffer."""

HEADER_BYTES: Final = 16
"""Of what blosc writes; also the most by which encoding makes a block longer."""

TRIAL_BLOCKS: Final = 8
TRIAL_BYTES: Final = 4 * 2**20
_LZ4_WORTH: Final = 0.90  # of the raw size
_ZSTD_WORTH: Final = 0.85  # of what lz4 leaves: it decodes three times slower


def encode(block: Array, codec: Codec, *, shuffles: bool = True) -> bytes | memoryview:
    """Encode one whole C-contiguous block, without its checksum; uncompressed it is a view."""
    if sys.byteorder == "big":
        block = block.astype(block.dtype.newbyteorder("<"))
    data = block.reshape(-1).view(np.uint8).data
    if codec == "none":
        return data
    shuffle = blosc.BITSHUFFLE if shuffles else blosc.NOSHUFFLE
    encoded: bytes = blosc.compress(data, codec.encode(), LEVELS[codec], shuffle, 0, block.dtype.itemsize)
    return encoded


def decode(data: BytesLike, out: Array, codec: Codec) -> None:
    """Decode a block's encoded bytes, without the checksum, into a C-contiguous array of the block's full shape."""
    if codec == "none":
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    else:
        blosc.decompress(data, out)
    if sys.byteorder == "big":
        out.byteswap(inplace=True)


def header_mismatch(header: BytesLike, *, encoded_bytes: int, n_bytes: int) -> str | None:
    """Describe what is wrong in an encoded block's header, so that decoding fills its memory exactly."""
    if encoded_bytes < HEADER_BYTES:
        return f"It has {encoded_bytes} encoded bytes, less than their header of {HEADER_BYTES}"
    # c-blosc, README_CHUNK_FORMAT: the sizes stand at bytes 4 and 12.
    decoded, _, encoded = struct.unpack_from("<III", header, 4)
    if encoded != encoded_bytes:
        return f"It says it has {encoded:,} encoded bytes; {encoded_bytes:,} are stored"
    return None if decoded == n_bytes else f"It would decode to {decoded:,} bytes; a block has {n_bytes:,}"


def checksum(data: BytesLike, start: int = 0) -> int:
    """Compute the crc32c of some bytes, or of those of ``start`` and these together (Castagnoli; RFC 3720)."""
    return int(crc32c(data, start))


def checksum_bytes(value: int) -> bytes:
    """Encode a checksum as it is stored after its bytes."""
    return value.to_bytes(CHECKSUM_BYTES, "little")


def parse_codec(codec: str) -> CodecChoice:
    """Check a codec's name."""
    choices: tuple[CodecChoice, ...] = ("auto", *CODECS)
    for choice in choices:
        if isinstance(codec, str) and choice == codec:
            return choice
    raise unknown_name("codec", f"{codec!s:.80}", choices)


def trial_rows(layout: Layout) -> int:
    """Count the first rows that `choose_codec` tries."""
    rows = min(TRIAL_BLOCKS * layout.block_rows, TRIAL_BYTES // layout.row_bytes, layout.n_samples)
    return max(1, rows)


def choose_codec(first_rows: Sequence[Array], block_rows: int) -> Codec:
    """Choose the compression from the sizes it gives the first blocks, never from a clock: a rerun chooses the same.

    zstd where it leaves at most 85 % of what lz4 does, else lz4 where it saves at least 10 %, else none.
    """
    arrays = [np.ascontiguousarray(rows) for rows in first_rows]
    if any(array[:block_rows].nbytes > MOST_ENCODABLE_BYTES for array in arrays):
        return "none"
    pieces = [array[at : at + block_rows] for array in arrays for at in range(0, len(array), block_rows)]
    raw = sum(piece.nbytes for piece in pieces)
    sizes = {codec: sum(len(encode(piece, codec)) for piece in pieces) for codec in LEVELS}
    if sizes["zstd"] <= _ZSTD_WORTH * min(sizes["lz4"], raw):
        return "zstd"
    return "lz4" if sizes["lz4"] <= _LZ4_WORTH * raw else "none"


def check_encodable(layout: Layout) -> None:
    """Refuse blocks that the layout's compression cannot take."""
    largest = max(field.row_bytes for field in layout.fields) * layout.block_rows
    if layout.is_compressed and largest > MOST_ENCODABLE_BYTES:
        raise UsageError(
            f"a block of {largest} bytes cannot be compressed: blosc takes at most {MOST_ENCODABLE_BYTES}",
            fix=Fix(Argument("codec", "none"), ", or a smaller ", Argument("block")),
        )


_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, reflected (RFC 3720)

ByteTable = tuple[int, ...]
CrcShift = tuple[ByteTable, ByteTable, ByteTable, ByteTable]
"""For each byte of a crc, what it becomes; the whole is their xor."""


def combine_crc32c(first: int, second: int, second_bytes: int) -> int:
    """Compute the crc32c of two runs of bytes, one after the other."""
    power = 0
    while second_bytes:
        if second_bytes & 1:
            a, b, c, d = _move(power)
            first = a[first & 255] ^ b[first >> 8 & 255] ^ c[first >> 16 & 255] ^ d[first >> 24]
        second_bytes >>= 1
        power += 1
    return first ^ second


@lru_cache(maxsize=64)
def _move(power: int) -> CrcShift:
    """Shift a crc by 2 ** ``power`` more bytes."""
    if power == 0:
        columns = [_after_one_byte(1 << bit) for bit in range(32)]
    else:
        a, b, c, d = _move(power - 1)
        half = [a[1 << bit] for bit in range(8)] + [b[1 << bit] for bit in range(8)]
        half += [c[1 << bit] for bit in range(8)] + [d[1 << bit] for bit in range(8)]
        columns = [a[x & 255] ^ b[x >> 8 & 255] ^ c[x >> 16 & 255] ^ d[x >> 24] for x in half]
    return _table(columns[:8]), _table(columns[8:16]), _table(columns[16:24]), _table(columns[24:])


def _after_one_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc


def _table(columns: list[int]) -> ByteTable:
    table = [0]
    for column in columns:
        table += [value ^ column for value in table]
    return tuple(table)
