"""Columns of numbers as one array, with a mask of the values that are missing.

Empty, NA and the like are missing among numbers, and so is NaN: a file of text has no other way to say so, and the
same rows make the same dataset from every format. Only where NaN is to be kept it is a value, if its column declares
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    is_text,
    missing_in,
    numbers_in,
    parsed,
    without_dictionary,
)
from streamtrain.ingestion.sources.tables.column_survey import MISSING_MARKS, is_one_of, with_nulls
from streamtrain.ingestion.sources.tables.roles.reader import CellColumns, ParsedColumns, TableBatch

INT64: Final = np.dtype(np.int64)
FLOAT64: Final = np.dtype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Columns of numbers; missing ones are 0 or NaN."""

    values: npt.NDArray[Any]  # of shape (n_rows, n_columns)
    missing: npt.NDArray[np.bool_]  # of the same


def read_numbers(
    batch: TableBatch, names: Sequence[str], dtype: np.dtype[Any], nulls: Sequence[str], *, keep_nan: bool
) -> Numbers | str:
    """Read columns as one dtype; return the first one's name that holds something else."""
    if not names:
        none = np.empty((batch.n_rows, 0), dtype)
        return Numbers(values=none, missing=none.astype(bool))
    if isinstance(batch.columns, CellColumns):
        flat = _parsed_text(batch.columns.flat(names), dtype, nulls)
        if flat is not None:
            values, missing = (each.reshape(batch.n_rows, len(names)) for each in flat)
            return Numbers(values=values, missing=missing)
    if isinstance(batch.columns, ParsedColumns):
        together = batch.columns.numbers(names, dtype)
        if together is not None:
            columns = (each.reshape(len(names), batch.n_rows).T for each in _found(together, dtype))
            values, missing = map(np.ascontiguousarray, columns)
            return Numbers(values=values, missing=missing)
    values = np.empty((batch.n_rows, len(names)), dtype)
    missing = np.zeros((batch.n_rows, len(names)), bool)
    for number, name in enumerate(names):
        column = batch.columns[name]
        found = _parsed_text(column, dtype, nulls) if is_text(column) else _typed(column, dtype, keep_nan=keep_nan)
        if found is None:
            return name
        values[:, number], missing[:, number] = found
    return Numbers(values=values, missing=missing)


Found = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]


def _parsed_text(text: Any, dtype: np.dtype[Any], nulls: Sequence[str]) -> Found | None:
    """Read text as numbers, where marks of missing values may be; None where something else is there."""
    text = without_dictionary(text)
    values = parsed(text, dtype)
    if values is None:
        text = with_nulls(text, missing_text(text, nulls))
        values = parsed(text, dtype)
    return None if values is None else _found(values, dtype)


def _found(values: Any, dtype: np.dtype[Any]) -> Found:
    """Convert numbers that were text."""
    if dtype.kind == "f":
        # Nulls become NaN, as what is written so.
        numbers: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return numbers, np.isnan(numbers)
    return numbers_in(values), missing_in(values)


def missing_text(text: Any, nulls: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return a mask of the texts that mean a missing number, blanks around them or not."""
    marks = ("", *(nulls or MISSING_MARKS))
    return is_one_of(arrow("pyarrow.compute").utf8_trim_whitespace(text), marks) | missing_in(text)


def _typed(column: Any, dtype: np.dtype[Any], *, keep_nan: bool) -> Found | None:
    """Convert a column whose type the file declares; None where the dtype does not hold its values."""
    plain = without_dictionary(column)
    if not is_number_type(plain.type):
        return None
    own, missing = numbers_in(plain), missing_in(plain)
    if own.dtype.kind == "f" and not keep_nan:
        missing = missing | np.isnan(own)
    with np.errstate(all="ignore"):
        values = own.astype(dtype)
        is_same = (values == own) | missing | (own != own)
        if own.dtype.kind in "iu" and dtype.kind == "f":
            # Compared as floats all would be equal.
            limit = 2 ** (np.finfo(dtype).nmant + 1)
            is_same &= (own >= -limit) & (own <= limit) | missing
    return (
        (values, missing) if is_same.all() and not (dtype.kind in "biu" and (own != own).any(where=~missing)) else None
    )


def is_number_type(kind: Any) -> bool:
    """Say whether an Arrow type is one of numbers."""
    types = arrow("pyarrow.types")
    plain = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_integer(plain) or types.is_floating(plain) or types.is_boolean(plain))


def is_rounded(text: Any, values: npt.NDArray[Any]) -> int | None:
    """Find a whole number in text that a float rounds."""
    for place in np.flatnonzero(np.abs(values) >= 2.0**53).tolist():
        literal = text[place].as_py()
        if literal is None:
            continue
        literal = literal.strip()
        if literal.lstrip("+-").isdigit() and int(literal) != int(float(literal)):
            return int(place)
    return None
