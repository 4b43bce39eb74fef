"""Surfaces seen from above: cells in shades, lines of equal height, and paths over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from streamtrain.diagnostics.charts.lines import Curve, draw_marker
from streamtrain.diagnostics.charts.scales import AXIS, Axis, Scale, format_tick, is_placed, is_wide, shade, ticks

WIDTH: Final = 860
HEIGHT: Final = 600
_LEFT: Final = 76
_RIGHT: Final = 130
_TOP: Final = 34
_BOTTOM: Final = 56
_BAR: Final = 18
_N_SHADES: Final = 48
_N_CONTOURS: Final = 12
_NO_HEIGHT: Final = "#ffffff"

Place = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceChart:
    """A surface and paths over it.

    Parameters
    ----------
    title, x_label, y_label, height_label : str
        In words.
    xs, ys : sequence of float
        The grid's places, ascending.
    heights : sequence of sequence of float
        ``heights[j][i]`` at (``xs[i]``, ``ys[j]``); what is not finite stays white.
    paths : sequence of Curve
        Over it.
    """

    title: str
    x_label: str
    y_label: str
    height_label: str
    xs: Sequence[float]
    ys: Sequence[float]
    heights: Sequence[Sequence[float]]
    paths: Sequence[Curve]


def draw_surface_chart(relief: SurfaceChart) -> str:
    """Draw a surface.

    Examples
    --------
    >>> path = Curve(label="<run>", points=[(0.0, 0.0), (1.0, 1.0)])
    >>> labels = {"title": "J", "x_label": "a", "y_label": "b", "height_label": "J"}
    >>> svg = draw_surface_chart(SurfaceChart(**labels, xs=[0, 1], ys=[0, 1],
    ...                          heights=[[1, 2], [2, 3]], paths=[path]))
    >>> svg.count("<rect"), "<run>" in svg
    (36, False)
    """
    view = _View(relief)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(relief.title)}" '
        'xmlns="http://www.w3.org/2000/svg">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(relief.title)}</text>',
        *view.cells(),
        *view.contours(),
        *view.frame(),
        *(part for line in relief.paths for part in view.path(line)),
        *view.bar(),
        "</svg>",
    ]
    return "\n".join(parts)


class _View:
    """Where a place of the surface is in the drawing, and which shade a height has."""

    def __init__(self, relief: SurfaceChart) -> None:
        self.relief = relief
        finite = [height for row in relief.heights for height in row if is_placed(height)]
        self.low, self.high = min(finite, default=0.0), max(finite, default=1.0)
        self.is_log = is_wide(finite) and self.low > 0
        self.x = _even(relief.x_label, _edges(relief.xs), _LEFT, WIDTH - _RIGHT)
        self.y = _even(relief.y_label, _edges(relief.ys), HEIGHT - _BOTTOM, _TOP)
        # Between any two lines lie equally many places, so that a flat valley has its lines as well as its walls.
        finite.sort()
        self.levels = sorted({finite[i * len(finite) // _N_CONTOURS] for i in range(1, _N_CONTOURS)} if finite else ())

    def share(self, height: float) -> float:
        """A height between the lowest and the highest, from 0 to 1."""
        if self.high <= self.low:
            return 0.5
        if self.is_log:
            low = math.log(self.low)
            return (math.log(height) - low) / (math.log(self.high) - low)
        return (height - self.low) / (self.high - self.low)

    def cells(self) -> Iterator[str]:
        """Every place of the grid as a cell around it."""
        x_edges, y_edges = _edges(self.relief.xs), _edges(self.relief.ys)
        yield '<g shape-rendering="crispEdges">'
        for j, row in enumerate(self.relief.heights):
            for i, height in enumerate(row):
                left, right = self.x.place(x_edges[i]), self.x.place(x_edges[i + 1])
                bottom, top = self.y.place(y_edges[j]), self.y.place(y_edges[j + 1])
                is_there = is_placed(height)
                fill = shade(round(self.share(height) * _N_SHADES) / _N_SHADES) if is_there else _NO_HEIGHT
                place = f'x="{left:g}" y="{top:g}" width="{right - left:.2f}" height="{bottom - top:.2f}"'
                name = f"{self.relief.height_label} {height:.5g}" if is_there else "not finite"
                yield f'<rect {place} fill="{fill}"><title>{escape(name)}</title></rect>'
        yield "</g>"

    def contours(self) -> Iterator[str]:
        """Lines of equal height."""
        for level in self.levels:
            pieces = "".join(
                f"M{self.x.place(a[0]):g} {self.y.place(a[1]):g}L{self.x.place(b[0]):g} {self.y.place(b[1]):g}"
                for a, b in contour(self.relief.xs, self.relief.ys, self.relief.heights, level)
            )
            name = escape(f"{self.relief.height_label} = {level:.4g}")
            if pieces:
                look = 'fill="none" stroke="#1f2a44" stroke-opacity="0.35"'
                yield f'<path d="{pieces}" {look}><title>{name}</title></path>'

    def frame(self) -> Iterator[str]:
        """Axes, numbers and labels."""
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        yield (
            f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" fill="none" '
            f'stroke="{AXIS}"/>'
        )
        for place, text in self.x.ticks():
            yield f'<line x1="{place:g}" x2="{place:g}" y1="{bottom}" y2="{bottom + 5}" stroke="{AXIS}"/>'
            yield f'<text x="{place:g}" y="{bottom + 19}" text-anchor="middle">{text}</text>'
        for place, text in self.y.ticks():
            yield f'<line x1="{_LEFT - 5}" x2="{_LEFT}" y1="{place:g}" y2="{place:g}" stroke="{AXIS}"/>'
            yield f'<text x="{_LEFT - 9}" y="{place + 4:g}" text-anchor="end">{text}</text>'
        middle = (_LEFT + right) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(self.relief.x_label)}</text>'
        turned = f"translate(18 {(_TOP + bottom) / 2}) rotate(-90)"
        yield f'<text transform="{turned}" text-anchor="middle">{escape(self.relief.y_label)}</text>'

    def path(self, line: Curve) -> Iterator[str]:
        """A path, with a mark at its end and a smaller one at its beginning."""
        places = [(self.x.place(a), self.y.place(b)) for a, b in line.points]
        if not places:
            return
        points = " ".join(f"{a:g},{b:g}" for a, b in places)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        yield f"<g><title>{escape(line.label)}</title>"
        yield f'<polyline fill="none" stroke="#fff" stroke-width="4.5" stroke-opacity="0.75" points="{points}"/>'
        yield f'<polyline fill="none" stroke="{line.colour}" stroke-width="2.2"{dash} points="{points}"/>'
        yield draw_marker("circle", *places[0], "#000000", "the beginning", size=4.5)
        yield draw_marker(line.marker or "circle", *places[-1], line.colour, f"{line.label}: the end", size=6.5)
        yield "</g>"

    def bar(self) -> Iterator[str]:
        """The shades and their heights."""
        left, top, height = WIDTH - _RIGHT + 26, _TOP + 22, HEIGHT - _TOP - _BOTTOM - 22
        n = 32
        yield '<g shape-rendering="crispEdges">'
        for i in range(n - 1 if self.high > self.low else 0):
            y = top + height * (1 - (i + 1) / (n - 1))
            place = f'x="{left}" y="{y:.2f}" width="{_BAR}" height="{height / (n - 1) + 0.5:.2f}"'
            yield f'<rect {place} fill="{shade((i + 0.5) / (n - 1))}"/>'
        yield "</g>"
        for value in _bar_ticks(self.low, self.high, is_log=self.is_log):
            y = top + height * (1 - self.share(value))
            yield f'<line x1="{left + _BAR}" x2="{left + _BAR + 4}" y1="{y:.2f}" y2="{y:.2f}" stroke="{AXIS}"/>'
            yield f'<text x="{left + _BAR + 8}" y="{y + 4:.2f}">{format_tick(value)}</text>'
        yield f'<text x="{left}" y="{top - 10}">{escape(self.relief.height_label)}</text>'


def _bar_ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    if high <= low:
        return [low]
    if not is_log:
        return ticks(high, 6, low=low)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [value for power in powers for m in (1, 2, 5) if low <= (value := m * 10.0**power) <= high]


def _even(label: str, edges: Sequence[float], start: float, stop: float) -> Scale:
    return Scale(Axis(label=label, is_tight=True), [edges[0], edges[-1]], start, stop)


def _edges(places: Sequence[float]) -> list[float]:
    """The edges of cells around some places."""
    between = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    return [2 * places[0] - between[0], *between, 2 * places[-1] - between[-1]]


def contour(
    xs: Sequence[float], ys: Sequence[float], heights: Sequence[Sequence[float]], level: float
) -> Iterator[tuple[Place, Place]]:
    """Pieces of the line on which a surface has a height: marching squares, straight between the grid's places.

    Examples
    --------
    >>> list(contour([0.0, 1.0], [0.0, 1.0], [[0.0, 0.0], [1.0, 1.0]], 0.25))
    [((1.0, 0.25), (0.0, 0.25))]
    """
    for j in range(len(ys) - 1):
        for i in range(len(xs) - 1):
            corners = ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1))
            values = [heights[b][a] for a, b in corners]
            if not all(map(is_placed, values)) or not min(values) < level <= max(values):
                continue
            places = [(xs[a], ys[b]) for a, b in corners]
            crossed = [
                _between(places[k], places[m], (level - values[k]) / (values[m] - values[k]))
                for k, m in ((0, 1), (1, 2), (2, 3), (3, 0))
                if (values[k] < level) != (values[m] < level)
            ]
            # Of a saddle's four crossings the first two belong together, and the others: either way would do.
            for k in range(0, len(crossed), 2):
                yield crossed[k], crossed[k + 1]


def _between(one: Place, other: Place, share: float) -> Place:
    return one[0] + share * (other[0] - one[0]), one[1] + share * (other[1] - one[1])
