"""An array of a hierarchy: its grid of chunks, its attributes, and each chunk by its place, from any thread."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError
from streamtrain.ingestion.sources.input_files import read_range
from streamtrain.system.units import format_bytes

Index = tuple[int, ...]
PLACE_BYTES: Final = 24
"""Of the table of an array's chunks, for each: where it lies, how long it is, and what was left out of its encoding."""

COPIES: Final = 3
"""Of a chunk, while it is decoded."""

ABSENT: Final = -1
_BESIDE_BYTES: Final = 2**25  # what an ingest takes beside the source
_IMPLAUSIBLE_BYTES: Final = 2**48
_MOST_RATIO: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGrid:
    """The shape of an array, and of its chunks; those at its far edges are cut off by it."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-length // chunk) for length, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def n_chunks(self) -> int:
        """All chunks, absent ones too."""
        return math.prod(self.counts)

    @property
    def n_rows(self) -> int:
        """Rows of one row of chunks."""
        return min(self.chunks[0], self.shape[0])

    @property
    def n_across(self) -> int:
        """Chunks that make one row of them."""
        return math.prod(self.counts[1:])

    def index(self, number: int) -> Index:
        """Return the place of a chunk from its number in C order."""
        return tuple(int(place) for place in np.unravel_index(number, self.counts))

    def box(self, index: Index) -> tuple[slice, ...]:
        """Return what of the array a chunk holds."""
        return tuple(
            slice(place * chunk, min((place + 1) * chunk, length))
            for place, chunk, length in zip(index, self.chunks, self.shape, strict=True)
        )


def unfit_shape(shape: tuple[int, ...], where: str) -> InputError | None:
    """Say why a shape has no samples."""
    if not shape:
        what, fix = "it is a single value, without an axis of samples", "name an array whose first axis is samples"
        return InputError(what, where=where, fix=fix)
    if 0 in shape:
        return InputError(f"its shape {shape} holds no samples", where=where, fix="leave it out")
    return None


class StoredArray(ABC):
    """An array of a hierarchy; `locate` finds its chunks, and is called once where it becomes a field.

    Attributes
    ----------
    name : str
        Its path in the hierarchy.
    grid : ChunkGrid
        Its shape and chunks; of one that is not chunked, all of it.
    attributes : mapping
        Those of the CF conventions, numbers as NumPy has them.
    is_coordinate : bool
        Whether it only tells what the places along an axis are.
    unfit : InputError or None
        Why it cannot be a field, to be raised where it is asked for.
    is_elsewhere : bool
        Whether that is since its values lie elsewhere, which a file from elsewhere could choose.
    has_typed_attributes : bool
        Whether attributes have dtypes, as those of HDF5 do; JSON's numbers have none.
    is_chunked : bool
        Whether it is stored in the grid's chunks; else they are what is read at once.
    offset : int or None
        Where its rows lie in ``path``, one after another; None where they lie in chunks.
    """

    has_typed_attributes = False

    def __init__(self, name: str, path: Path, grid: ChunkGrid, dtype: np.dtype[Any], fill: Any) -> None:
        self.name, self.path, self.grid, self.dtype, self.fill = name, path, grid, dtype, fill
        self.attributes: Mapping[str, Any] = {}
        self.is_coordinate = False
        self.is_chunked = True
        self.unfit: InputError | None = None
        self.is_elsewhere = False
        self.offset: int | None = None
        self.n_missing = 0

    @property
    def where(self) -> str:
        """The array, for errors."""
        return f"{self.path} {self.name}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored, decompressed."""
        return math.prod(self.grid.shape[1:]) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, decompressed."""
        return math.prod(self.grid.chunks) * self.dtype.itemsize

    @property
    def table_bytes(self) -> int:
        """Bytes of the table of its chunks."""
        return 0 if self.offset is not None else self.grid.n_chunks * PLACE_BYTES

    def dimension(self) -> str | None:
        """Return the name of the axis of samples, where it has one."""
        return None

    @abstractmethod
    def locate(self) -> None:
        """Find where its chunks lie, and count those that are absent."""

    def held_open(self) -> AbstractContextManager[None]:
        """Hold open, while many chunks are decoded, what would be opened for each of them; by default nothing."""
        return nullcontext()

    @abstractmethod
    def chunk(self, index: Index) -> npt.NDArray[Any] | None:
        """Decode a whole chunk; None where it is absent."""

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows of an array that is not chunked, as they are stored."""
        assert self.offset is not None
        out = np.empty((stop - start, *self.grid.shape[1:]), self.dtype)
        read_range(self.path, self.offset + start * self.row_bytes, out)
        return out

    def check_claim(self, stored_bytes: int, memory: int) -> None:
        """Refuse a shape that nothing stored can stand for, and chunks that are too large, or too many, for memory."""
        for name, shape in (("shape", self.grid.shape), ("shape of chunks", self.grid.chunks)):
            claimed = math.prod(shape) * self.dtype.itemsize
            if claimed > _IMPLAUSIBLE_BYTES and claimed > _MOST_RATIO * stored_bytes:
                there = format_bytes(stored_bytes)
                what = f"the {name} {shape} claims {format_bytes(claimed)}, and {there} are stored"
                raise InputError(what, where=self.where, fix="write it again with its true shape")
        if COPIES * self.chunk_bytes > memory:
            raise BudgetError(
                f"a chunk takes {format_bytes(self.chunk_bytes)} decoded, and memory is {format_bytes(memory)}",
                where=self.where,
                why=f"A chunk is decoded as a whole, which takes {COPIES} times as much",
                fix=Fix(Argument("memory", n_bytes=(COPIES + 2) * self.chunk_bytes + _BESIDE_BYTES)),
            )
        if self.table_bytes > memory // 4:
            raise BudgetError(
                f"{self.grid.n_chunks:,} chunks are too many to keep track of in {format_bytes(memory)}",
                where=self.where,
                why=f"The table of where they lie takes {format_bytes(self.table_bytes)}; a quarter is for it",
                fix=Fix("write it again with larger chunks, or ", Argument("memory", n_bytes=4 * self.table_bytes)),
            )


def boxes(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice | int, ...]]:
    """Cut a shape into boxes of at most so many elements, in order."""
    if math.prod(shape) <= most or not shape:
        yield ()
        return
    step = most // math.prod(shape[1:])
    for start in range(0, shape[0], max(1, step)):
        if step:
            yield (slice(start, start + step),)
        else:
            yield from ((start, *inner) for inner in boxes(shape[1:], most))
