"""Raw rows as a stream of batches, for a trainer to measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import InputError
from streamtrain.models.normalization import InputStatistics
from streamtrain.store.layout import Field, Layout
from streamtrain.store.schema.columns import Schema
from streamtrain.system.units import counted
from streamtrain.training.inference.batches import in_batches
from streamtrain.training.labels.reading import LabelReading

Rows = Iterable[Mapping[str, npt.NDArray[Any]]]
_N_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RawData:
    """What a stream of raw rows knows of them."""

    layout: Layout
    schema: Schema
    n_classes: int | None
    classes: tuple[str, ...] | None

    def stats(self, field: str, /) -> InputStatistics:
        """Refuse: nothing is learned of what is measured."""
        raise NotImplementedError(field)

    def __len__(self) -> int:
        return self.layout.n_samples


class RawStream:
    """Batches of raw rows in order, each of one size but the last."""

    drop_last, shuffle, seed, wait_seconds = False, False, 0, 0.0

    def __init__(
        self,
        rows: Rows,
        fields: tuple[Field, ...],
        n_rows: int,
        *,
        known: Schema,
        n_classes: int | None,
        batch_size: int,
    ) -> None:
        layout = Layout(fields=fields, n_samples=n_rows, block_rows=1, shard_blocks=1, codec="none")
        self.dataset = RawData(
            layout=layout,
            schema=replace(known, fields=fields),
            n_classes=n_classes,
            classes=known.classes,
        )
        self.batch_size = min(batch_size, n_rows)
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        names = tuple(each.name for each in self.dataset.layout.fields)
        for batch in in_batches(self._rows, self.batch_size, names):
            yield {name: torch.from_numpy(values) for name, values in batch.items()}

    def set_epoch(self, epoch: int, /) -> None:
        """Do nothing: every pass is in the order of the rows."""

    def sequential(self) -> RawStream:
        """Return itself, which is in order."""
        return self

    def close(self) -> None:
        """Do nothing: nothing is open between passes."""


def check_known_labels(rows: Rows, target: str, reading: LabelReading, n_classes: int, ignored: int | None) -> None:
    """Refuse labels of classes that a run never saw, with their count."""
    known = np.asarray(reading.values if reading.values is not None else np.arange(n_classes))
    n_wrong, shown = 0, dict[Any, None]()
    for run in rows:
        labels = run[target]
        wrong = labels[~np.isin(labels, known) & (labels != ignored if ignored is not None else True)]
        n_wrong += len(wrong)
        shown |= dict.fromkeys(np.unique(wrong)[:_N_SHOWN].tolist())
    if n_wrong:
        listed = ", ".join(f"{label:g}" for label in list(shown)[:_N_SHOWN])
        raise InputError(
            f"{counted(n_wrong, 'label is', 'labels are')} of classes that the run never saw: {listed}",
            fix="leave those rows out of the source",
        )
