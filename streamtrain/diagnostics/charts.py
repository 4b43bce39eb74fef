"""Line and bar charts as SVG: drawn by matplotlib, which the extra ``plot`` brings.

The colours can be told apart by people with any colour vision, and are dark enough on white; the first are those of
M. Okabe and K. Ito, "Color Universal Design" (2002); yellow, which is too light, is left out. In an SVG each stands as
a variable of the page, which has another value where its reader prefers dark pages.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from streamtrain import errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator, LogLocator

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#010101")
"""For things of different kinds, in the order of their use."""
MARKERS: Final = ("o", "s", "^", "D")
"""Likewise, for who sees no colours at all."""
DASHES: Final = ("-", "--", ":", "-.")
"""Of curves: solid first."""
QUIET: Final = "#555555"
THEME: Final[Mapping[str, tuple[str, str]]] = {
    "page": ("#ffffff", "#15181c"),
    "ink": ("#222222", "#e6e8eb"),
    "quiet": (QUIET, "#aab1ba"),
    "axis": ("#777777", "#8b939d"),
    "grid": ("#e6e6e6", "#31363d"),
    "mid": ("#999999", "#8d949d"),
    "file": ("#3d3d3d", "#d5d9de"),
    "budget": ("#c1272d", "#ff7b7f"),
    "projected": ("#8e44ad", "#c990e4"),
    **{f"c{i}": (colour, dark) for i, (colour, dark) in enumerate(zip(COLOURS, (
        "#59b2e8", "#f08b4a", "#3fc79a", "#e6a3c6", "#cdae4e", "#9ad6f7", "#e8eaed"), strict=True))},
}  # fmt: skip
"""Colours of a page by name: on white, and where dark pages are preferred; those of texts have a contrast of 4.5."""
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "streamtrain",
    # Text stays text: it can be searched and read aloud, and the browser has letters that the font lacks.
    "svg.fonttype": "none",
    # The page has its own font; here are the widths that a drawing is laid out by.
    "font.sans-serif": ["DejaVu Sans"],
    # What stands between two dollar signs would be typeset as mathematics.
    "text.parse_math": False,
    "text.color": "#222222",
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": "#222222",
    "axes.labelsize": 11.5,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.04,
    "grid.color": "#e6e6e6",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.fontsize": 11.5,
}
# A point is a pixel where the page is as wide as a phone.
_WIDTH: Final = 4.9
_LETTER: Final = 0.098
"""Inches of a letter, about."""
_LABEL_LETTERS: Final = 19
_TEXT_LETTERS: Final = 20
_MOST_LETTERS: Final = 46
"""Of a name, on a line of its own."""
_WIDE: Final = 20.0
_MOST: Final = 1e300
"""Differences and margins of larger numbers are not finite."""
_MOST_DRAWN: Final = 1e150
"""Beyond it, ticks of a logarithmic axis are not finite."""
_LEAST: Final = 1e-150
"""Smaller values are drawn as 0."""
_MOST_MARKED: Final = 60
"""A curve of more points has no markers."""
_MOST_SAID: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction of a chart: a logarithmic one has a place for zero, an even one may begin there."""

    label: str
    is_log: bool = False
    from_zero: bool = False
    is_counted: bool = False  # whole numbers alone have a tick, from 1 on


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points in order, broken where a number has no place; its looks are a colour and matplotlib's dash and marker."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str = COLOURS[0]
    dash: str = "-"
    marker: str = "o"
    is_faint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLine:
    """A value of an axis that is drawn right across, with its name in the legend."""

    label: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over one pair of axes; ``ticks`` are short marks at its foot, by the name of what they mark."""

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve]
    levels: Sequence[ReferenceLine] = ()
    # A value of the horizontal axis that is drawn right up.
    upright: ReferenceLine | None = None
    ticks: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def has_a_line(self) -> bool:
        """Whether anything of it is more than a point."""
        return any(sum(abs(y) <= _MOST_DRAWN for _, y in curve.points) > 1 for curve in self.curves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar: its label, its pieces by name, and the text behind it."""

    label: str
    pieces: Mapping[str, float]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Bars from a common beginning; ``format`` gives a piece in words, ``colours`` are of pieces by name."""

    title: str
    bars: Sequence[Bar]
    format: Callable[[float], str]
    colours: Mapping[str, str] | None = None

    @property
    def pieces(self) -> list[str]:
        """The names of all pieces, in order of their first use."""
        return list(dict.fromkeys(name for bar in self.bars for name in bar.pieces))

    @property
    def is_stacked(self) -> bool:
        """Whether a bar has several pieces, so that their names are to be told."""
        return any(len(bar.pieces) > 1 for bar in self.bars)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A chart for a page: its SVG, empty where matplotlib is not installed, and the rows of a table to show instead."""

    title: str
    svg: str
    # What is to be seen on it, for those who do not see it.
    alt: str = ""
    rows: Sequence[Sequence[str]] = ()
    is_full_width: bool = False


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def is_placed(value: float) -> bool:
    """Whether a number can stand on an axis: what is not finite cannot, nor what is near the end of all floats."""
    return abs(value) <= _MOST


