"""Raw binary and NumPy's .npy: rows packed in a run of bytes.

A `Packing` says how the rows lie; `PackedSource` reads them from a plain file, any range, from any thread, and holds
nothing but the rows asked for. Raw binary has no header, so the caller gives dtype and shape. A .npy header is parsed,
never trusted, and no object is ever rebuilt.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1.0 to 3.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Final, cast

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import Rows, Source, SourceOptions, as_field, check_range, field_of
from streamtrain.ingestion.sources.input_files import (
    ByteStream,
    check_size,
    open_bytes,
    provenance_of,
    read_range,
    refuse_options,
)
from streamtrain.store.layout import Field
from streamtrain.system.arguments import is_int

_MOST_AXES: Final = 32  # what every NumPy can hold
_MOST_BYTES: Final = 2**96  # of less, a message can give the size


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How the rows of one field lie in a run of bytes."""

    field: Field
    stored: np.dtype[Any]  # in any byte order
    n_rows: int
    offset: int
    fortran_order: bool = False  # feature by feature: the first axis varies fastest

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows as stored."""
        return self.n_rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored."""
        return math.prod(self.field.shape) * self.stored.itemsize

    def empty(self, n_rows: int) -> npt.NDArray[Any]:
        """Allocate memory for so many rows as stored, in C order."""
        return np.empty((n_rows, *self.field.shape), self.stored)

    def unpacked(self, out: npt.NDArray[Any], place: Callable[[int], str]) -> npt.NDArray[Any]:
        """Turn rows as stored into the field's; swap bytes where they lie."""
        native = out if out.dtype.isnative else out.byteswap(inplace=True).view(out.dtype.newbyteorder("="))
        return as_field(native, self.field, place)

    def columns(self) -> Iterator[tuple[int, ...]]:
        """Yield the index of every column in the transposed rows, in Fortran's order."""
        return iter(np.ndindex(*self.field.shape[::-1]))


def packing_of(
    name: str, stored: np.dtype[Any], shape: tuple[int, ...], offset: int, *, where: str, fortran_order: bool = False
) -> Packing:
    """Describe a whole array in a file: its first axis are the samples."""
    if not shape:
        raise InputError("a 0-d array has no axis of samples", where=where, fix="store an array of at least one axis")
    if len(shape) > _MOST_AXES or math.prod(max(1, length) for length in shape) * stored.itemsize >= _MOST_BYTES:
        raise InputError(
            f"the header claims {len(shape)} axes of more bytes than any file has",
            where=where,
            fix="check that the file is what its name says",
        )
    field = field_of(name, stored, shape[1:], where=where)
    if shape[0] == 0:
        raise InputError(f"shape {shape} holds no samples", where=where, fix="leave the file out")
    # With one axis both orders are the same, and row by row is the cheaper one to read.
    by_column = fortran_order and len(shape) > 1
    return Packing(field=field, stored=stored, n_rows=shape[0], offset=offset, fortran_order=by_column)


class PackedSource(Source):
    """A plain file of packed rows, read range by range."""

    seekable = True
    n_samples: int

    def __init__(self, path: Path, packing: Packing, provenance: tuple[dict[str, Any], ...]) -> None:
        self.path, self.packing, self.provenance = path, packing, provenance
        self.fields, self.n_samples = (packing.field,), packing.n_rows

    def where(self, row: int) -> str:
        return f"{self.path} row {row}"

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        out = self.packing.empty(stop - start)
        if self.packing.fortran_order:
            self._read_columns(start, out)
        else:
            read_range(self.path, self.packing.offset + start * self.packing.row_bytes, out)
        return {self.packing.field.name: self.packing.unpacked(out, lambda row: self.where(start + row))}

    def _read_columns(self, start: int, out: npt.NDArray[Any]) -> None:
        column = np.empty(len(out), self.packing.stored)
        for number, index in enumerate(self.packing.columns()):
            first = number * self.packing.n_rows + start
            read_range(self.path, self.packing.offset + first * self.packing.stored.itemsize, column)
            out.T[index] = column


