"""The report of a run as one HTML file: configuration, curves, memory, stalls, shuffle and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.diagnostics.charts import COLOURS, Bar, BarChart, Drawing, draw, format_tick, is_placed
from streamtrain.diagnostics.html import PageSection, ShareMatrix, Table, page
from streamtrain.diagnostics.run_curves import draw_curves
from streamtrain.diagnostics.run_reader import RunRecord, read_run
from streamtrain.errors import Argument, Fix, StreamtrainError, StreamtrainWarning
from streamtrain.loader.plan import plan
from streamtrain.shuffle.order import ORDER_VERSION
from streamtrain.shuffle.quality import ShuffleQuality
from streamtrain.store.dataset import Dataset, open_preferred
from streamtrain.store.writing.staging import check_in_no_dataset
from streamtrain.system.events import ThreadSeconds
from streamtrain.system.files import Files, local_path
from streamtrain.system.units import format_bytes, format_duration
from streamtrain.training.best.chosen_checkpoint import ChosenCheckpoint
from streamtrain.training.metrics.user import METRIC_NAMES
from streamtrain.training.records.kept_scores import BEST

REPORT: Final = "report.html"
_WALL: Final = {"compute": COLOURS[5], "transfer": COLOURS[2], "wait": COLOURS[1]}
_MOST_CLASSES: Final = 30
_MOST_BARS: Final = 40
_MOST_LETTERS: Final = 400
_MOST_IN_MATRIX: Final = 50
_MOST_ROWS: Final = 200
_MOST_BINS: Final = 16
_MOST_NAME: Final = 24


def write_report(
    path: Path,
    *,
    dataset: Path | None = None,
    out: Path | None = None,
    chosen: ChosenCheckpoint | None = None,
    say: Callable[[Fix], None] | None = None,
) -> tuple[Path, RunRecord]:
    """Write the report of a run's folder, by default into it; ``dataset`` is where its training data lies now.

    The figures at its head are those of the chosen checkpoint's epoch, by default of the last. What is of the dataset
    is left out where that is not to be had; ``say`` is told why.

    Raises
    ------
    CheckpointError
        The folder is no run, or is damaged.
    UsageError
        One of the three is a URL, or ``out`` lies in a dataset.
    """
    for given in filter(None, (dataset, out)):
        local_path(given)
    if out is not None:
        check_in_no_dataset(out, "the report", Fix("another ", Argument("out")))
    told = read_run(path)
    files, file = Files(), out or path / REPORT
    files.ensure_dir(file.parent)
    data, why = _dataset(told, dataset)
    if data is None and say is not None:
        what = f"the report is without the shuffle and the dataset: {why}"
        say(StreamtrainWarning(what, fix=Fix(Argument("dataset"), " where it lies now")).text())
    files.write_bytes(file, _page(told, data, why, chosen).encode())
    return file, told


def run_page(told: RunRecord, *, dataset: Path | None = None) -> str:
    """Write the page."""
    return _page(told, *_dataset(told, dataset))


def _page(told: RunRecord, dataset: Dataset | None, why: str, chosen: ChosenCheckpoint | None = None) -> str:
    config = told.config
    label = _label(config, dataset)
    n_samples = config.get("n_samples")
    size = f", {n_samples:,} samples" if isinstance(n_samples, int) else ""
    title = f"{label} by {_text(config.get('model'))}{size}"
    how = f"{_text(config.get('update'))} rule, {_optimizer(config)}; {told.path}"
    settings = [(name, _text(value)) for name, value in sorted(_flat(config), key=itemgetter(0))]
    curves = list(draw_curves(told, label, _best_epoch(told, chosen)))
    sections = [
        PageSection(notes=[how]),
        PageSection(facts=list(_headline(told, chosen))),
        *([PageSection(heading="Curves", drawings=curves)] if curves else []),
        *_score_sections(_scores_of(told.scores, chosen), label),
        PageSection(heading="Memory against budget", **_memory(told.memory)),
        PageSection(heading="Where the time went", **_stalls(told)),
        *_data_sections(told, dataset, why),
        PageSection(heading="Configuration", facts=settings),
        *([PageSection(heading="Epochs", table=_epochs(told))] if told.epochs else []),
    ]
    return page(f"Run {told.path.name}: {title}", title, sections)


def _label(config: Mapping[str, Any], dataset: Dataset | None) -> str:
    """The name of what is learned: the column's, where the dataset knows it."""
    target = _text(config.get("target") or "y")
    task = dataset.label_task(target) if dataset is not None else None
    return target if task is None else task.labels.name


