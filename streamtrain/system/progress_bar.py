"""A progress bar in bytes on stderr, without tqdm's monitor thread; any thread may advance it."""

from __future__ import annotations

import threading
from types import TracebackType

from tqdm import tqdm


class ProgressBar(tqdm):  # type: ignore[type-arg]  # generic in its stub only
    """A tqdm bar that starts no thread."""

    # tqdm would start a thread that outlives the bar, to redraw one that has stalled.
    monitor_interval = 0


class ByteProgress:
    """A bar of the bytes that are done, shown by default where stderr is a terminal."""

    def __init__(self, total_bytes: int | None, *, show: bool | None) -> None:
        self._advancing = threading.Lock()
        disable = None if show is None else not show
        self._bar = ProgressBar(total=total_bytes, desc="ingest", unit="B", unit_scale=True, disable=disable)

    def advance(self, n_bytes: int) -> None:
        """Count bytes that are done."""
        with self._advancing:
            self._bar.update(n_bytes)

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
