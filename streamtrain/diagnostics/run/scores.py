"""The scores of a run as tables and charts: of classes, labels or targets, what was confused, the largest mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from streamtrain.diagnostics.charts import (
    COLOURS,
    QUIET,
    Axis,
    Bar,
    BarChart,
    Curve,
    LineChart,
    draw,
    format_tick,
    is_placed,
)
from streamtrain.diagnostics.grids import PairChart, draw_pairs
from streamtrain.diagnostics.html import PageSection, ShareMatrix
from streamtrain.system.units import format_cell, format_figure, format_number, format_share

MOST_ROWS: Final = 200
"""Of a table on a page."""
MOST_BINS: Final = 16
_MOST_IN_MATRIX: Final = 50
_MOST_LETTERS: Final = 400
_MOST_NAME: Final = 24
_MOST_MISTAKES: Final = 20
_MOST_SIDE: Final = 100


def short_text(value: object) -> str:
    """Write a value of a file, cut short where it is long."""
    text = str(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"


def score_sections(scores: Mapping[str, Any], label: str) -> Iterator[PageSection]:
    """Scores of each class, label or target, the confusion of classes, and errors by their size."""
    where = f"{short_text(scores.get('measured_on', 'val'))}, epoch {short_text(scores.get('epoch', '?'))}"
    where = where.replace("val,", "validation data,").replace("train,", "training data,")
    for kind in ("classes", "labels", "targets"):
        rows = [row for row in scores.get(kind) or () if row and isinstance(row, dict)]
        if not rows or (kind == "targets" and len(rows) == 1):
            continue
        table = [list(map(short_text, rows[0])), *(list(map(_cell, row.values())) for row in rows[:MOST_ROWS])]
        if all(len(row) == len(table[0]) for row in table):
            yield PageSection(heading=f"Scores by {short_text(next(iter(rows[0])))} on the {where}", table=table)
    names = [short_text(next(iter(row.values()), "")) for row in scores.get("classes") or () if isinstance(row, dict)]
    confusion = scores.get("confusion") or []
    if confusion and len(confusion) <= _MOST_IN_MATRIX and all(len(row) == len(confusion) for row in confusion):
        names = names if len(names) == len(confusion) else [str(i) for i in range(len(confusion))]
        notes = ["A row is a true class, a column what was predicted: shares of the row, counts where pointed at."]
        yield PageSection(heading=f"Confusion on the {where}", matrix=_confusion(names, confusion), notes=notes)
    if (curve := _roc(scores)) is not None:
        yield PageSection(heading=f"ROC curve on the {where}", drawings=[draw(curve)], notes=[_roc_note(scores)])
    drawings = [*map(draw_pairs, _pair_charts(scores, label)), *map(draw, _error_charts(scores, label))]
    if drawings:
        notes = [f"{_PAIRS if scores.get('pairs') else ''}An error is what was predicted less what was true."]
        yield PageSection(heading=f"Predictions on the {where}", drawings=drawings, notes=notes)
    yield from _mistakes(scores, where, label)


def _cell(value: object) -> str:
    return short_text(format_cell(value))


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
        while len(counts) > MOST_BINS and edges[1] > edges[0]:
            edges, counts = _halved(edges, counts)
        of = _target(targets, i, label)
        yield bin_chart(f"Errors of {of} by their size", edges, counts)


def bin_chart(title: str, edges: list[float], counts: list[float]) -> BarChart:
    """Make a chart of counts between edges."""
    bars = [
        Bar(
            label=f"{_edge(low, high - low)} to {_edge(high, high - low)}",
            pieces={"samples": count},
            text=format_share(count / sum(counts)) if sum(counts) > 0 else "",
        )
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return BarChart(title=title, bars=bars, format=format_number)


def _edge(value: float, width: float) -> str:
    """Write the edge of a bin in as few digits as tell it from the next."""
    if not (is_placed(value) and 0 < width < abs(value) * 1e12):
        return format_tick(value)
    return format_tick(round(value, 1 - math.floor(math.log10(width))))


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


def _target(targets: Sequence[Mapping[str, Any]], i: int, label: str) -> str:
    return short_text(next(iter(targets[i].values()), "")) if len(targets) > 1 and i < len(targets) else label


_PAIRS: Final = (
    "A cell has the samples of an even bin of what was true and of what was predicted, and the legend says how many; "
    "on the dotted line a prediction is right. "
)


def _pair_charts(scores: Mapping[str, Any], label: str) -> Iterator[PairChart]:
    targets = [row for row in scores.get("targets") or () if isinstance(row, dict)]
    for i, pairs in enumerate(scores.get("pairs") or ()):
        match pairs:
            case {"low": float(low), "width": float(width), "bins": int(n_bins), "cells": list(cells)}:
                is_drawn = 1 < n_bins <= _MOST_SIDE and is_placed(low) and is_placed(low + width * n_bins)
                counts = _counts(cells, n_bins) if is_drawn and low + width > low else {}
                if counts:
                    of = _target(targets, i, label)
                    title = f"Predicted {of} by what was true"
                    yield PairChart(title=title, label=of, low=low, width=width, n_bins=n_bins, counts=counts)


def _counts(cells: list[object], n_bins: int) -> dict[tuple[int, int], float]:
    """Return the counts of cells, of those that can be drawn."""
    found = {}
    for cell in cells:
        match cell:
            case [int(true), int(predicted), float() | int() as count] if max(true, predicted) < n_bins:
                if min(true, predicted) >= 0 and is_placed(count) and count > 0:
                    found[true, predicted] = float(count)
    return found


def _roc(scores: Mapping[str, Any]) -> LineChart | None:
    found = scores.get("roc")
    if not isinstance(found, dict):
        return None
    false, true = (_numbers(found.get(f"{name}_positive_rate")) for name in ("false", "true"))
    if len(false) != len(true) or len(true) < 2:
        return None
    auc = scores.get("auc")
    label = f"auc {format_figure(auc)}" if isinstance(auc, int | float) else "the model"
    axes = [Axis(label=f"{name} positive rate", from_zero=True) for name in ("false", "true")]
    chance = Curve(label="chance", points=[(0.0, 0.0), (1.0, 1.0)], colour=QUIET, dash=":", marker="")
    model = Curve(label=label, points=list(zip(false, true, strict=True)), colour=COLOURS[0], marker="")
    return LineChart(title="True positives by false positives", x=axes[0], y=axes[1], curves=[model, chance])


def _roc_note(scores: Mapping[str, Any]) -> str:
    """Say how exact the curve is."""
    if scores["roc"].get("exact") is True:
        return "From the scores of all samples: every point that is drawn is exact."
    bound = scores.get("auc_bound")
    wrong = f" The area is wrong by at most {bound:.2g}." if isinstance(bound, int | float) else ""
    return f"There are too many samples to keep all scores: the curve is from 1,048,576 bins of them.{wrong}"


def _mistakes(scores: Mapping[str, Any], where: str, label: str) -> Iterator[PageSection]:
    rows = [row for row in scores.get("mistakes") or () if isinstance(row, dict)][:_MOST_MISTAKES]
    if not rows:
        return
    table = [["row", f"true {label}", "predicted", "loss"]]
    names = ("row", "true", "predicted", "loss")
    table += [[_listed(row.get(name)) for name in names] for row in rows]
    note = "The samples of the largest losses, by their rows in that data, which are counted from 0."
    yield PageSection(heading=f"Largest losses on the {where}", table=table, notes=[note])


def _listed(value: object) -> str:
    return short_text(", ".join(map(_cell, value)) or "none") if isinstance(value, list) else _cell(value)
