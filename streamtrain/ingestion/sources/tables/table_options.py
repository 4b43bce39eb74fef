"""Options of tables as a user gives them, checked."""

from __future__ import annotations

import codecs
import io
from collections.abc import Mapping
from typing import Any, Final

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.ingestion.sources.base import TableOptions
from streamtrain.system.arguments import check_names

TEXT_OPTIONS: Final = ("header", "names", "delimiter", "encoding", "na_values")
"""What says how delimited text is to be read."""

_HEADERS: Final = ("first", "none")
_NO_DELIMITERS: Final = '"\r\n\0'


def table_options(given: Mapping[str, Any]) -> TableOptions:
    """Check what a user says of a table; None and what is left out are the default."""
    said = {name: value for name, value in given.items() if value is not None}
    for name in ("names", "na_values"):
        if name in said:
            check_names(**{name: said[name]})
            said[name] = (said[name],) if isinstance(said[name], str) else tuple(said[name])
    for name in ("header", "delimiter", "encoding"):
        if not isinstance(said.get(name, ""), str):
            raise UsageError(f"{name} is {said[name]!r:.80}; it is text", fix=Fix(_EXAMPLES[name], ", say"))
    if said.get("header", "first") not in _HEADERS:
        raise unknown_name("header", said["header"], _HEADERS)
    _check_names_wanted(said)
    _check_delimiter(said.get("delimiter", "auto"))
    _check_encoding(said.get("encoding", "utf-8"))
    return TableOptions(**said)


_EXAMPLES: Final = {
    "header": Argument("header", "none"),
    "delimiter": Argument("delimiter", ";"),
    "encoding": Argument("encoding", "latin1"),
}


def _check_names_wanted(said: Mapping[str, Any]) -> None:
    if "names" in said and said.get("header", "first") != "none":
        raise UsageError(
            "names are given, and the first line holds names too",
            fix=Fix("where it does not, add ", Argument("header", "none"), "; else leave ", Argument("names"), " out"),
        )


def _check_delimiter(delimiter: str) -> None:
    if delimiter != "auto" and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in _NO_DELIMITERS):
        raise UsageError(
            f"delimiter is {delimiter!r:.80}; it is one ASCII character, and no quote or line end",
            fix=Fix(_EXAMPLES["delimiter"], ", say; or leave it out"),
        )


def _check_encoding(encoding: str) -> None:
    try:
        codec = codecs.lookup(encoding)
        io.TextIOWrapper(io.BytesIO(), encoding)  # refuses what makes no text: base64, say
    except (LookupError, ValueError):
        codec = None
    if codec is None or codec.incrementaldecoder is None:
        raise UsageError(
            f"encoding {encoding!r:.80} is not known",
            why="It is one of Python's text encodings",
            fix=Fix(_EXAMPLES["encoding"], ", say"),
        )
