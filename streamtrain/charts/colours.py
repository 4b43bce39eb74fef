"""Colours that people see apart whatever their eyes, dark enough to stand on white.

The first are those of M. Okabe and K. Ito, "Color Universal Design" (2002); yellow, which is too light, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#000000")
"""For things of different kinds, in the order of their use."""
MARKERS: Final = ("circle", "square", "triangle", "diamond")
"""Likewise, for who sees no colours at all."""
DASHES: Final = ("", "7 4", "2 3", "9 3 2 3")
"""Of lines: solid first."""
GRID: Final = "#e6e6e6"
AXIS: Final = "#777777"
QUIET: Final = "#555555"

_RELIEF: Final = ("#3b528b", "#4c7ba6", "#6aa3bb", "#9bc6cb", "#cfe3dc", "#f7f7ee")
"""From low to high, even steps of lightness, so that it reads in grey as well."""


def shade(share: float) -> str:
    """The colour of a height, from 0 (lowest, dark) to 1 (highest, light).

    Examples
    --------
    >>> shade(0.0), shade(0.5), shade(1.0)
    ('#3b528b', '#82b4c3', '#f7f7ee')
    """
    place = min(max(share, 0.0), 1.0) * (len(_RELIEF) - 1)
    low = min(int(place), len(_RELIEF) - 2)
    return _mixed(_parts(_RELIEF[low]), _parts(_RELIEF[low + 1]), place - low)


def _parts(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def _mixed(one: Sequence[int], other: Sequence[int], share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
