"""A dataset in one line, and as HTML for a notebook: its fields, its columns, and bars of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from streamtrain.store.layout import Field, Layout
from streamtrain.store.manifest import Manifest
from streamtrain.store.schema.columns import CATEGORIES, INPUT, TARGET
from streamtrain.store.schema.description import THESE_ROWS
from streamtrain.store.schema.task import LabelTask
from streamtrain.store.statistics import Histogram
from streamtrain.system.display.notebook_html import clipped, clipped_left, html_bars, html_table, html_title
from streamtrain.system.units import counted, format_bytes, format_share, format_value

_MOST_LETTERS: Final = 100
_LEAST_OF_PATH: Final = 12
_MOST_CLASSES: Final = 20


def dataset_line(path: Path, layout: Layout, columns: Sequence[str] | None, task: LabelTask | None) -> str:
    """Say what a dataset is in at most 100 characters."""
    kind = "no labels" if task is None else task.name or "task undecided"
    held = _fields(layout.own_fields) if columns is None else f"{counted(len(columns), 'column')}"
    what = f": {counted(layout.n_samples, 'sample')}, {held}, {kind})"
    room = _MOST_LETTERS - len("Dataset('')") - len(what) + 1
    if room < _LEAST_OF_PATH:
        what = f": {counted(layout.n_samples, 'sample')}, {counted(len(layout.fields), 'field')}, {kind})"
        room = _MOST_LETTERS - len("Dataset('')") - len(what) + 1
    return f"Dataset('{clipped_left(str(path), room)}'{what}"


def _fields(fields: Sequence[Field]) -> str:
    return ", ".join(f"{clipped(field.name, 24)} {field.kind_text}" for field in fields)


def dataset_html(
    line: str,
    manifest: Manifest,
    columns: Mapping[str, Sequence[Any]],
    labels: Histogram | None,
    names: Mapping[int, str],
) -> str:
    """Write a dataset for a notebook; ``names`` are those of its classes."""
    layout = manifest.layout
    sizes = (
        f"{format_bytes(layout.n_bytes)}, {counted(layout.n_blocks, 'block')} of {layout.block_rows:,}, {layout.codec}"
    )
    fields = [["field", "dtype", "shape", "bytes a sample"]]
    fields += [
        [each.name, "images", str(manifest.statistics[each.name].images), f"about {each.row_bytes:,}"]
        if each.encoded
        else [each.name, each.dtype.name, str(each.shape), f"{each.row_bytes:,}"]
        for each in layout.own_fields
    ]
    parts = [html_title(line), f"<div>{sizes}</div>", html_table(fields)]
    if any(field in (INPUT, CATEGORIES) for field in columns["field"]):
        parts.append(html_table([["column", "role", "missing", "mean", "std", "min", "max"], *_rows(columns)]))
    if labels is not None and (names or len(labels.values) <= _MOST_CLASSES):
        counts = zip(labels.values.tolist(), labels.counts.tolist(), strict=True)
        parts.append(f"<div>{TARGET}:</div>{html_bars({names.get(value, str(value)): n for value, n in counts})}")
    return "".join(parts)


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    names = ("name", "role", "missing", "missing_in", "mean", "std", "min", "max")
    found = zip(*(columns[name] for name in names), strict=True)
    return [[name, role, _share(share, where), *map(_figure, values)] for name, role, share, where, *values in found]


def _share(share: float, where: str) -> str:
    return f"{format_share(share)}{'' if where == THESE_ROWS else f' of {where}'}" if share else ""


def _figure(value: float | None) -> str:
    return "" if value is None else format_value(value)
