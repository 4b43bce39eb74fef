"""The report of a comparison: one HTML file, and one JSON file beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from streamtrain.comparison.results import ComparedRun, Comparison, LearningCurvePoint
from streamtrain.diagnostics.charts import (
    COLOURS,
    DASHES,
    MARKERS,
    Axis,
    Bar,
    BarChart,
    Curve,
    Drawing,
    LineChart,
    ReferenceLine,
    draw,
    is_wide,
    spans_decade,
)
from streamtrain.diagnostics.grids import SurfaceChart, draw_surface
from streamtrain.diagnostics.html import PageSection, page
from streamtrain.system.files import Files
from streamtrain.system.json_values import to_json_value
from streamtrain.system.units import counted, format_bytes, format_duration, format_figure, format_number

COMPARISON_HTML: Final = "comparison.html"
COMPARISON_JSON: Final = "comparison.json"
COMMAND: Final = "command"
"""The name of the command among the facts of a comparison."""
_ALIKE: Final = "The settings that all runs share"
_CROSS: Final = "X"
_VARIANCE: Final = (
    "Variance of the updates: over a window of n steps u (the first of each epoch, at most 100), the mean of "
    "|u − mean u|² ÷ |mean u|². 0: all updates are the same; near n or above: they are all noise. A lone step has none."
)
_EXACT: Final = "The loss is that of the weights after each epoch, over the whole training data, by a pass of its own."


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write both files into a folder, and return their paths; one without runs has no page yet."""
    files = Files()
    files.ensure_dir(folder)
    text = json.dumps(to_json_value(comparison.named()), indent=2) + "\n"
    files.write_bytes(folder / COMPARISON_JSON, text.encode())
    if comparison.runs:
        files.write_bytes(folder / COMPARISON_HTML, comparison_page(comparison).encode())
    return [folder / COMPARISON_HTML, folder / COMPARISON_JSON]


