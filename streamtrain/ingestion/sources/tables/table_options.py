"""Options of tables as a user gives them, checked."""

from __future__ import annotations

import codecs
import io
import math
from collections.abc import Mapping
from typing import Any, Final

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.ingestion.sources.base import TableOptions
from streamtrain.store.schema.columns import MOST_CODES
from streamtrain.system.arguments import check_names, is_int

TEXT_OPTIONS: Final = ("header", "names", "delimiter", "encoding", "na_values")
"""Options of delimited text."""

_LISTS: Final = ("names", "na_values", "categorical", "exclude")
_HEADERS: Final = ("first", "none")
_NO_DELIMITERS: Final = '"\r\n\0'


def table_options(given: Mapping[str, Any]) -> TableOptions:
    """Check what a user says of a table; None and what is left out are the default."""
    said = {name: value for name, value in given.items() if value is not None}
    for name in _LISTS:
        if name in said:
            check_names(**{name: said[name]})
            said[name] = (said[name],) if isinstance(said[name], str) else tuple(said[name])
    for name in ("header", "delimiter", "encoding"):
        if not isinstance(said.get(name, ""), str):
            raise UsageError(f"{name} is {said[name]!r:.80}; it must be text", fix=Fix(_EXAMPLES[name], ", say"))
    if said.get("header", "first") not in _HEADERS:
        raise unknown_name("header", said["header"], _HEADERS)
    _check_roles(said)
    _check_missing_rules(said)
    _check_names_wanted(said)
    _check_delimiter(said.get("delimiter", "auto"))
    _check_encoding(said.get("encoding", "utf-8"))
    return TableOptions(**said)


_EXAMPLES: Final = {
    "header": Argument("header", "none"),
    "delimiter": Argument("delimiter", ";"),
    "encoding": Argument("encoding", "latin1"),
}


def _check_roles(given: dict[str, Any]) -> None:
    if "dates" in given:
        dates = given["dates"]
        dates = [dates] if isinstance(dates, str) else dates
        given["dates"] = dict(dates) if isinstance(dates, Mapping) else dict.fromkeys(dates, "seconds")
        wrong = [unit for unit in given["dates"].values() if unit not in ("days", "seconds")]
        if wrong:
            fix = Fix(Argument("dates", {next(iter(given["dates"])): "days"}), ", say")
            raise UsageError(f"dates are counted in days or seconds, not in {wrong[0]!r}", fix=fix)
    if "hash" in given and not (
        isinstance(given["hash"], Mapping) and all(is_int(n, 1, MOST_CODES) for n in given["hash"].values())
    ):
        fix = Fix(Argument("hash", {"city": 100_000}), ", say")
        raise UsageError(f"hash is {given['hash']!r:.80}; it maps columns to a number of codes", fix=fix)
    for name in ("category_min_count", "category_limit"):
        if name in given and not is_int(given[name], 1):
            raise UsageError(
                f"{name} is {given[name]!r:.80}; it must be a positive integer", fix=Fix(Argument(name, 1))
            )


def _check_missing_rules(given: Mapping[str, Any]) -> None:
    na, nan = given.get("na", "error"), given.get("nan", "error")
    is_rule = na in ("error", "drop", "fill=mean")
    if not is_rule and isinstance(na, str) and na.startswith("fill="):
        try:
            is_rule = math.isfinite(float(na.removeprefix("fill=")))
        except ValueError:
            is_rule = False
    if not is_rule:
        fix = Fix(Argument("na", "error"), ", ", Argument("na", "drop"), " or ", Argument("na", "fill=mean"))
        raise UsageError(f"na is {na!r:.80}; it must be error, drop, fill=mean, or fill= and a number", fix=fix)
    if nan not in ("error", "keep"):
        raise UsageError(f"nan is {nan!r:.80}; it must be error or keep", fix=Fix(Argument("nan", "keep")))
    if given.get("na_mask") and not str(na).startswith("fill="):
        fix = Fix(Argument("na", "fill=mean"), " too")
        raise UsageError("na_mask says which values were filled in, and none are", fix=fix)


def _check_names_wanted(said: Mapping[str, Any]) -> None:
    if "names" in said and said.get("header", "first") != "none":
        raise UsageError(
            "names are given, and the first line holds names too",
            fix=Fix("where it does not, add ", Argument("header", "none"), "; else leave ", Argument("names"), " out"),
        )


def _check_delimiter(delimiter: str) -> None:
    if delimiter != "auto" and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in _NO_DELIMITERS):
        raise UsageError(
            f"delimiter is {delimiter!r:.80}; it must be one ASCII character other than a quote or line end",
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
