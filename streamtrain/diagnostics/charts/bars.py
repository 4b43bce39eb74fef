"""Bar charts: amounts side by side, in one piece or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from streamtrain.diagnostics.charts.lines import WIDTH
from streamtrain.diagnostics.charts.scales import AXIS, COLOURS, format_tick, is_placed

_LEFT: Final = 132
_RIGHT: Final = 96
_TOP: Final = 34
_ROW: Final = 26
_BAR: Final = 17
_LETTERS: Final = 19
"""A label of more letters is cut short; its whole is in the bar's title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar: its label, its pieces by name, and the text behind it."""

    label: str
    pieces: Mapping[str, float]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Bars from a common beginning.

    Parameters
    ----------
    title : str
        Above them.
    bars : sequence of Bar
        From the top; lengths of at least 0.
    format : callable
        An amount in words.
    colours : mapping of str to str, optional
        Of pieces by name; by default in the order of their first use.
    """

    title: str
    bars: Sequence[Bar]
    format: Callable[[float], str] = format_tick
    colours: Mapping[str, str] | None = None

    def colour(self, piece: str) -> str:
        """The colour of a piece."""
        if self.colours and piece in self.colours:
            return self.colours[piece]
        names = list(dict.fromkeys(name for bar in self.bars for name in bar.pieces))
        return COLOURS[names.index(piece) % len(COLOURS)]


def draw_bar_chart(bars: BarChart) -> str:
    """Draw bars.

    Examples
    --------
    >>> svg = draw_bar_chart(BarChart(title="memory", bars=[Bar(label="<i>", pieces={"budget": 4.0}, text="4 MB")]))
    >>> "<i>" in svg, "4 MB" in svg
    (False, True)
    """
    longest = max((sum(map(_length, bar.pieces.values())) for bar in bars.bars), default=0.0) or 1.0
    height = _TOP + _ROW * len(bars.bars) + 8
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(bars.title)}" '
        'xmlns="http://www.w3.org/2000/svg">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(bars.title)}</text>',
        *(part for i, bar in enumerate(bars.bars) for part in _bar(bars, bar, _TOP + i * _ROW, longest)),
        f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP - 4}" y2="{height - 8}" stroke="{AXIS}"/>',
        "</svg>",
    ]
    return "\n".join(parts)


def _length(value: float) -> float:
    return max(value, 0.0) if is_placed(value) else 0.0


def _bar(bars: BarChart, bar: Bar, top: float, longest: float) -> Iterator[str]:
    middle = top + _BAR / 2 + 4
    short = bar.label if len(bar.label) <= _LETTERS else f"{bar.label[: _LETTERS - 1]}…"
    name = f"{escape(short)}<title>{escape(bar.label)}</title>"
    yield f'<text x="{_LEFT - 8}" y="{middle:g}" text-anchor="end">{name}</text>'
    x = float(_LEFT)
    for name, value in bar.pieces.items():
        width = _length(value) / longest * (WIDTH - _LEFT - _RIGHT)
        title = escape(f"{bar.label}: {name} {bars.format(value)}")
        place = f'x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}"'
        yield f'<rect {place} fill="{bars.colour(name)}"><title>{title}</title></rect>'
        x += width
    yield f'<text x="{x + 6:.1f}" y="{middle:g}">{escape(bar.text)}</text>'


def bar_legend(bars: BarChart) -> str:
    """What the pieces are called, as HTML; nothing where every bar is of one piece of the same name."""
    names = list(dict.fromkeys(name for bar in bars.bars for name in bar.pieces))
    if len(names) < 2:
        return ""
    return "".join(
        f'<span class="key"><i style="background:{bars.colour(name)}"></i>{escape(name)}</span>' for name in names
    )