def hold_drawing_memory() -> None:
    """Draw a chart for nothing, so that what drawing holds on to is there before a process's memory is shared out."""
    draw(BarChart(title="", bars=[Bar(label="", pieces={"": 1.0})], format=str))


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison, its runs in the order of their losses."""
    rules = ", ".join(dict.fromkeys(run.rule for run in comparison))
    optimizers = ", ".join(dict.fromkeys(run.optimizer for run in comparison))
    title = f"{rules} with {optimizers}"
    comparison = replace(comparison, runs=comparison.best_first())
    n_weights = counted(comparison.n_weights, "weight")
    counts = f"{counted(comparison.n_samples, 'sample')}; {n_weights}, with which each run begins."
    notes = [_order_and_target(comparison)]
    notes += [f"{run.label} diverged: {run.diverged}" for run in comparison if run.diverged]
    notes += [f"{run.label} is not finished" for run in comparison if not run.is_finished]
    drawings = [*(draw(chart) for chart in _charts(comparison) if chart.has_a_line), *_amounts(comparison)]
    about = {name: value for name, value in comparison.about.items() if name != COMMAND}
    command = comparison.about.get(COMMAND)
    whose = [f"{about['model']} on {about['dataset']}"] if {"model", "dataset"} <= about.keys() else []
    sections = [
        PageSection(notes=[f"{', '.join([*whose, counts])}"]),
        PageSection(lines=[command] if command else [], folded=list(about.items()), folded_as=_ALIKE),
        PageSection(heading="Results", table=summary_rows(comparison), notes=notes),
        PageSection(heading="Curves", drawings=drawings, notes=[f"{_EXACT} {_VARIANCE}"]),
        *_surface(comparison),
        PageSection(heading="Epochs", table=epoch_rows(comparison)),
    ]
    return page(f"Comparison: {title}", f"Update rules side by side: {title}", sections)


def _order_and_target(comparison: Comparison) -> str:
    """Say what the runs are in the order of, and what their target is and where it comes from."""
    first, target = comparison.runs[0].points[0].train.loss, comparison.target_loss
    is_half = target == first - abs(first) / 2
    whence = "half of the loss that every run begins with" if is_half and first > 0 else "the one that was asked for"
    whence = "the loss that every run begins with, less half of its size" if is_half and first <= 0 else whence
    data = "validation" if comparison.has_val else "training"
    told = f"The target is a training loss of {format_figure(target)}, {whence}"
    order = f"Best first, by the {data} loss after the last epoch."
    return (
        f"{order} {told}: epochs and time are those until a run was first measured there, or below. Memory is what a "
        "run took above what the process held before it."
    )


def summary_rows(comparison: Comparison) -> list[list[str]]:
    """Return the header, and a row for each run, the best first."""
    score = comparison.runs[0].last.train.score_name
    has_val = comparison.runs[0].last.val is not None
    head = ["run", "lr", "updates", "time per epoch", "loss", *([score] if score else [])]
    head += [f"val {name}" for name in ("loss", score) if name and has_val]
    head += ["epochs to target", "time to target", "memory"]
    return [head, *(_summary(comparison, run) for run in comparison.best_first())]


def _name(run: ComparedRun) -> str:
    return f"{run.label} (diverged)" if run.has_diverged else run.label


def _summary(comparison: Comparison, run: ComparedRun) -> list[str]:
    last, reached = run.last, run.first_at(comparison.target_loss)
    measured = [last.train.named(), last.val.named() if last.val else {}]
    return [
        _name(run),
        f"{run.lr:g}",
        f"{last.n_steps:,}",
        _known(run.seconds_per_epoch, format_duration),
        *(format_figure(value) for values in measured for value in values.values()),
        _known(reached.epochs if reached else None),
        _known(reached.seconds if reached else None, format_duration),
        _known(_memory(run), format_bytes),
    ]


def _known(value: float | None, form: Callable[[float], str] = format_number) -> str:
    return "–" if value is None else form(value)


def epoch_rows(comparison: Comparison) -> list[list[str]]:
    """Return the header, and a row for each epoch of each run."""
    names = list(comparison.runs[0].last.train.named())
    has_val = comparison.runs[0].last.val is not None
    head = ["run", "epoch", "updates", "time", *names, *(f"val {name}" for name in names if has_val)]
    return [
        [*head, "variance of updates", "over steps"],
        *(_epoch(run, point) for run in comparison for point in run.points),
    ]


def _epoch(run: ComparedRun, point: LearningCurvePoint) -> list[str]:
    values = [*point.train.named().values(), *(point.val.named().values() if point.val else ())]
    return [
        _name(run),
        format_number(point.epochs),
        f"{point.n_steps:,}",
        format_duration(point.seconds),
        *(format_figure(value) for value in values),
        _known(point.variance),
        f"{point.n_window}" if point.n_window else "",
    ]


def _curve(comparison: Comparison, run: ComparedRun, points: list[tuple[float, float]]) -> Curve:
    """Return the curve of a run: colour and marker are those of its rule and rate, dashes those of its optimizer."""
    rule = list(dict.fromkeys((each.rule, each.rate) for each in comparison)).index((run.rule, run.rate))
    optimizer = list(dict.fromkeys(each.optimizer for each in comparison)).index(run.optimizer)
    return Curve(
        label=_name(run),
        points=points,
        colour=COLOURS[rule % len(COLOURS)],
        marker=_CROSS if run.has_diverged else MARKERS[rule % len(MARKERS)],
        dash=DASHES[optimizer % len(DASHES)],
    )


def _charts(comparison: Comparison) -> Iterator[LineChart]:
    def lines(x: Callable[[LearningCurvePoint], float], y: Callable[[LearningCurvePoint], float | None]) -> list[Curve]:
        found = []
        for run in comparison:
            points = [(x(point), math.nan if (value := y(point)) is None else value) for point in run.points]
            found.append(_curve(comparison, run, points))
        return found

    def chart(title: str, x: Axis, y: Axis, some: list[Curve], levels: tuple[ReferenceLine, ...] = ()) -> LineChart:
        return LineChart(title=title, x=x, y=y, curves=some, levels=levels)

    ends = [run.last for run in comparison]
    epochs = Axis(label="epochs", from_zero=True)
    steps = Axis(label="updates", from_zero=True, is_log=is_wide(point.n_steps for point in ends))
    seconds = Axis(label="seconds of training", from_zero=True, is_log=is_wide(point.seconds for point in ends))
    losses = [point.train.loss for run in comparison for point in run.points]
    # The target is drawn on the same axis.
    loss = Axis(label="training loss J", is_log=spans_decade(losses) and comparison.target_loss > 0)
    target = (ReferenceLine(label=f"target {format_figure(comparison.target_loss)}", value=comparison.target_loss),)
    yield chart("Training loss by epoch", epochs, loss, lines(lambda p: p.epochs, lambda p: p.train.loss), target)
    yield chart("Training loss by update", steps, loss, lines(lambda p: p.n_steps, lambda p: p.train.loss), target)
    yield chart("Training loss by time", seconds, loss, lines(lambda p: p.seconds, lambda p: p.train.loss), target)
    score = ends[0].train.score_name
    if score:
        scores = lines(lambda p: p.epochs, lambda p: p.train.score)
        yield chart(f"Training {score} by epoch", epochs, Axis(label=score), scores)
    if ends[0].val and score:
        scores = lines(lambda p: p.epochs, lambda p: p.val.score if p.val else None)
        yield chart(f"Validation {score} by epoch", epochs, Axis(label=score), scores)
    if ends[0].val:
        val = lines(lambda p: p.epochs, lambda p: p.val.loss if p.val else None)
        label = Axis(label="validation loss", is_log=spans_decade(y for line in val for _, y in line.points))
        yield chart("Validation loss by epoch", epochs, label, val)
    label = Axis(label="relative variance", is_log=True)
    yield chart("Variance of the updates, relative", epochs, label, lines(lambda p: p.epochs, lambda p: p.variance))


def _amounts(comparison: Comparison) -> Iterator[Drawing]:
    yield _bars("Training time of an epoch", comparison, lambda run: run.seconds_per_epoch, format_duration)
    yield _bars("Memory above what the process held before", comparison, _memory, format_bytes)


def _memory(run: ComparedRun) -> int | None:
    """Return what a run took above the memory that the process held before it."""
    return run.memory.get("above", run.memory.get("process"))


def _bars(
    title: str, comparison: Comparison, of: Callable[[ComparedRun], float | None], form: Callable[[float], str]
) -> Drawing:
    bars = []
    for run in comparison:
        value = of(run)
        bars.append(Bar(label=_name(run), pieces={title: value or 0.0}, text=form(value) if value else "–"))
    return draw(BarChart(title=title, bars=bars, format=form))


def _surface(comparison: Comparison) -> Iterator[PageSection]:
    surface = comparison.surface
    if surface is None:
        if comparison.no_surface is not None:
            yield PageSection(notes=[f"The error surface was not measured: {comparison.no_surface}"])
        return
    by_label = {path.label: path for path in surface.paths}
    chart = SurfaceChart(
        title="Training loss J",
        x_label=surface.labels[0],
        y_label=surface.labels[1],
        height_label="J",
        xs=surface.xs.tolist(),
        ys=surface.ys.tolist(),
        heights=surface.loss.tolist(),
        paths=[
            _curve(comparison, run, list(by_label[run.label].places)) for run in comparison if run.label in by_label
        ],
    )
    exact = "Both weights of the model are drawn: the surface is J itself."
    plane = (
        "The plane lies through the mean of the weights that the runs went through, along the two directions in which "
        f"they spread the most ({sum(surface.shares or ()):.0%} of it). Paths are seen from above: they need not lie "
        "in the plane, so J on it is not J on them."
    )
    cells = (
        f"Each of the {surface.loss.size:,} cells is one value of J, measured at its middle by a pass over the data of "
        "the training; nothing is drawn between them, and each shade has equally many. A black point is the beginning"
    )
    cross = ", a cross the last point that was measured of a run that diverged"
    ended = f"{cross}." if any(run.has_diverged for run in comparison) else "."
    yield PageSection(
        heading="The error surface, and the paths of the weights",
        drawings=[draw_surface(chart)],
        notes=[f"{exact if surface.shares is None else plane} {cells}{ended}"],
    )
