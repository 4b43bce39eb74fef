"""The report of a run as one HTML file: configuration, curves, memory, stalls, shuffle and data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.diagnostics.charts.bars import Bar, BarChart, bar_legend, draw_bar_chart
from streamtrain.diagnostics.charts.lines import Curve, LineChart, draw_line_chart, line_legend
from streamtrain.diagnostics.charts.scales import COLOURS, Axis, is_placed, is_wide
from streamtrain.diagnostics.html import charts, facts, note, page, table
from streamtrain.diagnostics.run_reader import RunRecord, metric_points, read_run
from streamtrain.errors import StreamtrainError
from streamtrain.loader.plan import plan
from streamtrain.shuffle.order import ORDER_VERSION
from streamtrain.shuffle.quality import ShuffleQuality
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.system.events import ThreadSeconds
from streamtrain.system.files import Files, local_path
from streamtrain.system.units import format_bytes, format_duration
from streamtrain.training.metrics import METRIC_NAMES

_MOST_CLASSES: Final = 30


def data_parts(told: RunRecord, given: Path | None) -> Iterator[str]:
    """The parts of the page; where the dataset is not to be had, a line says why."""
    dataset, why = _dataset(told, given)
    yield "<h2>Shuffle</h2>"
    if dataset is None:
        yield note(why)
    else:
        yield from _shuffle(told, dataset)
    yield "<h2>Dataset</h2>"
    if dataset is None:
        yield note(why)
    else:
        yield from _statistics(dataset)


def _dataset(told: RunRecord, given: Path | None) -> tuple[Dataset | None, str]:
    path = given or told.config.get("dataset")
    if not isinstance(path, str | Path):
        return None, "Not known: the run does not say where its dataset is."
    try:
        dataset = open_dataset(path)
    except (StreamtrainError, OSError, ValueError) as error:
        return None, f"Not known: {error}"
    ours = told.config.get("dataset_id")
    if ours is not None and ours != dataset.id:
        return None, f"Not known: the dataset at {path} is another one than the run was trained on."
    return dataset, ""


def _shuffle(told: RunRecord, dataset: Dataset) -> Iterator[str]:
    config = told.config
    if config.get("update") == "epoch":
        yield note("None: the rule epoch reads in stored order, since a sum over all samples has none.")
        return
    if config.get("shuffle") is False:
        yield note("None: the run read in stored order, since its loader was made with shuffle=False.")
        return
    if config.get("order") != ORDER_VERSION:
        yield note("Not measured: the run's samples came in the order of an earlier release, which this one has not.")
        return
    try:
        found = plan(dataset, **_order(config))
    except (StreamtrainError, TypeError, ValueError, OverflowError) as error:
        yield note(f"Not measured: {error}")
        return
    yield facts(
        [
            ("lanes", f"{found.sizes.lanes:,} over {dataset.layout.n_blocks:,} blocks"),
            *(_quality(found.quality) if found.quality else [("quality", found.why)]),
        ]
    )


def _order(config: dict[str, Any]) -> dict[str, Any]:
    """What the run's order follows from, of the types it has to be of."""
    wanted: dict[str, tuple[type, ...]] = {
        "batch_size": (int,), "memory": (int, str), "lanes": (int,), "groups": (int,), "seed": (int,),
        "drop_last": (bool,)
    }  # fmt: skip
    return {name: config[name] for name, types in wanted.items() if isinstance(config.get(name), types)}


def _quality(quality: ShuffleQuality) -> list[tuple[str, str]]:
    random = "as good as random" if quality.is_random else "worse than random"
    return [
        ("batch variance", f"{quality.variance:.3g} times a full reshuffle's: {random}"),
        ("drift", f"{quality.drift:.3g} times a full reshuffle's"),
        ("measured", f"over {quality.n_samples:,} samples of the first epoch, on their labels"),
    ]


