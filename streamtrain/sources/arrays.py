"""NumPy arrays and memmaps, and whatever else has a shape, a dtype and slices: read where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.sources.protocol import Rows
from streamtrain.sources.rows import as_field, check_range, field_of, read_in_order
from streamtrain.store.layout import Field


@runtime_checkable
class ArrayLike(Protocol):
    """What an array needs to be read: a memmap, a Zarr array or an HDF5 dataset has it too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""

    def __getitem__(self, rows: slice, /) -> Any:
        """A run of rows, as an array or something that becomes one."""


def is_array(value: object) -> TypeGuard[ArrayLike]:
    """Whether a value can be read by slices without conversion."""
    return isinstance(value, ArrayLike) and isinstance(value.dtype, np.dtype)


def to_array(value: object, where: str) -> npt.NDArray[Any]:
    """Let a value become an array: a list, a tensor, a table's column.

    Raises
    ------
    InputError
        It cannot.
    """
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        what = f"a {type(value).__name__} does not become an array"
        raise InputError(what, where=where, why=str(error), fix="give a NumPy array") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedArrays:
    """Arrays of one length, by field name; how they are read, a subclass says."""

    KIND: ClassVar[str]
    NAME: ClassVar[str]

    arrays: Mapping[str, Any]
    fields: tuple[Field, ...]
    n_samples: int

    @property
    def classes(self) -> None:
        """None: labels in arrays are numbers."""

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """Of which kind the arrays were; they have no path."""
        return ({"format": self.KIND},)

    def where(self, row: int) -> str:
        """The row."""
        return f"row {row} of the {self.NAME}"


class ArraySource(NamedArrays):
    """Arrays that any range of rows can be read from."""

    __slots__ = ()
    KIND = "array"
    NAME = "arrays"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield all rows in order."""
        return read_in_order(self, max_bytes)

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop): views of the caller's memory where nothing has to be converted."""
        check_range(start, stop, self.n_samples)
        return {field.name: self._read_field(field, start, stop) for field in self.fields}

    def _read_field(self, field: Field, start: int, stop: int) -> npt.NDArray[Any]:
        values = np.asarray(self.arrays[field.name][start:stop])
        return as_field(values, field, lambda row: f"array {field.name!r} row {start + row}")


def from_arrays(arrays: Mapping[str, ArrayLike]) -> ArraySource:
    """Open arrays as fields of their names.

    Parameters
    ----------
    arrays : mapping of str to array of shape (n_samples, ...)
        All of the same length.

    Raises
    ------
    InputError
        An array is 0-d, empty or of a dtype that is not supported, or the lengths differ.

    Examples
    --------
    >>> source = from_arrays({"x": np.zeros((5, 2), "f4"), "y": np.arange(5, dtype="u1")})
    >>> source.n_samples, source.read(3, 5)["y"]
    (5, array([3, 4]))
    """
    return ArraySource(arrays=arrays, fields=fields_of(arrays), n_samples=common_length(arrays))


def fields_of(arrays: Mapping[str, ArrayLike]) -> tuple[Field, ...]:
    """What arrays are as fields; refuses one without an axis of samples."""
    return tuple(_field(name, array) for name, array in arrays.items())


def common_length(arrays: Mapping[str, ArrayLike]) -> int:
    """The number of rows that all arrays have; no fewer than one."""
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(
            f"the arrays differ in rows: {listed}",
            why="Every field has one row per sample",
            fix="give arrays of one length",
        )
    n_samples = next(iter(lengths.values()))
    if n_samples == 0:
        raise InputError("the arrays hold no samples", where=", ".join(lengths), fix="give at least one row")
    return n_samples


def _field(name: str, array: ArrayLike) -> Field:
    where = f"array {name!r}"
    if not array.shape:
        raise InputError("a 0-d array has no axis of samples", where=where, fix="give an array of at least one axis")
    return field_of(name, array.dtype, array.shape[1:], where=where)
