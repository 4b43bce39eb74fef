"""Charts of a grid as SVG: a surface that was measured place by place, and predictions by what was true.

A cell has one shade, of a few: nothing is drawn between two places where something was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.diagnostics.charts import (
    COLOURS,
    QUIET,
    Axis,
    Curve,
    Drawing,
    can_draw,
    canvas,
    house_style,
    legend,
    legend_height,
    place,
    printable,
    set_axis,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RELIEF: Final = ("#3b528b", "#4c7ba6", "#6aa3bb", "#9bc6cb", "#cfe3dc", "#f7f7ee")
"""From low to high, even steps of lightness, so that it reads in gray as well."""
_HALO: Final = "#fefefe"
"""White on a page of either kind."""
_MOST_SHADES: Final = 12
_N_COUNTS: Final = 5
_SIDE: Final = 3.96

_Floats = npt.NDArray[np.float64]
_Shades = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceChart:
    """A surface of heights ``[j][i]`` at (``xs[i]``, ``ys[j]``), empty where they are not finite, and paths over it."""

    title: str
    x_label: str
    y_label: str
    height_label: str
    xs: Sequence[float]
    ys: Sequence[float]
    heights: Sequence[Sequence[float]]
    paths: Sequence[Curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairChart:
    """Counts of samples by what was true, to the right, and what was predicted, upwards, in bins of one width."""

    title: str
    label: str
    low: float
    width: float
    n_bins: int
    # By the numbers of the bins, of what was true and of what was predicted.
    counts: Mapping[tuple[int, int], float]


def draw_surface(chart: SurfaceChart) -> Drawing:
    """Draw a surface, where matplotlib is installed."""
    alt = f"{chart.title} over {chart.x_label} and {chart.y_label}, with {len(chart.paths)} paths"
    return Drawing(title=chart.title, svg=_svg(_surface_figure, chart), alt=alt, is_full_width=True)


def draw_pairs(chart: PairChart) -> Drawing:
    """Draw predictions by what was true, where matplotlib is installed."""
    total = sum(chart.counts.values())
    near = sum(count for (i, j), count in chart.counts.items() if abs(i - j) <= 1)
    share = f"{near / total:.0%} of {total:,.0f} samples" if total else "no sample"
    alt = f"{chart.title}: {share} within a cell of the diagonal"
    return Drawing(title=chart.title, svg=_svg(_pair_figure, chart), alt=alt)


def _svg(figure: Callable[[Any], Figure], chart: SurfaceChart | PairChart) -> str:
    if not can_draw():
        return ""
    with house_style():
        return to_svg(figure(chart))


def shades_of(heights: Sequence[Sequence[float]]) -> tuple[_Shades, list[float]]:
    """Give each height a shade, from 0, of -1 what has no place, and return the heights between which each one is.

    Every shade has equally many places, so that a flat valley has its shades as well as its walls. With even steps
    up to the 95th percentile of the losses on the paths, the valley where most paths end was one shade, and all of a
    steep wall another.
    """
    found: _Floats = np.array([[place(height) for height in row] for row in heights], dtype=np.float64)
    finite = np.sort(found[np.isfinite(found)])
    if not len(finite):
        return np.full(found.shape, -1), []
    # Of those that are there: between two of them nothing was measured.
    edges = np.unique(finite[np.linspace(0, len(finite) - 1, _MOST_SHADES + 1).round().astype(int)])
    last = max(len(edges) - 2, 0)
    shades = np.searchsorted(edges, np.nan_to_num(found), side="right") - 1
    return np.where(np.isfinite(found), shades.clip(0, last), -1), edges.tolist()


def _surface_figure(chart: SurfaceChart) -> Figure:
    labels = [printable(path.label, 60) for path in chart.paths]
    below = legend_height(labels)
    figure, axes = canvas(8.6, 5.9 + below, left=0.9, right=1.3, bottom=0.6 + below)
    shades, edges = shades_of(chart.heights)
    colours = _relief(max(len(edges) - 1, 1))
    x_edges, y_edges = _edges(chart.xs), _edges(chart.ys)
    _fill(axes, x_edges, y_edges, shades, colours)
    axes.set(xlim=(x_edges[0], x_edges[-1]), ylim=(y_edges[0], y_edges[-1]))
    if len(edges) > 1:
        _scale(figure, axes, edges, colours, chart.height_label)
    for path, label in zip(chart.paths, labels, strict=True):
        _draw_path(axes, path, label)
    axes.spines[["top", "right"]].set_visible(True)
    set_axis(axes, "x", Axis(label=chart.x_label), ())
    set_axis(axes, "y", Axis(label=chart.y_label), ())
    if labels:
        legend(figure, axes, labels)
    return figure


def _relief(n: int) -> list[dict[str, Any]]:
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    shades = LinearSegmentedColormap.from_list("relief", RELIEF)
    # An edge of its own color closes the gaps that a browser leaves between two cells.
    return [{"color": to_hex(shades(i / max(n - 1, 1))), "linewidth": 0.5} for i in range(n)]


def _scale(figure: Figure, axes: Axes, edges: Sequence[float], looks: Sequence[dict[str, Any]], label: str) -> None:
    """Say which heights a shade stands for."""
    box = axes.get_position()
    scale = figure.add_axes((box.x1 + 0.03, box.y0, 0.02, box.height))
    steps = np.arange(len(edges), dtype=np.float64)
    _fill(scale, np.array([0.0, 1.0]), steps, np.arange(len(edges) - 1)[:, None], looks)
    scale.set(xlim=(0, 1), ylim=(0, len(edges) - 1), xticks=[])
    scale.yaxis.tick_right()
    scale.set_yticks(steps, [f"{edge:.3g}" for edge in edges])
    scale.set_xlabel(printable(label, 20))


def _draw_path(axes: Axes, path: Curve, label: str) -> None:
    """Draw a path with a mark at its end and a smaller, black one at its beginning."""
    if not path.points:
        return
    xs, ys = zip(*((place(x), place(y)) for x, y in path.points), strict=True)
    axes.plot(xs, ys, color=_HALO, linewidth=3.4, alpha=0.75)
    axes.plot(xs, ys, color=path.colour, linestyle=path.dash, linewidth=1.7, label=label, marker=path.marker,
              markersize=9, markeredgecolor=_HALO, markevery=[len(xs) - 1])  # fmt: skip
    axes.plot(xs[:1], ys[:1], color="#1f1f1f", marker="o", markersize=5, markeredgecolor=_HALO)


def _pair_figure(chart: PairChart) -> Figure:
    least = _least_counts(list(chart.counts.values()))
    labels = [*(f"{number:,.3g} or more" for number in least), "predicted = true"]
    below = legend_height(labels)
    figure, axes = canvas(_SIDE + 0.94, _SIDE + 0.7 + below, left=0.82, right=0.12, bottom=0.58 + below)
    shades = np.full((chart.n_bins, chart.n_bins), -1)
    for (true, predicted), count in chart.counts.items():
        shades[predicted, true] = np.searchsorted(least, count, side="right") - 1
    edges: _Floats = chart.low + chart.width * np.arange(chart.n_bins + 1, dtype=np.float64)
    alphas = [round(1.0 - 0.75 * i / max(len(least) - 1, 1), 2) for i in range(len(least))][::-1]
    looks = [{"color": COLOURS[0], "alpha": alpha, "linewidth": 0} for alpha in alphas]
    _fill(axes, edges, edges, shades, looks)
    for look, label in zip(looks, labels, strict=False):
        axes.plot([], [], label=label, **_square(look))
    axes.plot(edges[[0, -1]], edges[[0, -1]], color=QUIET, linestyle=":", linewidth=1.4, label=labels[-1])
    axes.set(xlim=(edges[0], edges[-1]), ylim=(edges[0], edges[-1]))
    set_axis(axes, "x", Axis(label=f"true {chart.label}"), edges[[0, -1]].tolist())
    set_axis(axes, "y", Axis(label=f"predicted {chart.label}"), edges[[0, -1]].tolist())
    axes.grid()
    legend(figure, axes, labels)
    return figure


def _square(look: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "alpha": look["alpha"], "marker": "s", "markersize": 9, "linestyle": ""}


def _least_counts(counts: Sequence[float]) -> list[float]:
    """Return the least count of each shade; each is about the same factor above the one before."""
    placed = [count for count in counts if count > 0]
    if not placed:
        return []
    low, high = min(placed), max(placed)
    steps = [low * (high / low) ** (i / _N_COUNTS) for i in range(_N_COUNTS)]
    is_whole = all(float(count).is_integer() for count in placed)
    return sorted({float(math.floor(step)) if is_whole else step for step in steps})


def _fill(axes: Axes, x_edges: _Floats, y_edges: _Floats, shades: _Shades, looks: Sequence[dict[str, Any]]) -> None:
    """Fill cells ``[j][i]`` by their shade, those of one shade by one path: a page has room for few marks."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    for number, look in enumerate(looks):
        corners: list[tuple[float, float]] = []
        for j, row in enumerate(shades):
            low, high = y_edges[j], y_edges[j + 1]
            for i, k in _runs(row == number):
                left, right = x_edges[i], x_edges[k]
                corners += [(left, low), (right, low), (right, high), (left, high), (left, low)]
        if corners:
            codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * (len(corners) // 5)
            axes.add_patch(PathPatch(Path(corners, codes), **look))


def _runs(marks: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first of each run of marks, and the place after its last."""
    changes = np.flatnonzero(np.diff(np.concatenate(([0], marks.astype(np.int8), [0]))))
    yield from zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True)


def _edges(places: Sequence[float]) -> _Floats:
    """Return the ends of the cells around places in order."""
    at = np.asarray(places, dtype=np.float64)
    if len(at) < 2:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middles = (at[:-1] + at[1:]) / 2
    return np.concatenate(([2 * at[0] - middles[0]], middles, [2 * at[-1] - middles[-1]]))
