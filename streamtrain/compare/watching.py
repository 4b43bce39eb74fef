"""A stream that is watched: told of after every batch, and ended when its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from streamtrain.loader.stream_loader import StreamLoader


class Watched:
    """A loader's batches, each followed by a call once it has been taken in.

    Parameters
    ----------
    loader : StreamLoader
        Where they come from; what is asked of the stream besides is asked of it.
    on_batch : callable
        Called after every batch.
    beside : callable
        Seconds so far that went to something else than training, which no epoch is charged with.

    Attributes
    ----------
    seconds_left : float or None
        An epoch ends early once so many seconds of training have gone since it began.
    is_cut : bool
        Whether one has ended so.
    """

    def __init__(
        self, loader: StreamLoader, on_batch: Callable[[], None], beside: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._loader = loader
        self._on_batch = on_batch
        self._beside = beside
        self.seconds_left: float | None = None
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        started = self._seconds()
        for batch in self._loader:
            yield batch
            self._on_batch()
            if self.seconds_left is not None and self._seconds() - started >= self.seconds_left:
                self.is_cut = True
                return

    def _seconds(self) -> float:
        return time.perf_counter() - self._beside()
