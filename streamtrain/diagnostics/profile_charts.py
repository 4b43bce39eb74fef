"""The drawings of a timeline: a PNG by matplotlib, which the extra ``plot`` brings, and an HTML page.

Above, memory over time: what was held, stacked by kind, with budget, projection and peak. Below, on the same axis, the
lives of the loaders and their epochs, one row for each dataset; loaders of one dataset that were open at the same time
have rows of their own. The scene is computed once for both drawings.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from streamtrain.diagnostics.charts.scales import ticks
from streamtrain.diagnostics.html import Table, table
from streamtrain.diagnostics.html import page as whole
from streamtrain.diagnostics.profile_timeline import MEMORY_KINDS, BudgetSpan, LoaderSpan, MemoryLevel, Timeline
from streamtrain.errors import UsageError
from streamtrain.system.units import format_bytes, format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEMORY_COLOURS: Final = {"anonymous": "#8ab0d6", "shared": "#c9def2", "pinned": "#f6c46a", "device": "#98c98a"}
FILE_COLOUR: Final = "#3d3d3d"
LEVEL_COLOURS: Final = {"budget": "#c1272d", "projected": "#8e44ad", "before": "#555555"}
BAR_COLOURS: Final = ("#d8e3ef", "#b9cce2")
WAIT_COLOUR: Final = "#e4572e"
MEMORY_LABELS: Final = {
    "anonymous": "anonymous",
    "shared": "shared",
    "pinned": "pinned",
    "device": "device",
    "file": "mapped from files (not counted)",
    "budget": "budget",
    "projected": "projected",
    "before": "held before the loader",
    "wait": "share of an epoch spent waiting",
}
NOT_SEEN: Final = "it ended before its memory could be read"
_MOST_ROWS: Final = 6
_MOST_WORDS: Final = 100
_LEAST_SHOWN: Final = 0.002
"""A kind that never was more than this share of the whole is left out of the drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineBar:
    """An epoch, or a loader's life: from one time to another in seconds, with a short label and a whole sentence.

    ``wait`` is the share of it that the training waited.
    """

    start: float
    stop: float
    label: str
    title: str
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineRow:
    """Loaders of one dataset, of which no two were open at the same time."""

    label: str
    lives: tuple[TimelineBar, ...]
    epochs: tuple[TimelineBar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineScene:
    """What to draw; bytes in units of ``unit_bytes``, times in seconds.

    Parameters
    ----------
    title, subtitle : str
        The command, and its figures in a line.
    unit, unit_bytes : str, int
        The unit of the axis, and its size.
    top, right : float
        Where the axes end.
    times : list of float
        Of the samples.
    kinds : dict of str to list of float
        What was held, by kind; kinds of which there was hardly any are left out.
    file : list of float
        What was mapped from files.
    levels : dict of str to list of MemoryLevel
        Lines by name, from the highest to the lowest.
    rows : list of TimelineRow
        Below.
    """

    title: str
    subtitle: str
    unit: str
    unit_bytes: int
    top: float
    right: float
    times: list[float]
    kinds: dict[str, list[float]]
    file: list[float]
    levels: dict[str, list[MemoryLevel]]
    rows: list[TimelineRow]


def timeline_scene(timeline: Timeline) -> TimelineScene:
    """Work out what to draw."""
    levels = {
        "budget": timeline.levels(lambda kept: kept.budget_bytes),
        "projected": timeline.levels(lambda kept: kept.projected_bytes),
        "before": timeline.levels(lambda kept: 0),
    }
    highest = max([timeline.peak_bytes, *timeline.file, *(level.n_bytes for some in levels.values() for level in some)])
    unit, unit_bytes = ("GB", 10**9) if highest >= 2 * 10**9 else ("MB", 10**6)
    peaks = {kind: max(timeline.held[kind], default=0) for kind in MEMORY_KINDS}
    shown = [kind for kind in MEMORY_KINDS if kind == "anonymous" or peaks[kind] > _LEAST_SHOWN * highest]
    return TimelineScene(
        title=short_command(timeline.watched.command),
        subtitle=_subtitle(timeline),
        unit=unit,
        unit_bytes=unit_bytes,
        top=1.08 * highest / unit_bytes or 1.0,
        right=max(timeline.seconds, 1e-3),
        times=timeline.times,
        kinds={kind: [n_bytes / unit_bytes for n_bytes in timeline.held[kind]] for kind in shown},
        file=[n_bytes / unit_bytes for n_bytes in timeline.file],
        levels=levels,
        rows=_rows(timeline.loaders),
    )


def _subtitle(timeline: Timeline) -> str:
    kept = timeline.kept
    if not timeline.was_seen:
        return NOT_SEEN
    if not kept:
        return f"peak {format_bytes(timeline.peak_bytes)}; no loader of streamtrain told of itself"
    worst = budget_line(max(kept, key=lambda one: one.ratio))
    return worst if len(kept) == 1 else f"{worst}, the most of {len(kept)} times"


def budget_line(kept: BudgetSpan) -> str:
    """Budget, projection and measured peak.

    Examples
    --------
    >>> budget_line(BudgetSpan(pid=7, budget_bytes=64_000_000, projected_bytes=60_000_000, measured_bytes=48_000_000,
    ...                held_bytes=0, start=0.0, stop=1.0))
    'budget 64.0 MB, projected 60.0 MB, measured 48.0 MB (0.75 of the budget)'
    """
    return (
        f"budget {format_bytes(kept.budget_bytes)}, projected {format_bytes(kept.projected_bytes)}, "
        f"measured {format_bytes(kept.measured_bytes)} ({kept.ratio:.2f} of the budget)"
    )


def short_command(words: Iterable[str], most: int = _MOST_WORDS) -> str:
    """A command as it is typed, in one line, its middle left out where it is long.

    Examples
    --------
    >>> short_command(["python", "-c", "import time; time.sleep(3)"], most=24)
    "python -c '…ime.sleep(3)'"
    """
    text = " ".join(shlex.join(words).split())
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2 + 1) :]}"


