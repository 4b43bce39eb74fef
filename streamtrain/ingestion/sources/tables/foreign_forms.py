"""Numbers with a decimal comma and dates with the day first, which are read as text: told apart from other texts."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from streamtrain.errors import Argument, Fix

_NUMBER: Final = re.compile(r"\s*[+-]?(\d+|\d{1,3}([. ']\d{3})+)(,\d+)?\s*")
_DATE: Final = re.compile(r"\s*\d{1,2}([./])\d{1,2}\1\d{4}(\s.*)?")


def foreign_form(texts: Collection[str] | None) -> str | None:
    """Say what texts are if all of them are numbers or dates in such a form; None where they are neither."""
    if not texts:
        return None
    if all(map(_DATE.fullmatch, texts)):
        return f"dates with the day first ({min(texts).strip()})"
    commas = [text for text in texts if "," in text]
    if commas and all(map(_NUMBER.fullmatch, texts)):
        return f"numbers with a decimal comma ({min(commas).strip()})"
    return None


def other_form(columns: list[str] | None = None) -> Fix:
    """Say how such columns come in, or, with their names, how they are left out."""
    ways = "write it as 37.5, or 2023-02-28, or give a pandas data frame, which reads such forms"
    return Fix(ways) if columns is None else Fix(ways, "; or leave it out: ", Argument("exclude", columns))
