"""Line charts.

The names of curves stand in a legend that several charts of a page share, so that nothing covers anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from streamtrain.diagnostics.charts.scales import AXIS, COLOURS, GRID, QUIET, Axis, Scale, is_placed

WIDTH: Final = 540
HEIGHT: Final = 340
_LEFT: Final = 66
_RIGHT: Final = 22
_TOP: Final = 34
_BOTTOM: Final = 48
_CORNERS: Final = {
    "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
}
_MOST_MARKED: Final = 60
"""A curve of more points has no markers."""

ChartPoint = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve.

    Parameters
    ----------
    label : str
        In the key.
    points : sequence of (float, float)
        In order; the curve is broken where a number has no place.
    colour, dash, marker : str
        How it looks: a colour, an SVG pattern of dashes or ``""``, and ``"circle"``, ``"square"``, ``"triangle"``,
        ``"diamond"`` or ``""``.
    is_faint : bool
        Whether it stands in the background.
    """

    label: str
    points: Sequence[ChartPoint]
    colour: str = COLOURS[0]
    dash: str = ""
    marker: str = "circle"
    is_faint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLine:
    """A value of the vertical axis that is drawn right across, with its name on it."""

    label: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over one pair of axes."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Curve]
    levels: Sequence[ReferenceLine] = ()


def draw_line_chart(chart: LineChart) -> str:
    """Draw a chart.

    Examples
    --------
    >>> line = Curve(label="<b>", points=[(0, 1.0), (1, 0.5)])
    >>> svg = draw_line_chart(LineChart(title="J & more", x=Axis(label="epochs"), y=Axis(label="loss"), lines=[line]))
    >>> svg.startswith("<svg"), "<b>" in svg, "J &amp; more" in svg
    (True, False, True)
    """
    points = [point for line in chart.lines for point in line.points if _is_drawn(point)]
    x = Scale(chart.x, [point[0] for point in points], _LEFT, WIDTH - _RIGHT)
    levels = [level.value for level in chart.levels if is_placed(level.value)]
    y = Scale(chart.y, [*(point[1] for point in points), *levels], HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        'xmlns="http://www.w3.org/2000/svg">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(chart.title)}</text>',
        *draw_axes(x, y, chart.x.label, chart.y.label),
        *(part for level in chart.levels if is_placed(level.value) for part in _level(y, level)),
        *(part for line in chart.lines for part in _line(x, y, line, chart)),
        *([] if points else [f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing to show</text>']),
        "</svg>",
    ]
    return "\n".join(parts)


def _is_drawn(point: ChartPoint) -> bool:
    return is_placed(point[0]) and is_placed(point[1])


def draw_axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Iterator[str]:
    """Both axes of a chart of the usual size: grid, ticks, numbers and labels."""
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for place, text in y.ticks():
        yield f'<line x1="{_LEFT}" x2="{right}" y1="{place:g}" y2="{place:g}" stroke="{GRID}"/>'
        yield f'<text x="{_LEFT - 8}" y="{place + 4:g}" text-anchor="end">{text}</text>'
    for place, text in x.ticks():
        yield f'<line x1="{place:g}" x2="{place:g}" y1="{bottom}" y2="{bottom + 5}" stroke="{AXIS}"/>'
        yield f'<text x="{place:g}" y="{bottom + 19}" text-anchor="middle">{text}</text>'
    yield f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{AXIS}"/>'
    yield f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}" stroke="{AXIS}"/>'
    yield from _breaks(x, y, bottom)
    yield f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>'
    middle = (_TOP + bottom) / 2
    yield f'<text transform="translate(17 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'


def _breaks(x: Scale, y: Scale, bottom: float) -> Iterator[str]:
    """A white gap between the zero of a logarithmic axis and its first power of ten."""
    if x.has_zero:
        at = _LEFT + 18
        yield f'<path d="M{at} {bottom}h8" stroke="#fff" stroke-width="3"/>'
        yield f'<path d="M{at - 2} {bottom + 5}l4 -10m4 10l4 -10" stroke="{AXIS}" fill="none"/>'
    if y.has_zero:
        up = bottom - 13
        yield f'<path d="M{_LEFT} {up}v-6" stroke="#fff" stroke-width="3"/>'
        yield f'<path d="M{_LEFT - 5} {up + 2}l10 -4m-10 -2l10 -4" stroke="{AXIS}" fill="none"/>'


def _level(y: Scale, level: ReferenceLine) -> Iterator[str]:
    place = y.place(level.value)
    yield (
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:g}" y2="{place:g}" stroke="{QUIET}" '
        'stroke-dasharray="1 4" stroke-width="1.6" stroke-linecap="round"/>'
    )
    yield f'<text x="{WIDTH - _RIGHT}" y="{place - 5:g}" text-anchor="end" class="quiet">{escape(level.label)}</text>'