def _best_epoch(told: RunRecord, chosen: ChosenCheckpoint | None) -> int | None:
    best = None if chosen is None or chosen.best is None else chosen.best.epoch
    return best if best is not None and any(line.get("epoch") == best for line in told.epochs) else None


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


def _headline(told: RunRecord, chosen: ChosenCheckpoint | None) -> Iterator[tuple[str, str]]:
    last = told.epochs[-1] if told.epochs else None
    if last is None:
        yield "epochs", "none finished"
        return
    part = " and a part of the next" if last.get("partial") else ""
    updates = f"{last.get('steps', 0):,.0f} updates, {last.get('samples', 0):,.0f} samples"
    yield "epochs", f"{told.n_epochs:,}{part}, {updates}"
    if chosen is not None and chosen.is_best and chosen.best is not None:
        yield "best", f"epoch {chosen.best.epoch} of {told.n_epochs}: {chosen.best.told()}"
    shown = next((line for line in told.epochs if chosen and not chosen.is_last and _is_of(line, chosen)), last)
    when = "the last epoch" if shown is last else f"epoch {_number(shown)}"
    for name in METRIC_NAMES:
        if is_placed(shown.get(name, math.nan)):
            val = f"; on the validation data {shown[f'val_{name}']:.4f}" if f"val_{name}" in shown else ""
            yield name, f"{shown[name]:.4f} over {when}{val}"
    yield from _baseline(told.scores)
    seconds = sum(epoch.get("seconds", 0.0) for epoch in told.epochs)
    rate = sum(_samples(told)) / seconds if seconds > 0 else 0.0
    if is_placed(seconds):
        yield "time", f"{format_duration(seconds)}: {rate:,.0f} samples/s"


