"""The epochs of a run: loss, scores and speed, one by one and in all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from streamtrain.errors import ResourceError
from streamtrain.system.events import ThreadSeconds
from streamtrain.training.best.monitor import BestEpoch
from streamtrain.training.metrics.running import Metrics
from streamtrain.training.progress import Counts


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


class Stopwatch:
    """Wall time and where it went, from construction on; the caller adds to ``transfer_seconds``."""

    def __init__(self, stream: HasWaitSeconds) -> None:
        self._stream = stream
        self._waited_before = stream.wait_seconds
        self._work_before = _work(stream)
        self.transfer_seconds = 0.0
        self._start = time.perf_counter()

    def speed(self, n_samples: int) -> Speed:
        """Return the speed of the samples taken in so far."""
        seconds = time.perf_counter() - self._start
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
    # The measurements of a line search's trial that was not taken.
    trial: Mapping[str, float | None] | None = None
    # Cut short: it does not count as an epoch, and a resumed run continues inside it.
    partial: bool = False

    @property
    def number(self) -> int:
        """The epoch's number in the run, counted from 1."""
        return self.counts.n_epochs + self.partial

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
            "seconds": self.speed.seconds,
            "samples_per_second": self.speed.samples_per_second,
            "stall_fraction": self.speed.stall_fraction,
            **{f"{kind}_seconds": seconds for kind, seconds in self.speed.wall().items()},
            **self.speed.work.named("_thread_seconds"),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Result of `Trainer.fit`: its epochs, in order.

    Parameters
    ----------
    epochs : tuple of EpochSummary
        Those of this call; the last one is ``partial`` where ``max_steps`` cut it short.
    counts : Counts
        Totals since the trainer was made, or since the run first began.
    resumed_from_batch : int
        Whole batches taken in before a resumed run continued; else 0.
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

    Examples
    --------
    >>> import tempfile, numpy as np, torch, streamtrain as st
    >>> data = st.ingest({"x": np.eye(4, dtype="float32"), "y": np.arange(4)}, tempfile.mkdtemp() + "/d.zarr")
    >>> trainer = st.Trainer(torch.nn.Linear(4, 4), loss="cross_entropy", device="cpu")
    >>> history = trainer.fit(data, batch_size=2, max_epochs=3, progress=False)
    >>> len(history), history.counts.n_steps, history.stopped_by
    (3, 6, 'epochs')
    """

    epochs: tuple[EpochSummary, ...]
    counts: Counts
    resumed_from_batch: int = 0
    checkpoint_failures: int = 0
    unsaved: ResourceError | None = None
    reached: bool | None = None
    stopped_by: str = "epochs"
    best: BestEpoch | None = None

    def __repr__(self) -> str:
        measured = f", loss {self.last.train.loss:.4g}" if self.last is not None else ""
        measured += f", best epoch {self.best.epoch}" if self.best else ""
        return f"History({len(self)} epochs, {self.counts.n_steps} steps in all{measured}, ended by {self.stopped_by})"

    def __iter__(self) -> Iterator[EpochSummary]:
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def last(self) -> EpochSummary | None:
        """The last epoch, if there was one."""
        return self.epochs[-1] if self.epochs else None

    @property
    def speed(self) -> Speed:
        """The speed over all epochs."""
        return sum((epoch.speed for epoch in self.epochs), Speed(n_samples=0, seconds=0.0, wait_seconds=0.0))
