"""Sizes, rates, durations and figures, parsed and formatted: one way for each kind, on pages as in the terminal.

A size is an int of bytes or text with a unit: decimal ``KB MB GB TB`` (powers of 1000) or binary ``KiB MiB GiB TiB``
(powers of 1024), case-insensitive. Text without a unit is refused: ``"512"`` could mean anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.system.arguments import MOST_INT, is_int

_MEGABYTE: Final = 10**6
_MOST_IN_FULL: Final = 1e15
_MOST_PLAIN: Final = 1e12


def megabytes(n_bytes: int) -> str:
    """Write a size of at least ``n_bytes``, as users type it."""
    return f"{-(-n_bytes // _MEGABYTE)}MB"


def counted(n: int, one: str, many: str | None = None) -> str:
    """Write a number of things: 1 block, 1,200 blocks.

    Examples
    --------
    >>> counted(1, "block"), counted(1200, "class", "classes")
    ('1 block', '1,200 classes')
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(size: int | str, *, name: str = "size") -> int:
    """Turn a size into bytes; ``name`` is what an error calls it."""
    n_bytes = size if is_int(size) else _parse(size, name)
    if not 0 < n_bytes <= MOST_INT:
        raise UsageError(
            f"{name} is {size!r:.80}; it must be positive, and below 2**63 bytes",
            fix=Fix(Argument(name, "64MB"), ", say"),
        )
    return n_bytes


def _parse(size: object, name: str) -> int:
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in _UNITS:
        known = "B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)"
        raise UsageError(
            f"{name} {size!r:.80} is not a size",
            why=f"A size is a number and a unit: {known}",
            fix=Fix(Argument(name, "512MB"), ", say"),
        )
    n_bytes = float(match.group(1)) * _UNITS[unit]
    # A text of hundreds of digits is infinite.
    return int(min(n_bytes, 2.0**64))


def format_bytes(n_bytes: float) -> str:
    """Write bytes for people, in decimal units."""
    for unit, size, digits in (("TB", 1e12, 2), ("GB", 1e9, 2), ("MB", 1e6, 1), ("KB", 1e3, 1)):
        if abs(n_bytes) >= size:
            return f"{n_bytes / size:.{digits}f} {unit}"
    return f"{n_bytes:.0f} B"


def memory_too_small(memory: int, least: int) -> str:
    """Say that a memory is less than the smallest that works, with as many digits as tell the two apart.

    Examples
    --------
    >>> memory_too_small(10**6, 14_250_000)
    'memory is 1.0 MB, and the smallest that works is 14.2 MB'
    >>> memory_too_small(14_200_000, 14_210_000)
    'memory is 14,200,000 B, and the smallest that works is 14,210,000 B'
    """
    told = [format_bytes(n_bytes) for n_bytes in (memory, least)]
    if told[0] == told[1]:
        told = [f"{n_bytes:,} B" for n_bytes in (memory, least)]
    return f"memory is {told[0]}, and the smallest that works is {told[1]}"


def format_rate(amount: float, seconds: float, unit: str) -> str:
    """Write an amount per second for people."""
    return f"{amount / seconds if seconds > 0 else 0:,.0f} {unit}/s"


def format_figure(value: float) -> str:
    """Write a loss, a score or another measured figure for people, so that those of a column can be compared.

    Examples
    --------
    >>> [format_figure(value) for value in (0.48264, 17.9, 12258.6079, 0.0, 3e-5, 8.12e11, float("nan"))]
    ['0.4826', '17.9000', '12,258.6', '0.0000', '3e-05', '8.12e+11', 'nan']
    """
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.4g}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def format_figures(figures: Mapping[str, float]) -> str:
    """Write figures in a row, each behind its name."""
    return ", ".join(f"{name} {format_figure(value)}" for name, value in figures.items())


def format_number(value: float) -> str:
    """Write a number that may be a count for people: a whole one in full, another in at least 4 digits.

    Examples
    --------
    >>> [format_number(value) for value in (4.0, -0.0, 1e6, 0.25, 33.1478, 1234.5678)]
    ['4', '0', '1,000,000', '0.25', '33.15', '1,234.57']
    """
    if _is_whole(value, _MOST_IN_FULL):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.6g}"


def format_value(value: float) -> str:
    """Write a value of the data for people, which may be a year as well as a price: in the digits that tell.

    Examples
    --------
    >>> [format_value(value) for value in (2013.0, 26519.8, 0.0041807, -1.29e-05, 1e15)]
    ['2013', '26520', '0.004181', '-1.29e-05', '1e+15']
    """
    is_plain = value == 0 or 1e4 <= abs(value) < _MOST_PLAIN
    return f"{value:.0f}" if is_plain or _is_whole(value, _MOST_PLAIN) else f"{value:.4g}"


def _is_whole(value: float, below: float) -> bool:
    return abs(value) < below and float(value).is_integer()


def format_cell(value: object) -> str:
    """Write a value of a table for people: a count in full, a figure as such, a text as it is, nothing for NaN.

    Examples
    --------
    >>> [format_cell(value) for value in (1200, 1200.0, 0.25, "ant", None, float("nan"))]
    ['1,200', '1,200', '0.2500', 'ant', '', '']
    """
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return ""
    return format_number(value) if value.is_integer() else format_figure(value)


def format_share(share: float) -> str:
    """Write a part of 1 for people, in percent."""
    return f"{share:.1%}"


def format_duration(seconds: float) -> str:
    """Write a duration for people."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
