"""Chunks decoded from their stored bytes: the compressors, checksums and orders that HDF5 and Zarr have in common.

A codec's output may be as long as a hostile chunk wants it to be. So every step knows the most bytes that a rightly
encoded chunk has behind it, and refuses more before it allocates them.
"""

from __future__ import annotations

import bz2
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from numcodecs import blosc, lz4, zstd
from numcodecs.fletcher32 import Fletcher32
from numcodecs.shuffle import Shuffle

from streamtrain.errors import InputError, first_line

Buffer = Any  # bytes, or an array of them
_CHECKSUM_BYTES: Final = 4
_BLOSC_HEADER: Final = struct.Struct("<4B3I")
_GZIP_OR_ZLIB: Final = 47
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK_BYTES: Final = 1 << 17


class Undecodable(Exception):
    """A chunk's bytes are not what its codec writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One codec, undone: ``decode(data, most)`` gives at most so many bytes, or raises."""

    name: str
    decode: Callable[[Buffer, int], Buffer]
    adds_bytes: int | None = 0  # to each chunk; None where that depends on its content

    def most_bytes(self, n_bytes: int) -> int:
        """Bound the length of so many bytes as this codec writes them."""
        return n_bytes + n_bytes // 64 + 4096 if self.adds_bytes is None else n_bytes + self.adds_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCodec:
    """How a chunk became bytes: the order of its axes, its dtype, and steps in the order of encoding."""

    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    axes: tuple[int, ...] | None = None  # of the array as it was encoded

    @property
    def n_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def most_bytes(self) -> int:
        """Bytes that a stored chunk has at most."""
        most = self.n_bytes
        for step in self.steps:
            most = step.most_bytes(most)
        return most

    def decode(self, data: Buffer, where: str, *, skipped: int = 0) -> npt.NDArray[Any]:
        """Decode a whole chunk; ``skipped`` is a mask of steps that were not taken."""
        taken = [step for number, step in enumerate(self.steps) if not skipped >> number & 1]
        limits = [self.n_bytes]
        for step in taken:
            limits.append(step.most_bytes(limits[-1]))
        try:
            for step, most in zip(reversed(taken), reversed(limits[:-1]), strict=True):
                data = step.decode(data, most)
            return self._shaped(data)
        except (Undecodable, ValueError, RuntimeError, zlib.error, OSError, EOFError, struct.error) as error:
            raise InputError(
                f"a chunk does not decode: {first_line(error)}",
                where=where,
                why=f"Its codec is {', '.join(step.name for step in taken) or 'none'}, its rows take "
                f"{self.n_bytes:,} bytes decoded",
                fix="write or copy the data again",
            ) from error

    def _shaped(self, data: Buffer) -> npt.NDArray[Any]:
        found = memoryview(data).nbytes
        if found != self.n_bytes:
            kind = "short" if found < self.n_bytes else "long"
            raise Undecodable(f"it is too {kind}, {found:,} bytes")
        values = np.frombuffer(data, self.dtype)
        if self.axes is None:
            return values.reshape(self.chunks)
        encoded = values.reshape([self.chunks[axis] for axis in self.axes])
        return encoded.transpose(np.argsort(self.axes))


def named_step(name: str, *, item_bytes: int = 1) -> Step | None:
    """Return the step of a codec by its common name; None where there is none."""
    if name == "shuffle":
        return Step(name=name, decode=partial(_unshuffle, item_bytes))
    return _STEPS.get(name)


def _within(n_bytes: int, most: int) -> None:
    if n_bytes > most:
        raise Undecodable(f"it unpacks to {n_bytes:,} bytes, more than the {most:,} of its shape")


def _inflate(data: Buffer, most: int) -> bytes:
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    return _whole(stream, stream.decompress(data, most + 1), most)