def _baseline(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what an answer without inputs scores."""
    found = scores.get("baseline")
    if isinstance(found, dict) and isinstance(found.get("told"), str):
        for name in METRIC_NAMES:
            if isinstance(found.get(name), int | float):
                yield "baseline", f"{name} {found[name]:.4f} by always answering {_text(found['told'])}"
                return


def _scores_of(scores: Mapping[str, Any], chosen: ChosenCheckpoint | None) -> Mapping[str, Any]:
    """Choose the scores of the chosen checkpoint's epoch, where the run keeps them, else those of the last."""
    best = scores.get(BEST)
    is_best = chosen is not None and not chosen.is_last and isinstance(best, dict) and best.get("epoch") == chosen.epoch
    return best if is_best and isinstance(best, dict) else scores


def _is_of(line: Mapping[str, float], chosen: ChosenCheckpoint) -> bool:
    return line.get("epoch") == chosen.epoch and not line.get("partial")


def _samples(told: RunRecord) -> Iterator[float]:
    before = 0.0
    for epoch in told.epochs:
        yield max(epoch.get("samples", 0.0) - before, 0.0)
        before = epoch.get("samples", 0.0)


def _score_sections(scores: Mapping[str, Any], label: str) -> Iterator[PageSection]:
    """Scores of each class, label or target, the confusion of classes, and errors by their size."""
    where = f"{_text(scores.get('measured_on', 'val'))}, epoch {_text(scores.get('epoch', '?'))}"
    where = where.replace("val,", "validation data,").replace("train,", "training data,")
    for kind in ("classes", "labels", "targets"):
        rows = [row for row in scores.get(kind) or () if row and isinstance(row, dict)]
        if not rows or (kind == "targets" and len(rows) == 1):
            continue
        table = [list(map(_text, rows[0])), *([_score(value) for value in row.values()] for row in rows[:_MOST_ROWS])]
        if all(len(row) == len(table[0]) for row in table):
            yield PageSection(heading=f"Scores by {_text(next(iter(rows[0])))} on the {where}", table=table)
    names = [_text(next(iter(row.values()), "")) for row in scores.get("classes") or () if isinstance(row, dict)]
    confusion = scores.get("confusion") or []
    if confusion and len(confusion) <= _MOST_IN_MATRIX and all(len(row) == len(confusion) for row in confusion):
        names = names if len(names) == len(confusion) else [str(i) for i in range(len(confusion))]
        notes = ["A row is a true class, a column what was predicted: shares of the row, counts where pointed at."]
        yield PageSection(heading=f"Confusion on the {where}", matrix=_confusion(names, confusion), notes=notes)
    drawings = [draw(chart) for chart in _error_charts(scores, label)]
    if drawings:
        notes = ["An error is what was predicted less what was true."]
        yield PageSection(heading=f"Errors on the {where}", drawings=drawings, notes=notes)


def _score(value: object) -> str:
    return _cell(float(value)) if isinstance(value, int | float) else _text("" if value is None else value)


def _confusion(names: list[str], counts: list[list[float]]) -> ShareMatrix:
    short = [name if len(name) <= _MOST_NAME else f"{name[: _MOST_NAME - 1]}…" for name in names]
    rows = []
    for name, row in zip(short, counts, strict=True):
        total = sum(row)
        cells = [(n / total if total > 0 else 0.0, f"{n:,g} of {total:,g} {name}: {other}")
                 for other, n in zip(short, row, strict=True)]  # fmt: skip
        rows.append((name, cells))
    return ShareMatrix(head=["true", *short], rows=rows)


def _error_charts(scores: Mapping[str, Any], label: str) -> Iterator[BarChart]:
    targets = [row for row in scores.get("targets") or () if isinstance(row, dict)]
    for i, errors in enumerate(scores.get("errors") or ()):
        edges, counts = (_numbers(errors.get(name)) if isinstance(errors, dict) else [] for name in ("edges", "counts"))
        if len(edges) != len(counts) + 1 or not counts:
            continue
        while len(counts) > _MOST_BINS and edges[1] > edges[0]:
            edges, counts = _halved(edges, counts)
        of = _text(next(iter(targets[i].values()), "")) if len(targets) > 1 and i < len(targets) else label
        yield _bin_chart(f"Errors of {of} by their size", edges, counts)


def _bin_chart(title: str, edges: list[float], counts: list[float]) -> BarChart:
    bars = [
        Bar(
            label=f"{format_tick(low)} to {format_tick(high)}",
            pieces={"samples": count},
            text=f"{count / sum(counts):.1%}" if sum(counts) > 0 else "",
        )
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return BarChart(title=title, bars=bars, format=lambda value: f"{value:,.0f}")


def _halved(edges: list[float], counts: list[float]) -> tuple[list[float], list[float]]:
    """Join each two bins, so that zero stays an edge."""
    width = edges[1] - edges[0]
    if round(edges[0] / width) % 2:
        edges, counts = [edges[0] - width, *edges], [0.0, *counts]
    if len(counts) % 2:
        edges, counts = [*edges, edges[-1] + width], [*counts, 0.0]
    return edges[::2], [a + b for a, b in zip(counts[::2], counts[1::2], strict=True)]


def _numbers(found: object) -> list[float]:
    """Return a list if all in it can be drawn, else nothing."""
    numbers = found if isinstance(found, list) else []
    return numbers if all(isinstance(n, int | float) and is_placed(n) for n in numbers) else []


def _memory(memory: Mapping[str, Any]) -> dict[str, Any]:
    """The loaders' memory as bars, its terms as a table."""
    bars = [
        Bar(label=name, pieces={name: float(memory[name])}, text=format_bytes(memory[name]))
        for name in ("budget", "projected", "measured")
        if name in memory
    ]
    if not bars:
        return {"notes": ["Not known: the run did not finish, or was not made by a command."]}
    colours = {"budget": "#999999", "projected": COLOURS[3], "measured": COLOURS[0]}
    notes = []
    if "process" in memory:
        process = format_bytes(memory["process"])
        notes = [f"The whole process held {process} at the most, model and libraries included."]
    return {
        "drawings": [draw(BarChart(title="The loaders' memory", bars=bars, format=format_bytes, colours=colours))],
        "table": _terms(memory.get("terms")),
        "notes": notes,
    }


def _terms(terms: Any) -> Table:
    if not isinstance(terms, dict) or not terms:
        return []
    loaders = [name for name, of in terms.items() if isinstance(of, dict)]
    names = list(dict.fromkeys(name for loader in loaders for name in terms[loader]))
    rows = [[name, *(format_bytes(terms[loader].get(name, 0)) for loader in loaders)] for name in names]
    return [["projected", *loaders], *rows]


def _stalls(told: RunRecord) -> dict[str, Any]:
    """The wall time of each epoch, and the work of the loader's threads in all of them, as bars."""
    epochs = [
        epoch for epoch in told.epochs if all(is_placed(epoch.get(f"{kind}_seconds", math.nan)) for kind in _WALL)
    ]
    if not epochs:
        return {"notes": ["Not known: no line of metrics tells it."]}
    bars = [
        Bar(
            label=f"epoch {_number(epoch)}",
            pieces={kind: epoch[f"{kind}_seconds"] for kind in _WALL},
            text=f"{stall:.1%} waiting" if is_placed(stall := epoch.get("stall_fraction", 0.0)) else "",
        )
        for epoch in epochs[:_MOST_BARS]
    ]
    drawings = [draw(BarChart(title="Wall time of each epoch", bars=bars, format=format_duration, colours=_WALL))]
    work = {k: sum(epoch.get(f"{k}_thread_seconds", 0.0) for epoch in epochs) for k in ThreadSeconds().named()}
    total = sum(work.values())
    if total > 0:
        threads = [
            Bar(label=kind, pieces={"threads": value}, text=f"{format_duration(value)}, {value / total:.0%}")
            for kind, value in work.items()
        ]
        drawings.append(draw(BarChart(title="What the loader's threads did", bars=threads, format=format_duration)))
    more = [f"The first {_MOST_BARS} of {len(epochs):,} epochs."] if len(epochs) > _MOST_BARS else []
    return {"drawings": drawings, "notes": more}


def _data_sections(told: RunRecord, dataset: Dataset | None, why: str) -> list[PageSection]:
    """What is known of the shuffle and of the dataset; where the dataset is not to be had, a line says why."""
    if dataset is None:
        return [PageSection(heading=heading, notes=[f"Not known: {why}"]) for heading in ("Shuffle", "Dataset")]
    found = _shuffle(told, dataset)
    shuffle = {"notes": [found]} if isinstance(found, str) else {"facts": found}
    return [PageSection(heading="Shuffle", **shuffle), _statistics(dataset), *_columns(dataset)]


def _dataset(told: RunRecord, given: Path | None) -> tuple[Dataset | None, str]:
    path = given or told.config.get("dataset")
    if not isinstance(path, str | Path):
        return None, "the run does not say where its dataset is."
    try:
        dataset = open_preferred(path)
    except (StreamtrainError, OSError, ValueError) as error:
        return None, str(error)
    ours = told.config.get("dataset_id")
    if ours is not None and ours != dataset.id:
        return None, f"the dataset at {path} is another one than the run was trained on."
    return dataset, ""


def _shuffle(told: RunRecord, dataset: Dataset) -> list[tuple[str, str]] | str:
    """The quality of the shuffle, or why there is none."""
    config = told.config
    if config.get("update") == "epoch":
        return "None: the rule epoch reads in stored order, since a sum over all samples has none."
    if config.get("shuffle") is False:
        return "None: the run read in stored order, since its loader was made with shuffle=False."
    if config.get("order") != ORDER_VERSION:
        return (
            "Not measured: the run's samples came in the order of an earlier release, which this release does not make."
        )
    try:
        found = plan(dataset, **_order(config))
    except (StreamtrainError, TypeError, ValueError, OverflowError) as error:
        return f"Not measured: {error}"
    quality = _quality(found.quality) if found.quality else [("quality", found.why)]
    return [("lanes", f"{found.sizes.lanes:,} over {dataset.layout.n_blocks:,} blocks"), *quality]


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


def _statistics(dataset: Dataset) -> PageSection:
    layout = dataset.layout
    rho = "" if dataset.rho is None else f"; labels inside a block are correlated by {round(dataset.rho, 3) + 0.0:.3f}"
    facts = [
        ("path", str(dataset.path)),
        ("id", dataset.id),
        ("samples", f"{len(dataset):,}"),
        ("size", f"{format_bytes(dataset.nbytes)}; {format_bytes(dataset.stored_bytes)} stored ({layout.codec})"),
        ("blocks", f"{layout.n_blocks:,} of {layout.block_rows:,} samples{rho}"),
    ]
    rows = [["field", "dtype", "shape", "mean", "std", "min", "max", "NaN", "infinite", "constant features"]]
    for field in dataset.fields:
        overall = dataset.manifest.statistics[field.name].overall
        numbers = [f"{value:.6g}" for value in (overall.mean, overall.std, overall.min, overall.max)]
        # Unlike columns have no mean together.
        numbers = [""] * len(numbers) if _has_unlike_columns(dataset, field.name) else numbers
        counts = [f"{overall.n_nan:,}", f"{overall.n_inf:,}", _constant(dataset, field.name)]
        rows.append([field.name, field.dtype.name, str(field.shape), *numbers, *counts])
    return PageSection(heading="Dataset", facts=facts, drawings=_histogram(dataset), table=rows)


def _has_unlike_columns(dataset: Dataset, field: str) -> bool:
    try:
        return len(dataset.schema.columns.get(field, ())) > 1
    except StreamtrainError:
        return False


def _columns(dataset: Dataset) -> Iterator[PageSection]:
    """The figures of each column of a table."""
    if not any(_has_unlike_columns(dataset, field.name) for field in dataset.fields):
        return
    found = dataset.describe()
    names = ("name", "field", "missing", "mean", "std", "min", "max")
    rows = list(zip(*(found[name] for name in names), strict=True))
    notes = [f"The first {_MOST_ROWS} of {len(rows):,}."] if len(rows) > _MOST_ROWS else []
    table = [["column", *names[1:]], *(["" if value is None else _score(value) for value in row] for row in rows)]
    yield PageSection(heading="Columns", table=table[: _MOST_ROWS + 1], notes=notes)


def _constant(dataset: Dataset, field: str) -> str:
    try:
        std = dataset.stats(field).std
    except StreamtrainError:
        return "unknown"
    return f"{int(np.count_nonzero(std == 0)):,} of {std.size:,}"


def _histogram(dataset: Dataset) -> list[Drawing]:
    histogram = dataset.label_histogram
    if histogram is None:
        return []
    if dataset.task == "regression" and len(histogram.values) > _MOST_BINS:
        counts, edges = np.histogram(histogram.values, bins=_MOST_BINS, weights=histogram.counts.astype(np.float64))
        label = _label({}, dataset)
        return [draw(_bin_chart(f"Samples by {label}", edges.tolist(), counts.tolist()))]
    names = dict(enumerate(dataset.manifest.classes or ()))
    pairs = list(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    bars = [
        Bar(label=names.get(value, str(value)), pieces={"samples": float(count)}, text=f"{count:,}")
        for value, count in pairs[:_MOST_CLASSES]
    ]
    more = f", the first {_MOST_CLASSES} of {len(pairs):,}" if len(pairs) > _MOST_CLASSES else ""
    return [draw(BarChart(title=f"Samples by label{more}", bars=bars, format=lambda value: f"{value:,.0f}"))]


def _epochs(told: RunRecord) -> Table:
    names = [name for name in told.epochs[0] if not name.endswith("_seconds") and name not in ("epoch", "partial")]
    rows = [[_number(line), *(_cell(line.get(name)) for name in names)] for line in _ends(told.epochs)]
    return [["epoch", *(name.replace("_", " ") for name in names)], *rows]


def _number(epoch: Mapping[str, float]) -> str:
    return f"{epoch.get('epoch', 0):.0f}{', partial' if epoch.get('partial') else ''}"


def _ends(lines: tuple[Mapping[str, float], ...]) -> Iterable[Mapping[str, float]]:
    half = _MOST_BARS // 2
    return lines if len(lines) <= _MOST_BARS else (*lines[:half], *lines[-half:])


def _cell(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"
