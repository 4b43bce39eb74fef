"""One run of a comparison: trained epoch by epoch, measured between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

from streamtrain.allocator import give_back
from streamtrain.compare.common import Contest
from streamtrain.compare.results import Compared, Point
from streamtrain.compare.trajectory import Snapshot, Trajectory
from streamtrain.compare.variance import UpdateVariance
from streamtrain.compare.watching import Watched
from streamtrain.errors import DivergedError
from streamtrain.loader import StreamLoader
from streamtrain.meter import MemoryMeter
from streamtrain.runs import NoRun, Run, RunFolder, write_memory
from streamtrain.trainer import Trainer
from streamtrain.units import parse_bytes

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
        loader = stack.enter_context(contest.loader(pair[0], shares=len(passes)))
        folder = stack.enter_context(_folder(run, trainer, loader, contest))
        racer = _Racer(contest, trainer, loader, variance)
        with ExitStack() as rehearsal:
            # What a step takes is there for milliseconds.
            with MemoryMeter(interval_seconds=0.001) as step:
                rehearsal.enter_context(trainer.working_memory(contest.rows()))
            meter = stack.enter_context(MemoryMeter())
        _log(folder, first)
        on_point(run, first)
        while not racer.is_done and run.diverged is None:
            run = racer.epoch(run, passes, folder)
            if run.diverged is None:
                on_point(run, run.last)
        snapshots = racer.snapshots()
        projected = sum(each.projection.total_bytes for each in (loader, *passes))
        terms = {"training": loader.projection.terms, "measuring": passes[0].projection.terms}
    step_bytes = max(0, step.before_bytes + step.peak_bytes - meter.before_bytes)
    memory = {
        "budget": parse_bytes(contest.setting.memory, name="memory"),
        "projected": projected,
        "measured": max(0, meter.peak_bytes - step_bytes),
        "process": meter.before_bytes + meter.peak_bytes,
    }
    if run.folder:
        write_memory(run.folder, {**memory, "terms": terms})
    return replace(run, memory=memory), snapshots


def _folder(run: Compared, trainer: Trainer, loader: StreamLoader, contest: Contest) -> AbstractContextManager[Run]:
    if run.folder is None:
        return nullcontext(NoRun())
    memory = parse_bytes(contest.setting.memory, name="memory")
    solved = {"memory": memory, "lanes": loader.sizes.lanes, "groups": loader.sizes.groups}
    return RunFolder(run.folder, trainer.describe(loader) | contest.about | solved)


def _log(folder: Run, point: Point) -> None:
    folder.log(kind="measured", **{name: value for name, value in point.named().items() if value is not None})


class _Racer:
    """What follows a run through its epochs."""

    def __init__(self, contest: Contest, trainer: Trainer, loader: StreamLoader, variance: UpdateVariance) -> None:
        self._contest = contest
        self._trainer = trainer
        self._has_one_step = loader.shuffle is False
        self._variance = variance
        self._stream = Watched(loader, self._after_batch)
        most = contest.n_kept()
        self._weights = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        self._path = Trajectory(self._weights, most - most % 2) if most else None
        self._seconds = 0.0
        if self._path:
            self._path.offer(0)

    @property
    def is_done(self) -> bool:
        """Whether no epoch or no time is left."""
        setting = self._contest.setting
        is_late = setting.seconds is not None and self._seconds >= setting.seconds
        return is_late or self._trainer.counts.n_epochs >= setting.most_epochs

    def epoch(self, run: Compared, passes: list[StreamLoader], folder: Run) -> Compared:
        """Train one epoch more, and measure; a run that diverges ends where it was."""
        if not self._has_one_step or self._variance.is_full or not self._trainer.counts.n_epochs:
            self._variance.begin(self._weights)
        if not self._has_one_step and self._contest.setting.seconds is not None:
            self._stream.seconds_left = self._contest.setting.seconds - self._seconds
        before = self._variance.seconds
        try:
            history = self._trainer.fit(
                self._stream,
                max_epochs=self._trainer.counts.n_epochs + 1,
                val=passes[1] if len(passes) > 1 else None,
                checkpoint=folder if isinstance(folder, RunFolder) else None,
            )
        except DivergedError as error:
            return replace(run, diverged=str(error))
        assert history.last is not None
        self._seconds += history.last.speed.seconds - (self._variance.seconds - before)
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
        return float(counts.n_epochs) if self._has_one_step else counts.n_samples / len(self._contest.dataset)

    def _after_batch(self) -> None:
        if self._path:
            self._path.offer(self._trainer.counts.n_steps)

    def snapshots(self) -> list[Snapshot]:
        """The path of the weights, its end included."""
        if self._path is None:
            return []
        self._path.end(self._trainer.counts.n_steps)
        return self._path.kept
