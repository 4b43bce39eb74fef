"""NumPy's .npy: one array with a header. The header is parsed, never trusted, and no object is ever rebuilt.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1.0 to 3.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Final, cast

import numpy as np

from streamtrain.errors import InputError
from streamtrain.sources.inputs import ByteStream, check_size, open_bytes, provenance_of, refuse_options
from streamtrain.sources.packed import PackedSource, Packing, packing_of
from streamtrain.sources.protocol import SourceOptions

_PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a .npy header says, and how many bytes it takes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    n_bytes: int

    def packing(self, name: str, *, where: str) -> Packing:
        """How the rows lie behind the header; the first axis are the samples."""
        return packing_of(name, self.dtype, self.shape, self.n_bytes, where=where, fortran_order=self.fortran_order)


def probe(path: Path, options: SourceOptions) -> PackedSource:
    """Open one .npy file as field ``x``: its header against its size, nothing else read.

    Raises
    ------
    InputError
        The file is no .npy, is truncated, or holds what a field cannot.
    """
    refuse_options(path, ".npy", options, "label_column", "columns", "dtype", "shape")
    provenance = provenance_of(path, "npy")
    with open_bytes(path) as file:
        header = read_header(file, where=str(path))
    packing = header.packing("x", where=str(path))
    claim = f"shape {header.shape} of {header.dtype}"
    check_size(provenance[0]["bytes"], header.n_bytes + packing.n_bytes, where=str(path), claim=claim)
    return PackedSource(path=path, packing=packing, provenance=provenance)


class _Counting:
    """A stream that knows how much of it was read: zip members do not all tell."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.n_bytes = 0

    def read(self, n_bytes: int = -1) -> bytes:
        # A stream sets aside as much as is asked for, which is what a header claims; numpy asks again for the rest.
        piece = self._stream.read(min(n_bytes, _PIECE_BYTES) if n_bytes >= 0 else n_bytes)
        self.n_bytes += len(piece)
        return piece


def read_header(stream: ByteStream, *, where: str) -> Header:
    """Read a .npy header from the start of a stream, which is left at the first element."""
    counting = _Counting(stream)
    try:
        shape, fortran_order, dtype = _parse(cast("IO[bytes]", counting))
    except (ValueError, TypeError, EOFError, SyntaxError, OverflowError, RecursionError, TokenError) as error:
        # numpy's own words advise to allow pickle: they stay in the chain and out of the message.
        raise InputError(
            "the .npy header is not valid", where=where, fix="write the file again with np.save"
        ) from error
    if any(length < 0 for length in shape):
        raise InputError(f"the .npy header claims a negative shape {shape}", where=where, fix="write the file again")
    return Header(dtype=dtype, shape=shape, fortran_order=fortran_order, n_bytes=counting.n_bytes)


def _parse(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version in ((2, 0), (3, 0)):
        # 3.0 is 2.0 with UTF-8 names of structured members, and those are refused by their dtype.
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"unknown .npy version {version}")
