"""Data frames as a model's inputs, by the names of its columns: numbers, fills, and categories that have names.

pandas, polars and Arrow are recognized by what they offer, and never imported here.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, UsageError
from streamtrain.store.schema.arrangement import check_columns
from streamtrain.store.schema.columns import CATEGORIES, INPUT, MISSING, CategoryColumn, Schema

Array = npt.NDArray[Any]
_MISSING, _OTHER, _FIRST = 0, 1, 2
_RAW: Final = "st.rows(frame, like=model), which reads all that an ingest does; of a Trainer, like=dataset"


def is_frame(value: Any) -> bool:
    """Recognize a data frame or an Arrow table: it has names for its columns."""
    return hasattr(value, "columns") and not hasattr(value, "dtype") and hasattr(value, "__getitem__")


def frame_arrays(frame: Any, schema: Schema, inputs: tuple[str, ...], of: str) -> dict[str, Array]:
    """Return the inputs of a model from a frame's columns; refuse what takes an ingest's reading."""
    names, where = schema.columns.get(INPUT, ()), f"the {type(frame).__name__}"
    if not names and inputs == (INPUT,):
        return {INPUT: np.asarray(frame)}
    unread = set(inputs) - {INPUT, MISSING, CATEGORIES}
    if unread or _dates(schema) or _hashed(schema):
        why = "Numbers, and categories by their names, are all that is taken from a data frame as it is"
        raise UsageError(_unread(schema, unread), where=where, why=why, fix=_RAW)
    header = [str(name) for name in getattr(frame, "column_names", frame.columns)]
    needed = (*(names if INPUT in inputs else ()), *(each.name for each in schema.categories if CATEGORIES in inputs))
    check_columns(needed, header, of=of, where=where)
    found: dict[str, Array] = {}
    if INPUT in inputs:
        found[INPUT], found[MISSING] = _numbers(frame, names, schema, where)
    if CATEGORIES in inputs:
        codes = [_codes(frame, each, where) for each in schema.categories]
        found[CATEGORIES] = np.stack(codes, axis=1)
    return {name: found[name] for name in inputs}


def _dates(schema: Schema) -> list[str]:
    return [name for name, kind in schema.kinds.items() if kind != "number"]


def _hashed(schema: Schema) -> list[str]:
    return [each.name for each in schema.categories if each.hash_size is not None]


def _unread(schema: Schema, unread: set[str]) -> str:
    """Say what a model takes that is not read from a data frame here."""
    for names, one, several in (
        (_dates(schema), "is a date", "are dates"),
        (_hashed(schema), "is a hashed category", "are hashed categories"),
    ):
        if names:
            listed = ", ".join(map(repr, names))
            return f"column {listed} {one}" if len(names) == 1 else f"columns {listed} {several}"
    return f"the model takes the field {', '.join(sorted(unread))}"


def _numbers(frame: Any, names: tuple[str, ...], schema: Schema, where: str) -> tuple[Array, Array]:
    described = schema.field(INPUT)
    dtype = np.dtype(np.float64) if described is None else described.dtype
    values = np.stack([_column(frame, name, where) for name in names], axis=1)
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if missing.any() and not schema.fills and schema.reading.get("nan") != "keep":
        row, column = np.argwhere(missing)[0].tolist()
        what, fix = f"a value of column {names[column]!r} is missing", "fill it in, or leave the row out"
        raise InputError(what, where=f"{where} row {row}", why="Nothing stands for it", fix=fix)
    if missing.any() and schema.fills:
        values = np.where(missing, np.array([schema.fills.get(name, np.nan) for name in names]), values)
    if dtype.kind != "f" and not np.array_equal(values, np.floor(values)):
        raise InputError(f"a value has a fraction; the model was trained on {dtype}", where=where, fix="round it")
    return values.astype(dtype), missing


def _column(frame: Any, name: str, where: str) -> Array:
    values = np.asarray(frame[name])
    if values.dtype.kind in "biu":
        return values.astype(np.int64) if values.dtype.kind == "b" else values
    if values.dtype.kind == "f":
        return values.astype(np.float64, copy=False)
    raise UsageError(f"column {name!r} is {values.dtype}, not plain numbers", where=where, fix=_RAW)


def _codes(frame: Any, category: CategoryColumn, where: str) -> Array:
    values = np.asarray(frame[category.name])
    if values.dtype.kind in "fb":
        what = f"column {category.name!r} is {values.dtype}, not text"
        raise UsageError(what, where=where, fix=_RAW)
    known = {name: code for code, name in enumerate(category.names, _FIRST)}
    return np.array([_code(value, known) for value in values.tolist()], np.int32)


def _code(value: Any, known: dict[str, int]) -> int:
    if value is None or value != value or not str(value).strip():
        return _MISSING
    return known.get(str(value), _OTHER)