def is_wide(values: Iterable[float]) -> bool:
    """Whether numbers, of which none is negative, lie so far apart that a logarithmic axis shows more of them."""
    placed = [value for value in values if is_placed(value)]
    positive = [value for value in placed if value > 0]
    return bool(positive) and min(placed) >= 0 and max(positive) > _WIDE * min(positive)


def spans_decade(values: Iterable[float]) -> bool:
    """Whether positive numbers lie a factor of ten apart, or more."""
    placed = [value for value in values if is_placed(value)]
    return bool(placed) and min(placed) > 0 and max(placed) >= 10 * min(placed)


def format_tick(value: float) -> str:
    """A round number in few letters.

    Examples
    --------
    >>> [format_tick(value) for value in (0.0, 0.25, 20.0, 1500.0, 60_000.0, 2e6, 1e-5, 5e20)]
    ['0', '0.25', '20', '1.5k', '60k', '2M', '1e-5', '5e20']
    """
    if value and not 1e-3 <= abs(value) < 1e12:
        digits, _, power = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def printable(text: str, most: int = 100) -> str:
    r"""A text that any font can set: in one line, without what is no letter, cut short where it is long.

    Examples
    --------
    >>> printable("a\nb\ud800"), printable("shoulder", most=6)
    ('a\\nb\\ud800', 'shoul…')
    """
    plain = errors.printable(text[:most])
    return plain if len(text) <= most else f"{plain[: most - 1]}…"


