"""The epochs of a run: loss, scores and speed, one by one, in all, and as a table."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self, overload

from streamtrain.errors import Fix, ResourceError, UsageError, unknown_name
from streamtrain.system.display.notebook_html import clipped, html_table, html_title
from streamtrain.system.events import ThreadSeconds
from streamtrain.system.units import counted, format_figure, format_figures, format_share
from streamtrain.training.best.monitor import BestEpoch, Monitor, mode_of
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.metrics.user import METRIC_NAMES
from streamtrain.training.progress import Counts

_WIDTH: Final = 12
_MOST_LINES: Final = 60
_VAL: Final = "val_"


class HasWaitSeconds(Protocol):
    """An object that knows how long its consumer has waited for it."""

    @property
    def wait_seconds(self) -> float:
        """Seconds waited so far, over its whole life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast samples were taken in, and where the time went."""

    n_samples: int
    seconds: float
    wait_seconds: float
    transfer_seconds: float = 0.0
    # Of the loader's threads meanwhile: several threads may spend several seconds in one of wall time.
    work: ThreadSeconds = field(default_factory=ThreadSeconds)

    def __add__(self, other: Speed) -> Speed:
        return Speed(
            n_samples=self.n_samples + other.n_samples,
            seconds=self.seconds + other.seconds,
            wait_seconds=self.wait_seconds + other.wait_seconds,
            transfer_seconds=self.transfer_seconds + other.transfer_seconds,
            work=self.work + other.work,
        )

    @property
    def compute_seconds(self) -> float:
        """Wall time that was neither waiting nor copying: the model, the optimizer, and a transform."""
        return max(self.seconds - self.wait_seconds - self.transfer_seconds, 0.0)

    @property
    def samples_per_second(self) -> float:
        """Samples per second of wall time."""
        return self.n_samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def stall_fraction(self) -> float:
        """The share of the wall time spent waiting for data."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds > 0 else 0.0

    def wall(self) -> dict[str, float]:
        """Return the wall time by kind: seconds that add up to it."""
        return {"compute": self.compute_seconds, "transfer": self.transfer_seconds, "wait": self.wait_seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Elapsed:
    """The wall time of a call of `Trainer.fit`, and what of it went beside the training passes."""

    seconds: float
    validation_seconds: float
    saving_seconds: float

    def wall(self, speed: Speed) -> dict[str, float]:
        """Return the wall time by kind, given the speed of the passes: seconds that add up to it."""
        beside = {"validation": self.validation_seconds, "saving": self.saving_seconds}
        known = speed.wall() | beside
        return known | {"other": max(self.seconds - sum(known.values()), 0.0)}


class Stopwatch:
    """Wall time and where it went, from construction on; the caller adds to the seconds of transfer and aside."""

    def __init__(self, stream: HasWaitSeconds) -> None:
        self._stream = stream
        self._waited_before = stream.wait_seconds
        self._work_before = _work(stream)
        self.transfer_seconds = 0.0
        # Of no training: a checkpoint in the middle of a pass.
        self.aside_seconds = 0.0
        self._start = time.perf_counter()

    def speed(self, n_samples: int) -> Speed:
        """Return the speed of the samples taken in so far."""
        seconds = time.perf_counter() - self._start - self.aside_seconds
        return Speed(
            n_samples=n_samples,
            seconds=seconds,
            wait_seconds=self._stream.wait_seconds - self._waited_before,
            transfer_seconds=self.transfer_seconds,
            work=_work(self._stream) - self._work_before,
        )


def _work(stream: HasWaitSeconds) -> ThreadSeconds:
    # A stream written by the user need not report it.
    work = getattr(stream, "work", None)
    return work if isinstance(work, ThreadSeconds) else ThreadSeconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSummary:
    """One epoch of a run."""

    counts: Counts
    # Each sample measured just before it changed the weights; of a line search, at the weights of its last step.
    train: Metrics
    val: Metrics | None
    # Of the training pass alone.
    speed: Speed
    # Over the whole dataset, where a rule computes them; J includes the penalty.
    grad_norm: float | None = None
    objective: float | None = None
    # At the epoch's end, where a schedule changes it.
    lr: float | None = None
    # The measurements of a line search's trial that was not taken.
    trial: Mapping[str, float | None] | None = None
    # Cut short: it does not count as an epoch, and a resumed run continues inside it.
    partial: bool = False

    @classmethod
    def of_line(cls, line: Mapping[str, object], own: Collection[str] = (), *, n_batches: int = 0) -> Self:
        """Return the epoch of a line of ``metrics.jsonl``, where epochs have ``n_batches`` each.

        ``own`` are the names of metrics of the user's own.
        """
        values = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        names = [name for name in line if name.removeprefix(_VAL) in (*METRIC_NAMES[1:], *own)]

        def metrics(prefix: str) -> Metrics:
            scores = {n[len(prefix) :]: values.get(n, math.nan) for n in names if n.startswith(_VAL) == bool(prefix)}
            return Metrics(loss=values.get(f"{prefix}loss", math.nan), scores=scores, n_samples=0)

        partial = bool(line.get("partial"))
        n_epochs = int(values.get("epoch", 0)) - partial
        counts = {f"n_{name}": int(values.get(name, 0)) for name in ("steps", "samples")}
        seconds = {kind: values.get(f"{kind}_seconds", 0.0) for kind in ("wait", "transfer")}
        total = values.get("seconds", 0.0)
        return cls(
            counts=Counts(n_epochs=n_epochs, n_batches=n_epochs * n_batches, **counts),
            train=metrics(""),
            val=metrics(_VAL) if f"{_VAL}loss" in line else None,
            speed=Speed(
                n_samples=round(values.get("samples_per_second", 0.0) * total),
                seconds=total,
                wait_seconds=seconds["wait"],
                transfer_seconds=seconds["transfer"],
            ),
            grad_norm=values.get("grad_norm"),
            objective=values.get("objective"),
            lr=values.get("lr"),
            partial=partial,
        )

    def __repr__(self) -> str:
        values = self.train.named() | (self.val.named("val_") if self.val else {})
        figures = format_figures(values)
        cut = ", partial" * self.partial
        place = f"epoch {self.number}{cut}, {counted(self.counts.n_steps, 'step')}: "
        return f"EpochSummary({place}{clipped(figures, 86 - len(place))})"

    @property
    def number(self) -> int:
        """The epoch's number in the run, counted from 1."""
        return self.counts.n_epochs + self.partial

    def heads(self, monitor: Monitor | None = None) -> dict[str, str]:
        """Name what a table of epochs shows, each with its head."""
        return _columns([*self.train.named(), *(self.val.named(_VAL) if self.val else ())], monitor)

    def measured(self) -> dict[str, float]:
        """Return loss and all scores by name, those on validation data with ``val_`` before it."""
        return self.train.named(full=True) | (self.val.named("val_", full=True) if self.val else {})

    def scores(self) -> dict[str, object]:
        """Return the scores with their tables, as ``scores.json`` holds them."""
        measured_on, metrics = ("train", self.train) if self.val is None else ("val", self.val)
        place = {"epoch": self.number, "batches": self.counts.n_batches, **({"partial": True} if self.partial else {})}
        return {**place, "measured_on": measured_on, **metrics.facts()}

    def named(self) -> dict[str, float]:
        """Return what is measured each epoch by name, flat, as one line of ``metrics.jsonl``."""
        return {
            "epoch": self.number,
            **({"partial": True} if self.partial else {}),
            "steps": self.counts.n_steps,
            "samples": self.counts.n_samples,
            **self.train.named(),
            **({} if self.objective is None else {"objective": self.objective}),
            **({} if self.grad_norm is None else {"grad_norm": self.grad_norm}),
            **{f"trial_{name}": value for name, value in (self.trial or {}).items() if value is not None},
            **(self.val.named("val_") if self.val else {}),
            **({} if self.lr is None else {"lr": self.lr}),
            "seconds": self.speed.seconds,
            "samples_per_second": self.speed.samples_per_second,
            "stall_fraction": self.speed.stall_fraction,
            **{f"{kind}_seconds": seconds for kind, seconds in self.speed.wall().items()},
            **self.speed.work.named("_thread_seconds"),
        }


def epoch_head(*score_names: str | None, with_val: bool, monitor: Monitor | None = None) -> str:
    """Write the head of the table of epochs."""
    columns = ["loss", *filter(None, score_names)]
    columns += [f"{_VAL}{name}" for name in columns if with_val]
    middle = "".join(f"{name:>{_width(name)}}" for name in _columns(columns, monitor).values())
    return f"epoch{'steps':>11}{middle}{'samples/s':>{_WIDTH}}{'stall':>8}"


def _columns(names: Iterable[str], monitor: Monitor | None) -> dict[str, str]:
    """Give what is measured its heads; the monitor is among them, with its direction, where it is not the loss."""
    heads = {name: f"val {name.removeprefix(_VAL)}" if name.startswith(_VAL) else name for name in names}
    if monitor is None or monitor.name.removeprefix(_VAL) == "loss":
        return heads
    head = heads.get(monitor.name) or _columns([monitor.name], None)[monitor.name]
    return heads | {monitor.name: f"{head} ({monitor.mode})" if monitor.mode else head}


def _width(head: str) -> int:
    return max(_WIDTH, len(head) + 2)


def head_of(summary: EpochSummary, monitor: Monitor | None = None) -> str:
    """Write the head of the table that an epoch is a line of."""
    return epoch_head(*list(summary.train.named())[1:], with_val=summary.val is not None, monitor=monitor)


def epoch_line(summary: EpochSummary, monitor: Monitor | None = None) -> str:
    """Write one epoch in the columns of `epoch_head`, and whether it was cut short."""
    values, heads = summary.measured(), summary.heads(monitor)
    figures = {name: format_figure(values.get(name, math.nan)) for name in heads}
    middle = "".join(f"{figures[name]:>{_width(head)}}" for name, head in heads.items())
    speed = summary.speed
    taken = f"{speed.samples_per_second:>{_WIDTH},.0f}{format_share(speed.stall_fraction):>8}"
    return f"{summary.number:>5}{summary.counts.n_steps:>11,}{middle}{taken}{'  partial' * summary.partial}"


@dataclass(frozen=True, slots=True, kw_only=True)
class History(Sequence[EpochSummary]):
    """Result of `Trainer.fit`: its epochs, in order, as a sequence and as a table.

    ``history[-1]`` is the last epoch, ``history["val_loss"]`` its value in every epoch; `streamtrain.plot` draws them.

    Parameters
    ----------
    epochs : tuple of EpochSummary
        Those of this call; the last one is ``partial`` where ``max_steps`` cut it short.
    counts : Counts
        Totals since the trainer was made, or since the run first began.
    resumed_from_batch : int
        Whole batches done before the run was resumed; else 0.
    checkpoint_failures : int
        Checkpoints that could not be written, under ``on_checkpoint_failure="warn"``.
    unsaved : ResourceError, optional
        Why the last checkpoint could not be written, where no later one was: the final state is not on the disk.
    reached : bool or None
        Whether the loss came down to ``until_loss``; None without it.
    stopped_by : str
        What ended the run: ``"epochs"``, ``"steps"``, ``"until_loss"`` or ``"patience"``; with a line search also
        ``"grad_tolerance"``, ``"loss_tolerance"``, or ``"stuck"`` where no step lowers J any more.
    best : BestEpoch, optional
        The best epoch of the run by its monitor, with its ``epoch``, ``value`` and ``checkpoint``; None without one.
    run : Path, optional
        The folder of the run; None where it keeps none.
    elapsed : Elapsed, optional
        The wall time of this call, and what of it went into validation and saving; None of several calls.

    Examples
    --------
    >>> import tempfile, numpy as np, torch, streamtrain as st
    >>> data = st.ingest({"x": np.eye(4, dtype="float32"), "y": np.arange(4)}, tempfile.mkdtemp() + "/d.zarr")
    >>> trainer = st.Trainer(torch.nn.Linear(4, 4), loss="cross_entropy", device="cpu")
    >>> history = trainer.fit(data, batch_size=2, max_epochs=3, progress=False)
    >>> len(history), history[-1].counts.n_steps, history["steps"], history.stopped_by
    (3, 6, [2, 4, 6], 'epochs')
    """

    epochs: tuple[EpochSummary, ...]
    counts: Counts
    resumed_from_batch: int = 0
    checkpoint_failures: int = 0
    unsaved: ResourceError | None = None
    reached: bool | None = None
    stopped_by: str = "epochs"
    best: BestEpoch | None = None
    run: Path | None = None
    elapsed: Elapsed | None = None

    def __repr__(self) -> str:
        if not self.epochs:
            return epoch_head(with_val=False)
        first, monitor = self.epochs[0], self._monitor
        lines = [epoch_line(epoch, monitor) for epoch in self.epochs]
        if len(lines) > _MOST_LINES:
            lines = [*lines[:5], f"  ... {len(lines) - _MOST_LINES:,} more", *lines[5 - _MOST_LINES :]]
        return "\n".join([head_of(first, monitor), *lines])

    def _repr_html_(self) -> str:
        """Write the table for a notebook, its best epoch marked."""
        lines = [epoch_line(epoch, self._monitor).split() for epoch in self.epochs]
        shown = lines if len(lines) <= _MOST_LINES else [*lines[:5], *lines[5 - _MOST_LINES :]]
        best = str(self.best.epoch) if self.best else None
        marked = next((i for i, line in enumerate(shown) if line[0] == best), None)
        told = f"; best epoch {best} by {self.best.monitor}" if self.best else ""
        title = html_title(f"{counted(len(self), 'epoch')}, {counted(self.counts.n_steps, 'step')} in all{told}")
        if not self.epochs:
            return title
        head = ["epoch", "steps", *self.epochs[0].heads(self._monitor).values(), "samples/s", "stall"]
        rows = [line if len(line) == len(head) else [f"{line[0]} (partial)", *line[1:-1]] for line in shown]
        return title + html_table([head, *rows], marked=marked, first=_MOST_LINES)

    def __iter__(self) -> Iterator[EpochSummary]:
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    @overload
    def __getitem__(self, key: int) -> EpochSummary: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[EpochSummary, ...]: ...
    @overload
    def __getitem__(self, key: str) -> list[float]: ...
    def __getitem__(self, key: int | slice | str) -> EpochSummary | tuple[EpochSummary, ...] | list[float]:
        """Return an epoch, several, or the values of all by the name of what was measured."""
        if not isinstance(key, str):
            return self.epochs[key]
        values = self.to_dict()
        if key not in values:
            raise unknown_name("column of the history", key, values)
        return values[key]

    def to_dict(self) -> dict[str, list[float]]:
        """Return one list per column, like Keras's ``history.history``; NaN where an epoch has no value."""
        rows = [epoch.named() for epoch in self.epochs]
        names = dict.fromkeys(name for row in rows for name in row if name != "partial")
        return {name: [row.get(name, math.nan) for row in rows] for name in names}

    def to_frame(self) -> Any:
        """Return a pandas data frame, one row per epoch: the columns of `to_dict`, without the seconds of each part.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            what = "pandas is not installed, and a data frame is of pandas"
            raise UsageError(what, fix=Fix("pip install pandas, or history.to_dict()")) from None
        # So many that pandas would show them in place of the losses.
        return pd.DataFrame({name: column for name, column in self.to_dict().items() if not name.endswith("_seconds")})

    @property
    def _monitor(self) -> Monitor | None:
        """What the best epoch was chosen by, where one was."""
        return None if self.best is None else Monitor(name=self.best.monitor, mode=mode_of(self.best.monitor) or "")

    @property
    def last(self) -> EpochSummary | None:
        """The last epoch, if there was one."""
        return self.epochs[-1] if self.epochs else None

    @property
    def speed(self) -> Speed:
        """The speed over all epochs."""
        return sum((epoch.speed for epoch in self.epochs), Speed(n_samples=0, seconds=0.0, wait_seconds=0.0))
