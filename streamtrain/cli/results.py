"""Results in text and JSON: scores with their baseline, tables of classes and targets, the outcome of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from streamtrain.cli.output import headspace_line, is_quiet, memory_line, time_lines
from streamtrain.diagnostics.headspace import Headspace
from streamtrain.errors import Lines, ResourceError
from streamtrain.loader.quarantine import QuarantinedBlock
from streamtrain.system.units import counted, format_figure, format_number, format_rate
from streamtrain.training.best.monitor import BestEpoch
from streamtrain.training.metrics.results import Metrics, ScoreTable
from streamtrain.training.metrics.user import METRIC_NAMES
from streamtrain.training.records.history import History
from streamtrain.training.run.run_folder import epochs_backwards

_FEW_ROWS: Final = 20
_N_WORST: Final = 5
_WITH_BASELINE: Final = ("accuracy", "f1", "balanced_accuracy", "rmse", "mae")
_HIGHER_IS_BETTER: Final = frozenset({"accuracy", "f1"})
_FEW_STEPS: Final = 100
_MOSTLY: Final = 0.8
"""The share of its most frequent class from which on the others count as rare."""


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
    is_alike = metrics.table is not None and metrics.table.is_alike
    alike = ", and every prediction is the same" if is_alike else ""
    tries = " or ".join(_tries(history, settings, rare=name == "accuracy" and of_baseline >= _MOSTLY))
    return f"no better than always answering {metrics.baseline.told if metrics.baseline else ''}{alike}; try {tries}"


def _tries(history: History, settings: Mapping[str, object], *, rare: bool) -> Iterator[str]:
    """Name what may make a training better; ``rare`` is whether one class is nearly all of the data."""
    first, last = history.epochs[0].train.loss, history.epochs[-1].train.loss
    if not last <= first:
        yield f"a lower --lr than {settings['--lr']:g}, since the loss rises"
        return
    yield from (f"{name} auto" for name in ("--normalize", "--normalize-target") if settings.get(name) == "none")
    if rare:
        yield "--class-weight balanced, where the rare classes matter"
    n = history.counts.n_steps
    if n < _FEW_STEPS:
        yield f"more --epochs or a smaller --batch-size, for more than {counted(n, 'step')}"
    else:
        yield f"another --lr than {settings['--lr']:g}"


_ENDED: Final = {
    "until_loss": "by --until-loss",
    "patience": "by --patience: the loss stopped falling",
    "grad_tolerance": "by --grad-tolerance: the norm of the gradient is at most that",
    "loss_tolerance": "by --loss-tolerance: a step lowered J by at most that",
    "stuck": "where no step lowers J any more",
}
"""Ends of a run before its total, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """The outcome of a run."""

    history: History
    memory: dict[str, int]
    # The wall time of the command, by kind; it adds up.
    seconds: dict[str, float]
    out: Path
    lr: float
    headspace: Headspace | None
    quarantined: tuple[QuarantinedBlock, ...] = ()
    val_quarantined: tuple[QuarantinedBlock, ...] = ()
    unwritten: ResourceError | None = None  # memory.json; the run itself is done
    interrupt: KeyboardInterrupt | None = None  # came while the headspace was measured
    then: tuple[str, ...] = ()  # commands that use the run

    def result(self) -> dict[str, object]:
        """Collect everything by name, for ``--json``."""
        speed = self.history.speed
        return {
            "steps": self.history.counts.n_steps,
            "samples": self.history.counts.n_samples,
            "loss": None,
            "accuracy": None,
            **self._last(),
            "reached": self.history.reached,
            "stopped_by": self.history.stopped_by,
            "best": self.history.best.named() if self.history.best else None,
            "resumed_from_batch": self.history.resumed_from_batch,
            "memory": self.memory,
            "samples_per_second": speed.samples_per_second,
            "stall_fraction": speed.stall_fraction,
            "seconds": self.seconds,
            "stall": {"wall_seconds": speed.wall(), "thread_seconds": speed.work.named()},
            "headspace": self.headspace.named() if self.headspace else None,
            "quarantined": [asdict(out) for out in self.quarantined],
            "val_quarantined": [asdict(out) for out in self.val_quarantined],
            "checkpoint_failures": self.history.checkpoint_failures,
            "epochs": [summary.named() for summary in self.history],
            "run": self.out,
        }

    def _last(self) -> dict[str, object]:
        """Return the last epoch's metrics; for a run that was complete already, from its file."""
        last = self.history.last
        if last is not None:
            val = last.val.named() if last.val else None
            return last.train.named() | {"val": val, "result": last.scores()}
        line = next(epochs_backwards(self.out), {})
        val = {name.removeprefix("val_"): value for name, value in line.items() if name.startswith("val_")}
        return {name: line[name] for name in METRIC_NAMES if name in line} | {"val": val or None}

    def _ended(self) -> list[str]:
        """Describe an end before the run's total, or a loss that was not reached."""
        by, reached, best = self.history.stopped_by, self.history.reached, self.history.best
        if by not in _ENDED and reached is None:
            return []
        how = _ENDED.get(by, f"by {by}")
        if by == "patience" and best is not None and not best.monitor.endswith("loss"):
            how = f"by --patience: {best.monitor} stopped improving"
        return [f"ended   {how}{'; --until-loss was not reached' if reached is False else ''}"]

    def text(self) -> str:
        """Write the lines below the table of epochs; those of memory and time are left out under ``--quiet``."""
        n_failed = self.history.checkpoint_failures
        if self.trained_nothing:
            return Lines.of([self._nothing(), f"run     {self.out}", *self._best_line()])
        return Lines.of(
            [
                *self._ended(),
                *([line] if (line := outcome_line(self.history)) else []),
                *([] if is_quiet() else self._cost()),
                *([headspace_line(self.headspace)] if self.headspace else []),
                *(f"left out {out}" for out in self.quarantined),
                *(f"left out of --val {out}" for out in self.val_quarantined),
                *([f"checkpoints that could not be saved: {n_failed}"] if n_failed else []),
                f"run     {self.out}",
                *self._best_line(),
            ]
        )

    @property
    def trained_nothing(self) -> bool:
        """Whether the run that was resumed had all of its epochs before."""
        return self.history.last is None and self.history.counts.n_steps > 0

    def _nothing(self) -> str:
        n = counted(self.history.counts.n_epochs, "epoch")
        return f"trained nothing: the run already has {n}, and --epochs is the total"

    def _best_line(self) -> list[str]:
        return [f"best    {self._best(self.history.best)}"] if self.history.best else []

    def _cost(self) -> list[str]:
        """Write what the run took."""
        speed = self.history.speed
        rate = format_rate(speed.n_samples, speed.seconds, "samples")
        told = f"speed   {rate}, stall fraction {speed.stall_fraction:.3f}"
        return [memory_line(self.memory), told, *time_lines(self.seconds, speed.work)]

    def _best(self, best: BestEpoch) -> str:
        return f"epoch {best.epoch} of {self.history.counts.n_epochs}: {best.told()}"

    def raise_rest(self) -> None:
        """Raise the failed save or the Ctrl-C that ends the command after its result is printed."""
        if self.interrupt is not None:
            raise self.interrupt
        if failed := self.history.unsaved or self.unwritten:
            raise failed


def wall_seconds(history: History, *, start: float, total: float) -> dict[str, float]:
    """Return the wall time of a run by kind, of which some went before its first epoch: seconds that add up to it."""
    wall = history.elapsed.wall(history.speed) if history.elapsed else {}
    known = {"start": start} | {kind: seconds for kind, seconds in wall.items() if kind != "other"}
    return known | {"other": max(total - sum(known.values()), 0.0)}
