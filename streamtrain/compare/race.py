"""One run of a comparison: trained epoch by epoch, measured between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

import torch
from torch import nn

from streamtrain.compare.common import Contest
from streamtrain.compare.results import Compared, Point
from streamtrain.compare.trajectory import Snapshot, Trajectory
from streamtrain.compare.variance import UpdateVariance
from streamtrain.compare.watching import Watched
from streamtrain.errors import DivergedError, ResourceError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.system.memory import MemoryMeter, give_back
from streamtrain.training.run_folder import NoRun, Run, RunFolder, write_memory
from streamtrain.training.run_state import solved
from streamtrain.training.trainer import Trainer

OnPoint = Callable[[Compared, Point], None]


def race(
    contest: Contest, pair: tuple[str, str], passes: list[StreamLoader], first: Point, on_point: OnPoint
) -> tuple[Compared, list[Snapshot]]:
    """Make one run, and return it with the snapshots of its weights."""
    # Its memory is to be its own, not that of the runs before.
    give_back()
    variance = UpdateVariance()
    trainer = contest.trainer(*pair, on_step=variance.stepped)
    run = Compared(
        rule=pair[0],
        optimizer=pair[1],
        lr=float(trainer.optimizer.param_groups[0]["lr"]),
        points=(first,),
        memory={},
        folder=contest.out / "-".join(pair) if contest.out else None,
    )
    with ExitStack() as stack:
        weights = _trained(trainer)
        # Copies of the weights are no loader's, and there before the meter.
        variance.begin(weights)
        most = contest.n_kept()
        path = Trajectory(weights, most - most % 2) if most else None
        with ExitStack() as rehearsal:
            # What a step takes is there for milliseconds.
            with MemoryMeter(interval_seconds=0.001) as step:
                rehearsal.enter_context(trainer.working_memory(contest.rows()))
                variance.stepped()
            meter = stack.enter_context(MemoryMeter())
        loader = stack.enter_context(contest.loader(pair[0], shares=len(passes)))
        folder = stack.enter_context(_folder(run, trainer, loader, contest))
        racer = _Racer(contest, trainer, loader, variance, path)
        _log(folder, first)
        on_point(run, first)
        while not racer.is_done and run.diverged is None:
            run = racer.epoch(run, passes, folder)
            if run.diverged is None:
                on_point(run, run.last)
        projected = sum(each.projection.total_bytes for each in (loader, *passes))
        terms = {"training": loader.projection.terms, "measuring": passes[0].projection.terms}
    step_bytes = max(0, step.before_bytes + step.peak_bytes - meter.before_bytes)
    # The loaders that measure have read before this run began.
    loaders_bytes = contest.measuring_bytes + meter.peak_bytes - step_bytes
    memory = {
        "budget": contest.memory,
        "projected": projected,
        "measured": max(0, loaders_bytes),
        "process": meter.before_bytes + meter.peak_bytes,
    }
    if run.folder:
        write_memory(run.folder, {**memory, "terms": terms})
    return replace(run, memory=memory), racer.snapshots(run)


def _folder(run: Compared, trainer: Trainer, loader: StreamLoader, contest: Contest) -> AbstractContextManager[Run]:
    if run.folder is None:
        return nullcontext(NoRun())
    return RunFolder(run.folder, trainer.describe(loader) | contest.about | solved(loader, contest.memory))


def _trained(trainer: Trainer) -> list[nn.Parameter]:
    return [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]


def _log(folder: Run, point: Point) -> None:
    folder.log(kind="measured", **{name: value for name, value in point.named().items() if value is not None})


class _Racer:
    """What follows a run through its epochs."""

    def __init__(
        self,
        contest: Contest,
        trainer: Trainer,
        loader: StreamLoader,
        variance: UpdateVariance,
        path: Trajectory | None,
    ) -> None:
        self._contest = contest
        self._trainer = trainer
        self._sums_up = loader.shuffle is False
        self._variance = variance
        self._keeping_seconds = 0.0
        self._stream = Watched(loader, self._after_batch, self._seconds_beside)
        self._weights = _trained(trainer)
        self._path = path
        self._seconds = 0.0
        self._n_steps_last: int | None = None
        self._is_over = False
        self._keep()

    @property
    def is_done(self) -> bool:
        """Whether no epoch, no time, or no step that leads anywhere is left."""
        setting = self._contest.setting
        is_late = setting.seconds is not None and self._seconds >= setting.seconds
        return is_late or self._is_over or self._stream.is_cut or self._trainer.counts.n_epochs >= setting.most_epochs

    def epoch(self, run: Compared, passes: list[StreamLoader], folder: Run) -> Compared:
        """Train one epoch more, and measure; a run that diverges ends where it was."""
        n_steps = self._trainer.counts.n_steps
        if self._n_steps_last is None or self._n_steps_last > 1 or self._variance.is_full:
            self._variance.begin(self._weights)
        if not self._sums_up and self._contest.setting.seconds is not None:
            self._stream.seconds_left = self._contest.setting.seconds - self._seconds
        before = self._seconds_beside()
        try:
            history = self._trainer.fit(
                self._stream,
                max_epochs=self._trainer.counts.n_epochs + 1,
                val=passes[1] if len(passes) > 1 else None,
                checkpoint=folder if isinstance(folder, RunFolder) else None,
            )
        except DivergedError as error:
            return replace(run, diverged=str(error))
        except ResourceError as error:
            # Which a comparison does not have.
            error.fix = error.fix and error.fix.replace("the same with --resume", "compare again")
            raise
        self._is_over = history.stopped_by != "epochs"
        assert history.last is not None
        self._seconds += history.last.speed.seconds - (self._seconds_beside() - before)
        self._n_steps_last = self._trainer.counts.n_steps - n_steps
        if self._sums_up and self._n_steps_last:
            # Inside a pass there are the same weights again and again, or those of a line search's trials.
            self._keep()
        train = self._contest.measure(self._trainer, passes[0])
        if not math.isfinite(train.loss):
            return replace(run, diverged=f"after epoch {self._trainer.counts.n_epochs} the loss is {train.loss}")
        point = Point(
            epochs=self._epochs(),
            n_steps=self._trainer.counts.n_steps,
            seconds=self._seconds,
            train=train,
            val=history.last.val,
            variance=self._variance.value(),
            n_window=self._variance.n_seen,
        )
        _log(folder, point)
        return replace(run, points=(*run.points, point))

    def _epochs(self) -> float:
        counts = self._trainer.counts
        return float(counts.n_epochs) if self._sums_up else counts.n_samples / len(self._contest.dataset)

    def _after_batch(self) -> None:
        if not self._sums_up:
            self._keep()

    def _keep(self) -> None:
        if self._path:
            started = time.perf_counter()
            self._path.offer(self._trainer.counts.n_steps)
            self._keeping_seconds += time.perf_counter() - started

    def _seconds_beside(self) -> float:
        """What went to watching the run, so far."""
        return self._variance.seconds + self._keeping_seconds

    def snapshots(self, run: Compared) -> list[Snapshot]:
        """The path of the weights, its end included; of a run that diverged, up to where it was last measured."""
        if self._path is None:
            return []
        if run.diverged is None:
            self._path.end(self._trainer.counts.n_steps)
        kept = [snapshot for snapshot in self._path.kept if snapshot.n_steps <= run.last.n_steps]
        return [snapshot for snapshot in kept if torch.isfinite(snapshot.weights).all()]
