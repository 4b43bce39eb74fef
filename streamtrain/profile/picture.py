"""The timeline as a PNG, drawn by matplotlib, which the extra ``plot`` brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streamtrain.errors import UsageError
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def write_png(scene: Scene, path: Path) -> None:
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


def _draw_memory(axes: Axes, scene: Scene) -> None:
    from matplotlib.patches import Patch

    names = list(scene.kinds)
    stacks = axes.stackplot(
        scene.times,
        *scene.kinds.values(),
        labels=[LABELS[name] for name in names],
        colors=[COLOURS[name] for name in names],
        linewidth=0,
    )
    lines: list[Any] = axes.plot(scene.times, scene.file, color=FILE_COLOUR, linewidth=1.0, label=LABELS["file"])
    for name, levels in scene.levels.items():
        for i, level in enumerate(levels):
            y = level.n_bytes / scene.unit_bytes
            label = LABELS[name] if i == 0 else None
            drawn = axes.plot(
                [level.start, level.stop],
                [y, y],
                color=LEVEL_COLOURS[name],
                linestyle=_LINES[name],
                linewidth=1.6,
                label=label,
            )
            lines += drawn if i == 0 else []
    waits = [Patch(color=WAIT_COLOUR, label=LABELS["wait"])] if scene.rows else []
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


def _draw_rows(axes: Axes, scene: Scene) -> None:
    for i, row in enumerate(scene.rows):
        _draw_row(axes, scene, row, float(i))
    axes.set_yticks(range(len(scene.rows)), [_plain(row.label) for row in scene.rows])
    axes.set_ylim(len(scene.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_row(axes: Axes, scene: Scene, row: Row, y: float) -> None:
    for life in row.lives:
        axes.plot([life.start, life.stop], [y, y], color="#999999", linewidth=1.2, zorder=1)
    for i, bar in enumerate(row.epochs):
        _draw_bar(axes, scene, bar, y, BAR_COLOURS[i % 2])


def _draw_bar(axes: Axes, scene: Scene, bar: Bar, y: float, colour: str) -> None:
    axes.barh(y, bar.stop - bar.start, left=bar.start, height=0.62, color=colour, zorder=2)
    axes.barh(y + 0.27, (bar.stop - bar.start) * bar.wait, left=bar.start, height=0.08, color=WAIT_COLOUR, zorder=3)
    if bar.stop - bar.start >= _LABELLED_SHARE * scene.right:
        middle = (bar.start + bar.stop) / 2
        axes.text(middle, y - 0.02, bar.label, ha="center", va="center", fontsize=8, color="#222222", zorder=4)
