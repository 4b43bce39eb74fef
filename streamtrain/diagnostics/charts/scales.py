"""Axes of charts: ticks, number formats and colours.

The colours can be told apart by people with any colour vision, and are dark enough on white; the first are those of
M. Okabe and K. Ito, "Color Universal Design" (2002); yellow, which is too light, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

WIDE: Final = 20.0
"""Positive numbers whose largest is so many times the smallest ask for a logarithmic axis."""
_MOST: Final = 1e300
"""Differences and margins of larger numbers are not finite."""
_MOST_POWER: Final = 307
_LEAST: Final = 1e-300
"""What is smaller is drawn as 0: its share of anything is not exact."""
_MOST_TICKS: Final = 6
_ZERO_SHARE: Final = 0.09
"""What of a logarithmic axis is set apart for zero, where there is one."""
_MARGIN: Final = 0.04


def is_placed(value: float) -> bool:
    """Whether a number can stand on an axis: what is not finite cannot, nor what is near the end of all floats.

    Examples
    --------
    >>> is_placed(-3.0), is_placed(float("nan")), is_placed(1e308)
    (True, False, False)
    """
    return abs(value) <= _MOST


def ticks(top: float, n_most: int = 8, *, low: float = 0.0) -> list[float]:
    """Round numbers from a low value up to a top one, at most so many steps of 1, 2 or 5 times a power of ten.

    Examples
    --------
    >>> ticks(537.0), ticks(0.9, 5), ticks(2.32, 4, low=2.29)
    ([0.0, 100.0, 200.0, 300.0, 400.0, 500.0], [0.0, 0.2, 0.4, 0.6, 0.8], [2.29, 2.3, 2.31, 2.32])
    """
    least = (top - low) / n_most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(top / step + 1e-9) + 1)]


def format_tick(value: float) -> str:
    """A round number in few letters.

    Examples
    --------
    >>> [format_tick(value) for value in (0.0, 0.25, 20.0, 1500.0, 60_000.0, 2e6, 1e-5, 5e20)]
    ['0', '0.25', '20', '1.5k', '60k', '2M', '1e-5', '5e20']
    """
    if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e12:
        digits, _, power = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def is_wide(values: Iterable[float]) -> bool:
    """Whether numbers lie so far apart that a logarithmic axis shows more of them; it has no place for negative ones.

    Examples
    --------
    >>> is_wide([0.0, 1.0, 100.0]), is_wide([1.0, 10.0]), is_wide([0.0]), is_wide([-5.0, 1.0, 100.0])
    (True, False, False, False)
    """
    placed = [value for value in values if is_placed(value)]
    positive = [value for value in placed if value > 0]
    return bool(positive) and min(placed) >= 0 and max(positive) > WIDE * min(positive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction of a chart.

    Parameters
    ----------
    label : str
        What is measured, and its unit.
    is_log : bool
        Whether equal ratios are equal distances; zero, where it occurs, has a place of its own at the low end.
    from_zero : bool
        Whether an even axis begins at 0, however far from it the values are.
    is_tight : bool
        Whether an even axis ends at its outermost values.
    """

    label: str
    is_log: bool = False
    from_zero: bool = False
    is_tight: bool = False


class Scale:
    """Places between two ends for the values of an axis.

    Parameters
    ----------
    axis : Axis
        How.
    values : iterable of float
        All that are to have a place; what `is_placed` refuses has none.
    start, stop : float
        Where the low and the high end are in the drawing; ``stop`` may be the smaller one.

    Attributes
    ----------
    has_zero : bool
        Whether a logarithmic axis has a place for zero.

    Examples
    --------
    >>> even = Scale(Axis(label="epochs", from_zero=True), [0.0, 4.0], 0.0, 100.0)
    >>> even.place(0.0), even.ticks()[-1]
    (0.0, (100.0, '4'))
    >>> steps = Scale(Axis(label="updates", is_log=True), [0.0, 1.0, 100.0, 10000.0], 0.0, 100.0)
    >>> [text for _, text in steps.ticks()]
    ['0', '1', '10', '100', '1k', '10k']
    """

    def __init__(self, axis: Axis, values: Iterable[float], start: float, stop: float) -> None:
        self._start, self._stop = start, stop
        finite = [value for value in values if is_placed(value)]
        positive = [value for value in finite if value >= _LEAST]
        self._is_log = axis.is_log and bool(positive)
        self.has_zero = self._is_log and any(value < _LEAST for value in finite)
        if self._is_log:
            ends = _widened(math.log10(min(positive)), math.log10(max(positive)), 0.0)
            self._low, self._high = (min(max(end, -_MOST_POWER), _MOST_POWER) for end in ends)
        else:
            self._low, self._high = _even_ends(finite, axis)

    def place(self, value: float) -> float:
        """Where a value stands; zero on a logarithmic axis at its own place."""
        if self._is_log and value < _LEAST:
            return round(self._start, 2)
        share = ((math.log10(value) if self._is_log else value) - self._low) / (self._high - self._low)
        if self.has_zero:
            share = _ZERO_SHARE + (1 - _ZERO_SHARE) * share
        return round(self._start + share * (self._stop - self._start), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of round numbers."""
        zero = [0.0] if self.has_zero else []
        return [(self.place(value), format_tick(value)) for value in [*zero, *self._rounds()]]

    def _rounds(self) -> Sequence[float]:
        if not self._is_log:
            return ticks(self._high, _MOST_TICKS, low=self._low)
        low, high = self._low - 1e-9, self._high + 1e-9
        n_decades = math.floor(high) - math.ceil(low) + 1
        if n_decades >= 3:
            every = -(-n_decades // _MOST_TICKS)
            return [10.0**power for power in range(math.ceil(low), math.floor(high) + 1, every)]
        powers = range(math.floor(low), math.floor(high) + 1)
        some = [m * 10.0**power for power in powers for m in (1, 2, 5)]
        fitting = [value for value in some if low <= math.log10(value) <= high]
        return fitting if len(fitting) >= 2 else ticks(10.0**self._high, _MOST_TICKS, low=10.0**self._low)


def _even_ends(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if axis.from_zero:
        return min(low, 0.0), high if high > _LEAST else 1.0
    return _widened(low, high, 0.0 if axis.is_tight else _MARGIN)


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """The ends of an axis, with a margin; what is a single value gets some room on both sides."""
    if high - low <= 1e-9 * max(abs(low), abs(high), _LEAST):
        room = abs(low) * 0.1 or 0.5
        return low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)


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