def _statistics(dataset: Dataset) -> Iterator[str]:
    layout = dataset.layout
    rho = "" if dataset.rho is None else f"; labels inside a block are correlated by {round(dataset.rho, 3) + 0.0:.3f}"
    yield facts(
        [
            ("path", str(dataset.path)),
            ("id", dataset.id),
            ("samples", f"{len(dataset):,}"),
            ("size", f"{format_bytes(dataset.nbytes)}; {format_bytes(dataset.stored_bytes)} stored ({layout.codec})"),
            ("blocks", f"{layout.n_blocks:,} of {layout.block_rows:,} samples{rho}"),
        ]
    )
    head = ["field", "dtype", "shape", "mean", "std", "min", "max", "NaN", "infinite", "constant features"]
    rows = [head]
    for field in dataset.fields:
        overall = dataset.manifest.statistics[field.name].overall
        numbers = [f"{value:.6g}" for value in (overall.mean, overall.std, overall.min, overall.max)]
        constant = _constant(dataset, field.name)
        counts = [f"{overall.n_nan:,}", f"{overall.n_inf:,}", constant]
        rows.append([field.name, field.dtype.name, str(field.shape), *numbers, *counts])
    yield table("", rows)
    if histogram := _histogram(dataset):
        yield charts([histogram])


def _constant(dataset: Dataset, field: str) -> str:
    try:
        std = dataset.stats(field).std
    except StreamtrainError:
        return "unknown"
    return f"{int(np.count_nonzero(std == 0)):,} of {std.size:,}"


def _histogram(dataset: Dataset) -> str:
    histogram = dataset.label_histogram
    if histogram is None:
        return ""
    names = dict(enumerate(dataset.classes or ()))
    pairs = list(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    bars = [
        Bar(label=names.get(value, str(value)), pieces={"samples": float(count)}, text=f"{count:,}")
        for value, count in pairs[:_MOST_CLASSES]
    ]
    more = f", the first {_MOST_CLASSES} of {len(pairs):,}" if len(pairs) > _MOST_CLASSES else ""
    return draw_bar_chart(BarChart(title=f"Samples by label{more}", bars=bars, format=lambda value: f"{value:,.0f}"))


REPORT: Final = "report.html"
_WALL: Final = {"compute": COLOURS[5], "transfer": COLOURS[2], "wait": COLOURS[1]}
_MOST_POINTS: Final = 1000
_MOST_BARS: Final = 40
_MOST_LETTERS: Final = 400
_OTHERS: Final = {
    "grad_norm": "Norm of the gradient",
    "gradient_norm": "Norm of the gradient",
    "lr": "Learning rate",
    "update_variance": "Variance of the updates",
}
"""What more a line of metrics may tell, and what it is called."""


def write_report(path: Path, *, dataset: Path | None = None, out: Path | None = None) -> tuple[Path, RunRecord]:
    """Write the report of a run's folder.

    Parameters
    ----------
    path : pathlib.Path
        The run's folder.
    dataset : pathlib.Path, optional
        Its training data, where it lies elsewhere than it did.
    out : pathlib.Path, optional
        The file; by default ``report.html`` in the run's folder.

    Raises
    ------
    CheckpointError
        The folder is no run, or is damaged.
    UsageError
        One of the three is a URL.
    """
    for given in filter(None, (dataset, out)):
        local_path(given)
    told = read_run(path)
    files, file = Files(), out or path / REPORT
    files.ensure_dir(file.parent)
    files.write_bytes(file, run_page(told, dataset=dataset).encode())
    return file, told


def run_page(told: RunRecord, *, dataset: Path | None = None) -> str:
    """Write the page."""
    config = told.config
    title = f"{_text(config.get('model'))}, {_text(config.get('update'))} rule, {_optimizer(config)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        note(str(told.path)),
        facts(_headline(told)),
        *_curves(told),
        *_memory(told.memory),
        *_stalls(told),
        *data_parts(told, dataset),
        "<h2>Configuration</h2>",
        facts((name, _text(value)) for name, value in sorted(_flat(config), key=itemgetter(0))),
        *_epochs(told),
    ]
    return page(f"Run {told.path.name}: {title}", parts)


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def _optimizer(config: Mapping[str, Any]) -> str:
    optimizer = config.get("optimizer")
    return _text(optimizer.get("name") if isinstance(optimizer, dict) else optimizer)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _headline(told: RunRecord) -> Iterator[tuple[str, str]]:
    last = told.epochs[-1] if told.epochs else None
    if last is None:
        yield "epochs", "none came to its end"
        return
    part = " and a part of the next" if last.get("partial") else ""
    updates = f"{last.get('steps', 0):,.0f} updates, {last.get('samples', 0):,.0f} samples"
    yield "epochs", f"{told.n_epochs:,}{part}, {updates}"
    for name in METRIC_NAMES:
        if is_placed(last.get(name, math.nan)):
            val = f"; on the validation data {last[f'val_{name}']:.4f}" if f"val_{name}" in last else ""
            yield name, f"{last[name]:.4f} over the last epoch{val}"
    seconds = sum(epoch.get("seconds", 0.0) for epoch in told.epochs)
    rate = sum(_samples(told)) / seconds if seconds > 0 else 0.0
    if is_placed(seconds):
        yield "time", f"{format_duration(seconds)}: {rate:,.0f} samples/s"


