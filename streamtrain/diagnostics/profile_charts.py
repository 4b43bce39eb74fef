"""The timeline of a profile, drawn by matplotlib: one figure, for the page and for a PNG.

Above, memory over time: what was held, stacked by kind, with budget, projection and peak. Below, on the same axis, the
lives of the loaders and their epochs, one row for each dataset; loaders of one dataset that were open at the same time
have rows of their own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from streamtrain.diagnostics.charts import Drawing, can_draw, house_style, printable, to_svg
from streamtrain.diagnostics.profile_timeline import MEMORY_KINDS, BudgetSpan, EpochSpan, LoaderSpan, Timeline
from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.system.units import format_bytes, format_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEMORY_COLOURS: Final = {"anonymous": "#8ab0d6", "shared": "#c9def2", "pinned": "#f6c46a", "device": "#98c98a"}
FILE_COLOUR: Final = "#3d3d3d"
LEVEL_COLOURS: Final = {"budget": "#c1272d", "projected": "#8e44ad", "before": "#555555"}
BAR_COLOURS: Final = ("#d8e3ef", "#b9cce2")
_ON_BAR: Final = "#202020"  # of a bar's light colour, whatever the page's
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
_MOST_LETTERS: Final = 24
_LEAST_SHOWN: Final = 0.002
"""A kind that never was more than this share of the whole is left out of the drawing."""
_INCHES: Final = (8.6, 4.8)
_ROW_INCHES: Final = 0.5
_TITLE_POINTS: Final = 11.5
_DPI: Final = 150
_ROWS_WORDS: Final = "; above, the epochs of the loaders"
_LINES: Final = {"budget": "-", "projected": "--", "before": ":"}
_LABELLED_SHARE: Final = 0.035
"""An epoch narrower than this share of the axis has no number on it."""


def timeline_summary(timeline: Timeline) -> str:
    """The figures of a profile in a line."""
    kept = timeline.kept
    if not timeline.was_seen:
        return NOT_SEEN
    if not kept:
        return f"peak {format_bytes(timeline.peak_bytes)}; no streamtrain loader reported its memory"
    worst = budget_line(max(kept, key=lambda one: one.ratio))
    return worst if len(kept) == 1 else f"{worst}, the most of {len(kept)} times"


def budget_line(kept: BudgetSpan) -> str:
    """Budget, projection and measured peak."""
    return (
        f"budget {format_bytes(kept.budget_bytes)}, projected {format_bytes(kept.projected_bytes)}, "
        f"measured {format_bytes(kept.measured_bytes)} ({format_share(kept.ratio)} of the budget)"
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


def check_can_draw() -> None:
    """Refuse where matplotlib is not installed.

    Raises
    ------
    UsageError
        It is not.
    """
    if not can_draw():
        raise UsageError(
            "matplotlib is not installed, and the PNG is drawn with it",
            fix=Fix("pip install 'streamtrain[plot]', or ", Argument("png", False)),
        )


@house_style()
def write_png(timeline: Timeline, path: Path) -> None:
    """Draw a timeline into a file, under the command and its figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = timeline_figure(timeline)
    text = printable(short_command(timeline.watched.command))
    title = figure.suptitle(text, x=0.01, ha="left", fontsize=_TITLE_POINTS, fontweight="bold")
    # A command of wide letters would run out of the picture; hinting keeps its width from following the size exactly.
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    points = _TITLE_POINTS
    while title.get_window_extent(renderer).x1 > figure.bbox.width and points > 1:
        points -= 0.5
        title.set_fontsize(points)
    summary = timeline_summary(timeline)
    figure.axes[0].set_title(printable(summary), fontsize=10, fontweight="normal", pad=86)
    figure.savefig(path)


def draw_timeline(timeline: Timeline) -> Drawing:
    """Draw a timeline for a page, where matplotlib is installed."""
    svg = _timeline_svg(timeline) if can_draw() else ""
    alt = f"Memory over {timeline.seconds:.1f} s: {timeline_summary(timeline)}"
    return Drawing(title="Memory over time", svg=svg, alt=alt, is_full_width=True)


@house_style()
def _timeline_svg(timeline: Timeline) -> str:
    return to_svg(timeline_figure(timeline))


