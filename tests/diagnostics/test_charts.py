"""Charts: round numbers on their axes, everything inside the frame, and nothing from outside that is not escaped."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.diagnostics.charts.bars import Bar, BarChart, bar_legend, draw_bar_chart
from streamtrain.diagnostics.charts.lines import (
    HEIGHT,
    WIDTH,
    Curve,
    LineChart,
    ReferenceLine,
    draw_line_chart,
    line_legend,
)
from streamtrain.diagnostics.charts.scales import Axis, Scale, format_tick, is_wide, shade, ticks
from streamtrain.diagnostics.charts.surface import SurfaceChart, draw_surface_chart

HOSTILE = '<script>alert("&")</script>'
SVG = "{http://www.w3.org/2000/svg}"


@given(top=st.floats(1e-3, 1e13), n_most=st.integers(2, 12))
def test_ticks_are_few_round_and_even(top: float, n_most: int) -> None:
    found = ticks(top, n_most)
    assert 1 <= len(found) <= n_most + 1
    assert found[0] == 0
    assert found[-1] <= top * (1 + 1e-6)
    steps = {round((b - a) / (found[1] - found[0]), 3) for a, b in pairwise(found)} if len(found) > 1 else {1.0}
    assert steps == {1.0}


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), n_most=st.integers(2, 12))
def test_ticks_between_lie_between(low: float, width: float, n_most: int) -> None:
    found = ticks(low + width, n_most, low=low)
    slack = 1e-6 * max(abs(low), width)
    assert len(found) <= n_most + 1
    assert all(low - slack <= tick <= low + width + slack for tick in found)


@given(values=st.lists(st.floats(0, 1e9), min_size=1, max_size=8), is_log=st.booleans(), from_zero=st.booleans())
def test_every_value_has_its_place_in_order(values: list[float], is_log: bool, from_zero: bool) -> None:
    scale = Scale(Axis(label="", is_log=is_log, from_zero=from_zero), values, 10.0, 110.0)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10.0 <= place <= 110.0 for place in places), places
    drawn = [place for place, _ in scale.ticks()]
    assert drawn == sorted(drawn)
    assert all(9.9 <= place <= 110.1 for place in drawn), drawn


@given(values=st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=8), zero=st.booleans())
def test_a_logarithmic_axis_keeps_zero_apart(values: list[float], zero: bool) -> None:
    scale = Scale(Axis(label="", is_log=True), [*values, 0.0] if zero else values, 0.0, 100.0)
    assert scale.has_zero == zero
    assert (scale.ticks()[0] == (0.0, "0")) == zero
    assert len(scale.ticks()) >= 1 + zero, "an axis without numbers says nothing"
    if zero:
        assert scale.place(min(values)) > 5.0


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


def test_shades_go_from_dark_to_light() -> None:
    lightness = [sum(int(shade(i / 20)[at : at + 2], 16) for at in (1, 3, 5)) for i in range(21)]
    assert lightness == sorted(lightness)
    assert shade(-1) == shade(0)
    assert shade(2) == shade(1)


def places_of(svg: str) -> list[tuple[float, float]]:
    """Every point of every curve of a drawing."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    words = [word for line in found for word in line.attrib["points"].split()]
    return [(float(word.split(",")[0]), float(word.split(",")[1])) for word in words]


def test_a_chart_is_whole_and_inside_its_frame() -> None:
    lines = [
        Curve(label=HOSTILE, points=[(0, 2.3), (1, math.nan), (2, 0.3), (60_000, 0.2)], marker=marker)
        for marker in ("circle", "square", "triangle", "diamond")
    ]
    axes = {"x": Axis(label=HOSTILE, is_log=True), "y": Axis(label=HOSTILE)}
    svg = draw_line_chart(
        LineChart(title=HOSTILE, lines=lines, levels=[ReferenceLine(label=HOSTILE, value=0.25)], **axes)
    )
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == HOSTILE
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places_of(svg))
    assert len(places_of(svg)) == 4 * 3, "what is not finite breaks the curve, and has no place"
    assert [text.text for text in root.iter(f"{SVG}text")].count(HOSTILE) == 4
    assert "<script" not in line_legend(lines)


def test_a_chart_of_nothing_says_so() -> None:
    axis = Axis(label="")
    assert "nothing to show" in draw_line_chart(
        LineChart(title="", x=axis, y=axis, lines=[Curve(label="", points=[(0, math.inf)])])
    )


@pytest.mark.parametrize(
    "values", [(1e308, -1e308), (1e299, -1e300), (5e-324, 0.0), (1e-320, 3e-320), (1e300, 1e-300), (-1e308, 2.0)]
)
@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("from_zero", [False, True])
def test_no_finite_numbers_are_too_large_or_small_to_draw(
    values: tuple[float, float], is_log: bool, from_zero: bool
) -> None:
    axis = Axis(label="", is_log=is_log, from_zero=from_zero)
    svg = draw_line_chart(
        LineChart(title="", x=axis, y=axis, lines=[Curve(label="", points=[(value, value) for value in values])])
    )
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places_of(svg))
    assert "nan" not in svg
    assert (
        draw_bar_chart(BarChart(title="", bars=[Bar(label="", pieces={"a": values[0], "b": values[0]})])).count("<rect")
        == 2
    )


def test_a_surface_of_any_heights_is_drawn() -> None:
    heights = [[1e300, 1e-300], [-1e308, math.nan]]
    svg = draw_surface_chart(
        SurfaceChart(
            title="", x_label="", y_label="", height_label="J", xs=[0, 1], ys=[0, 1], heights=heights, paths=[]
        )
    )
    assert svg.count("not finite") == 2


def test_a_lone_point_is_drawn() -> None:
    svg = draw_line_chart(
        LineChart(title="", x=Axis(label=""), y=Axis(label=""), lines=[Curve(label="", points=[(3.0, 5.0)])])
    )
    assert "<circle" in svg


def test_bars_are_as_long_as_their_amounts() -> None:
    bars = [
        Bar(label=HOSTILE, pieces={"a": 1.0, HOSTILE: 3.0}, text=HOSTILE),
        Bar(label="none", pieces={"a": math.nan}),
        Bar(label="x" * 40, pieces={"a": 2.0}),
    ]
    given_bars = BarChart(title=HOSTILE, bars=bars)
    svg = draw_bar_chart(given_bars)
    assert "<script" not in svg + bar_legend(given_bars)
    widths = [float(rect.attrib["width"]) for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert widths[2] == 0
    assert widths[3] == pytest.approx(2 * widths[0], abs=0.2)
    assert bar_legend(BarChart(title="", bars=[Bar(label="", pieces={"one": 1.0})])) == ""
