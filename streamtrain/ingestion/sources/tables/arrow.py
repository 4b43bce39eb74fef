"""Helpers over pyarrow, which is imported when the first table is opened: columns as NumPy arrays.

Numbers in text are read by Arrow's own parser, in the first pass and in the second alike.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from streamtrain.errors import UsageError


@cache
def arrow(module: str = "pyarrow") -> Any:
    """Import pyarrow, or a module of it."""
    # It has no other switch for what it takes beneath Python. Its own pool holds twice as much, most of it freed.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            "CSV and Parquet are read by pyarrow, which is not installed", fix="pip install 'streamtrain[arrow]'"
        ) from error


class _Pools:
    """How many blocks of `returning_memory` are open, and the pool that Arrow had before the first."""

    lock = threading.Lock()
    n_open = 0
    before: Any = None


@contextmanager
def returning_memory() -> Iterator[None]:
    """Let Arrow allocate from the system in the block: its own pool holds twice as much, most of it freed."""
    with _Pools.lock:
        if not _Pools.n_open:
            _Pools.before = arrow().default_memory_pool()
            arrow().set_memory_pool(arrow().system_memory_pool())
        _Pools.n_open += 1
    try:
        yield
    finally:
        with _Pools.lock:
            _Pools.n_open -= 1
            if not _Pools.n_open:
                _Pools.before.release_unused()
                arrow().set_memory_pool(_Pools.before)


def arrow_type(dtype: np.dtype[Any] | None) -> Any:
    """Convert a NumPy dtype to Arrow's; None to text."""
    return arrow().string() if dtype is None else arrow().from_numpy_dtype(dtype)


def columns_of(batch: Any) -> dict[str, Any]:
    """Return a batch's columns by name: asked for one, Arrow searches all names."""
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def is_text(column: Any) -> bool:
    """Say whether an Arrow array holds strings, in a dictionary or not."""
    types = arrow("pyarrow.types")
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def without_dictionary(column: Any) -> Any:
    """Decode a dictionary-encoded Arrow array, and cast text to ``string``."""
    if column.type == arrow().string():
        return column
    decoded = column.dictionary_decode() if arrow("pyarrow.types").is_dictionary(column.type) else column
    return decoded.cast(arrow().string()) if is_text(decoded) else decoded


def distinct_texts(column: Any) -> set[str]:
    """Return the texts in a column; of a dictionary's, those that it uses."""
    unique = arrow("pyarrow.compute").unique
    if arrow("pyarrow.types").is_dictionary(column.type):
        return set(column.dictionary.take(unique(column.indices).drop_null()).drop_null().to_pylist())
    return set(unique(column).drop_null().to_pylist())


def counted_texts(column: Any) -> dict[str, int]:
    """Count the texts in a column."""
    counts = arrow("pyarrow.compute").value_counts(without_dictionary(column).drop_null())
    return dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))


def places_in(names: Any, column: Any) -> Any:
    """Number the texts of a column by their place among the names; null where one is not among them."""
    index_in = arrow("pyarrow.compute").index_in
    if arrow("pyarrow.types").is_dictionary(column.type):
        return index_in(column.dictionary.cast(names.type), value_set=names).take(column.indices)
    return index_in(column.cast(names.type), value_set=names)


def parsed(text: Any, dtype: np.dtype[Any]) -> Any | None:
    """Read the numbers in a text array, blanks around them or not; None where a value is not one."""
    kind = arrow_type(dtype)
    try:
        return text.cast(kind)
    except arrow().ArrowInvalid:
        trimmed = arrow("pyarrow.compute").utf8_trim_whitespace(text)
    try:
        return trimmed.cast(kind)
    except arrow().ArrowInvalid:
        return None


def first_refused(text: Any, dtype: np.dtype[Any]) -> int:
    """Find the first value that `parsed` refuses, by bisection."""
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parsed(text[low:middle], dtype) is None else (middle, high)
    return low


def stacked(batch: Any) -> npt.NDArray[Any] | None:
    """Convert columns to an array (n_columns, n_rows) at once; None where they differ in type or are no plain numbers.

    Booleans, dictionaries and columns with nulls are none.
    """
    types = arrow("pyarrow.types")
    first, *others = batch.schema.types
    if not (types.is_integer(first) or types.is_floating(first)) or any(kind.id != first.id for kind in others):
        return None
    cells = arrow().concat_arrays(batch.columns)
    if cells.null_count:
        return None
    values: npt.NDArray[Any] = cells.to_numpy(zero_copy_only=False)
    return values.reshape(1 + len(others), batch.num_rows)


def missing_in(column: Any) -> npt.NDArray[np.bool_]:
    """Return a mask of the nulls of an Arrow array, of shape (n_rows,)."""
    return cast("npt.NDArray[np.bool_]", column.is_null().to_numpy(zero_copy_only=False))


def numbers_in(column: Any) -> npt.NDArray[Any]:
    """Convert a numeric Arrow array to a NumPy array of the same dtype, nulls to 0."""
    filled = column.fill_null(False if column.type == arrow().bool_() else 0) if column.null_count else column
    return cast("npt.NDArray[Any]", filled.to_numpy(zero_copy_only=False))