@contextmanager
def house_style() -> Iterator[None]:
    """Draw alike on every machine, whatever style the user has set."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


_NAMES: Final = {light: name for name, (light, _) in THEME.items()}
_OF_THEME: Final = re.compile("|".join(_NAMES))
_NEEDLESS: Final = re.compile(
    r"<!--.*?-->| transform=\"rotate\(-0 [^\"]*\)\"|font-family: 'DejaVu Sans', sans-serif; "
    r"|(?<=\n) +| ?\n(?=[<\"/CLMQz])",
    re.DOTALL,
)
_NUMBER: Final = re.compile(r"(\.\d\d)\d+(?=[ ,)\"\nCLMQz])")
"""A hundredth of a point is less than is seen."""
_PLACES: Final = re.compile(r' (?:d|x|y)="[^"]*"')
_TENTHS: Final = re.compile(r"(\.\d)\d\b")
"""Of a place, a tenth of one is: about a seventh of a pixel."""
_MARKS: Final = re.compile(r'(?:<use [^>]*? class="([^"]*)"/>\n*)(?:<use [^>]*? class="\1"/>\n*)+')
_CLASS: Final = re.compile(r' class="[^"]*"')
_BOX: Final = re.compile(r"M (\S+) (\S+)L (\S+) \2L \3 (\S+)L \1 \4z")
_TAG: Final = re.compile(r"</?g(?: [^>]*)?>")
_BARE: Final = re.compile(r"<g(?: id=\"[^\"]*\")?>")
_BLANK: Final = re.compile(r"\n{2,}")
_LOOK: Final = re.compile(r'style="([^"]*)"')
_LEAST_USES: Final = 3


def to_svg(figure: Figure) -> str:
    """The same drawing as the same text at any time; to be called in the house style."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = _NUMBER.sub(r"\1", _NEEDLESS.sub("", text.getvalue().partition("<svg")[2].join(("<svg", ""))))
    svg = _BOX.sub(r"M\1 \2H\3V\4H\1z", svg)
    svg = _OF_THEME.sub(lambda found: f"var(--{_NAMES[found[0]]})", svg)
    svg = _PLACES.sub(lambda found: _TENTHS.sub(r"\1", found[0]), svg)
    svg = _with_classes(_without_groups(svg))
    # Of marks in a row the group has the class.
    svg = _MARKS.sub(lambda found: f'<g class="{found[1]}">\n{_CLASS.sub("", found[0])}</g>\n', svg)
    return _BLANK.sub("\n", svg)


def _without_groups(svg: str) -> str:
    """Leave out the groups that only have a name; what is text in a drawing has no tags."""
    is_kept: list[bool] = []

    def of(tag: re.Match[str]) -> str:
        if tag[0].endswith("/>"):
            return ""
        if tag[0] != "</g>":
            is_kept.append(_BARE.fullmatch(tag[0]) is None)
            return tag[0] if is_kept[-1] else ""
        return tag[0] if is_kept.pop() else ""

    return _TAG.sub(of, svg)


def _with_classes(svg: str) -> str:
    """Give a look that many marks have a class, named by what it is: several drawings stand on a page."""
    uses = Counter(_LOOK.findall(svg))
    names = {look: f"l{zlib.crc32(look.encode()):x}" for look, n in uses.items() if n >= _LEAST_USES}
    rules = "".join(f".{name}{{{look}}}" for look, name in names.items())
    svg = _LOOK.sub(lambda found: f'class="{names[found[1]]}"' if found[1] in names else found[0], svg)
    return svg.replace("</style>", f"{rules}</style>", 1)


def draw(chart: LineChart | BarChart) -> Drawing:
    """Draw a chart, where matplotlib is installed."""
    rows = _bar_rows(chart) if isinstance(chart, BarChart) else ()
    svg = _chart_svg(chart) if can_draw() else ""
    return Drawing(title=chart.title, svg=svg, alt=_alt(chart), rows=rows)


def _alt(chart: LineChart | BarChart) -> str:
    """Say what a drawing shows."""
    if isinstance(chart, BarChart):
        return f"{chart.title}: {'; '.join(f'{bar.label} {bar.text}' for bar in chart.bars[:_MOST_SAID])}"
    ends = []
    for curve in chart.curves[:_MOST_SAID]:
        placed = [y for _, y in curve.points if is_placed(y)]
        ends += [f"{curve.label} from {placed[0]:.4g} to {placed[-1]:.4g}"] if placed else []
    return f"{chart.title} by {chart.x.label}: {'; '.join(ends)}"


def _bar_rows(chart: BarChart) -> list[list[str]]:
    """The bars as a table; the text of a lone piece says how much it is."""
    names = chart.pieces if chart.is_stacked else []
    rows = [[bar.label, *(chart.format(bar.pieces.get(name, 0.0)) for name in names), bar.text] for bar in chart.bars]
    return [["", *names, ""], *rows]


@house_style()
def _chart_svg(chart: LineChart | BarChart) -> str:
    return to_svg(_line_figure(chart) if isinstance(chart, LineChart) else _bar_figure(chart))


