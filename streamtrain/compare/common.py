"""What all runs of a comparison have in common: the model they begin with, the data, and how they are measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from streamtrain.compare.results import Point
from streamtrain.compare.setting import Setting
from streamtrain.compare.trajectory import n_kept
from streamtrain.loader import StreamLoader
from streamtrain.losses import Loss
from streamtrain.metrics import Metrics
from streamtrain.quarantine import first_rows
from streamtrain.store import Dataset
from streamtrain.stream import normalize_fields
from streamtrain.trainer import Rows, Trainer
from streamtrain.units import parse_bytes

_MEASURING_SHARE: Final = 4
"""Each loader that measures has one of so many parts of the memory."""
_REHEARSED_ROWS: Final = 64


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
        rows = self.rows()
        for rule, optimizer in self.setting.pairs():
            self.trainer(rule, optimizer).check(rows, n_classes=self.dataset.n_classes)
            self.loader(rule, shares=1 + bool(val)).close()
        if self.setting.grid:
            self.n_kept()

    def rows(self) -> Rows:
        """A few rows of the training data."""
        n_rows = min(_REHEARSED_ROWS, self.setting.batch_size, len(self.dataset))
        return first_rows(self.dataset, n_rows, forgiving=False)

    def n_kept(self) -> int:
        """Snapshots of each run; 0 without a surface."""
        n_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return n_kept(len(list(self.setting.pairs())), n_bytes) if self.setting.grid else 0

    def loader(self, rule: str, *, shares: int) -> StreamLoader:
        """The loader that a run trains from; so many others have a share of the memory."""
        memory = parse_bytes(self.setting.memory, name="memory")
        return StreamLoader(
            self.dataset,
            batch_size=min(self.setting.batch_size, len(self.dataset)),
            memory=memory - shares * (memory // _MEASURING_SHARE),
            seed=self.setting.seed,
            shuffle=rule != "epoch",
            device=self.setting.device,
        )

    def ordered(self, data: Dataset) -> StreamLoader:
        """A loader that measures."""
        memory = parse_bytes(self.setting.memory, name="memory") // _MEASURING_SHARE
        size = min(self.setting.batch_size, len(data))
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
