"""Sizes, rates and durations, parsed and formatted.

A size is an int of bytes or text with a unit: decimal ``KB MB GB TB`` (powers of 1000) or binary ``KiB MiB GiB TiB``
(powers of 1024), case-insensitive. Text without a unit is refused: ``"512"`` could mean anything.
"""

from __future__ import annotations

import re
from typing import Final

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.system.arguments import MOST_INT, is_int

_MEGABYTE: Final = 10**6


def megabytes(n_bytes: int) -> str:
    """Write a size of at least ``n_bytes``, as users type it."""
    return f"{-(-n_bytes // _MEGABYTE)}MB"


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


def format_rate(amount: float, seconds: float, unit: str) -> str:
    """Write an amount per second for people."""
    return f"{amount / seconds if seconds > 0 else 0:,.0f} {unit}/s"


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
