"""Rows packed in a run of bytes: the shape that .npy, raw binary and idx files share.

A `Packing` says how the rows lie; `PackedSource` reads them from a plain file, any range, from any thread, and
holds nothing but the rows asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.sources.inputs import read_range
from streamtrain.sources.protocol import Rows
from streamtrain.sources.rows import as_field, check_range, field_of, read_in_order
from streamtrain.store.layout import Field

_MOST_AXES: Final = 32  # what every NumPy can hold
_MOST_BYTES: Final = 2**96  # of less, a message can give the size


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How the rows of one field lie in a run of bytes.

    Parameters
    ----------
    field : Field
        What the rows become.
    stored : numpy.dtype
        The dtype they are stored with, in any byte order.
    n_rows : int
        How many there are.
    offset : int
        Bytes before the first one.
    fortran_order : bool
        Stored feature by feature (the first axis varies fastest), not row by row.
    """

    field: Field
    stored: np.dtype[Any]
    n_rows: int
    offset: int
    fortran_order: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows as stored."""
        return self.n_rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored."""
        return math.prod(self.field.shape) * self.stored.itemsize

    def empty(self, n_rows: int) -> npt.NDArray[Any]:
        """Uninitialised memory for so many rows as stored, in C order."""
        return np.empty((n_rows, *self.field.shape), self.stored)

    def unpacked(self, out: npt.NDArray[Any], place: Callable[[int], str]) -> npt.NDArray[Any]:
        """Turn rows as stored, in memory of our own, into the field's: bytes are swapped where they lie."""
        native = out if out.dtype.isnative else out.byteswap(inplace=True).view(out.dtype.newbyteorder("="))
        return as_field(native, self.field, place)

    def columns(self) -> Iterator[tuple[int, ...]]:
        """The index of every column in the transposed rows, in the order Fortran keeps them."""
        return iter(np.ndindex(*self.field.shape[::-1]))


def packing_of(
    name: str, stored: np.dtype[Any], shape: tuple[int, ...], offset: int, *, where: str, fortran_order: bool = False
) -> Packing:
    """Describe a whole array in a file: its first axis are the samples.

    Raises
    ------
    InputError
        The array has no axis of samples, no samples, a dtype that is not supported, or a size that cannot be.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSource:
    """A plain file of packed rows, read range by range."""

    path: Path
    packing: Packing
    provenance: tuple[dict[str, Any], ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        """The one field."""
        return (self.packing.field,)

    @property
    def n_samples(self) -> int:
        """How many rows the header and the file's size agree on."""
        return self.packing.n_rows

    @property
    def classes(self) -> None:
        """None: packed labels are numbers."""

    def where(self, row: int) -> str:
        """The file and the row in it."""
        return f"{self.path} row {row}"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order."""
        return read_in_order(self, max_bytes)

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop)."""
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