def probe_raw(path: Path, options: SourceOptions) -> PackedSource:
    """Open a raw binary file as field ``x`` of the dtype and sample shape in the options."""
    refuse_options(path, "raw binary", options, "label_column", "columns")
    provenance = provenance_of(path, "raw")
    if options.dtype is None or options.shape is None:
        missing = " and ".join(name for name in ("dtype", "shape") if getattr(options, name) is None)
        raise UsageError(
            f"raw binary needs the {missing} of one sample",
            where=str(path),
            why="The file itself does not say what it holds",
            fix=Fix(
                *(Argument("dtype", "float32"), " and ", Argument("shape", (3, 32, 32)), ", say; "),
                *("one number per sample is ", Argument("shape", ())),
            ),
        )
    if any(length < 1 for length in options.shape):
        raise UsageError(
            f"shape {options.shape} has an axis below 1", where=str(path), fix="give the shape of one sample"
        )
    n_bytes = provenance[0]["bytes"]
    row_bytes = options.dtype.itemsize * math.prod(options.shape)
    if n_bytes % max(1, row_bytes):
        raise InputError(
            f"{n_bytes:,} bytes are not a whole number of samples: {n_bytes % row_bytes:,} are left over",
            where=str(path),
            why=f"A sample of shape {options.shape} and dtype {options.dtype} has {row_bytes:,} bytes",
            fix="correct the dtype or the shape, or write the file again",
        )
    shape = (n_bytes // max(1, row_bytes), *options.shape)
    packing = packing_of("x", options.dtype, shape, 0, where=str(path))
    return PackedSource(path, packing, provenance)


_PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyHeader:
    """The content of a .npy header, and how many bytes it takes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    n_bytes: int

    def packing(self, name: str, *, where: str) -> Packing:
        """Describe the rows behind the header; the first axis are the samples."""
        return packing_of(name, self.dtype, self.shape, self.n_bytes, where=where, fortran_order=self.fortran_order)


def probe_npy(path: Path, options: SourceOptions) -> PackedSource:
    """Open one .npy file as field ``x``: its header against its size, nothing else read."""
    refuse_options(path, ".npy", options, "label_column", "columns", "dtype", "shape")
    provenance = provenance_of(path, "npy")
    with open_bytes(path) as file:
        header = read_header(file, where=str(path))
    packing = header.packing("x", where=str(path))
    claim = f"shape {header.shape} of {header.dtype}"
    check_size(provenance[0]["bytes"], header.n_bytes + packing.n_bytes, where=str(path), claim=claim)
    return PackedSource(path, packing, provenance)


class _CountingReader:
    """A stream that counts the bytes read: zip members do not all tell."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.n_bytes = 0

    def read(self, n_bytes: int = -1) -> bytes:
        # A stream sets aside as much as is asked for, which is what a header claims; numpy asks again for the rest.
        piece = self._stream.read(min(n_bytes, _PIECE_BYTES) if n_bytes >= 0 else n_bytes)
        self.n_bytes += len(piece)
        return piece


def read_header(stream: ByteStream, *, where: str) -> NpyHeader:
    """Read a .npy header from the start of a stream, which is left at the first element."""
    counting = _CountingReader(stream)
    try:
        shape, fortran_order, dtype = _parse(cast("IO[bytes]", counting))
    except (ValueError, TypeError, EOFError, SyntaxError, OverflowError, RecursionError, TokenError) as error:
        # numpy's own words advise to allow pickle: they stay in the chain and out of the message.
        raise InputError(
            "the .npy header is not valid", where=where, fix="write the file again with np.save"
        ) from error
    if not all(is_int(length, 0) for length in shape):
        what = f"the .npy header claims the shape {shape}, which is not one of whole numbers from 0"
        raise InputError(what, where=where, fix="write the file again with np.save")
    return NpyHeader(dtype=dtype, shape=shape, fortran_order=fortran_order, n_bytes=counting.n_bytes)


def _parse(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version in ((2, 0), (3, 0)):
        # 3.0 is 2.0 with UTF-8 names of structured members, and those are refused by their dtype.
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"unknown .npy version {version}")