def canvas(width: float, height: float, *, left: float, right: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, its size and margins in inches; the page has its title, where it can wrap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + 0.12) / height))
    axes.patch.set_alpha(0)
    return figure, axes


def legend(figure: Figure, axes: Axes, labels: Sequence[str]) -> None:
    """Name the curves or pieces below the axes, in as many columns as there is room for."""
    height = figure.get_figheight()
    figure.legend(*axes.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.02, 0.04 / height),
                  ncols=_n_columns(labels), borderaxespad=0, columnspacing=1.2)  # fmt: skip


def _n_columns(labels: Sequence[str]) -> int:
    return max(1, min(3, int(_WIDTH / _LETTER / (max(map(len, labels), default=0) + 6))))


def legend_height(labels: Sequence[str]) -> float:
    """Return the inches that names below the axes take."""
    return 0.235 * -(-len(labels) // _n_columns(labels)) + 0.08 if labels else 0.0


def _line_figure(chart: LineChart) -> Figure:
    ticks = {name: values for name, values in chart.ticks.items() if values}
    levels = [level for level in chart.levels if not math.isnan(place(level.value))]
    named = [*(level.label for level in levels), *([chart.upright.label] if chart.upright else []), *ticks]
    is_said = {curve.label for curve in chart.curves} <= {chart.title, chart.y.label} and not named
    labels = [] if is_said else [printable(label, 40) for label in [*(curve.label for curve in chart.curves), *named]]
    below = legend_height(labels)
    figure, axes = canvas(_WIDTH, 2.95 + below, left=0.82, right=0.12, bottom=0.58 + below)
    xs: list[float] = []
    ys = [place(level.value) for level in levels]
    for curve in chart.curves:
        points = [(place(x), place(y)) for x, y in curve.points]
        drawn = [point for point in points if not any(map(math.isnan, point))]
        xs, ys = [*xs, *(x for x, _ in drawn)], [*ys, *(y for _, y in drawn)]
        is_marked = curve.marker and not curve.is_faint and len(drawn) <= _MOST_MARKED
        axes.plot(*zip(*points, strict=True) if points else ((), ()), label=printable(curve.label, 40),
                  color=curve.colour, linestyle=curve.dash, marker=curve.marker if is_marked else "", markersize=6,
                  markeredgecolor="white", linewidth=0.9 if curve.is_faint else 1.6,
                  alpha=0.55 if curve.is_faint else 1.0, clip_on=False)  # fmt: skip
    for level in levels:
        axes.axhline(place(level.value), color=QUIET, linestyle=":", linewidth=1.2, label=printable(level.label, 40))
    if not xs:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
    set_axis(axes, "x", chart.x, [*xs, *(value for values in ticks.values() for value in values)] if xs else xs)
    set_axis(axes, "y", chart.y, ys)
    if chart.upright is not None:
        upright = chart.upright
        axes.axvline(upright.value, color=QUIET, linestyle=":", linewidth=1.4, label=printable(upright.label, 40))
    for name, values in ticks.items():
        axes.plot(values, [0.0] * len(values), transform=axes.get_xaxis_transform(), linestyle="", marker="|",
                  markersize=9, color=QUIET, label=printable(name, 40), clip_on=False)  # fmt: skip
    axes.grid(axis="y")
    if labels:
        legend(figure, axes, labels)
    return figure


def place(value: float) -> float:
    """A number as it is drawn: NaN where it has no place."""
    return (value if abs(value) >= _LEAST else 0.0) if abs(value) <= _MOST_DRAWN else math.nan


def set_axis(axes: Axes, side: Literal["x", "y"], axis: Axis, values: Sequence[float]) -> None:
    """Scale, ticks and label of an axis on which these values are drawn."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

    positive = [value for value in values if value > 0]
    set_scale, ticks = getattr(axes, f"set_{side}scale"), getattr(axes, f"{side}axis")
    locator: Locator = MaxNLocator(6, steps=[1, 2, 5, 10], integer=axis.is_counted, min_n_ticks=1)
    if axis.is_counted and not axis.is_log and values:
        low, high = min(values), max(values)
        whole = [tick for tick in locator.tick_values(min(low, 1.0), high) if 1 <= tick <= high]
        locator = FixedLocator(whole or [max(round(high), 1)])
    if axis.is_log and len(positive) == len(values) > 0:
        set_scale("log")
        locator = _log_locator(min(positive), max(positive))
    elif axis.is_log and positive:
        # Even from zero, which has a place so, to the least of the others.
        least, most = min(positive), max(positive)
        set_scale("symlog", linthresh=least, linscale=0.4)
        found = SymmetricalLogLocator(base=10, linthresh=least, subs=_steps(least, most)).tick_values(0, most)
        # Between zero and the least value there is no room for names of ticks.
        locator = FixedLocator([0.0, *(tick for tick in found if least <= tick <= most)])
    if ticks.get_scale() == "symlog" or (axis.from_zero and ticks.get_scale() == "linear"):
        getattr(axes, f"set_{side}lim")(min([0.0, *values]), None)
    ticks.set_major_locator(locator)
    ticks.set_minor_locator(NullLocator())
    ticks.set_major_formatter(lambda value, _: format_tick(value))
    getattr(axes, f"set_{side}label")(printable(axis.label))


def _steps(low: float, high: float) -> tuple[int, ...]:
    return (1,) if math.log10(high) - math.log10(low) >= 3 else (1, 2, 5)


def _log_locator(low: float, high: float) -> LogLocator:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=_steps(low, high), numticks=8)


def _bar_figure(chart: BarChart) -> Figure:
    names = [printable(name, 60) for name in chart.pieces]
    below = legend_height(names) if chart.is_stacked else 0.0
    labels = [printable(bar.label, _MOST_LETTERS) for bar in chart.bars]
    longest_label = max(map(len, labels), default=0)
    # A name that is too long to stand before its bar stands above it.
    is_above = longest_label > _LABEL_LETTERS
    left = 0.1 if is_above else max(1.1, 0.2 + _LETTER * longest_label)
    texts = [printable(bar.text, _TEXT_LETTERS) for bar in chart.bars]
    text_room = 0.12 + _LETTER * max(map(len, texts), default=0)
    n_bars = len(chart.bars)
    height = 0.22 + (0.5 if is_above else 0.3) * max(n_bars, 1) + below
    figure, axes = canvas(_WIDTH, height, left=left, right=0.05, bottom=0.1 + below)
    room = _WIDTH - left - 0.05
    longest = max((sum(map(_length, bar.pieces.values())) for bar in chart.bars), default=0.0) or 1.0
    ends, places = np.zeros(n_bars), np.arange(n_bars) + (0.2 if is_above else 0.0)
    for i, (piece, name) in enumerate(zip(chart.pieces, names, strict=True)):
        lengths = np.array([_length(bar.pieces.get(piece, 0.0)) / longest for bar in chart.bars])
        colour = (chart.colours or {}).get(piece, COLOURS[i % len(COLOURS)])
        axes.barh(places, lengths, left=ends, height=0.42 if is_above else 0.68, color=colour, label=name)
        ends += lengths
    for i, text in enumerate(texts):
        axes.text(ends[i] + 0.015, places[i], text, va="center")
    for i, label in enumerate(labels if is_above else ()):
        axes.text(0, i - 0.27, label, va="center")
    axes.set_yticks([] if is_above else range(n_bars), [] if is_above else labels)
    axes.set(xticks=[], xlim=(0, room / max(room - text_room, 0.5)), ylim=(max(n_bars, 1) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0, labelcolor="#222222")
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(not is_above)
    if below:
        legend(figure, axes, names)
    return figure


def _length(value: float) -> float:
    return max(value, 0.0) if is_placed(value) else 0.0
