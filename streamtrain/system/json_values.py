"""Values as JSON can hold them, and those of a file taken by their type alone, each refused with ValueError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from streamtrain.system.arguments import is_int, is_number


def to_json_value(value: object) -> object:
    """Turn a value into what JSON can hold: NumPy and torch values become Python's, NaN and infinity ``None``."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    # Arrays, scalars and tensors all have `tolist`; asking for it spares `--help` an import of NumPy.
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return to_json_value(to_list())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def whole_number(value: object, least: int = 0, most: float = math.inf) -> int:
    """Take an integer of this range."""
    if not is_int(value, least) or value > most:
        raise ValueError(f"{value!r:.60} is not a {'positive integer' if least == 1 else 'length or count'}")
    return value


def number_or_nan(value: object) -> float:
    """Take a finite number, or null as NaN."""
    if value is not None and not is_number(value):
        raise ValueError(f"{value!r:.60} is not a number")
    return math.nan if value is None else float(value)


def objects(value: object) -> tuple[dict[str, Any], ...]:
    """Take a list of objects."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"{value!r:.60} is not a list of objects")
    return tuple(value)


def texts(value: object) -> tuple[str, ...]:
    """Take a list of texts."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{value!r:.60} is not a list of texts")
    return tuple(value)


def texts_or_none(value: object) -> tuple[str, ...] | None:
    """Take a list of texts, or null."""
    return None if value is None else texts(value)
