"""Sparse matrices in compressed rows (CSR), of SciPy and of torch: read in runs of rows that are made dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.store.layout import Field
from streamtrain.system.arguments import a_kind
from streamtrain.system.units import format_bytes


def is_sparse(value: object) -> bool:
    """Recognize a sparse matrix or tensor without an import of its library."""
    layout = getattr(value, "layout", None)
    is_sparse_tensor = hasattr(value, "to_dense") and "sparse" in str(layout)
    return is_sparse_tensor or hasattr(value, "toarray") or hasattr(value, "todense")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedRows:
    """A CSR matrix: of row i, the values [starts[i], starts[i + 1])."""

    shape: tuple[int, ...]
    starts: npt.NDArray[Any]
    columns: npt.NDArray[Any]
    values: npt.NDArray[Any]
    where: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        first, last, _ = rows.indices(self.shape[0])
        starts = np.asarray(self.starts[first : last + 1], np.int64)
        begin, end = int(starts[0]), int(starts[-1])
        columns = self.columns[begin:end]
        if (np.diff(starts) < 0).any() or end > len(self.values):
            raise _broken(self.where, "its row pointers do not increase, or end beyond its values")
        if columns.size and not 0 <= columns.min() <= columns.max() < self.shape[1]:
            raise _broken(self.where, f"it has a value outside of its {self.shape[1]:,} columns")
        out = np.zeros((last - first, self.shape[1]), self.dtype)
        # A place that is stored twice holds the sum, as in SciPy and torch.
        np.add.at(out, (np.repeat(np.arange(last - first), np.diff(starts)), columns), self.values[begin:end])
        return out


def dense_size(values: object, field: Field, n_rows: int) -> str | None:
    """Say how large a sparse matrix is once it is dense; None of any other array."""
    if not isinstance(values, CompressedRows):
        return None
    n_bytes, held = n_rows * field.row_bytes, values.values.nbytes + values.columns.nbytes + values.starts.nbytes
    return f"{field.name} is sparse, {format_bytes(held)}; dense it takes {format_bytes(n_bytes)} before compression"


def _broken(where: str, what: str) -> InputError:
    return InputError(f"the sparse matrix is damaged: {what}", where=where, fix="build it again")


def compressed_rows(value: Any, where: str) -> CompressedRows:
    """Take a CSR matrix by its arrays; refuse any other sparse one."""
    if getattr(value, "format", None) == "csr" and len(value.shape) == 2:
        parts = (value.indptr, value.indices, value.data)
    elif str(getattr(value, "layout", "")) == "torch.sparse_csr" and len(value.shape) == 2:
        tensors = (value.crow_indices(), value.col_indices(), value.values())
        parts = tuple(tensor.numpy(force=True) for tensor in tensors)
    else:
        raise _not_by_rows(value, where)
    shape = tuple(int(n) for n in value.shape)
    starts, columns, values = parts
    if len(starts) != shape[0] + 1 or len(columns) != len(values):
        raise _broken(where, "its arrays do not belong together")
    return CompressedRows(shape=shape, starts=starts, columns=columns, values=values, where=where)


def _not_by_rows(value: Any, where: str) -> InputError:
    make = next(name for name in ("toarray", "todense", "to_dense") if hasattr(value, name))
    by_rows = next((name for name in ("tocsr", "to_sparse_csr") if hasattr(value, name)), None)
    fix = f"make it dense, x.{make}()"
    if by_rows is not None and len(value.shape) == 2:
        fix += f"; or make it one of rows, which are read a run at a time: x.{by_rows}()"
    elif make == "toarray" and hasattr(value, "__getitem__"):
        runs = '({"x": x[i : i + 1000].toarray(), "y": y[i : i + 1000]} for i in range(0, x.shape[0], 1000))'
        fix += f", or a run of rows at a time: {runs}"
    return InputError(
        f"{a_kind(value)} is sparse, and datasets are dense",
        where=where,
        why="Its zeros would be stored too, which may be many times as much",
        fix=fix,
    )
