"""What every command shares: the ``--json`` option, and results on stdout as text or as one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import click

from streamtrain.system.json_values import plain

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
"""Adds ``as_json: bool`` to a command."""


def emit(as_json: bool, result: Mapping[str, object], text: str) -> None:
    """Print a result on stdout: one JSON object, or the text for people.

    Parameters
    ----------
    as_json : bool
        The value of ``json_option``.
    result : Mapping
        The result's values by name; see `streamtrain.system.json_values` for what a value may be.
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


def _printable(text: str) -> str:
    # A file name may hold bytes that no encoding knows; an escape in the output is better than a crash.
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
