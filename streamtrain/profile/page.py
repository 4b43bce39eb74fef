"""The timeline as one HTML file that needs nothing else; the command's words and the datasets' names are escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from streamtrain.charts.scales import ticks
from streamtrain.pages import Table, table
from streamtrain.pages import page as whole
from streamtrain.profile.scene import (
    BAR_COLOURS,
    COLOURS,
    FILE_COLOUR,
    LABELS,
    LEVEL_COLOURS,
    WAIT_COLOUR,
    Bar,
    Row,
    Scene,
)
from streamtrain.profile.timeline import Level

_WIDTH: Final = 1100
_LEFT: Final = 190
_RIGHT: Final = 40
_MEMORY_HEIGHT: Final = 380
_ROW_HEIGHT: Final = 40
_GAP: Final = 18
_BOTTOM: Final = 50
_TOP: Final = 12
_DASHES: Final = {"budget": "none", "projected": "7 5", "before": "2 3"}
_STYLES: Final = {"budget": "solid", "projected": "dashed", "before": "dotted"}
_LETTER_WIDTH: Final = 8


def page(scene: Scene, facts: Sequence[str], tables: Sequence[Table]) -> str:
    """Write the page: the drawing, then some facts and tables about it."""
    parts = [
        f"<h1>{escape(scene.title)}</h1>",
        f"<p>{escape(scene.subtitle)}</p>",
        f"<p>{''.join(_keys(scene))}</p>",
        _drawing(scene),
        "<pre>" + "\n".join(map(escape, facts)) + "</pre>",
        *(table(heading, rows) for heading, rows in tables),
    ]
    return whole(f"Memory of {scene.title}", parts)


def _keys(scene: Scene) -> Iterator[str]:
    for kind in scene.kinds:
        yield f'<span class="key"><i style="background:{COLOURS[kind]}"></i>{LABELS[kind]}</span>'
    lines = {"file": (FILE_COLOUR, "solid")}
    lines |= {name: (LEVEL_COLOURS[name], _STYLES[name]) for name, levels in scene.levels.items() if levels}
    for name, (colour, style) in lines.items():
        yield f'<span class="key"><i class="line" style="border-top:2px {style} {colour}"></i>{LABELS[name]}</span>'
    if scene.rows:
        yield f'<span class="key"><i style="background:{WAIT_COLOUR};height:4px"></i>{LABELS["wait"]}</span>'


class _Axes:
    """Where a time and a number of bytes are in the drawing."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.right = _WIDTH - _RIGHT
        self.bottom = _TOP + _MEMORY_HEIGHT
        self.rows_bottom = self.bottom + (_GAP + len(scene.rows) * _ROW_HEIGHT if scene.rows else 0)
        self.height = self.rows_bottom + _BOTTOM

    def x(self, seconds: float) -> float:
        """The place of a time."""
        return round(_LEFT + seconds / self.scene.right * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        """The place of a value in the scene's unit."""
        return round(self.bottom - value / self.scene.top * _MEMORY_HEIGHT, 1)


def _drawing(scene: Scene) -> str:
    axes = _Axes(scene)
    label = escape(f"Memory over time: {scene.subtitle}", quote=True)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {axes.height}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">',
        *_frame(axes),
        *_areas(axes),
        _line(axes, scene.file, FILE_COLOUR, LABELS["file"]),
        *(_level(axes, name, level) for name, levels in scene.levels.items() for level in levels),
        *(part for i, row in enumerate(scene.rows) for part in _row(axes, row, i)),
        "</svg>",
    ]
    return "\n".join(parts)


