"""What all runs of a comparison have in common: the model they begin with, the data, and how they are measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from streamtrain.compare.results import Point
from streamtrain.compare.setting import Setting
from streamtrain.compare.trajectory import n_kept
from streamtrain.errors import BudgetError, UsageError
from streamtrain.loader.quarantine import first_rows
from streamtrain.loader.shared_budget import (
    PARTS,
    least_bytes,
    least_in_all,
    measuring_bytes,
    n_rehearsed,
    training_bytes,
)
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.losses import Loss
from streamtrain.store.dataset import Dataset
from streamtrain.system.units import format_bytes, parse_bytes
from streamtrain.training.batch_stream import normalize_fields
from streamtrain.training.metrics import Metrics
from streamtrain.training.trainer import Rows, Trainer


@dataclass(slots=True, kw_only=True)
class Contest:
    """What all runs of a comparison have in common."""

    model: nn.Module
    dataset: Dataset
    setting: Setting
    loss: Loss
    inputs: tuple[str, ...]
    target: str
    is_normalized: bool
    out: Path | None
    about: dict[str, object]
    pass_seconds: float = 0.0
    """Of the last pass over the training data that measured."""
    measuring_bytes: int = 0
    """What the loaders that measure hold between two passes."""

    @property
    def memory(self) -> int:
        """The budget of all loaders together, in bytes."""
        return parse_bytes(self.setting.memory, name="memory")

    def trainer(self, rule: str, optimizer: str, on_step: Callable[[], None] | None = None) -> Trainer:
        """A trainer of a copy of the model."""
        return Trainer(
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

    def check(self, val: Dataset | None) -> None:
        """See that every run can be made, before the first is."""
        measured = [self.dataset, val] if val else [self.dataset]
        self._check_memory(measured)
        rows = self.rows()
        for rule, optimizer in self.setting.pairs():
            self.trainer(rule, optimizer).check(rows, n_classes=self.dataset.n_classes)
            self.loader(rule, shares=len(measured)).close()
        if self.setting.grid:
            self._check_surface()

    def _check_memory(self, measured: Sequence[Dataset]) -> None:
        size = self.setting.batch_size
        least = [least_bytes(data, min(size, len(data)), shuffle=False) for data in measured]
        is_shuffled = {rule != "epoch" for rule in self.setting.rules}
        training = [least_bytes(self.dataset, min(size, len(self.dataset)), shuffle=each) for each in is_shuffled]
        in_all = least_in_all(max(training), least)
        if self.memory < in_all:
            needs = [f"training {format_bytes(max(training))}", *(f"measuring {format_bytes(each)}" for each in least)]
            raise BudgetError(
                f"memory is {format_bytes(self.memory)}, and the smallest that works is {format_bytes(in_all)}",
                why=f"It is shared: 1/{PARTS} for each loader that measures, the rest for the one that trains; the "
                f"least that each works with is {', '.join(needs)}",
                fix=f"memory='{in_all}B'",
            )

    def _check_surface(self) -> None:
        n_weights = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if n_weights < 2:
            raise UsageError(
                f"a surface lies over two weights at the least, and trained are {n_weights}", fix="no surface"
            )
        self.n_kept()

    def rows(self) -> Rows:
        """Rows of the training data to rehearse a step on."""
        return first_rows(self.dataset, n_rehearsed(self.dataset, self.setting.batch_size), forgiving=False)

    def n_kept(self) -> int:
        """Snapshots of each run; 0 without a surface."""
        n_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return n_kept(len(list(self.setting.pairs())), n_bytes) if self.setting.grid else 0

    def loader(self, rule: str, *, shares: int) -> StreamLoader:
        """The loader that a run trains from; so many others have a share of the memory."""
        return StreamLoader(
            self.dataset,
            batch_size=min(self.setting.batch_size, len(self.dataset)),
            memory=training_bytes(self.memory, shares),
            seed=self.setting.seed,
            shuffle=rule != "epoch",
            device=self.setting.device,
        )

    def ordered(self, data: Dataset) -> StreamLoader:
        """A loader that measures."""
        size, memory = min(self.setting.batch_size, len(data)), measuring_bytes(self.memory)
        return StreamLoader(data, batch_size=size, memory=memory, shuffle=False, device=self.setting.device)

    def measure(self, trainer: Trainer, ordered: StreamLoader) -> Metrics:
        """Loss and score over the training data, timed."""
        started = time.perf_counter()
        train = trainer.evaluate(ordered)
        self.pass_seconds = time.perf_counter() - started
        return train

    def first(self, passes: list[StreamLoader]) -> Point:
        """Where all runs begin."""
        trainer = self.trainer(*next(self.setting.pairs()))
        train = self.measure(trainer, passes[0])
        val = trainer.evaluate(passes[1]) if len(passes) > 1 else None
        return Point(epochs=0.0, n_steps=0, seconds=0.0, train=train, val=val)