def _rows(loaders: list[LoaderSpan]) -> list[TimelineRow]:
    rows: list[list[LoaderSpan]] = []
    for loader in sorted(loaders, key=lambda loader: loader.start):
        for row in rows:
            if row[-1].opened.dataset == loader.opened.dataset and row[-1].stop <= loader.start:
                row.append(loader)
                break
        else:
            rows.append([loader])
    names = [PurePath(row[0].opened.dataset).name for row in rows]
    return [
        TimelineRow(
            label=name if len(name) <= 24 else f"…{name[-23:]}",
            lives=tuple(map(_life, row)),
            epochs=tuple(bar for loader in row for bar in _epochs(loader)),
        )
        for name, row in zip(names[:_MOST_ROWS], rows, strict=False)
    ]


def _life(loader: LoaderSpan) -> TimelineBar:
    opened = loader.opened
    title = (
        f"{opened.dataset}: {opened.n_samples:,} samples in batches of {opened.batch_size}, "
        f"budget {format_bytes(opened.budget_bytes)}, open for {format_duration(loader.stop - loader.start)}"
    )
    return TimelineBar(start=loader.start, stop=loader.stop, label="", title=title, wait=0.0)


def _epochs(loader: LoaderSpan) -> Iterable[TimelineBar]:
    for span in loader.epochs:
        ended = span.ended
        title, wait = f"epoch {span.epoch}, not ended", 0.0
        if ended is not None:
            wait = min(ended.wait_seconds / ended.seconds, 1.0) if ended.seconds > 0 else 0.0
            title = (
                f"epoch {span.epoch}: {ended.n_samples:,} samples in {format_duration(ended.seconds)}, "
                f"{wait:.1%} waiting for data"
            )
        yield TimelineBar(start=span.start, stop=span.stop, label=str(span.epoch), title=title, wait=wait)


