"""One run of a comparison: trained epoch by epoch, measured between them, within its share of memory and time.

Its checkpoints hold what was observed of it as well, so that it resumes bit for bit: its points, the window of updates
and the path of the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.comparison.results import ComparedRun, Divergence, LearningCurvePoint
from streamtrain.comparison.settings import RunChoice
from streamtrain.comparison.setup import ComparisonSetup, rehearse, trainable
from streamtrain.comparison.surface import Snapshot, Trajectory
from streamtrain.comparison.variance import UpdateVariance
from streamtrain.errors import Argument, CheckpointError, DamagedBlock, DivergedError, Fix, first_line, with_remedy
from streamtrain.loader.batch import Batch
from streamtrain.loader.shared_budget import non_loader_memory
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.optim.optimizers import usual_rate
from streamtrain.store.byte_ranges import RESTORE
from streamtrain.system.json_values import objects, to_json_value
from streamtrain.system.memory import trim_heap
from streamtrain.training.labels.facts import label_config
from streamtrain.training.records.history import EpochSummary, History
from streamtrain.training.run.checkpoint import Checkpoint
from streamtrain.training.run.run_description import budget_config
from streamtrain.training.run.run_folder import NullRunFolder, Run, RunFolder, write_memory
from streamtrain.training.run.serialization import pack, unpack
from streamtrain.training.step_errors import lower_rate
from streamtrain.training.trainer import Trainer


class TimedStream:
    """A loader's batches with a callback after each, cut off after ``seconds_left`` of training.

    ``beside`` returns the seconds so far that were not spent on training, which do not count.
    """

    def __init__(
        self, loader: StreamLoader, on_batch: Callable[[], None], beside: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._loader = loader
        self._on_batch = on_batch
        self._beside = beside
        self._started = 0.0
        self._is_out = False
        self.seconds_left: float | None = None
        # Of training since the pass began, or resumed.
        self.seconds = 0.0
        self.ran_out_of_time = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        self._started = self._clock()
        if self.ran_out_of_time:
            # A run that was resumed after its time had ended it.
            return
        for batch in self._loader:
            self._is_out = True
            yield batch
            self.settle()
            if self.seconds_left is not None and self.seconds >= self.seconds_left:
                self.ran_out_of_time = True
                return

    def settle(self) -> None:
        """Call back after the batch that is out, unless that was done."""
        if self._is_out:
            self._is_out = False
            self._on_batch()
            self.seconds = self._clock() - self._started

    # Written out: the check for a stream that resumes does not see what `__getattr__` finds.
    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the loader at a position."""
        self._loader.load_state_dict(state)

    def _clock(self) -> float:
        return time.perf_counter() - self._beside()


_OBSERVED: Final = "comparison"
PointCallback = Callable[[ComparedRun, LearningCurvePoint], None]


