"""Values as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath


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