def _line(x: Scale, y: Scale, line: Curve, chart: LineChart) -> Iterator[str]:
    look = 'stroke-width="1.2" opacity="0.45"' if line.is_faint else 'stroke-width="2"'
    yield f"<g><title>{escape(line.label)}</title>"
    for stretch in _stretches(line.points):
        places = " ".join(f"{x.place(a):g},{y.place(b):g}" for a, b in stretch)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        yield (f'<polyline fill="none" stroke="{line.colour}" {look}{dash} stroke-linejoin="round" points="{places}"/>')
    shown = [point for point in line.points if _is_drawn(point)]
    if line.marker and not line.is_faint and len(shown) <= _MOST_MARKED:
        for a, b in shown:
            title = f"{line.label}: {chart.x.label} {a:g}, {chart.y.label} {b:.6g}"
            yield draw_marker(line.marker, x.place(a), y.place(b), line.colour, title)
    yield "</g>"


def _stretches(points: Sequence[ChartPoint]) -> Iterator[list[ChartPoint]]:
    stretch: list[ChartPoint] = []
    for point in points:
        if _is_drawn(point):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def draw_marker(kind: str, x: float, y: float, colour: str, title: str = "", size: float = 4.0) -> str:
    """A point that is seen: a circle, square, triangle or diamond with a white edge.

    Examples
    --------
    >>> draw_marker("circle", 10, 20, "#000000")
    '<circle cx="10" cy="20" r="4" fill="#000000" stroke="#fff"/>'
    """
    look = f'fill="{colour}" stroke="#fff"'
    name = f"<title>{escape(title)}</title>" if title else ""
    if kind == "circle":
        return _closed(f'<circle cx="{x:g}" cy="{y:g}" r="{size:g}" {look}', name, "circle")
    if kind == "square":
        left, top, side = x - 0.9 * size, y - 0.9 * size, 1.8 * size
        return _closed(f'<rect x="{left:g}" y="{top:g}" width="{side:g}" height="{side:g}" {look}', name, "rect")
    places = " ".join(f"{x + a * size:g},{y + b * size:g}" for a, b in _CORNERS[kind])
    return _closed(f'<polygon points="{places}" {look}', name, "polygon")


def _closed(head: str, inside: str, tag: str) -> str:
    return f"{head}>{inside}</{tag}>" if inside else f"{head}/>"


def line_legend(lines: Sequence[Curve]) -> str:
    """What the curves of one or more charts are called, as HTML, each name once.

    Examples
    --------
    >>> line_legend([Curve(label="a & b", points=[]), Curve(label="a & b", points=[])]).count("a &amp; b")
    1
    """
    first = {line.label: line for line in reversed(lines)}
    return "".join(_legend_entry(first[label]) for label in dict.fromkeys(line.label for line in lines))


def _legend_entry(line: Curve) -> str:
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    look = 'stroke-width="1.2" opacity="0.45"' if line.is_faint else 'stroke-width="2"'
    point = draw_marker(line.marker, 19, 7, line.colour) if line.marker and not line.is_faint else ""
    sample = f'<line x1="1" x2="37" y1="7" y2="7" stroke="{line.colour}" {look}{dash}/>{point}'
    return (
        '<span class="key"><svg viewBox="0 0 38 14" class="sample" xmlns="http://www.w3.org/2000/svg">'
        f"{sample}</svg>{escape(line.label)}</span>"
    )
