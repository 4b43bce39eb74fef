"""One run of a comparison: trained epoch by epoch, measured between them, within its share of memory and time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from streamtrain.comparison.results import ComparedRun, LearningCurvePoint
from streamtrain.comparison.settings import ComparisonSettings
from streamtrain.comparison.surface import SURFACE_BYTES_PER_WEIGHT, Snapshot, Trajectory, n_snapshots
from streamtrain.comparison.variance import UpdateVariance
from streamtrain.errors import Argument, DivergedError, Fix, ResourceError, UsageError, with_remedy
from streamtrain.loader.batch import Batch
from streamtrain.loader.quarantine import first_rows
from streamtrain.loader.shared_budget import (
    DEFAULT_MEMORY,
    NonLoaderMemory,
    check_memory_options,
    check_shared_memory,
    eval_loader_bytes,
    in_terms_of_process,
    loader_budget_bytes,
    n_preflight_rows,
    non_loader_memory,
    smallest_budget_bytes,
    smallest_shared_budget_bytes,
    steady_lanes,
    train_loader_bytes,
)
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.losses import Loss
from streamtrain.models.real_view import as_real
from streamtrain.store.dataset import Dataset
from streamtrain.store.schema.arrangement import arrange
from streamtrain.store.schema.task import TaskName
from streamtrain.system.memory import MemoryMeter, held_bytes, trim_heap
from streamtrain.system.units import parse_bytes
from streamtrain.training.batch_stream import Rows, class_counts, last_batch, normalize_fields
from streamtrain.training.checkpoint import MOST_CHECKPOINTS, checkpoint_bytes
from streamtrain.training.labels.facts import label_config
from streamtrain.training.labels.reading import LabelReading, label_reading
from streamtrain.training.metrics.running import Metrics
from streamtrain.training.run_folder import NullRunFolder, Run, RunFolder, check_room, write_memory
from streamtrain.training.run_state import budget_config
from streamtrain.training.trainer import Trainer


@dataclass(slots=True, kw_only=True)
class ComparisonSetup:
    """What all runs of a comparison share."""

    model: nn.Module
    dataset: Dataset
    setting: ComparisonSettings
    loss: Loss
    inputs: tuple[str, ...]
    target: str
    is_normalized: bool
    out: Path | None
    about: dict[str, object]
    task: TaskName | None = None
    memory: int = 0
    """The budget of all loaders together, in bytes, once `check` has found it."""
    lanes: int | None = None
    """Of the shuffle, where they follow from the budget of the process."""
    taken: NonLoaderMemory | None = None
    """What a run holds besides its loaders, where that sized them."""
    pass_seconds: float = 0.0
    """Duration of the last measuring pass over the training data."""
    measuring_bytes: int = 0
    """Memory that the measuring loaders hold between two passes."""

    def trainer(self, rule: str, optimizer: str, on_step: Callable[[], None] | None = None) -> Trainer:
        """Make a trainer of a copy of the model."""
        trainer = Trainer(
            copy.deepcopy(self.model),
            loss=self.loss,
            optimizer=optimizer,
            lr=self.setting.lr_of(rule, optimizer),
            update=rule,
            inputs=self.inputs,
            target=self.target,
            normalize=normalize_fields(self.dataset, self.inputs) if self.is_normalized else None,
            device=self.setting.device,
            on_step=on_step,
        )
        trainer.read_labels(self.reading())
        trainer.learned.schema.take(self.dataset.schema, _TRAINED_ON)
        return trainer

    def reading(self) -> LabelReading:
        """Say how the labels are read."""
        return label_reading(self.dataset, self.target, self.loss, self.task)

    def check(self, val: Dataset | None) -> None:
        """Refuse a comparison if any of its runs cannot be made."""
        measured = [self.dataset, val] if val else [self.dataset]
        if val is not None:
            self._check_meaning(val)
        least_bytes = self._check_memory(measured)
        rows = self.rows()
        n_classes = class_counts(self.dataset, self.target, self.loss)
        size = self.setting.batch_size
        trained = last_batch(len(self.dataset), size)
        seen = [last_batch(len(data), size, trains=False) for data in measured]
        kept_bytes = 0
        for rule, optimizer in self.setting.pairs():
            small = [each for each in ([] if rule == "sample" else [trained]) + seen if each]
            trainer = self.trainer(rule, optimizer)
            trainer.check(rows, n_classes=n_classes, small=small)
            kept_bytes += checkpoint_bytes(trainer.model, trainer.optimizer)
        if self.out is not None:
            of = "the checkpoints of all runs take"
            check_room(self.out, kept_bytes, n_there=MOST_CHECKPOINTS, of=of, another=Fix("another ", Argument("out")))
        del rows
        if self.setting.grid:
            self._check_surface()
        self._size_loaders(least_bytes, n_measured=len(measured))
        for rule in self.setting.rules:
            self.loader(rule, shares=len(measured)).close()

    def _check_meaning(self, val: Dataset) -> None:
        fields, where = (*self.inputs, self.target), str(val.path)
        ours, theirs = self.dataset.schema, val.schema
        arrange(ours, theirs, fields=fields, of=_TRAINED_ON, where=where).warn_once(set(), stacklevel=4)

    def _check_memory(self, measured: Sequence[Dataset]) -> int:
        """Find the smallest budget of all loaders together; refuse a stated one that is less."""
        memory, max_memory = self.setting.memory, self.setting.max_memory
        check_memory_options(memory, max_memory)
        size = self.setting.batch_size
        least = [smallest_budget_bytes(data, min(size, len(data)), shuffle=False) for data in measured]
        is_shuffled = {rule != "epoch" for rule in self.setting.rules}
        training = [
            smallest_budget_bytes(self.dataset, min(size, len(self.dataset)), shuffle=each) for each in is_shuffled
        ]
        if not (max_memory and memory is None):
            check_shared_memory(parse_bytes(memory or DEFAULT_MEMORY, name="memory"), max(training), least)
        return smallest_shared_budget_bytes(max(training), least)

    def _size_loaders(self, least_bytes: int, *, n_measured: int) -> None:
        """Find the loaders' budget: the stated one, or what the largest run leaves of the process's."""
        memory, max_memory = self.setting.memory, self.setting.max_memory
        if max_memory is None:
            self.memory = parse_bytes(memory or DEFAULT_MEMORY, name="memory")
            return
        taken = self._largest_run(held_bytes())
        self.memory = loader_budget_bytes(memory, max_memory, taken, least_bytes=least_bytes, held_now=held_bytes())
        if memory is None:
            self.taken = taken
            size = min(self.setting.batch_size, len(self.dataset))
            self.lanes = steady_lanes(self.dataset, size, train_loader_bytes(self.memory, n_measured))

    def _largest_run(self, reserved_bytes: int) -> NonLoaderMemory:
        """Rehearse a step of every run, and return the most that one holds besides its loaders."""
        found = []
        for pair in self.setting.pairs():
            variance = UpdateVariance()
            trainer = self.trainer(*pair, on_step=variance.stepped)
            variance.begin(_trainable(trainer.model))
            with ExitStack() as stack:
                found.append(non_loader_memory(reserved_bytes, *_rehearse(self, trainer, variance, stack)))
            del trainer, variance
            trim_heap()
        most = max(found, key=lambda taken: taken.total_bytes)
        if not self.setting.grid:
            return most
        # The snapshots of all runs stay until the surface is drawn; by then what the runs held may not be back yet.
        paths_bytes = len(found) * (self.n_kept() + 1) * self._weights_bytes
        n_weights = sum(as_real(parameter.detach()).numel() for parameter in _trainable(self.model))
        surface_bytes = paths_bytes + n_weights * SURFACE_BYTES_PER_WEIGHT
        return replace(most, training_bytes=most.training_bytes + surface_bytes)

    @property
    def _weights_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in _trainable(self.model))

    def _check_surface(self) -> None:
        n_weights = sum(p.numel() for p in _trainable(self.model))
        if n_weights < 2:
            raise UsageError(
                f"a surface lies over two weights at the least, and trained are {n_weights}", fix="no surface"
            )
        self.n_kept()

    def rows(self) -> Rows:
        """Return rows of the training data to rehearse a step on."""
        return first_rows(self.dataset, n_preflight_rows(self.dataset, self.setting.batch_size), forgiving=False)

    def n_kept(self) -> int:
        """Return the number of snapshots of each run; 0 without a surface."""
        return n_snapshots(len(list(self.setting.pairs())), self._weights_bytes) if self.setting.grid else 0

    def loader(self, rule: str, *, shares: int) -> StreamLoader:
        """Open the loader that a run trains from, which shares the memory with ``shares`` others."""
        with in_terms_of_process(self.taken):
            return StreamLoader(
                self.dataset,
                batch_size=min(self.setting.batch_size, len(self.dataset)),
                memory=train_loader_bytes(self.memory, shares),
                seed=self.setting.seed,
                shuffle=rule != "epoch",
                lanes=self.lanes if rule != "epoch" else None,
                device=self.setting.device,
            )

    def ordered(self, data: Dataset) -> StreamLoader:
        """Open a loader that measures."""
        size, memory = min(self.setting.batch_size, len(data)), eval_loader_bytes(self.memory)
        with in_terms_of_process(self.taken):
            return StreamLoader(data, batch_size=size, memory=memory, shuffle=False, device=self.setting.device)

    def measure(self, trainer: Trainer, ordered: StreamLoader) -> Metrics:
        """Measure loss and score over the training data, and time the pass."""
        started = time.perf_counter()
        train = trainer.evaluate(ordered)
        self.pass_seconds = time.perf_counter() - started
        return train

    def first(self, passes: list[StreamLoader]) -> LearningCurvePoint:
        """Measure the common beginning of all runs."""
        trainer = self.trainer(*next(self.setting.pairs()))
        train = self.measure(trainer, passes[0])
        val = trainer.evaluate(passes[1]) if len(passes) > 1 else None
        return LearningCurvePoint(epochs=0.0, n_steps=0, seconds=0.0, train=train, val=val)


_TRAINED_ON: Final = "the training data"


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
        self.seconds_left: float | None = None
        self.ran_out_of_time = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        started = self._seconds()
        for batch in self._loader:
            yield batch
            self._on_batch()
            if self.seconds_left is not None and self._seconds() - started >= self.seconds_left:
                self.ran_out_of_time = True
                return

    def _seconds(self) -> float:
        return time.perf_counter() - self._beside()


_SLOWER: Final = 10
PointCallback = Callable[[ComparedRun, LearningCurvePoint], None]


def train_run(
    setup: ComparisonSetup,
    pair: tuple[str, str],
    passes: list[StreamLoader],
    first: LearningCurvePoint,
    on_point: PointCallback,
) -> tuple[ComparedRun, list[Snapshot]]:
    """Train one run, and return it with the snapshots of its weights."""
    # The memory of earlier runs must not count as this one's.
    trim_heap()
    variance = UpdateVariance()
    trainer = setup.trainer(*pair, on_step=variance.stepped)
    run = ComparedRun(
        rule=pair[0],
        optimizer=pair[1],
        lr=float(trainer.optimizer.param_groups[0]["lr"]),
        points=(first,),
        memory={},
        folder=setup.out / "-".join(pair) if setup.out else None,
    )
    with ExitStack() as stack:
        weights = _trainable(trainer.model)
        # The copies of the weights belong to no loader, so they are made before the meter starts.
        variance.begin(weights)
        most = setup.n_kept()
        path = Trajectory(weights, most - most % 2) if most else None
        step, meter = _rehearse(setup, trainer, variance, stack)
        loader = stack.enter_context(setup.loader(pair[0], shares=len(passes)))
        folder = stack.enter_context(_folder(run, trainer, loader, setup))
        tracker = _RunTracker(setup, trainer, loader, variance, path)
        _log(folder, first)
        on_point(run, first)
        while not tracker.is_done and run.diverged is None:
            run = tracker.epoch(run, passes, folder)
            if run.diverged is None:
                on_point(run, run.last)
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
    return replace(run, memory=memory), tracker.snapshots(run)


def _rehearse(
    setup: ComparisonSetup, trainer: Trainer, variance: UpdateVariance, stack: ExitStack
) -> tuple[MemoryMeter, MemoryMeter]:
    """Rehearse a step; return the meter that watched it, and one that runs from there on until the stack closes."""
    with ExitStack() as rehearsal:
        # A step holds its memory for milliseconds.
        with MemoryMeter(interval_seconds=0.001) as step:
            rehearsal.enter_context(trainer.working_memory(setup.rows()))
            variance.stepped()
        return step, stack.enter_context(MemoryMeter())


def _folder(
    run: ComparedRun, trainer: Trainer, loader: StreamLoader, setup: ComparisonSetup
) -> AbstractContextManager[Run]:
    if run.folder is None:
        return nullcontext(NullRunFolder())
    budgets = budget_config(loader, setup.memory) | {"max_memory": setup.setting.max_memory}
    labels = label_config(setup.dataset, setup.target, setup.loss, setup.reading(), setup.task)
    return RunFolder(run.folder, trainer.describe(loader) | labels | setup.about | budgets)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _log(folder: Run, point: LearningCurvePoint) -> None:
    folder.log(kind="measured", **{name: value for name, value in point.named().items() if value is not None})


class _RunTracker:
    """Follow a run through its epochs."""

    def __init__(
        self,
        setup: ComparisonSetup,
        trainer: Trainer,
        loader: StreamLoader,
        variance: UpdateVariance,
        path: Trajectory | None,
    ) -> None:
        self._setup = setup
        self._trainer = trainer
        self._is_full_batch = loader.shuffle is False
        self._variance = variance
        self._keeping_seconds = 0.0
        self._stream = TimedStream(loader, self._after_batch, self._overhead_seconds)
        self._weights = _trainable(trainer.model)
        self._path = path
        self._seconds = 0.0
        self._n_steps_last: int | None = None
        self._is_over = False
        self._keep()

    @property
    def is_done(self) -> bool:
        """Whether the run has no epochs, time or useful steps left."""
        setting = self._setup.setting
        is_late = setting.seconds is not None and self._seconds >= setting.seconds
        return (
            is_late
            or self._is_over
            or self._stream.ran_out_of_time
            or self._trainer.counts.n_epochs >= setting.most_epochs
        )

    def epoch(self, run: ComparedRun, passes: list[StreamLoader], folder: Run) -> ComparedRun:
        """Train one more epoch, and measure; a run that diverges keeps its earlier points."""
        n_steps = self._trainer.counts.n_steps
        if self._n_steps_last is None or self._n_steps_last > 1 or self._variance.is_full:
            self._variance.begin(self._weights)
        if not self._is_full_batch and self._setup.setting.seconds is not None:
            self._stream.seconds_left = self._setup.setting.seconds - self._seconds
        before = self._overhead_seconds()
        try:
            history = self._trainer.fit(
                self._stream,
                max_epochs=self._trainer.counts.n_epochs + 1,
                val=passes[1] if len(passes) > 1 else None,
                checkpoint=folder,
            )
        except DivergedError as error:
            return replace(run, diverged=self._diverged(run, error.told()))
        except ResourceError as error:
            # A comparison is not resumed.
            if (
                isinstance(error.fix, Fix)
                and error.fix.argument("resume")
                and isinstance(error.__cause__, ResourceError)
            ):
                error.fix = Fix(error.__cause__.fix or "see to the disk", ", then compare again")
            raise
        self._is_over = history.stopped_by != "epochs"
        assert history.last is not None
        self._seconds += history.last.speed.seconds - (self._overhead_seconds() - before)
        self._n_steps_last = self._trainer.counts.n_steps - n_steps
        if self._is_full_batch and self._n_steps_last:
            # Inside a pass the weights stay the same, or are those of a line search's trials.
            self._keep()
        train = self._setup.measure(self._trainer, passes[0])
        if not math.isfinite(train.loss):
            told = f"after epoch {self._trainer.counts.n_epochs} the loss is {train.loss}"
            return replace(run, diverged=self._diverged(run, told))
        point = LearningCurvePoint(
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

    def _diverged(self, run: ComparedRun, told: str) -> Fix:
        """Say when and at what learning rate a run diverged, and name the rate to try next."""
        lower = {**self._setup.setting.lr, f"{run.rule}:{run.optimizer}": float(f"{run.lr / _SLOWER:g}")}
        told = f"at step {self._trainer.counts.n_steps:,}, at a learning rate of {run.lr:g}: {told}"
        return with_remedy(told, Fix("a lower learning rate: ", Argument("lr", lower)))

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

    def snapshots(self, run: ComparedRun) -> list[Snapshot]:
        """Return the path of the weights with its end; of a run that diverged, up to its last measured point."""
        if self._path is None:
            return []
        if run.diverged is None:
            self._path.end(self._trainer.counts.n_steps)
        kept = [snapshot for snapshot in self._path.kept if snapshot.n_steps <= run.last.n_steps]
        return [snapshot for snapshot in kept if torch.isfinite(snapshot.weights).all()]
