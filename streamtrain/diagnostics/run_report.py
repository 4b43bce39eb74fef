"""The report of a run as one HTML file: configuration, curves, memory, stalls, shuffle and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.diagnostics.charts import COLOURS, Bar, BarChart, Drawing, draw, is_placed
from streamtrain.diagnostics.html import PageSection, Table, page
from streamtrain.diagnostics.run.configuration import USUAL, configuration
from streamtrain.diagnostics.run.curves import draw_curves
from streamtrain.diagnostics.run.scores import MOST_BINS, MOST_ROWS, bin_chart, score_sections, short_text
from streamtrain.diagnostics.run_reader import RunRecord, read_run
from streamtrain.errors import Argument, Fix, StreamtrainError, StreamtrainWarning
from streamtrain.loader.plan import plan
from streamtrain.shuffle.order import ORDER_VERSION
from streamtrain.shuffle.quality import AS_GOOD, ShuffleQuality
from streamtrain.store.dataset import Dataset, open_preferred
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.writing.staging import check_in_no_dataset
from streamtrain.system.events import ThreadSeconds
from streamtrain.system.files import Files, local_path
from streamtrain.system.units import (
    counted,
    format_bytes,
    format_cell,
    format_duration,
    format_figure,
    format_number,
    format_share,
    format_value,
)
from streamtrain.training.best.chosen_checkpoint import ChosenCheckpoint
from streamtrain.training.inference.saved_run import decode_of_run
from streamtrain.training.metrics.user import METRIC_NAMES
from streamtrain.training.records.kept_scores import BEST

REPORT: Final = "report.html"
_WALL: Final = {"compute": COLOURS[5], "transfer": COLOURS[2], "wait": COLOURS[1]}
_MOST_CLASSES: Final = 30
_MOST_BARS: Final = 40
_OF_WHOM: Final = (
    "Budget and projection are of the loaders. Measured is the peak of the process above what it held with the model "
    "in place: the loaders, the training loop, and what the allocator keeps of the memory of past steps."
)
_FOLDED: Final = "The rest: as by default, or as it follows from the model, the data and the memory"
_OF_TRAINER: Final = (
    *(
        "update",
        "inputs",
        "target",
        "weight",
        "clip_grad_norm",
        "clip_grad_value",
        "schedule",
        "beta1",
        "autocast",
        "compile",
        "l2",
    ),
    *("grad_tolerance", "loss_tolerance", "accumulate_grad_batches"),
)
_MOST_SAMPLED: Final = 100_000
_MOST_BLOCKS: Final = 64
_MOST_TARGETS: Final = 16
_MOST_BINNED: Final = 1e150


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
    size = f", {counted(n_samples, 'sample')}" if isinstance(n_samples, int) else ""
    title = f"{label} by {short_text(config.get('model'))}{size}"
    how = f"{short_text(config.get('update'))} rule, {_optimizer(config)}; {told.path}"
    chosen_facts, rest = configuration(config)
    curves = list(draw_curves(told, label, _best_epoch(told, chosen)))
    sections = [
        PageSection(notes=[how]),
        PageSection(facts=list(_headline(told, chosen))),
        *([PageSection(heading="Curves", drawings=curves)] if curves else []),
        *score_sections(_scores_of(told.scores, chosen), label),
        PageSection(heading="Memory", **_memory(told.memory)),
        PageSection(heading="Where the time went", **_stalls(told)),
        *_data_sections(told, dataset, why),
        *_repeat(config),
        PageSection(heading="Configuration", facts=chosen_facts, folded=rest, folded_as=_FOLDED),
        *([PageSection(heading="Epochs", table=_epochs(told))] if told.epochs else []),
    ]
    return page(f"Run {told.path.name}: {title}", title, sections)


def _repeat(config: Mapping[str, Any]) -> Iterator[PageSection]:
    """Say how the run is made again: its command, or its calls in Python, and the versions that it was made with."""
    versions = config.get("versions")
    found = [(str(name), short_text(value)) for name, value in versions.items()] if isinstance(versions, dict) else []
    command, fit = config.get("command"), config.get("fit")
    lines = [command] if isinstance(command, str) else list(_calls(config, fit)) if isinstance(fit, dict) else []
    if found or lines:
        notes = ["The calls, as far as the run's configuration tells them."] if lines and lines != [command] else []
        yield PageSection(heading="How to repeat it", lines=lines, facts=found, notes=notes)


def _calls(config: Mapping[str, Any], fit: Mapping[str, Any]) -> Iterator[str]:
    """Write the calls of a run in Python, as far as its configuration tells them."""
    optimizer = config.get("optimizer")
    of_optimizer = optimizer if isinstance(optimizer, dict) else {}
    given = {"loss": config.get("loss"), "optimizer": str(of_optimizer.get("name", optimizer)).lower()}
    others = {name: config.get(name) for name in _OF_TRAINER}
    given |= {"lr": of_optimizer.get("lr")} | {
        name: value for name, value in others.items() if value != USUAL.get(name)
    }
    scaled = {"normalize": config.get("normalize"), "normalize_target": _at(config, "normalize_target", "mean")}
    given |= {name: "auto" for name, value in scaled.items() if value}
    # Of a model that is made by its name the configuration has what it was made by.
    model = short_text(config.get("model"))
    yield f"trainer = st.Trainer({repr(model) if 'n_outputs' in config else f'{model}(...)'}, {_arguments(given)})"
    data = {name: config.get(name) for name in ("batch_size", "seed", "memory", "drop_last")}
    shuffle = ", shuffle=False" if config.get("shuffle") is False and config.get("update") != "epoch" else ""
    where = short_text(repr(config["dataset"])) if config.get("dataset") else "..."
    yield f"loader = st.StreamLoader({where}, {_arguments(data)}{shuffle})"
    yield f"trainer.fit(loader, {_arguments(fit)})"


def _at(config: Mapping[str, Any], name: str, of: str) -> object:
    found = config.get(name)
    return found.get(of) if isinstance(found, dict) else None


def _arguments(given: Mapping[str, Any]) -> str:
    told = {name: value for name, value in given.items() if value not in (None, False, 0.0) or name == "seed"}
    return ", ".join(f"{name}={short_text(repr(value))}" for name, value in told.items())


def _label(config: Mapping[str, Any], dataset: Dataset | None) -> str:
    """The name of what is learned: the column's, where the dataset knows it."""
    target = short_text(config.get("target") or "y")
    task = dataset.label_task(target) if dataset is not None else None
    return target if task is None else task.labels.name