_INCHES: Final = (11.0, 5.2)
_ROW_INCHES: Final = 0.45
_TITLE_POINTS: Final = 11.0
_DPI: Final = 120
_ROWS_WORDS: Final = "; above, the epochs of its loaders by number, from 0"
_LINES: Final = {"budget": "-", "projected": "--", "before": ":"}
_LABELLED_SHARE: Final = 0.025
"""An epoch narrower than this share of the axis has no number on it."""


def check_can_draw() -> None:
    """Refuse where matplotlib is not installed.

    Raises
    ------
    UsageError
        It is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "matplotlib is not installed, and the PNG is drawn with it",
            fix="pip install 'streamtrain[plot]', or --no-png",
        )


def write_png(scene: TimelineScene, path: Path) -> None:
    """Draw a scene into a file."""
    check_can_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    below = len(scene.rows) * _ROW_INCHES + 0.2
    heights = [_INCHES[1], below] if scene.rows else [_INCHES[1]]
    figure = Figure(figsize=(_INCHES[0], sum(heights)), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    title = figure.suptitle(_plain(scene.title), x=0.01, ha="left", fontsize=_TITLE_POINTS, fontweight="bold")
    # A command of wide letters would run out of the picture; hinting keeps its width from following the size exactly.
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    points = _TITLE_POINTS
    while title.get_window_extent(renderer).x1 > figure.bbox.width and points > 1:
        points -= 0.5
        title.set_fontsize(points)
    _draw_memory(panels[0], scene)
    if scene.rows:
        _draw_rows(panels[1], scene)
    panels[-1].set_xlabel("seconds since the command began" + _ROWS_WORDS * bool(scene.rows))
    figure.savefig(path)


def _plain(text: str) -> str:
    # What stands between two dollar signs would be typeset as mathematics.
    return text.replace("$", r"\$")


def _draw_memory(axes: Axes, scene: TimelineScene) -> None:
    from matplotlib.patches import Patch

    names = list(scene.kinds)
    stacks = axes.stackplot(
        scene.times,
        *scene.kinds.values(),
        labels=[MEMORY_LABELS[name] for name in names],
        colors=[MEMORY_COLOURS[name] for name in names],
        linewidth=0,
    )
    lines: list[Any] = axes.plot(scene.times, scene.file, color=FILE_COLOUR, linewidth=1.0, label=MEMORY_LABELS["file"])
    for name, levels in scene.levels.items():
        for i, level in enumerate(levels):
            y = level.n_bytes / scene.unit_bytes
            label = MEMORY_LABELS[name] if i == 0 else None
            drawn = axes.plot(
                [level.start, level.stop],
                [y, y],
                color=LEVEL_COLOURS[name],
                linestyle=_LINES[name],
                linewidth=1.6,
                label=label,
            )
            lines += drawn if i == 0 else []
    waits = [Patch(color=WAIT_COLOUR, label=MEMORY_LABELS["wait"])] if scene.rows else []
    axes.set_title(_plain(scene.subtitle), loc="left", fontsize=10, color="#333333", pad=30)
    axes.legend(
        handles=[*stacks, *lines, *waits],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=8,
        frameon=False,
        fontsize=8.5,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    axes.set_ylabel(f"held by all processes [{scene.unit}]")
    axes.set_ylim(0, scene.top)
    axes.set_xlim(0, scene.right)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rows(axes: Axes, scene: TimelineScene) -> None:
    for i, row in enumerate(scene.rows):
        _draw_row(axes, scene, row, float(i))
    axes.set_yticks(range(len(scene.rows)), [_plain(row.label) for row in scene.rows])
    axes.set_ylim(len(scene.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_row(axes: Axes, scene: TimelineScene, row: TimelineRow, y: float) -> None:
    for life in row.lives:
        axes.plot([life.start, life.stop], [y, y], color="#999999", linewidth=1.2, zorder=1)
    for i, bar in enumerate(row.epochs):
        _draw_bar(axes, scene, bar, y, BAR_COLOURS[i % 2])


def _draw_bar(axes: Axes, scene: TimelineScene, bar: TimelineBar, y: float, colour: str) -> None:
    axes.barh(y, bar.stop - bar.start, left=bar.start, height=0.62, color=colour, zorder=2)
    axes.barh(y + 0.27, (bar.stop - bar.start) * bar.wait, left=bar.start, height=0.08, color=WAIT_COLOUR, zorder=3)
    if bar.stop - bar.start >= _LABELLED_SHARE * scene.right:
        middle = (bar.start + bar.stop) / 2
        axes.text(middle, y - 0.02, bar.label, ha="center", va="center", fontsize=8, color="#222222", zorder=4)


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


def timeline_page(scene: TimelineScene, facts: Sequence[str], tables: Sequence[Table]) -> str:
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


def _keys(scene: TimelineScene) -> Iterator[str]:
    for kind in scene.kinds:
        yield f'<span class="key"><i style="background:{MEMORY_COLOURS[kind]}"></i>{MEMORY_LABELS[kind]}</span>'
    lines = {"file": (FILE_COLOUR, "solid")}
    lines |= {name: (LEVEL_COLOURS[name], _STYLES[name]) for name, levels in scene.levels.items() if levels}
    for name, (colour, style) in lines.items():
        line = f'<i class="line" style="border-top:2px {style} {colour}"></i>'
        yield f'<span class="key">{line}{MEMORY_LABELS[name]}</span>'
    if scene.rows:
        yield f'<span class="key"><i style="background:{WAIT_COLOUR};height:4px"></i>{MEMORY_LABELS["wait"]}</span>'


class _Axes:
    """Where a time and a number of bytes are in the drawing."""

    def __init__(self, scene: TimelineScene) -> None:
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


def _drawing(scene: TimelineScene) -> str:
    axes = _Axes(scene)
    label = escape(f"Memory over time: {scene.subtitle}", quote=True)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {axes.height}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">',
        *_frame(axes),
        *_areas(axes),
        _line(axes, scene.file, FILE_COLOUR, MEMORY_LABELS["file"]),
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
        yield f'<polygon fill="{MEMORY_COLOURS[kind]}" points="{place}"><title>{MEMORY_LABELS[kind]}</title></polygon>'
        below = above


def _points(axes: _Axes, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{axes.x(seconds):g},{axes.y(value):g}" for seconds, value in points)


def _line(axes: _Axes, values: Sequence[float], colour: str, title: str) -> str:
    points = _points(axes, list(zip(axes.scene.times, values, strict=True)))
    return f'<polyline fill="none" stroke="{colour}" points="{points}"><title>{title}</title></polyline>'


def _level(axes: _Axes, name: str, level: MemoryLevel) -> str:
    y = axes.y(level.n_bytes / axes.scene.unit_bytes)
    return (
        f'<line x1="{axes.x(level.start)}" x2="{axes.x(level.stop)}" y1="{y}" y2="{y}" stroke-width="2" '
        f'stroke="{LEVEL_COLOURS[name]}" stroke-dasharray="{_DASHES[name]}"><title>{MEMORY_LABELS[name]}</title></line>'
    )


def _row(axes: _Axes, row: TimelineRow, i: int) -> Iterator[str]:
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


def _bar(axes: _Axes, bar: TimelineBar, top: float, colour: str) -> Iterator[str]:
    x, width, height = axes.x(bar.start), axes.x(bar.stop) - axes.x(bar.start), _ROW_HEIGHT - 12
    yield f"<g><title>{escape(bar.title)}</title>"
    yield f'<rect x="{x}" y="{top}" width="{width:g}" height="{height}" fill="{colour}"/>'
    waited = f'width="{width * bar.wait:g}" height="4" fill="{WAIT_COLOUR}"'
    yield f'<rect x="{x}" y="{top + height - 4}" {waited}/>'
    if width >= _LETTER_WIDTH * len(bar.label) + 4:
        yield f'<text x="{x + width / 2:g}" y="{top + height / 2 + 3}" text-anchor="middle">{escape(bar.label)}</text>'
    yield "</g>"
