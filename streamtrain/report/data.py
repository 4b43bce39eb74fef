"""What a report says of the data: how well it was shuffled, and its stored statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.charts.bars import Bar, Bars, draw_bars
from streamtrain.errors import StreamtrainError
from streamtrain.loader.plan import plan
from streamtrain.pages import charts, facts, note, table
from streamtrain.report.folder import Told
from streamtrain.shuffle.quality import Quality
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.system.units import format_bytes

_MOST_CLASSES: Final = 30


def data_parts(told: Told, given: Path | None) -> Iterator[str]:
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


def _dataset(told: Told, given: Path | None) -> tuple[Dataset | None, str]:
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


def _shuffle(told: Told, dataset: Dataset) -> Iterator[str]:
    config = told.config
    if config.get("update") == "epoch":
        yield note("None: the rule epoch reads in stored order, since a sum over all samples has none.")
        return
    if config.get("shuffle") is False:
        yield note("None: the run read in stored order, since its loader was made with shuffle=False.")
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
        "batch_size": (int,), "memory": (int, str), "lanes": (int,), "drop_last": (bool,), "seed": (int,)
    }  # fmt: skip
    return {name: config[name] for name, types in wanted.items() if isinstance(config.get(name), types)}


def _quality(quality: Quality) -> list[tuple[str, str]]:
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
    return draw_bars(Bars(title=f"Samples by label{more}", bars=bars, format=lambda value: f"{value:,.0f}"))
