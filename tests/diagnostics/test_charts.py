"""Charts: all inside the frame, numbers on every axis, the same text each time, and nothing that is not escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from streamtrain.diagnostics import charts, grids
from streamtrain.diagnostics.charts import (
    Axis,
    Bar,
    BarChart,
    Curve,
    LineChart,
    ReferenceLine,
    draw,
    format_tick,
    is_wide,
    printable,
)
from streamtrain.diagnostics.grids import PairChart, SurfaceChart, draw_pairs, draw_surface, shades_of

HOSTILE = '<script>alert("&$x$")</script>'
SVG = "{http://www.w3.org/2000/svg}"


def line_chart(values: list[float], axis: Axis) -> LineChart:
    return LineChart(title="", x=axis, y=axis, curves=[Curve(label="", points=[(value, value) for value in values])])


def surface(heights: list[list[float]], text: str = "", paths: tuple[Curve, ...] = ()) -> SurfaceChart:
    labels = {"title": text, "x_label": text, "y_label": text, "height_label": text}
    return SurfaceChart(**labels, xs=[0, 1], ys=[0, 1], heights=heights, paths=paths)


@charts.house_style()
def figure_of(make: Callable[..., Figure], *given: object) -> Figure:
    figure = make(*given)
    figure.draw_without_rendering()
    return figure


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(0, 1e9) | st.floats(-1e300, 1e300), min_size=1, max_size=8),
    is_log=st.booleans(),
    from_zero=st.booleans(),
)
def test_every_value_is_inside_the_frame_of_an_axis_with_numbers(
    values: list[float], is_log: bool, from_zero: bool
) -> None:
    is_log = is_log and min(values) >= 0
    axis = Axis(label="", is_log=is_log, from_zero=from_zero)
    (axes,) = figure_of(charts._line_figure, line_chart(values, axis)).axes
    (line,) = axes.lines
    drawn = line.get_xydata()
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    frame = axes.get_window_extent()
    places = axes.transData.transform(drawn)
    assert (places >= [frame.x0 - 0.1, frame.y0 - 0.1]).all(), places
    assert (places <= [frame.x1 + 0.1, frame.y1 + 0.1]).all(), places
    assert len(drawn) == sum(abs(value) <= 1e150 for value in values)
    for side, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        numbers = [
            tick.get_text() for tick in side.get_ticklabels() if low <= tick.get_position()[side is axes.yaxis] <= high
        ]
        assert 1 <= len([text for text in numbers if text]) <= 25, numbers


@pytest.mark.parametrize("values", [[0.0, 1.0, 100.0], [0.0, 3.0, 60_000.0], [0.0, 0.02]])
def test_a_logarithmic_axis_has_a_place_for_zero(values: list[float]) -> None:
    (axes,) = figure_of(charts._line_figure, line_chart(values, Axis(label="", is_log=True))).axes
    places = axes.transData.transform([(value, value) for value in values])[:, 0]
    assert places[0] == pytest.approx(axes.get_window_extent().x0), "at the low end, and nothing below it"
    assert (np.diff(places) > 20).all()
    assert "0" in [tick.get_text() for tick in axes.get_xticklabels()]


@pytest.mark.parametrize("value", [0.001, 0.5, 1.0, 999.0, 1000.0, 2500.0, 10_000.0, 3e6, 7e9, 2e-7])
def test_ticks_are_written_short_and_true(value: float) -> None:
    text = format_tick(value)
    size = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    assert float(text.rstrip("kMG")) * size == pytest.approx(value)
    assert len(text) <= 5


def test_wide_values_ask_for_a_logarithmic_axis() -> None:
    assert is_wide([1.0, 60_000.0, math.nan])
    assert not is_wide([0.1, 0.9])
    assert not is_wide([])
    assert not is_wide([-5.0, -1.0, 0.0]), "three places for three values"
    assert not is_wide([-1.0, 1.0, 1000.0])
    assert not is_wide([0.0, 5.0])
    assert is_wide([0.0, 1.0, 100.0]), "zero has a place of its own"


def test_shades_go_from_dark_to_light() -> None:
    lightness = [sum(int(shade[at : at + 2], 16) for at in (1, 3, 5)) for shade in grids.RELIEF]
    assert lightness == sorted(lightness)


def test_a_curve_is_broken_where_a_number_has_no_place() -> None:
    (axes,) = figure_of(charts._line_figure, line_chart([0, math.nan, 2, 1e308, 4], Axis(label=""))).axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, math.nan, 2, math.nan, 4])


def hostile_charts() -> list[LineChart | BarChart | SurfaceChart]:
    curves = [
        Curve(label=f"{HOSTILE}{marker}", points=[(0, 2.3), (1, math.nan), (2, 0.3), (60_000, 0.2)], marker=marker)
        for marker in charts.MARKERS
    ]
    axis = Axis(label=HOSTILE, is_log=True)
    bars = [Bar(label=HOSTILE, pieces={"a": 1.0, HOSTILE: 3.0}, text=HOSTILE)]
    return [
        LineChart(title=HOSTILE, x=axis, y=axis, curves=curves, levels=[ReferenceLine(label=HOSTILE, value=0.25)]),
        BarChart(title=HOSTILE, bars=bars, format=str),
        surface([[1, 2], [2, 3]], HOSTILE, (Curve(label=HOSTILE, points=[(0, 0), (1, 1)]),)),
    ]


def svg_of(chart: LineChart | BarChart | SurfaceChart) -> str:
    return (draw_surface(chart) if isinstance(chart, SurfaceChart) else draw(chart)).svg


@pytest.mark.parametrize(("number", "n_texts"), [(0, 7), (1, 3), (2, 4)], ids=["lines", "bars", "surface"])
def test_texts_are_escaped_and_mathematics_is_not_set(number: int, n_texts: int) -> None:
    svg = svg_of(hostile_charts()[number])
    assert "<script" not in svg
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert len([text for text in texts if "<script" in text]) == n_texts
    assert not re.search("<(image|foreignObject|a|metadata)[ >]", svg), "nothing is loaded, and nothing is dated"
    assert set(re.findall(r"https?://[^\"]*", svg)) <= {SVG[1:-1], "http://www.w3.org/1999/xlink"}


def test_a_chart_is_the_same_text_whatever_style_a_user_has() -> None:
    before = [svg_of(chart) for chart in hostile_charts()]
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.grid": True, "font.size": 20, "axes.facecolor": "red"}):
        assert [svg_of(chart) for chart in hostile_charts()] == before
        assert matplotlib.rcParams["font.size"] == 20, "and the style is put back"


def test_letters_without_a_glyph_and_letters_that_are_none_are_drawn() -> None:
    for text in ("靴下", "a\nb", "\x00", "\ud800", "ש"):
        assert printable(text) in draw(BarChart(title=text, bars=[Bar(label=text, pieces={"a": 1})], format=str)).svg


def test_a_chart_of_nothing_says_so() -> None:
    assert "nothing to show" in draw(line_chart([math.inf], Axis(label=""))).svg
    assert draw(BarChart(title="none", bars=[], format=str)).svg


@pytest.mark.parametrize(
    "values", [(1e308, -1e308), (1e299, -1e300), (5e-324, 0.0), (1e-320, 3e-320), (1e300, 1e-300), (1e150, 0.0, 1e-150)]
)
def test_no_finite_numbers_are_too_large_or_small_to_draw(values: tuple[float, ...]) -> None:
    for is_log in (False, True):
        svg = draw(line_chart(list(values), Axis(label="", is_log=is_log, from_zero=True))).svg
        assert not re.search(r"\b(nan|inf)\b", svg)
    bars = [Bar(label="", pieces={"a": values[0], "b": values[0]})]
    figure = figure_of(charts._bar_figure, BarChart(title="", bars=bars, format=str))
    assert len(figure.axes[0].patches) == 2


@pytest.mark.parametrize(
    "heights",
    [
        *([[1e300, 1e-300], [-1e308, math.nan]], [[1, 1], [1, 1]], [[1, 1], [1, 2]], [[1, 100], [3, 20]]),
        *([[math.nan, math.nan], [math.inf, math.nan]], [[1e150, 1e-150], [1, 2]], [[0.0, 1e-320], [0.0, 0.0]]),
    ],
)
def test_a_surface_of_any_heights_is_drawn(heights: list[list[float]]) -> None:
    figure = figure_of(grids._surface_figure, surface(heights))
    shades, edges = shades_of(heights)
    is_placed = np.abs(heights) <= 1e150
    np.testing.assert_array_equal(shades >= 0, is_placed)
    areas = [patch.get_path().to_polygons() for patch in figure.axes[0].patches]
    assert sum(np.ptp(box[:, 0]) * np.ptp(box[:, 1]) for boxes in areas for box in boxes) == is_placed.sum()
    measured = {0.0 if abs(height) < 1e-150 else height for row in heights for height in row}
    assert set(edges) <= measured, "nothing is said of a height between those that were measured"


def test_a_lone_point_is_drawn_and_many_have_no_markers() -> None:
    (axes,) = figure_of(charts._line_figure, line_chart([3.0], Axis(label=""))).axes
    assert axes.lines[0].get_marker() == "o"
    (axes,) = figure_of(charts._line_figure, line_chart([float(i) for i in range(61)], Axis(label=""))).axes
    assert not axes.lines[0].get_marker()


@pytest.mark.parametrize(("label", "n_legends"), [("training, over an epoch", 1), ("loss", 0)])
def test_a_lone_curve_has_its_name_in_a_legend_unless_the_axis_says_it(label: str, n_legends: int) -> None:
    curve = Curve(label=label, points=[(0, 1), (1, 2)])
    chart = LineChart(title="", x=Axis(label=""), y=Axis(label="loss"), curves=[curve])
    assert len(figure_of(charts._line_figure, chart).legends) == n_legends


def bar_chart() -> BarChart:
    bars = [
        Bar(label="first", pieces={"a": 1.0, "b": 3.0}, text="four"),
        Bar(label="none", pieces={"a": math.nan}),
        Bar(label="x" * 40, pieces={"a": 2.0}, text="2" * 30),
    ]
    return BarChart(title="bars", bars=bars, format=lambda value: f"{value:g} s")


def test_bars_are_as_long_as_their_amounts_and_their_texts_inside_the_picture() -> None:
    figure = figure_of(charts._bar_figure, bar_chart())
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([0.25, 0, 0.5, 0.75, 0, 0])
    for text in (*axes.texts, *axes.get_yticklabels()):
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.x1 <= figure.bbox.width
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    lone = BarChart(title="", bars=[Bar(label="", pieces={"one": 1.0})], format=str)
    assert not figure_of(charts._bar_figure, lone).legends


def test_a_name_too_long_for_its_place_stands_whole_above_its_bar() -> None:
    name = "sample, adam, lr 0.001 (diverged)"
    figure = figure_of(charts._bar_figure, BarChart(title="", bars=[Bar(label=name, pieces={"a": 1.0})], format=str))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == []
    (above,) = (text for text in axes.texts if text.get_text() == name)
    (bar,) = axes.patches
    assert above.get_window_extent().y0 >= bar.get_window_extent().y1
    assert above.get_window_extent().x1 <= figure.bbox.width


def test_a_drawing_says_what_many_marks_have_in_common_once() -> None:
    svg = svg_of(hostile_charts()[0])
    root = ElementTree.fromstring(svg)
    marks = list(root.iter(f"{SVG}use"))
    assert len(marks) > 20, "no mark was lost with its group"
    styles = "".join(style.text or "" for style in root.iter(f"{SVG}style"))
    used = {each.get("class") for each in root.iter() if each.get("class")}
    assert used
    assert all(f".{name}{{" in styles for name in used)
    assert not [each for each in root.iter(f"{SVG}g") if not each.attrib], "a group does something"


def test_trials_are_within_the_axis_and_a_level_is_named_in_the_legend() -> None:
    axis = Axis(label="pass", is_counted=True)
    curve = Curve(label="training", points=[(1, 3.0), (2, 1.0)])
    level = ReferenceLine(label="target 2", value=2.0)
    chart = LineChart(title="", x=axis, y=Axis(label=""), curves=[curve], levels=[level], ticks={"trial": [9.0]})
    figure = figure_of(charts._line_figure, chart)
    assert [text.get_text() for text in figure.legends[0].texts] == ["training", "target 2", "trial"]
    numbers = [float(tick.get_text()) for tick in figure.axes[0].get_xticklabels() if tick.get_text()]
    assert max(numbers) >= 8


def test_predictions_by_what_was_true_have_a_shade_by_their_count() -> None:
    counts = {(0, 0): 1.0, (1, 1): 10.0, (2, 2): 100.0, (2, 1): 1.0}
    chart = PairChart(title="", label="price", low=-5.0, width=5.0, n_bins=3, counts=counts)
    (axes,) = figure_of(grids._pair_figure, chart).axes
    areas = {patch.get_alpha(): len(patch.get_path().to_polygons()) for patch in axes.patches}
    assert sorted(areas.items()) == sorted(areas.items(), key=lambda each: -each[1]), "the darkest are the fewest"
    assert sum(areas.values()) == 4
    assert axes.get_xlim() == axes.get_ylim() == (-5.0, 10.0)
    assert "99% of 112 samples" in draw_pairs(chart).alt or "100% of 112" in draw_pairs(chart).alt


def test_without_matplotlib_bars_are_a_table_and_curves_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "can_draw", lambda: False)
    drawing = draw(bar_chart())
    assert drawing.svg == ""
    assert list(drawing.rows) == [
        ["", "a", "b", ""],
        ["first", "1 s", "3 s", "four"],
        ["none", "nan s", "0 s", ""],
        ["x" * 40, "2 s", "0 s", "2" * 30],
    ]
    assert draw(line_chart([1.0], Axis(label=""))).rows == ()


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_texts_have_a_contrast_of_4_5_and_what_is_drawn_can_be_told_from_the_page(place: int) -> None:
    colours = {name: both[place] for name, both in charts.THEME.items()}
    page = colours.pop("page")
    assert all(contrast(colours[name], page) >= 4.5 for name in ("ink", "quiet"))
    assert all(contrast(colour, page) >= 2.2 for name, colour in colours.items() if name != "grid")


def test_colours_of_an_svg_are_those_of_the_page_and_a_title_stands_on_the_page_alone() -> None:
    chart = line_chart([1.0, 2.0], Axis(label="x"))
    drawing = draw(LineChart(title="A title", x=chart.x, y=chart.y, curves=chart.curves))
    assert "A title" not in drawing.svg
    assert drawing.alt == "A title by x:  from 1 to 2"
    assert not set(charts._NAMES) & set(re.findall(r"#[0-9a-f]{6}", drawing.svg))
    assert {"var(--c0)", "var(--ink)", "var(--grid)"} <= set(re.findall(r"var\(--\w+\)", drawing.svg))


def test_whole_numbers_alone_have_a_tick_from_1_on() -> None:
    for values in ([1.0, 2.0], [0.2, 1.0, 3.0], [1.0], [float(i) for i in range(1, 41)], [0.5]):
        (axes,) = figure_of(charts._line_figure, line_chart(values, Axis(label="", is_counted=True))).axes
        ticks = axes.get_xticks()
        assert len(ticks) >= 1
        assert all(tick >= 1 and float(tick).is_integer() for tick in ticks), ticks


def test_marks_at_the_foot_and_an_upright_have_their_names_in_the_legend() -> None:
    chart = line_chart([1.0, 2.0], Axis(label=""))
    best, ticks = ReferenceLine(label="best", value=2.0), {"trial": [1.0], "none": []}
    chart = LineChart(title="", x=chart.x, y=chart.y, curves=chart.curves, upright=best, ticks=ticks)
    figure = figure_of(charts._line_figure, chart)
    assert [text.get_text() for text in figure.legends[0].texts][-2:] == ["best", "trial"]


@pytest.mark.parametrize("values", [(0.0, 0.05, 0.1, 3.0), (0.0, 1.0, 2.0, 30.0, 400.0), (0.0, 0.03, 90.0)])
def test_ticks_between_zero_and_the_least_value_are_left_out(values: tuple[float, ...]) -> None:
    axes = Figure().add_subplot()
    charts.set_axis(axes, "x", Axis(label="seconds", from_zero=True, is_log=True), values)
    assert axes.get_xscale() == "symlog"
    first, *others = axes.get_xticks()
    assert first == 0
    assert others
    assert all(values[1] <= tick <= values[-1] for tick in others)
