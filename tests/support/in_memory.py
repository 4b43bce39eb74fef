"""A dataset and a loader in memory, for tests of what goes over them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from streamtrain.store.layout import Field, Layout
from streamtrain.training.batch_stream import BatchStream, StreamDataset


class Arrays:
    """Arrays in memory, with the surface of a dataset."""

    def __init__(self, **arrays: np.ndarray[Any, Any]) -> None:
        self.arrays = arrays
        self.n_classes = 3 if arrays["y"].dtype == np.int64 else None
        fields = tuple(Field(name=name, dtype=a.dtype, shape=a.shape[1:]) for name, a in arrays.items())
        self.layout = Layout(fields=fields, n_samples=len(self), block_rows=8, shard_blocks=4, codec="none")

    def __len__(self) -> int:
        return len(self.arrays["y"])

    def stats(self, field: str) -> Any:
        a = self.arrays[field]
        return SimpleNamespace(mean=a.mean(0), std=a.std(0), overall=SimpleNamespace(mean=a.mean(), std=a.std()))


class Batches:
    """Batches from memory, with the surface of a loader."""

    def __init__(
        self,
        dataset: StreamDataset,
        *,
        batch_size: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.wait_seconds = 0.0
        self.epochs: list[int] = []
        self.n_closed = 0
        self._epoch = 0

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def sequential(self) -> BatchStream:
        self.ordered = Batches(self.dataset, batch_size=self.batch_size, seed=self.seed, shuffle=False)
        return self.ordered

    def close(self) -> None:
        self.n_closed += 1

    def __iter__(self) -> Iterator[Any]:
        assert isinstance(self.dataset, Arrays)
        self.epochs.append(self._epoch)
        n = len(self.dataset)
        rng = np.random.default_rng((self.seed, self._epoch))
        order = rng.permutation(n) if self.shuffle else np.arange(n)
        kind = namedtuple("Batch", self.dataset.arrays)  # type: ignore[misc]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = order[start : start + self.batch_size]
            yield kind(*(torch.from_numpy(array[rows]) for array in self.dataset.arrays.values()))