class ObservedRunFolder(RunFolder):
    """The folder of a run whose checkpoints also hold what was observed of it."""

    tracker: _RunTracker | None = None

    def save(self, n_batches: int, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Save a checkpoint, with the observations up to it."""
        assert self.tracker is not None
        tree, observed = pack(self.tracker.state_dict(), _OBSERVED)
        return super().save(n_batches, {**state, _OBSERVED: tree}, {**tensors, _OBSERVED: observed})

    def resume_from(self, found: Checkpoint | None) -> None:
        """Resume from a checkpoint and its observations, or start afresh."""
        super().resume_from(found)
        assert self.tracker is not None
        if found is None:
            self.tracker.begin(self)
            return
        try:
            self.tracker.load_state_dict(unpack(found.state[_OBSERVED], found.tensors(_OBSERVED)))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            why, fix = first_line(error), Fix("another ", Argument("out"))
            raise CheckpointError("is not of a comparison", where=str(found.path), why=why, fix=fix) from error


def train_run(
    setup: ComparisonSetup,
    choice: RunChoice,
    passes: list[StreamLoader],
    first: LearningCurvePoint,
    on_point: PointCallback,
    *,
    resumes: bool = False,
) -> tuple[ComparedRun, list[Snapshot]]:
    """Train one run, or the rest of it, and return it with the snapshots of its weights."""
    # The memory of earlier runs must not count as this one's.
    trim_heap()
    variance = UpdateVariance()
    trainer = setup.trainer(choice, on_step=variance.stepped)
    run = ComparedRun(
        rule=choice.rule,
        optimizer=choice.optimizer,
        lr=float(trainer.optimizer.param_groups[0]["lr"]),
        points=(first,),
        memory={},
        folder=setup.out / choice.folder_name if setup.out else None,
        by_rate=choice.by_rate,
        is_finished=False,
    )
    with ExitStack() as stack:
        weights = trainable(trainer.model)
        # The copies of the weights belong to no loader, so they are made before the meter starts.
        variance.begin(weights)
        most = setup.n_kept()
        path = Trajectory(weights, most - most % 2) if most else None
        step, meter = rehearse(setup, trainer, variance, stack)
        loader = stack.enter_context(setup.loader(choice.rule, shares=len(passes)))
        folder = stack.enter_context(_folder(run, trainer, loader, setup, resumes=resumes))
        tracker = _RunTracker(setup, run, trainer, loader, variance, path)
        tracker.train(folder, passes, on_point)
        projected = sum(each.projection.total_bytes for each in (loader, *passes))
        terms = {"training": loader.projection.terms, "measuring": passes[0].projection.terms}
    step_bytes = non_loader_memory(0, step, meter).step_bytes
    # The measuring loaders were filled before this run began.
    loaders_bytes = setup.measuring_bytes + meter.peak_bytes - step_bytes
    memory = {
        "budget": setup.memory,
        "projected": projected,
        "measured": max(0, loaders_bytes),
        "process": meter.before_bytes + meter.peak_bytes,
        "above": meter.peak_bytes,
    }
    if run.folder:
        write_memory(run.folder, {**memory, "terms": terms})
    return replace(tracker.run, memory=memory, is_finished=True), tracker.snapshots()


def _folder(
    run: ComparedRun, trainer: Trainer, loader: StreamLoader, setup: ComparisonSetup, *, resumes: bool
) -> AbstractContextManager[Run]:
    if run.folder is None:
        return nullcontext(NullRunFolder())
    budgets = budget_config(loader, setup.memory) | {"max_memory": setup.setting.max_memory}
    labels = label_config(setup.dataset, setup.target, setup.loss, setup.reading(), setup.task)
    config = trainer.describe(loader) | labels | setup.about | budgets
    return ObservedRunFolder(run.folder, config, resumes=resumes)


def log_point(folder: Run, point: LearningCurvePoint) -> None:
    """Append a point to the run's metrics."""
    folder.log(kind="measured", **{name: value for name, value in point.named().items() if value is not None})


class _RunTracker:
    """Follow a run through its epochs."""

    def __init__(
        self,
        setup: ComparisonSetup,
        run: ComparedRun,
        trainer: Trainer,
        loader: StreamLoader,
        variance: UpdateVariance,
        path: Trajectory | None,
    ) -> None:
        self.run = run
        self._setup = setup
        self._trainer = trainer
        self._is_full_batch = loader.shuffle is False
        self._variance = variance
        self._keeping_seconds = 0.0
        self._stream = TimedStream(loader, self._after_batch, self._overhead_seconds)
        self._weights = trainable(trainer.model)
        self._path = path
        self._seconds = 0.0
        # Of all that was observed, when the call of fit began.
        self._overhead_before = 0.0
        self._n_steps_before = 0
        self._n_steps_last: int | None = None
        self._resumes = self._is_over = False
        # Whether the run is inside an epoch, or at the end of one that was not measured yet.
        self._is_inside = self._is_pending = False
        self._keep()

    @property
    def is_done(self) -> bool:
        """Whether the run has no epochs, time or useful steps left."""
        setting = self._setup.setting
        is_late = setting.seconds is not None and self._seconds >= setting.seconds
        return (
            self.run.diverged is not None
            or is_late
            or self._is_over
            or self._stream.ran_out_of_time
            or self._trainer.counts.n_epochs >= setting.most_epochs
        )

    def train(self, folder: Run, passes: list[StreamLoader], on_point: PointCallback) -> None:
        """Train to the end, from where the run was if it is resumed."""
        if isinstance(folder, ObservedRunFolder):
            folder.tracker = self
            self._resumes = folder.resumes
        if not self._resumes:
            self.begin(folder)
        on_point(self.run, self.run.last)
        while self._resumes or not self.is_done:
            n_points = len(self.run.points)
            self._epoch(folder, passes)
            for point in self.run.points[n_points:]:
                on_point(self.run, point)

    def begin(self, folder: Run) -> None:
        """Begin at the beginning."""
        log_point(folder, self.run.last)
        self._begin_epoch()

    def _epoch(self, folder: Run, passes: list[StreamLoader]) -> None:
        """Train one more epoch, or the rest of it, and measure; a run that diverges keeps its earlier points.

        A run that is resumed comes back without an epoch where it was between two, or inside a later one.
        """
        if not (self._is_inside or self._resumes):
            self._begin_epoch()
        if not self._is_full_batch and self._setup.setting.seconds is not None:
            self._stream.seconds_left = self._setup.setting.seconds - self._seconds
        try:
            history = self._fit(folder, passes)
        except DivergedError as error:
            self._end_diverged(error.told())
            return
        except DamagedBlock as error:
            # A comparison leaves no samples out, which would be others in each run.
            error.fix = RESTORE
            raise
        if history.last is None and not self._is_pending:
            return
        self._is_over = history.stopped_by != "epochs"
        self._measure(folder, passes, history)

    def _begin_epoch(self) -> None:
        if self._n_steps_last is None or self._n_steps_last > 1 or self._variance.is_full:
            self._variance.begin(self._weights)
        self._n_steps_before = self._trainer.counts.n_steps
        self._is_inside = True

    def _fit(self, folder: Run, passes: list[StreamLoader]) -> History:
        resumes, self._resumes = self._resumes, False
        self._stream.seconds, self._overhead_before = 0.0, self._overhead_seconds()
        history = self._trainer.fit(
            self._stream,
            max_epochs=self._trainer.counts.n_epochs + 1,
            val=passes[1] if len(passes) > 1 else None,
            checkpoint=folder,
            resume="auto" if resumes else None,
            on_epoch=self._ended,
        )
        if history.last is not None and history.last.partial:
            self._ended(history.last)
        return history

    def _ended(self, summary: EpochSummary) -> None:
        """Note that an epoch is over, before it is saved."""
        self._seconds += summary.speed.seconds - (self._overhead_seconds() - self._overhead_before)
        self._stream.seconds = 0.0
        self._is_pending = True

    def _measure(self, folder: Run, passes: list[StreamLoader], history: History) -> None:
        self._n_steps_last = self._trainer.counts.n_steps - self._n_steps_before
        self._is_inside = self._is_pending = False
        if self._is_full_batch and self._n_steps_last:
            # Inside a pass the weights stay the same, or are those of a line search's trials.
            self._keep()
        train = self._setup.measure(self._trainer, passes[0])
        if not math.isfinite(train.loss):
            counts = self._trainer.counts
            after = f"after epoch {counts.n_epochs}, step {counts.n_steps:,}"
            self._end_diverged(
                f"{after}: the loss is {train.loss}. The run diverged at a learning rate of {self.run.lr:g}"
            )
            return
        # Of an epoch that was measured by a run that ended before it said so, there is no history.
        val = history.last.val if history.last else self._trainer.evaluate(passes[1]) if len(passes) > 1 else None
        point = LearningCurvePoint(
            epochs=self._epochs(),
            n_steps=self._trainer.counts.n_steps,
            seconds=self._seconds,
            train=train,
            val=val,
            variance=self._variance.value(),
            n_window=self._variance.n_seen,
        )
        log_point(folder, point)
        self.run = replace(self.run, points=(*self.run.points, point))

    def _end_diverged(self, how: str) -> None:
        found = Divergence(how=how, next_lr=lower_rate(self.run.lr, usual_rate(type(self._trainer.optimizer))))
        self.run = told_diverged(replace(self.run, divergence=found), self._setup)

    def _epochs(self) -> float:
        counts = self._trainer.counts
        return float(counts.n_epochs) if self._is_full_batch else counts.n_samples / len(self._setup.dataset)

    def _after_batch(self) -> None:
        if not self._is_full_batch:
            self._keep()

    def _keep(self) -> None:
        if self._path:
            started = time.perf_counter()
            self._path.offer(self._trainer.counts.n_steps)
            self._keeping_seconds += time.perf_counter() - started

    def _overhead_seconds(self) -> float:
        """Return the seconds spent so far on observing the run."""
        return self._variance.seconds + self._keeping_seconds

    def state_dict(self) -> dict[str, Any]:
        """Return what was observed so far, for a checkpoint."""
        self._stream.settle()
        return {
            "points": [to_json_value(point.named()) for point in self.run.points],
            "seconds": self._seconds + self._stream.seconds,
            "n_steps_before": self._n_steps_before,
            "n_steps_last": self._n_steps_last,
            "is_inside": self._is_inside,
            "is_pending": self._is_pending or self._stream.ran_out_of_time,
            "ran_out_of_time": self._stream.ran_out_of_time,
            "variance": self._variance.state_dict(),
            "path": self._path.state_dict() if self._path else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume with what was observed."""
        first = self.run.points[0]
        n_samples, n_val = first.train.n_samples, first.val.n_samples if first.val else None
        points = (LearningCurvePoint.of(each, n_samples=n_samples, n_val=n_val) for each in objects(state["points"]))
        self.run = replace(self.run, points=tuple(points))
        self._seconds = float(state["seconds"])
        self._n_steps_before, self._n_steps_last = state["n_steps_before"], state["n_steps_last"]
        self._is_inside, self._is_pending = state["is_inside"], state["is_pending"]
        self._stream.ran_out_of_time = state["ran_out_of_time"]
        if self._stream.seconds_left is not None and self._setup.setting.seconds is not None:
            self._stream.seconds_left = self._setup.setting.seconds - self._seconds
        self._variance.load_state_dict(state["variance"])
        if self._path:
            self._path.load_state_dict(state["path"])

    def snapshots(self) -> list[Snapshot]:
        """Return the path of the weights with its end; of a run that diverged, up to its last measured point."""
        if self._path is None:
            return []
        if self.run.diverged is None:
            self._path.end(self._trainer.counts.n_steps)
        kept = [snapshot for snapshot in self._path.kept if snapshot.n_steps <= self.run.last.n_steps]
        return [snapshot for snapshot in kept if torch.isfinite(snapshot.weights).all()]


def told_diverged(run: ComparedRun, setup: ComparisonSetup) -> ComparedRun:
    """Say of a run that diverged when, at which learning rate, and which to try next."""
    found, setting = run.divergence, setup.setting
    if found is None:
        return run
    is_alone = len(setting.rules) == len(setting.optimizers) == 1
    lower = found.next_lr if is_alone else {f"{run.rule}:{run.optimizer}": found.next_lr}
    return replace(run, diverged=with_remedy(found.how, Fix("a lower learning rate: ", Argument("lr", lower))))