def _samples(told: RunRecord) -> Iterator[float]:
    before = 0.0
    for epoch in told.epochs:
        yield max(epoch.get("samples", 0.0) - before, 0.0)
        before = epoch.get("samples", 0.0)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // _MOST_POINTS)
    # A curve without its last point would end before the run did.
    return [*points[:-1:every], points[-1]] if every > 1 else points


def _curves(told: RunRecord) -> Iterator[str]:
    looks = {
        "between two lines of the log": {"colour": COLOURS[0], "is_faint": True},
        "training, over an epoch": {"colour": COLOURS[0], "marker": "circle"},
        "training, after an epoch": {"colour": COLOURS[2], "marker": "triangle", "dash": "7 4"},
        "validation": {"colour": COLOURS[1], "marker": "square"},
    }
    sources = {"between two lines of the log": told.batches, "training, after an epoch": told.measured}
    drawn, used = [], []
    for name in METRIC_NAMES:
        lines = []
        for label, look in looks.items():
            field = f"val_{name}" if label == "validation" else name
            points = _thinned(metric_points(sources.get(label, told.epochs), "steps", field))
            if points:
                lines.append(Curve(label=label, points=points, **look))  # type: ignore[arg-type]
        if lines:
            values = [y for line in lines for _, y in line.points]
            y_axis = Axis(label=name, is_log=name == "loss" and is_wide(values))
            title = f"{name.capitalize()} against updates"
            drawn.append(
                draw_line_chart(LineChart(title=title, x=Axis(label="updates", from_zero=True), y=y_axis, lines=lines))
            )
            used += lines
    drawn += list(_others(told))
    speed = metric_points(told.epochs, "epoch", "samples_per_second")
    if speed:
        line = Curve(label="samples/s", points=speed, colour=COLOURS[4], marker="diamond")
        y_axis = Axis(label="samples/s", from_zero=True)
        drawn.append(draw_line_chart(LineChart(title="Speed", x=Axis(label="epoch"), y=y_axis, lines=[line])))
    yield "<h2>Curves</h2>"
    yield f"<p>{line_legend(used)}</p>"
    yield charts(drawn)


def _others(told: RunRecord) -> Iterator[str]:
    """Curves of what else the lines tell."""
    for name, title in _OTHERS.items():
        points = _thinned(metric_points([*told.batches, *told.epochs, *told.measured], "steps", name))
        if points:
            points.sort()
            y = Axis(label=title.lower(), is_log=is_wide(value for _, value in points))
            line = Curve(label=title, points=points, colour=COLOURS[3], marker="diamond")
            yield draw_line_chart(LineChart(title=title, x=Axis(label="updates", from_zero=True), y=y, lines=[line]))


