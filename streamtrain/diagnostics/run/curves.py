"""The learning curves of a run: a chart a metric over its epochs, then what else its lines of metrics tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from streamtrain.diagnostics.charts import (
    COLOURS,
    Axis,
    Curve,
    Drawing,
    LineChart,
    ReferenceLine,
    draw,
    is_placed,
    is_wide,
    spans_decade,
)
from streamtrain.diagnostics.run_reader import MetricsLine, RunRecord, metric_points
from streamtrain.training.metrics.user import METRIC_NAMES

_MOST_POINTS: Final = 1000
_VAL: Final = "val_"
_LOOKS: Final[dict[str, dict[str, Any]]] = {
    "training, inside an epoch": {"colour": COLOURS[0], "is_faint": True},
    "training": {"colour": COLOURS[0]},
    "training, after the epoch": {"colour": COLOURS[2], "marker": "^", "dash": "--"},
    "validation": {"colour": COLOURS[1], "marker": "s"},
}
_OTHERS: Final = {
    "grad_norm": "Norm of the gradient",
    "gradient_norm": "Norm of the gradient",
    "lr": "Learning rate",
    "update_variance": "Variance of the updates",
}
"""Titles of the further figures that a line of metrics may have."""


def draw_curves(told: RunRecord, label: str, best: int | None) -> Iterator[Drawing]:
    """Draw what was measured over the epochs; a chart without a line on it is left out."""
    for chart in _charts(told, label, best):
        if chart.has_a_line:
            yield draw(chart)


def _charts(told: RunRecord, label: str, best: int | None) -> Iterator[LineChart]:
    epochs, trials = _steps_of(told.epochs)
    place = _Places(told)
    passes = "pass over the data" if trials else "epoch"
    x = Axis(label=passes, is_counted=True)
    ticks = {"trial of a line search": [line["epoch"] for line in trials]}
    upright = None if best is None else ReferenceLine(label="best epoch", value=best)
    lines = {
        "training, inside an epoch": place.of(told.batches),
        "training": place.of(epochs),
        "training, after the epoch": place.of(told.measured),
        "validation": place.of(epochs),
    }
    for name in _names(told):
        curves = []
        for kind, look in _LOOKS.items():
            field = f"{_VAL}{name}" if kind == "validation" else name
            curve = Curve(label=kind, points=_thinned(metric_points(lines[kind], "at", field)), **look)
            # A legend names only what is seen: a single point has no faint line.
            if sum(is_placed(y) for _, y in curve.points) > (1 if curve.is_faint else 0):
                curves.append(curve)
        is_log = name == "loss" and spans_decade(y for curve in curves for _, y in curve.points)
        title = f"{_measured_on(curves)} {name} of {label}"
        y = Axis(label=name, is_log=is_log)
        yield LineChart(title=title, x=x, y=y, curves=curves, upright=upright, ticks=ticks)
    for name, title in _OTHERS.items():
        everywhere = [*place.of([*told.batches, *told.measured]), *lines["training"]]
        points = sorted(_thinned(metric_points(everywhere, "at", name)))
        y = Axis(label=title.lower(), is_log=is_wide(value for _, value in points))
        curve = Curve(label=title, points=points, colour=COLOURS[3], marker="D")
        yield LineChart(title=title, x=x, y=y, curves=[curve], ticks=ticks)
    speed = Curve(
        label="samples/s",
        points=metric_points([line for line in told.epochs if not line.get("partial")], "epoch", "samples_per_second"),
        colour=COLOURS[4],
        marker="D",
    )
    yield LineChart(
        title="Samples per second of training", x=x, y=Axis(label="samples/s", from_zero=True), curves=[speed]
    )


def _names(told: RunRecord) -> list[str]:
    """The metrics that are drawn: those of ours, and those of the user's own that are measured on both data."""
    own = [name for line in told.epochs[:1] for name in line if f"{_VAL}{name}" in line and name not in METRIC_NAMES]
    return [*METRIC_NAMES, *own]


def _measured_on(curves: Sequence[Curve]) -> str:
    kinds = {curve.label.partition(",")[0] for curve in curves}
    return "Training and validation" if len(kinds) > 1 else next(iter(kinds), "training").capitalize()


def _steps_of(epochs: Sequence[MetricsLine]) -> tuple[list[MetricsLine], list[MetricsLine]]:
    """Divide the epochs of a line search into one for each step and the trials; those of other rules all count."""
    trials = [line for line in epochs if any(name.startswith("trial_") for name in line)]
    return [line for line in epochs if line not in trials], trials


class _Places:
    """The places of lines on an axis of epochs: whole at the end of one, between two inside."""

    def __init__(self, told: RunRecord) -> None:
        whole = [line for line in told.epochs if not line.get("partial") and "samples" in line and "epoch" in line]
        self._samples = [0.0, *(line["samples"] for line in whole)]
        self._epochs = [0.0, *(line["epoch"] for line in whole)]
        first = self._samples[1] if whole else float(told.config.get("n_samples") or 0)
        self._of_epoch = first if first > 0 else None

    def of(self, lines: Iterable[MetricsLine]) -> list[MetricsLine]:
        """Give each line its place, ``at``; one that has none is left out."""
        return [{**line, "at": at} for line in lines if (at := self._at(line)) is not None]

    def _at(self, line: MetricsLine) -> float | None:
        if "epochs" in line:  # of a comparison
            return line["epochs"]
        if "samples" not in line or self._of_epoch is None:
            return line.get("epoch")
        samples = line["samples"]
        if samples > self._samples[-1]:
            return self._epochs[-1] + (samples - self._samples[-1]) / self._of_epoch
        return float(np.interp(samples, self._samples, self._epochs))


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // _MOST_POINTS)
    # A curve without its last point would end before the run did.
    return [*points[:-1:every], points[-1]] if every > 1 else points
