"""A progress bar in bytes on stderr, without tqdm's monitor thread; any thread may advance it."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from tqdm import tqdm

from streamtrain.system.arguments import check_flags


def parse_progress(show: bool | None) -> bool | None:
    """Refuse a choice of a bar that is none."""
    if show is not None:
        check_flags(progress=show)
    return show


def is_shown(show: bool | None) -> bool:
    """Say whether a bar is shown: by default where stderr is a terminal, and never where stderr is closed."""
    # A process begun with a closed stderr has None there.
    return sys.stderr is not None and (sys.stderr.isatty() if show is None else show)


class ProgressBar(tqdm):  # type: ignore[type-arg]  # generic in its stub only
    """A tqdm bar that starts no thread."""

    # tqdm would start a thread that outlives the bar, to redraw one that has stalled.
    monitor_interval = 0


class ByteProgress:
    """A bar of the bytes that are done, shown by default where stderr is a terminal."""

    def __init__(self, total_bytes: int | None, *, show: bool | None) -> None:
        self._advancing = threading.Lock()
        self._bar = ProgressBar(total=total_bytes, desc="ingest", unit="B", unit_scale=True, disable=not is_shown(show))

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
