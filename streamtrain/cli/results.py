"""Results in text and JSON: scores with their baseline, tables of classes, labels and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from streamtrain.errors import Lines
from streamtrain.system.units import format_figure, format_number
from streamtrain.training.metrics.results import Metrics, ScoreTable
from streamtrain.training.records.history import History

_FEW_ROWS: Final = 20
_N_WORST: Final = 5
_WITH_BASELINE: Final = ("accuracy", "f1", "balanced_accuracy", "rmse", "mae")
_HIGHER_IS_BETTER: Final = frozenset({"accuracy", "f1"})
_FEW_STEPS: Final = 100


def result_lines(metrics: Metrics, on: str, *, every_row: bool = False, with_loss: bool = True) -> Lines:
    """Write scores and loss of an evaluation, each named by what it was measured on; the task's own score is first."""
    names = [*metrics.scores, *(["loss"] if with_loss else [])]
    values = metrics.named(full=True)
    table = [] if metrics.table is None else _table(metrics.table, every_row=every_row)
    return Lines.of([*table, *(f"{on} {score_text(metrics, name, values[name])}" for name in names)])


def score_text(metrics: Metrics, name: str, value: float) -> str:
    """Write a score, with its bound where it is not exact, and what the baseline comes to."""
    bound = metrics.table.bounds.get(name, 0.0) if metrics.table else 0.0
    told = _told(metrics.table, name)
    text = f"{told} {value:.5f} ± {bound:.5f}" if bound else f"{told} {format_figure(value)}"
    of_baseline = metrics.of_baseline.get(name)
    if name not in _WITH_BASELINE or of_baseline is None or metrics.baseline is None:
        return text
    return f"{text} ({format_figure(of_baseline)} by always answering {metrics.baseline.told})"


def _told(table: ScoreTable | None, name: str) -> str:
    """Say of which classes a score is."""
    if table is None or table.task != "classification":
        return name
    if table.positive is not None and name in ("precision", "recall"):
        return f"{name} of {table.name(table.positive)}"
    return "f1 macro" if name == "f1" else name


def _table(table: ScoreTable, *, every_row: bool) -> Iterator[str]:
    """Write a row for each class, label or target, or the worst ones and what they are taken for."""
    if len(table) < 2:
        return
    shown = list(range(len(table)))
    is_cut = len(table) > _FEW_ROWS and not every_row
    if is_cut:
        worst = table.columns.get("f1") or [-value for value in table.columns["rmse"]]
        # Of classes that do not occur nothing is measured.
        occurs = table.columns.get("support", (1,) * len(table))
        shown = sorted((i for i in shown if occurs[i]), key=lambda i: worst[i])[:_N_WORST]
        yield f"the worst {len(shown)} of {len(table):,}:"
    first = {"classification": "class", "multilabel": "label", "regression": "target"}[table.task]
    width = max(len(first), *(len(table.name(i)) for i in shown), 0) if shown else len(first)
    yield f"{first:<{width}}" + "".join(f"{name:>12}" for name in table.columns)
    for i in shown:
        cells = (_cell(name, values[i]) for name, values in table.columns.items())
        yield f"{table.name(i):<{width}}" + "".join(f"{cell:>12}" for cell in cells)
    if is_cut:
        yield from _confusions(table)


def _cell(name: str, value: float) -> str:
    return format_number(value) if name == "support" else format_figure(value)


def _confusions(table: ScoreTable) -> Iterator[str]:
    matrix = table.confusion or ()
    found = [(value, i, j) for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j and value]
    for value, i, j in sorted(found, key=lambda each: (-each[0], each[1:]))[:_N_WORST]:
        yield f"{table.name(i)} taken for {table.name(j)}: {format_number(value)}"


def outcome_line(history: History) -> str | None:
    """Write the last result of a training with its baseline; None where there is no score."""
    last = history.last
    if last is None:
        return None
    metrics, on = (last.val, "val") if last.val else (last.train, "train")
    name = metrics.score_name
    if name is None:
        return None
    is_best = history.best is None or history.best.epoch == last.number
    return f"{on:<8}{score_text(metrics, name, metrics.scores[name])}{'' if is_best else ' after the last epoch'}"


def no_better(history: History, settings: Mapping[str, object]) -> str | None:
    """Say what may have kept a training from being better than its baseline; None where it is better, or unknown."""
    last = history.last
    # Over a first epoch, training is measured at weights that have hardly begun to learn.
    is_told = last is not None and (last.val is not None or last.number > 1)
    metrics = (last.val or last.train) if last is not None and is_told else None
    name = None if metrics is None else metrics.score_name
    if last is None or metrics is None or name is None or (of_baseline := metrics.of_baseline.get(name)) is None:
        return None
    value = metrics.scores[name]
    if value > of_baseline if name in _HIGHER_IS_BETTER else value < of_baseline:
        return None
    reasons = list(_reasons(history, metrics, settings))
    return f"no better than always answering {metrics.baseline.told if metrics.baseline else ''}: {', '.join(reasons)}"


def _reasons(history: History, metrics: Metrics, settings: Mapping[str, object]) -> Iterator[str]:
    off = [name for name in ("--normalize", "--normalize-target") if settings.get(name) == "none"]
    if off:
        yield f"{' and '.join(off)} is none"
    if metrics.table is not None and metrics.table.is_alike:
        yield "every prediction is alike"
    is_few = history.counts.n_steps < _FEW_STEPS
    if is_few:
        yield f"{history.counts.n_steps} steps are few: more --epochs, or a smaller --batch-size"
    if not is_few or history.epochs[-1].train.loss >= history.epochs[0].train.loss:
        yield f"another --lr than {settings['--lr']:g}"
