"""What every command shares: the ``--json`` option, and results on stdout as text or as one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import PurePath

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
"""Adds ``as_json: bool`` to a command."""


def emit(as_json: bool, result: Mapping[str, object], text: str) -> None:
    """Print a result on stdout: one JSON object, or the text for people.

    Parameters
    ----------
    as_json : bool
        The value of ``json_option``.
    result : Mapping
        The result's values by name; see `plain` for what a value may be.
    text : str
        The same result for people.

    Raises
    ------
    TypeError
        A value has no JSON form.

    Examples
    --------
    >>> emit(True, {"loss": float("nan"), "steps": 3}, "3 steps")
    {"loss": null, "steps": 3}
    >>> emit(False, {"steps": 3}, "3 steps")
    3 steps
    """
    click.echo(_printable(json.dumps(plain(result), allow_nan=False) if as_json else text))


def plain(value: object) -> object:
    """Turn a value into what JSON can hold: NumPy and torch values become Python's, NaN and infinity ``None``.

    Raises
    ------
    TypeError
        The value has no JSON form.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"loss": np.float32(0.5), "shape": (28, np.int64(28)), "worst": float("inf")})
    {'loss': 0.5, 'shape': [28, 28], 'worst': None}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    # Arrays, scalars and tensors all have `tolist`; asking for it spares `--help` an import of NumPy.
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return plain(to_list())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _printable(text: str) -> str:
    # A file name may hold bytes that no encoding knows; an escape in the output is better than a crash.
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
