"""Facts of a trainer's first data: how inputs are rescaled, how labels are read, the units of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from streamtrain.errors import UsageError
from streamtrain.models.normalization import AUTO, NormalizedModel, awaits_statistics
from streamtrain.store.schema.arrangement import AS_IT_IS, Arrangement
from streamtrain.training.batch_stream import LearnedSchema, StreamDataset, normalize_fields
from streamtrain.training.labels.reading import AS_STORED, LabelReading, label_reading
from streamtrain.training.labels.targets import TargetOptions, TargetSettings, class_number, names_of_rows
from streamtrain.training.loop import EpochLoop
from streamtrain.training.metrics.results import Scoring


class LearnedData:
    """What is learnt once, and put where a step takes it."""

    def __init__(
        self,
        loop: EpochLoop,
        model: NormalizedModel,
        device: torch.device,
        normalize: Literal["auto", "imagenet"] | Mapping[str, nn.Module] | None,
        targets: TargetOptions,
    ) -> None:
        self.schema = LearnedSchema()
        self._loop, self._model, self._device = loop, model, device
        self._awaits_statistics = awaits_statistics(normalize)
        self._normalize = normalize if isinstance(normalize, str) else AUTO
        # None once they are known.
        self._targets: TargetOptions | None = targets
        if isinstance(normalize, Mapping):
            model.put(normalize, device)

    def learn(self, data: StreamDataset) -> None:
        """Learn of training data all that is not known yet."""
        if self._awaits_statistics:
            self._model.put(normalize_fields(data, self._model.inputs, self._normalize), self._device)
            self._awaits_statistics = False
        self.read_labels(data)
        if self._targets is not None:
            self.use(self._targets.learn(data, self._loop.target, self._loop.reading))

    def read_labels(self, data: StreamDataset) -> None:
        """Number classes as the data that came first does."""
        if self._loop.reading is AS_STORED:
            self._loop.reading = label_reading(data, self._loop.target, self._loop.loss)

    def read_as(self, reading: LabelReading) -> None:
        """Read labels in a way that is told."""
        self._loop.reading = reading

    @property
    def targets(self) -> TargetSettings:
        """What was learnt of the targets."""
        return self._loop.targets

    def use(self, targets: TargetSettings) -> None:
        """Use what was learnt of the targets of training data."""
        loop, self._targets = self._loop, None
        loop.targets = targets
        loop.scoring = replace(loop.scoring, normalization=targets.normalization, baseline=targets.baseline)

    def check_known(self) -> None:
        """Refuse to look at other data where statistics of training data are missing."""
        awaited = f"normalize={self._normalize!r}" if self._awaits_statistics else None
        if self._targets is not None and self._targets.needs_statistics:
            awaited = awaited or "normalize_target or class_weight"
        if awaited is not None:
            raise UsageError(
                f"{awaited} takes the statistics of the training data, and there was none yet",
                fix="fit first, or give the modules themselves",
            )

    def scoring(self, data: StreamDataset, positive: str | int | None, arrangement: Arrangement = AS_IT_IS) -> Scoring:
        """Say how outputs on other data are scored, with its columns in order."""
        self.check_known()
        self.read_labels(data)
        names = names_of_rows(data, self._loop.target, self._loop.loss, self._loop.reading)
        if names is not None:
            names = arrangement.of_columns(self._loop.target, names)
        chosen = 1 if positive is None else class_number(positive, names)
        return replace(self._loop.scoring, names=names, positive=chosen)
