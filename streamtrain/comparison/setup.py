"""The parts that all runs of a comparison share: model, data, loss, memory; trainers and loaders made of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from torch import nn

from streamtrain.comparison.results import LearningCurvePoint
from streamtrain.comparison.settings import ComparisonSettings, RunChoice
from streamtrain.comparison.surface import SURFACE_BYTES_PER_WEIGHT, n_snapshots
from streamtrain.comparison.variance import UpdateVariance
from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.loader.budget_shares import (
    check_shared_memory,
    eval_loader_bytes,
    smallest_budget_bytes,
    smallest_shared_budget_bytes,
    train_loader_bytes,
)
from streamtrain.loader.quarantine import first_rows
from streamtrain.loader.shared_budget import (
    DEFAULT_MEMORY,
    NonLoaderMemory,
    check_memory_options,
    in_terms_of_process,
    loader_budget_bytes,
    n_preflight_rows,
    non_loader_memory,
    steady_lanes,
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
from streamtrain.training.labels.class_weights import ClassWeight
from streamtrain.training.labels.reading import LabelReading, label_reading
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.run.checkpoint import MOST_CHECKPOINTS, checkpoint_bytes
from streamtrain.training.run.run_folder import check_room
from streamtrain.training.sized_loaders import model_bytes
from streamtrain.training.step_errors import naming_missing_values
from streamtrain.training.trainer import Trainer

_TRAINED_ON: Final = "the training data"


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
    normalize_target: Literal["auto"] | None = None
    class_weight: ClassWeight | None = None
    memory: int = 0
    """The budget of all loaders together, in bytes, once `check` has found it."""
    lanes: int | None = None
    """Of the shuffle, where they follow from the budget of the process, or from the comparison that is resumed."""
    solved_lanes: int | None = None
    """Of the shuffle, as its loader has them."""
    taken: NonLoaderMemory | None = None
    """What a run holds besides its loaders, where that sized them."""
    pass_seconds: float = 0.0
    """Duration of the last measuring pass over the training data."""
    measuring_bytes: int = 0
    """Memory that the measuring loaders hold between two passes."""

    def trainer(self, choice: RunChoice, on_step: Callable[[], None] | None = None) -> Trainer:
        """Make a trainer of a copy of the model."""
        trainer = Trainer(
            copy.deepcopy(self.model),
            loss=self.loss,
            optimizer=choice.optimizer,
            lr=choice.lr,
            update=choice.rule,
            inputs=self.inputs,
            target=self.target,
            normalize=normalize_fields(self.dataset, self.inputs) if self.is_normalized else None,
            normalize_target=self.normalize_target,
            class_weight=self.class_weight,
            device=self.setting.device,
            on_step=on_step,
        )
        trainer.read_labels(self.reading())
        trainer.learned.learn(self.dataset)
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
        if self.setting.grid:
            self._check_surface()
        rows = self.rows()
        n_classes = class_counts(self.dataset, self.target, self.loss)
        size = self.setting.batch_size
        trained = last_batch(len(self.dataset), size)
        seen = [last_batch(len(data), size, trains=False) for data in measured]
        kept_bytes = 0
        for choice in self.setting.choices():
            small = [each for each in ([] if choice.rule == "sample" else [trained]) + seen if each]
            trainer = self.trainer(choice)
            trainer.check(rows, n_classes=n_classes, small=small)
            kept_bytes += checkpoint_bytes(trainer.model, trainer.optimizer) + self._observed_bytes
        if self.out is not None:
            of = "the checkpoints of all runs take"
            check_room(self.out, kept_bytes, n_there=MOST_CHECKPOINTS, of=of, another=Fix("another ", Argument("out")))
        del rows
        lanes_before = self.lanes
        self._size_loaders(least_bytes, n_measured=len(measured))
        self.lanes = lanes_before or self.lanes
        for rule in self.setting.rules:
            with self.loader(rule, shares=len(measured)) as loader:
                if rule != "epoch":
                    self.solved_lanes = loader.sizes.lanes

    def _check_meaning(self, val: Dataset) -> None:
        fields, where = (*self.inputs, self.target), str(val.path)
        ours, theirs = self.dataset.schema, val.schema
        arrange(ours, theirs, fields=fields, of=_TRAINED_ON, where=where).warn_once(set(), stacklevel=5)

    def _check_memory(self, measured: Sequence[Dataset]) -> int:
        """Find the smallest budget of all loaders together; refuse a stated one that is less."""
        memory, max_memory = self.setting.memory, self.setting.max_memory
        check_memory_options(memory, max_memory)
        size = self.setting.batch_size
        least = [smallest_budget_bytes(data.layout, min(size, len(data)), shuffle=False) for data in measured]
        is_shuffled = {rule != "epoch" for rule in self.setting.rules}
        training = [
            smallest_budget_bytes(self.dataset.layout, min(size, len(self.dataset)), shuffle=each)
            for each in is_shuffled
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
        for choice in self.setting.choices():
            variance = UpdateVariance()
            trainer = self.trainer(choice, on_step=variance.stepped)
            variance.begin(trainable(trainer.model))
            with ExitStack() as stack:
                meters = rehearse(self, trainer, variance, stack)
                of_model = model_bytes(trainer.model, trainer.optimizer)
                found.append(non_loader_memory(reserved_bytes, *meters, model_bytes=of_model))
            del trainer, variance
            trim_heap()
        most = max(found, key=lambda taken: taken.total_bytes)
        if not self.setting.grid:
            return most
        # The snapshots of all runs stay until the surface is drawn; by then what the runs held may not be back yet.
        paths_bytes = len(found) * (self.n_kept() + 1) * self._weights_bytes
        n_weights = sum(as_real(parameter.detach()).numel() for parameter in trainable(self.model))
        surface_bytes = paths_bytes + n_weights * SURFACE_BYTES_PER_WEIGHT
        most = replace(most, training_bytes=most.training_bytes + surface_bytes)
        return replace(most, model_bytes=most.model_bytes + surface_bytes)

    @property
    def _weights_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in trainable(self.model))

    @property
    def _observed_bytes(self) -> int:
        """What a checkpoint has of the observation of a run: a window of updates, and a path."""
        return (2 + self.n_kept()) * self._weights_bytes

    def _check_surface(self) -> None:
        n_weights = sum(p.numel() for p in trainable(self.model))
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
        return n_snapshots(len(list(self.setting.choices())), self._weights_bytes) if self.setting.grid else 0

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
        trainer = self.trainer(next(self.setting.choices()))
        train = self.measure(trainer, passes[0])
        val = trainer.evaluate(passes[1]) if len(passes) > 1 else None
        return LearningCurvePoint(epochs=0.0, n_steps=0, seconds=0.0, train=train, val=val)


def rehearse(
    setup: ComparisonSetup, trainer: Trainer, variance: UpdateVariance, stack: ExitStack
) -> tuple[MemoryMeter, MemoryMeter]:
    """Rehearse a step; return the meter that watched it, and one that runs from there on until the stack closes."""
    with ExitStack() as rehearsal:
        # A step holds its memory for milliseconds.
        rows, names = setup.rows(), (*trainer.inputs, trainer.target)
        with MemoryMeter(interval_seconds=0.001) as step, naming_missing_values(setup.dataset, rows, names):
            rehearsal.enter_context(trainer.working_memory(rows))
            del rows
            variance.stepped()
        return step, stack.enter_context(MemoryMeter())


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """List the weights that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
