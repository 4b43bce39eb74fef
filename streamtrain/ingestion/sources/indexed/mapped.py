"""Rows of memory-mapped arrays as runs of bytes of their files, which another process reads as well."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.ingestion.sources.input_files import read_range


class MappedRows:
    """An array in a file, by its place there alone; a slice of it is read."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        if out.size:
            read_range(self.path, self.offset + start * self.dtype.itemsize * math.prod(self.shape[1:]), out)
        return out


def mapped_rows(array: object) -> MappedRows | None:
    """Find where a memmap, or a run of its rows, lies in its file; None where it lies elsewhere, or in other orders."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    if array.mode == "c":  # what was written to it is in memory alone
        return None
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap):
        return None
    if array.flags.writeable:
        array.flush()
    # The map begins at the page before what was asked for; views keep the offset of the whole.
    first = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    place = _address(array) - _address(np.frombuffer(base, np.uint8))
    return MappedRows(Path(array.filename), first + place, array.dtype, array.shape)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