def _memory(memory: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Memory against budget</h2>"
    names = {"budget": "budget", "projected": "projected", "measured": "measured"}
    bars = [
        Bar(label=label, pieces={label: float(memory[name])}, text=format_bytes(memory[name]))
        for name, label in names.items()
        if name in memory
    ]
    if not bars:
        yield note("Not known: the run did not come to its end, or was not made by a command.")
        return
    colours = {"budget": "#999999", "projected": COLOURS[3], "measured": COLOURS[0]}
    loaders = BarChart(title="The loaders' memory", bars=bars, format=format_bytes, colours=colours)
    yield charts([draw_bar_chart(loaders), _terms(memory)])
    if "process" in memory:
        process = format_bytes(memory["process"])
        yield note(f"The whole process held {process} at the most, model and libraries included.")


def _terms(memory: Mapping[str, Any]) -> str:
    terms = memory.get("terms")
    if not isinstance(terms, dict) or not terms:
        return ""
    loaders = [name for name, of in terms.items() if isinstance(of, dict)]
    names = list(dict.fromkeys(name for loader in loaders for name in terms[loader]))
    rows = [["projected", *loaders]]
    rows += [[name, *(format_bytes(terms[loader].get(name, 0)) for loader in loaders)] for name in names]
    return table("", rows)


def _stalls(told: RunRecord) -> Iterator[str]:
    yield "<h2>Where the time went</h2>"
    epochs = [
        epoch for epoch in told.epochs if all(is_placed(epoch.get(f"{kind}_seconds", math.nan)) for kind in _WALL)
    ]
    if not epochs:
        yield note("No epoch came to its end.")
        return
    bars = [
        Bar(
            label=f"epoch {_number(epoch)}",
            pieces={kind: epoch[f"{kind}_seconds"] for kind in _WALL},
            text=f"{stall:.1%} waiting" if is_placed(stall := epoch.get("stall_fraction", 0.0)) else "",
        )
        for epoch in epochs[:_MOST_BARS]
    ]
    wall = BarChart(title="Wall time of each epoch", bars=bars, format=format_duration, colours=_WALL)
    kinds = list(ThreadSeconds().named())
    work = {kind: sum(epoch.get(f"{kind}_thread_seconds", 0.0) for epoch in epochs) for kind in kinds}
    total = sum(work.values())
    threads = [
        Bar(label=kind, pieces={"threads": value}, text=f"{format_duration(value)}, {value / total:.0%}")
        for kind, value in work.items()
        if total > 0
    ]
    drawn = [wall]
    if threads:
        drawn.append(BarChart(title="What the loader's threads did", bars=threads, format=format_duration))
    yield f"<p>{bar_legend(wall)}</p>"
    yield charts(map(draw_bar_chart, drawn))
    if len(epochs) > _MOST_BARS:
        yield note(f"The first {_MOST_BARS} of {len(epochs):,} epochs.")


def _epochs(told: RunRecord) -> Iterator[str]:
    if not told.epochs:
        return
    names = [name for name in told.epochs[0] if not name.endswith("_seconds") and name not in ("epoch", "partial")]
    rows = [["epoch", *(name.replace("_", " ") for name in names)]]
    rows += [[_number(line), *(_cell(line.get(name)) for name in names)] for line in _ends(told.epochs)]
    yield f'<div class="wide">{table("Epochs", rows)}</div>'


def _number(epoch: Mapping[str, float]) -> str:
    return f"{epoch.get('epoch', 0):.0f}{', partial' if epoch.get('partial') else ''}"


def _ends(lines: tuple[Mapping[str, float], ...]) -> Iterable[Mapping[str, float]]:
    half = _MOST_BARS // 2
    return lines if len(lines) <= _MOST_BARS else (*lines[:half], *lines[-half:])


def _cell(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"