def _frame(axes: _Axes) -> Iterator[str]:
    for value in ticks(axes.scene.top):
        y = axes.y(value)
        yield f'<line x1="{_LEFT}" x2="{axes.right}" y1="{y}" y2="{y}" stroke="#e6e6e6"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g} {axes.scene.unit}</text>'
    for value in ticks(axes.scene.right, 12):
        x = axes.x(value)
        yield f'<line x1="{x}" x2="{x}" y1="{axes.rows_bottom}" y2="{axes.rows_bottom + 5}" stroke="#888"/>'
        yield f'<text x="{x}" y="{axes.rows_bottom + 19}" text-anchor="middle">{value:g} s</text>'
    for y in (axes.bottom, axes.rows_bottom):
        yield f'<line x1="{_LEFT}" x2="{axes.right}" y1="{y}" y2="{y}" stroke="#888"/>'
    middle = (_LEFT + axes.right) / 2
    words = "time since the command began" + "; above, the epochs of its loaders by number, from 0" * bool(
        axes.scene.rows
    )
    yield f'<text x="{middle}" y="{axes.rows_bottom + 40}" text-anchor="middle">{words}</text>'
    y = _TOP + _MEMORY_HEIGHT / 2
    yield f'<text transform="translate({_LEFT - 80} {y}) rotate(-90)" text-anchor="middle">held by all processes</text>'


def _areas(axes: _Axes) -> Iterator[str]:
    below = [0.0] * len(axes.scene.times)
    for kind, values in axes.scene.kinds.items():
        above = [low + value for low, value in zip(below, values, strict=True)]
        points = [
            *zip(axes.scene.times, above, strict=True),
            *reversed(list(zip(axes.scene.times, below, strict=True))),
        ]
        place = _points(axes, points)
        yield f'<polygon fill="{COLOURS[kind]}" points="{place}"><title>{LABELS[kind]}</title></polygon>'
        below = above


def _points(axes: _Axes, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{axes.x(seconds):g},{axes.y(value):g}" for seconds, value in points)


def _line(axes: _Axes, values: Sequence[float], colour: str, title: str) -> str:
    points = _points(axes, list(zip(axes.scene.times, values, strict=True)))
    return f'<polyline fill="none" stroke="{colour}" points="{points}"><title>{title}</title></polyline>'


def _level(axes: _Axes, name: str, level: Level) -> str:
    y = axes.y(level.n_bytes / axes.scene.unit_bytes)
    return (
        f'<line x1="{axes.x(level.start)}" x2="{axes.x(level.stop)}" y1="{y}" y2="{y}" stroke-width="2" '
        f'stroke="{LEVEL_COLOURS[name]}" stroke-dasharray="{_DASHES[name]}"><title>{LABELS[name]}</title></line>'
    )


def _row(axes: _Axes, row: Row, i: int) -> Iterator[str]:
    top = axes.bottom + _GAP + i * _ROW_HEIGHT
    middle = top + _ROW_HEIGHT / 2
    yield f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(row.label)}</text>'
    for life in row.lives:
        yield (
            f'<line x1="{axes.x(life.start)}" x2="{axes.x(life.stop)}" y1="{middle}" y2="{middle}" stroke="#999" '
            f'stroke-width="2"><title>{escape(life.title)}</title></line>'
        )
    for j, bar in enumerate(row.epochs):
        yield from _bar(axes, bar, top + 6, BAR_COLOURS[j % 2])


def _bar(axes: _Axes, bar: Bar, top: float, colour: str) -> Iterator[str]:
    x, width, height = axes.x(bar.start), axes.x(bar.stop) - axes.x(bar.start), _ROW_HEIGHT - 12
    yield f"<g><title>{escape(bar.title)}</title>"
    yield f'<rect x="{x}" y="{top}" width="{width:g}" height="{height}" fill="{colour}"/>'
    waited = f'width="{width * bar.wait:g}" height="4" fill="{WAIT_COLOUR}"'
    yield f'<rect x="{x}" y="{top + height - 4}" {waited}/>'
    if width >= _LETTER_WIDTH * len(bar.label) + 4:
        yield f'<text x="{x + width / 2:g}" y="{top + height / 2 + 3}" text-anchor="middle">{escape(bar.label)}</text>'
    yield "</g>"