def _bunzip(data: Buffer, most: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    return _whole(stream, stream.decompress(bytes(data), most + 1), most)


def _whole(stream: Any, found: bytes, most: int) -> bytes:
    _within(len(found), most)
    if not stream.eof:
        raise Undecodable("its compressed data ends too early")
    if stream.unused_data:
        raise Undecodable(f"{len(stream.unused_data):,} bytes follow its compressed data")
    return found


def _unblosc(data: Buffer, most: int) -> bytes:
    *_, n_bytes, _, n_encoded = _BLOSC_HEADER.unpack_from(data)
    _within(n_bytes, most)
    if n_encoded != len(data):
        raise Undecodable(f"its header counts {n_encoded:,} encoded bytes, and there are {len(data):,}")
    decoded: bytes = blosc.decompress(data)
    return decoded


def _unlz4(data: Buffer, most: int) -> bytes:
    (n_bytes,) = struct.unpack_from("<I", data)
    _within(n_bytes, most)
    decoded: bytes = lz4.decompress(data)
    return decoded


def _unzstd(data: Buffer, most: int) -> bytes:
    _within(zstd_bytes(data), most)
    decoded: bytes = zstd.decompress(data)
    return decoded


def zstd_bytes(data: Buffer) -> int:
    """Read from a zstd frame how long it is decoded; where it does not say, bound it by its blocks."""
    if bytes(data[:4]) != _ZSTD_MAGIC:
        raise Undecodable("it does not begin like zstd data")
    descriptor = data[4]
    is_single, size_flag = descriptor >> 5 & 1, descriptor >> 6
    place = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    n_size = (is_single, 2, 4, 8)[size_flag]
    if n_size:
        return int.from_bytes(data[place : place + n_size], "little") + (256 if n_size == 2 else 0)
    total, is_last = 0, False
    while not is_last:
        header = int.from_bytes(data[place : place + 3], "little")
        if place + 3 > len(data):
            raise Undecodable("its compressed data ends too early")
        is_last, kind, n_bytes = bool(header & 1), header >> 1 & 3, header >> 3
        total += _ZSTD_BLOCK_BYTES if kind == 2 else n_bytes
        place += 3 + (1 if kind == 1 else n_bytes)
    # A block of compressed data may hold less than it can.
    return max(0, total - _ZSTD_BLOCK_BYTES)


def _check_crc32c(data: Buffer, most: int) -> Buffer:
    body, told = memoryview(data)[:-_CHECKSUM_BYTES], bytes(data[-_CHECKSUM_BYTES:])
    if len(data) < _CHECKSUM_BYTES or crc32c(body) != int.from_bytes(told, "little"):
        raise Undecodable("its checksum (crc32c) is wrong")
    return body


def _check_fletcher32(data: Buffer, most: int) -> Buffer:
    if len(data) < _CHECKSUM_BYTES:
        raise Undecodable("it has no room for its checksum")
    return Fletcher32().decode(np.frombuffer(data, np.uint8))


def _unshuffle(item_bytes: int, data: Buffer, most: int) -> Buffer:
    n_bytes = memoryview(data).nbytes
    if n_bytes % item_bytes:
        raise Undecodable(f"{n_bytes:,} bytes are no whole number of {item_bytes:,}")
    return Shuffle(item_bytes).decode(data) if item_bytes > 1 else data


_STEPS: Final = {
    step.name: step
    for step in (
        Step(name="deflate", decode=_inflate, adds_bytes=None),
        Step(name="bz2", decode=_bunzip, adds_bytes=None),
        Step(name="blosc", decode=_unblosc, adds_bytes=None),
        Step(name="lz4", decode=_unlz4, adds_bytes=None),
        Step(name="zstd", decode=_unzstd, adds_bytes=None),
        Step(name="crc32c", decode=_check_crc32c, adds_bytes=_CHECKSUM_BYTES),
        Step(name="fletcher32", decode=_check_fletcher32, adds_bytes=_CHECKSUM_BYTES),
    )
}

CODECS: Final = (*_STEPS, "shuffle")
"""The names of all codecs that are undone here."""
