"""A stream that is watched: told of after every batch, and ended when its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from streamtrain.loader import StreamLoader


class Watched:
    """A loader's batches, each followed by a call once it has been taken in.

    Parameters
    ----------
    loader : StreamLoader
        Where they come from; what is asked of the stream besides is asked of it.
    on_batch : callable
        Called after every batch.

    Attributes
    ----------
    seconds_left : float or None
        An epoch ends early when so many seconds have gone since it began; each epoch takes from it.
    """

    def __init__(self, loader: StreamLoader, on_batch: Callable[[], None]) -> None:
        self._loader = loader
        self._on_batch = on_batch
        self.seconds_left: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        started = time.perf_counter()
        for batch in self._loader:
            yield batch
            self._on_batch()
            if self.seconds_left is not None and time.perf_counter() - started >= self.seconds_left:
                return
