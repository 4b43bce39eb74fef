"""Headspace: how much faster a perfect loader would make a training run.

A perfect loader always has the next batch ready on the device. So some batches are kept there and trained on again and
again, which costs nothing but the training itself; in turn with that, for as long, the real loader feeds the same
trainer. The headspace is the one speed over the other: 1.00 means that no loader could make this run any faster.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from streamtrain.loader.batch import tensor_bytes
from streamtrain.training.batch_stream import BatchStream, StreamDataset, fields_of
from streamtrain.training.records.history import Speed
from streamtrain.training.trainer import Trainer

_KEPT_BYTES: Final = 64_000_000
# What else the machine does comes and goes within seconds: both of a pair are to meet it alike.
_ROUNDS: Final = 11
_WORTH_A_WORD: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Headspace:
    """What a perfect loader would make of a run.

    Parameters
    ----------
    ratio : float
        The speed with kept batches over that with the loader's; the median of the rounds' ratios.
    loader, perfect : Speed
        In the round that has it.

    Examples
    --------
    >>> slow = Speed(n_samples=100, seconds=1.0, wait_seconds=0.25)
    >>> fast = Speed(n_samples=125, seconds=1.0, wait_seconds=0.0)
    >>> Headspace(ratio=1.25, loader=slow, perfect=fast).named()["perfect_samples_per_second"]
    125.0
    """

    ratio: float
    loader: Speed
    perfect: Speed

    @property
    def shares_cores(self) -> bool:
        """Whether waiting explains less than half of what a perfect loader gains: its work slows the steps."""
        gained = 1 - 1 / self.ratio if self.ratio > 0 else 0.0
        return gained >= _WORTH_A_WORD and self.loader.stall_fraction < gained / 2

    def named(self) -> dict[str, float]:
        """Everything by name."""
        return {
            "ratio": self.ratio,
            "samples_per_second": self.loader.samples_per_second,
            "perfect_samples_per_second": self.perfect.samples_per_second,
            "stall_fraction": self.loader.stall_fraction,
        }


def headspace(trainer: Trainer, loader: BatchStream, *, seconds: float = 6.0) -> Headspace:
    """Measure it on a trainer that is done: the weights, the optimizer and the counts go on from where they are.

    Parameters
    ----------
    trainer : Trainer
        Trains on, and is no longer what it was.
    loader : StreamLoader
        Feeds it; epochs go on into the next.
    seconds : float
        How long that takes, about; a step is never cut short.

    Raises
    ------
    StreamtrainError
        What training raises.
    """
    each = seconds / (2 * _ROUNDS)
    trainer.begin_epoch_anew()
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    # The copies are made before the clock starts, and by then the loader's threads have caught up with its start.
    kept = list(_copies(itertools.islice(endless, len(loader)), trainer.device))
    real = _TimeLimitedStream(loader, lambda: endless, each)
    perfect = _TimeLimitedStream(loader, lambda: itertools.cycle(kept), each)
    _train(trainer, perfect)
    rounds = [(_train(trainer, real), _train(trainer, perfect)) for _ in range(_ROUNDS)]
    # One round's figures, since sums over all rounds could say otherwise than the median of their ratios.
    ratio, loader_speed, perfect_speed = sorted(
        ((b.samples_per_second / a.samples_per_second, a, b) for a, b in rounds), key=lambda each: each[0]
    )[_ROUNDS // 2]
    return Headspace(ratio=ratio, loader=loader_speed, perfect=perfect_speed)


def kept_bytes(data: StreamDataset) -> int:
    """The memory that the kept batches of a dataset take, about, beside the loader's own."""
    return min(_KEPT_BYTES, len(data) * data.layout.batch_row_bytes)


def _train(trainer: Trainer, stream: BatchStream) -> Speed:
    return trainer.fit(stream, max_epochs=trainer.counts.n_epochs + 1, progress=False).speed


def _copies(batches: Iterable[Any], device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Copies of the batches on the device, at least one and no more than there is room for."""
    n_bytes = 0
    for batch in batches:
        kept = {name: torch.as_tensor(values).to(device, copy=True) for name, values in fields_of(batch).items()}
        n_bytes += tensor_bytes(kept.values())
        yield kept
        if n_bytes >= _KEPT_BYTES:
            return


class _TimeLimitedStream:
    """A stream that goes on for some seconds, each time it is asked for an epoch."""

    def __init__(self, loader: BatchStream, batches: Callable[[], Iterator[Any]], seconds: float) -> None:
        self._loader = loader
        self._batches = batches
        self._seconds = seconds
        self.shuffle = False
        """It has one order, which the rule ``epoch`` need not change."""

    @property
    def dataset(self) -> StreamDataset:
        return self._loader.dataset

    @property
    def batch_size(self) -> int:
        return self._loader.batch_size

    @property
    def drop_last(self) -> bool:
        return self._loader.drop_last

    @property
    def seed(self) -> int:
        return self._loader.seed

    @property
    def wait_seconds(self) -> float:
        return self._loader.wait_seconds

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        deadline = time.perf_counter() + self._seconds
        for batch in self._batches():
            yield batch
            if time.perf_counter() >= deadline:
                return

    def set_epoch(self, epoch: int, /) -> None:
        """Do nothing: an excerpt goes on where the last one ended."""

    def sequential(self) -> BatchStream:
        return self

    def close(self) -> None:
        """Do nothing: the loader is not its own."""
