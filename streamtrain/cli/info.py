"""``streamtrain info DEST``: what a dataset holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.common import emit, json_option
from streamtrain.cli.facts import stored_facts
from streamtrain.system.units import format_bytes

if TYPE_CHECKING:
    from streamtrain.store.dataset import Dataset
    from streamtrain.store.statistics import Histogram

_CLASSES_SHOWN: Final = 20


@click.command("info")
@click.argument("dest", metavar="DEST")
@json_option
def command(dest: str, as_json: bool) -> None:
    """Show what the dataset at DEST holds."""
    from streamtrain.store.dataset import open_dataset

    dataset = open_dataset(dest)
    emit(as_json, _result(dataset), _text(dataset))


def _result(dataset: Dataset) -> dict[str, Any]:
    return {
        **stored_facts(dataset),
        "fields": {field.name: _field(dataset, field.name) for field in dataset.fields},
        "n_classes": dataset.n_classes,
        "histogram": _counts(dataset.label_histogram),
        "rho": dataset.rho,
        "sources": dataset.manifest.sources,
    }


def _field(dataset: Dataset, name: str) -> dict[str, Any]:
    field, overall = dataset.layout.field(name), dataset.manifest.statistics[name].overall
    return {
        "dtype": field.dtype.name,
        "shape": field.shape,
        "row_bytes": field.row_bytes,
        "mean": overall.mean,
        "std": overall.std,
        "min": overall.min,
        "max": overall.max,
        "n_nan": overall.n_nan,
        "n_inf": overall.n_inf,
    }


def _counts(histogram: Histogram | None) -> dict[str, int] | None:
    if histogram is None:
        return None
    values = map(str, histogram.values.tolist())
    return dict(zip(values, histogram.counts.tolist(), strict=True))


def _text(dataset: Dataset) -> str:
    layout = dataset.layout
    facts = {
        "dataset": str(dataset.path),
        "id": dataset.id[:16],
        "samples": f"{len(dataset):,}",
        "bytes": f"{format_bytes(dataset.nbytes)}, stored in {format_bytes(dataset.stored_bytes)} ({layout.codec})",
        "blocks": f"{layout.n_blocks:,} of {layout.block_rows:,} samples, {format_bytes(layout.block_bytes)}",
        "shards": f"{layout.n_shards * len(layout.fields):,} files, {layout.shard_blocks:,} blocks each",
        "labels": _labels(dataset),
        "sources": "; ".join(str(source.get("path", source.get("format"))) for source in dataset.manifest.sources),
    }
    lines = [f"{name:<8} {value}" for name, value in facts.items() if value]
    return "\n".join([*lines, "", *_table(dataset)])


def _labels(dataset: Dataset) -> str:
    histogram = dataset.label_histogram
    if histogram is None:
        return ""
    names = dict(enumerate(dataset.classes or ()))
    pairs = list(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    shown = [f"{names.get(value, value)} {count:,}" for value, count in pairs[:_CLASSES_SHOWN]]
    more = [f"and {len(pairs) - _CLASSES_SHOWN:,} more"] if len(pairs) > _CLASSES_SHOWN else []
    rho = "" if dataset.rho is None else f" (correlation inside blocks {dataset.rho:.3f})"
    return ", ".join(shown + more) + rho


def _table(dataset: Dataset) -> list[str]:
    head = ("field", "dtype", "shape", "mean", "std", "min", "max")
    rows: list[tuple[str, ...]] = [head]
    for field in dataset.fields:
        overall = dataset.manifest.statistics[field.name].overall
        numbers = (f"{n:.6g}" for n in (overall.mean, overall.std, overall.min, overall.max))
        rows.append((field.name, field.dtype.name, str(field.shape), *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