def timeline_figure(timeline: Timeline) -> Figure:
    """Memory over time, and below it the loaders, as a figure."""
    from matplotlib.figure import Figure

    rows = loader_rows(timeline.loaders)
    heights = [_INCHES[1], len(rows) * _ROW_INCHES + 0.2] if rows else [_INCHES[1]]
    figure = Figure(figsize=(_INCHES[0], sum(heights)), dpi=_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    right = max(timeline.seconds, 1e-3)
    _draw_memory(panels[0], timeline, has_rows=bool(rows))
    panels[0].set_xlim(0, right)
    if rows:
        _draw_rows(panels[1], rows, right)
    panels[-1].set_xlabel("seconds of the command" + _ROWS_WORDS * bool(rows))
    return figure


def loader_rows(loaders: list[LoaderSpan]) -> list[list[LoaderSpan]]:
    """The rows to draw: loaders of one dataset, of which no two were open at the same time."""
    rows: list[list[LoaderSpan]] = []
    for loader in sorted(loaders, key=lambda loader: loader.start):
        for row in rows:
            if row[-1].opened.dataset == loader.opened.dataset and row[-1].stop <= loader.start:
                row.append(loader)
                break
        else:
            rows.append([loader])
    return rows[:_MOST_ROWS]


def _draw_memory(axes: Axes, timeline: Timeline, *, has_rows: bool) -> None:
    from matplotlib.patches import Patch

    levels = {
        "budget": timeline.levels(lambda kept: kept.budget_bytes),
        "projected": timeline.levels(lambda kept: kept.projected_bytes),
        "before": timeline.levels(lambda kept: 0),
    }
    highest = max([timeline.peak_bytes, *timeline.file, *(level.n_bytes for some in levels.values() for level in some)])
    unit, unit_bytes = ("GB", 10**9) if highest >= 2 * 10**9 else ("MB", 10**6)
    peaks = {kind: max(timeline.held[kind], default=0) for kind in MEMORY_KINDS}
    shown = [kind for kind in MEMORY_KINDS if kind == "anonymous" or peaks[kind] > _LEAST_SHOWN * highest]
    handles: list[Any] = axes.stackplot(
        timeline.times,
        *([n_bytes / unit_bytes for n_bytes in timeline.held[kind]] for kind in shown),
        labels=[MEMORY_LABELS[kind] for kind in shown],
        colors=[MEMORY_COLOURS[kind] for kind in shown],
        linewidth=0,
    )
    file = [n_bytes / unit_bytes for n_bytes in timeline.file]
    handles += axes.plot(timeline.times, file, color=FILE_COLOUR, linewidth=1.0, label=MEMORY_LABELS["file"])
    for name, some in levels.items():
        look: dict[str, Any] = {"color": LEVEL_COLOURS[name], "linestyle": _LINES[name], "linewidth": 1.6}
        drawn = [axes.plot([a.start, a.stop], 2 * [a.n_bytes / unit_bytes], **look)[0] for a in some]
        for line in drawn[:1]:
            line.set_label(MEMORY_LABELS[name])
            handles.append(line)
    if has_rows:
        handles.append(Patch(color=WAIT_COLOUR, label=MEMORY_LABELS["wait"]))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        fontsize=10.5,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    axes.set_ylabel(f"held by all processes [{unit}]")
    axes.set_ylim(0, 1.08 * highest / unit_bytes or 1.0)
    axes.grid(axis="y")


def _draw_rows(axes: Axes, rows: list[list[LoaderSpan]], right: float) -> None:
    names = [printable(PurePath(row[0].opened.dataset).name) for row in rows]
    for y, row in enumerate(rows):
        for loader in row:
            axes.plot([loader.start, loader.stop], [y, y], color="#999999", linewidth=1.2, zorder=1)
        for i, span in enumerate(span for loader in row for span in loader.epochs):
            _draw_epoch(axes, span, y, BAR_COLOURS[i % 2], right)
    # Names of one folder differ at their ends.
    axes.set_yticks(range(len(rows)), [n if len(n) <= _MOST_LETTERS else f"…{n[1 - _MOST_LETTERS :]}" for n in names])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_epoch(axes: Axes, span: EpochSpan, y: float, colour: str, right: float) -> None:
    width, ended = span.stop - span.start, span.ended
    wait = min(ended.wait_seconds / ended.seconds, 1.0) if ended is not None and ended.seconds > 0 else 0.0
    axes.barh(y, width, left=span.start, height=0.62, color=colour, zorder=2)
    axes.barh(y + 0.27, width * wait, left=span.start, height=0.08, color=WAIT_COLOUR, zorder=3)
    if width >= _LABELLED_SHARE * right:
        middle = (span.start + span.stop) / 2
        axes.text(middle, y - 0.02, f"{span.epoch + 1}", ha="center", va="center", color=_ON_BAR, zorder=4)