def _best_epoch(told: RunRecord, chosen: ChosenCheckpoint | None) -> int | None:
    best = None if chosen is None or chosen.best is None else chosen.best.epoch
    return best if best is not None and any(line.get("epoch") == best for line in told.epochs) else None


def _optimizer(config: Mapping[str, Any]) -> str:
    optimizer = config.get("optimizer")
    return short_text(optimizer.get("name") if isinstance(optimizer, dict) else optimizer)


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
            of_val = shown.get(f"val_{name}")
            val = "" if of_val is None else f"; on the validation data {format_figure(of_val)}"
            yield name, f"{format_figure(shown[name])} over {when}{val}"
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
                yield "baseline", f"{name} {format_figure(found[name])} by always answering {short_text(found['told'])}"
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


def _memory(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Budget, projection and what was measured as bars, the projection's terms as a table."""
    bars = [
        Bar(label=name, pieces={name: float(memory[name])}, text=format_bytes(memory[name]))
        for name in ("budget", "projected", "measured")
        if memory.get(name, 0) > 0
    ]
    if not bars:
        return {"notes": ["Not known: the run did not finish, or was not made by a command."]}
    colours = {"budget": "#999999", "projected": COLOURS[3], "measured": COLOURS[0]}
    notes = [_OF_WHOM]
    if "process" in memory:
        process = format_bytes(memory["process"])
        notes.append(f"The whole process held {process} at the most, model and libraries included.")
    title = "Budget of the loaders, and what the run took"
    return {
        "drawings": [draw(BarChart(title=title, bars=bars, format=format_bytes, colours=colours))],
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
            text=f"{format_share(stall)} waiting" if is_placed(stall := epoch.get("stall_fraction", 0.0)) else "",
        )
        for epoch in epochs[:_MOST_BARS]
    ]
    drawings = [draw(BarChart(title="Wall time of each epoch", bars=bars, format=format_duration, colours=_WALL))]
    work = {k: sum(epoch.get(f"{k}_thread_seconds", 0.0) for epoch in epochs) for k in ThreadSeconds().named()}
    total = sum(work.values())
    if total > 0:
        threads = [
            Bar(label=kind, pieces={"threads": value}, text=f"{format_duration(value)}, {format_share(value / total)}")
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
        found = plan(dataset, decode=decode_of_run(config), **_order(config))
    except (StreamtrainError, TypeError, ValueError, OverflowError) as error:
        return f"Not measured: {error}"
    quality = _quality(found.quality) if found.quality else [("quality", found.why)]
    return [("lanes", f"{found.sizes.lanes:,} over {counted(dataset.layout.n_blocks, 'block')}"), *quality]


def _order(config: dict[str, Any]) -> dict[str, Any]:
    """What the run's order follows from, of the types it has to be of."""
    wanted: dict[str, tuple[type, ...]] = {
        "batch_size": (int,), "memory": (int, str), "lanes": (int,), "groups": (int,), "seed": (int,),
        "drop_last": (bool,)
    }  # fmt: skip
    return {name: config[name] for name, types in wanted.items() if isinstance(config.get(name), types)}


def _quality(quality: ShuffleQuality) -> list[tuple[str, str]]:
    random = "worse than random"
    if quality.is_random:
        random = "as good as random" if quality.variance < AS_GOOD else "within chance, as good as random"
    epochs = "the first epoch" if quality.n_epochs == 1 else f"each of {quality.n_epochs} epochs"
    return [
        ("batch variance", f"{quality.variance:.3g} times a full reshuffle's: {random}"),
        ("drift", f"{quality.drift:.3g} times a full reshuffle's"),
        ("measured", f"over {quality.n_samples:,} samples of {epochs}, on their labels"),
    ]


def _statistics(dataset: Dataset) -> PageSection:
    layout = dataset.layout
    rho = "" if dataset.rho is None else f"; labels inside a block are correlated by {round(dataset.rho, 3) + 0.0:.3f}"
    facts = [
        ("path", str(dataset.path)),
        ("id", dataset.id),
        ("samples", f"{len(dataset):,}"),
        ("size", f"{format_bytes(dataset.nbytes)}; {format_bytes(dataset.stored_bytes)} stored ({layout.codec})"),
        ("blocks", f"{layout.n_blocks:,} of {counted(layout.block_rows, 'sample')}{rho}"),
    ]
    rows = [["field", "dtype", "shape", "mean", "std", "min", "max", "NaN", "infinite", "constant features"]]
    for field in dataset.layout.own_fields:
        overall = dataset.manifest.statistics[field.name].overall
        numbers = [format_value(value) for value in (overall.mean, overall.std, overall.min, overall.max)]
        # Unlike columns have no mean together.
        numbers = [""] * len(numbers) if _has_unlike_columns(dataset, field.name) else numbers
        counts = [f"{overall.n_nan:,}", f"{overall.n_inf:,}", _constant(dataset, field.name)]
        images = dataset.manifest.statistics[field.name].images
        kind = [field.dtype.name, str(field.shape)] if images is None else ["images", str(images)]
        rows.append([field.name, *kind, *numbers, *counts])
    drawings, notes = _histogram(dataset)
    return PageSection(heading="Dataset", facts=facts, drawings=drawings, table=rows, notes=notes)


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
    notes = [f"The first {MOST_ROWS} of {len(rows):,}."] if len(rows) > MOST_ROWS else []
    table = [["column", *names[1:]], *([_value(value) for value in row] for row in rows)]
    yield PageSection(heading="Columns", table=table[: MOST_ROWS + 1], notes=notes)


def _value(value: object) -> str:
    return format_value(value) if isinstance(value, float) else format_cell(value)


def _constant(dataset: Dataset, field: str) -> str:
    try:
        std = dataset.stats(field).std
    except StreamtrainError:
        return "unknown"
    return f"{int(np.count_nonzero(std == 0)):,} of {std.size:,}"


def _histogram(dataset: Dataset) -> tuple[list[Drawing], list[str]]:
    """Draw how often labels occur, classes one by one and quantities in bins, and say of how many samples that is."""
    histogram, label = dataset.label_histogram, _label({}, dataset)
    if histogram is None:
        return _sampled_histogram(dataset, label)
    if dataset.task == "regression" and len(histogram.values) > MOST_BINS:
        counts, edges = np.histogram(histogram.values, bins=MOST_BINS, weights=histogram.counts.astype(np.float64))
        return [draw(bin_chart(f"Samples by {label}", edges.tolist(), counts.tolist()))], []
    names = dict(enumerate(dataset.manifest.classes or ()))
    pairs = list(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    bars = [
        Bar(label=names.get(value, str(value)), pieces={"samples": float(count)}, text=f"{count:,}")
        for value, count in pairs[:_MOST_CLASSES]
    ]
    more = f", the first {_MOST_CLASSES} of {len(pairs):,}" if len(pairs) > _MOST_CLASSES else ""
    return [draw(BarChart(title=f"Samples by label{more}", bars=bars, format=format_number))], []


def _sampled_histogram(dataset: Dataset, label: str) -> tuple[list[Drawing], list[str]]:
    """Draw labels of which no counts are stored, in bins: those of all blocks, or of some that are spread evenly."""
    field = next((each for each in dataset.fields if each.name == TARGET), None)
    if field is None or field.dtype.kind != "f" or math.prod(field.shape) > _MOST_TARGETS:
        return [], []
    layout = dataset.layout
    n_read = min(layout.n_blocks, _MOST_BLOCKS, max(_MOST_SAMPLED // layout.block_rows, 1))
    try:
        blocks = [dataset.read_block(TARGET, i * layout.n_blocks // n_read) for i in range(n_read)]
    except (StreamtrainError, OSError) as error:
        return [], [f"How the labels are spread is not known: {error}"]
    values = np.concatenate(blocks).reshape(sum(map(len, blocks)), -1).astype(np.float64)
    targets, drawings = dataset.targets or (label,) * values.shape[1], []
    for name, of in zip(targets, values.T, strict=False):
        placed = of[np.abs(of) <= _MOST_BINNED]
        if len(placed) and placed.min() < placed.max():
            counts, edges = np.histogram(placed, bins=MOST_BINS)
            drawings.append(draw(bin_chart(f"Samples by {name}", edges.tolist(), counts.tolist())))
    is_part = n_read < layout.n_blocks
    some = f"The bins are of {len(values):,} samples, in {n_read:,} of the {layout.n_blocks:,} blocks."
    return drawings, [some] if is_part and drawings else []


def _epochs(told: RunRecord) -> Table:
    names = [name for name in told.epochs[0] if not name.endswith("_seconds") and name not in ("epoch", "partial")]
    rows = [[_number(line), *(format_cell(line.get(name)) for name in names)] for line in _ends(told.epochs)]
    return [["epoch", *(name.replace("_", " ") for name in names)], *rows]


def _number(epoch: Mapping[str, float]) -> str:
    return f"{epoch.get('epoch', 0):.0f}{', partial' if epoch.get('partial') else ''}"


def _ends(lines: tuple[Mapping[str, float], ...]) -> Iterable[Mapping[str, float]]:
    half = _MOST_BARS // 2
    return lines if len(lines) <= _MOST_BARS else (*lines[:half], *lines[-half:])
