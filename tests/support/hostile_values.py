"""Structured mutations: what an editor, or a hostile author, makes of the fields of a file that was whole."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

Rng = np.random.Generator

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        " ",
        "0",
        "1",
        "nan",
        "x",
        "a" * 300,
        "\ud800",
        "\u202e",
        "\x1b[2J",
        "a\nb",
        "a\rb",
        "\x00",
        "../../x",
        "/etc",
    ),
    *([], [[]], [None], [True], [-1], [2**70], [1.5], ["x"], {}, {"": None}, {"x": {}}, [{}], [[1, 2], [3]]),
)
NAMES = ("x", "y", "", "a", "__class__", "\ud800", "\x1b[31m", "../x", "count", "class", "a" * 300, "\u202e", "a\nb")


def pick(rng: Rng, of: Any) -> Any:
    return copy.deepcopy(of[int(rng.integers(len(of)))])


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists, the whole last."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*way, key))
    yield way


def at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def mutated_json(value: Any, rng: Rng) -> bytes:
    """One to three fields swapped, gone, twice, renamed, or of other values; or a text that is no JSON."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        value = _changed(value, rng)
    text = json.dumps(value)
    match int(rng.integers(16)):
        case 0:
            return _twice(text, rng)
        case 1:
            depth = int(pick(rng, (30, 5_000, 200_000)))
            return f'{{"a": {"[" * depth}1{"]" * depth}}}'.encode()
        case 2:
            return text[: int(rng.integers(len(text) + 1))].encode()
        case 3:
            return text.encode().replace(b'"', bytes([int(rng.integers(128, 256))]), 1)
        case 4:
            return pick(
                rng, (b"", b"null", b"[]", b"0", b'""', b"{}", b"NaN", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}")
            )
    return text.encode()


def _twice(text: str, rng: Rng) -> bytes:
    """A key twice, with another value."""
    starts = [place for place, letter in enumerate(text) if letter == "{" and text[place + 1 : place + 2] == '"']
    if not starts:
        return text.encode()
    start = pick(rng, starts)
    key = text[start + 1 :].split(":", 1)[0]
    return f"{text[: start + 1]}{key}: {json.dumps(pick(rng, VALUES))}, {text[start + 1 :]}".encode()


def _changed(value: Any, rng: Rng) -> Any:
    way = pick(rng, list(places(value)))
    if not way:
        return pick(rng, VALUES) if rng.integers(4) == 0 else value
    holder, key = at(value, way[:-1]), way[-1]
    match int(rng.integers(8)):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[pick(rng, NAMES)] = holder.pop(key)
        case 1:
            holder.insert(key, holder[key])
        case 2:
            holder[key] = json.loads(json.dumps(at(value, pick(rng, list(places(value))))))
        case 3 if isinstance(holder[key], int | float):
            holder[key] = pick(rng, (holder[key] + 1, -holder[key], str(holder[key]), [holder[key]], holder[key] + 0.5))
        case _:
            holder[key] = pick(rng, VALUES)
    return value


def mutated_header(fields: dict[str, Any], values: dict[str, tuple[Any, ...]], rng: Rng) -> dict[str, Any]:
    """A flat header with one or two of its fields of other values."""
    changed = dict(fields)
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, list(values))
        changed[name] = pick(rng, values[name])
    return changed


def mutated_rows(rows: list[list[str]], rng: Rng) -> list[list[str]]:
    """A table with cells, rows and columns changed, gone, twice or moved."""
    rows = [list(row) for row in rows]
    for _ in range(int(rng.integers(1, 4))):
        row = pick(rng, rows)
        cell = int(rng.integers(len(row) + 1))
        match int(rng.integers(8)):
            case 0:
                del row[cell : cell + 1]
            case 1:
                row.insert(cell, pick(rng, CELLS))
            case 2:
                rows.insert(int(rng.integers(len(rows))), list(pick(rng, rows)))
            case 3 if len(rows) > 1:
                rows.remove(row)
            case 4:
                rows[0] = [pick(rng, (*NAMES[:6], *rows[0])) for _ in rows[0]]
            case _ if row:
                row[min(cell, len(row) - 1)] = pick(rng, CELLS)
    return rows


CELLS = (
    *("", " ", "NA", "nan", "inf", "-inf", "1e999", "-1e-999", "0x10", "1_000", "1,5", '"', '""', '"a', 'a"b"c', "'"),
    *(
        "True",
        "99999999999999999999",
        "9007199254740993",
        "-0",
        "+1",
        "1e5",
        ".5",
        "5.",
        "\u0661",
        "\u2212" + "1",
        "\x00",
    ),
    *("\x1b[2J", "a\nb", '"a\nb"', "\r", "\u202e", "\ufeff", "\ud800", "x" * 5_000, "=1+1", "\x85", "\u2028"),
)


def joined(rows: list[list[str]], delimiter: str, rng: Rng) -> bytes:
    ending = pick(rng, ("\n", "\n", "\n", "\r\n", "\r"))
    data = ending.join(delimiter.join(row) for row in rows).encode("utf-8", "surrogatepass")
    match int(rng.integers(12)):
        case 0:
            return data[: int(rng.integers(len(data) + 1))]
        case 1:
            return data.decode("utf-8", "surrogatepass").encode(pick(rng, ("utf-16", "utf-32")), "surrogatepass")
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            place = int(rng.integers(len(data) + 1))
            return (
                data[:place]
                + pick(rng, (b"\xc3", b"\xff", b"\xed\xa0\x80", b"\x00", b"\xf4\x90\x80\x80"))
                + data[place:]
            )
    return data + ending.encode()
