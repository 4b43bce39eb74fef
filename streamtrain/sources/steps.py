"""Streams of rows that are cut differently, brought in step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamtrain.sources.protocol import Rows
from streamtrain.sources.rows import n_rows_of


def in_step(streams: Sequence[Iterator[Rows]]) -> Iterator[Rows]:
    """Merge the fields of several streams: runs as long as the shortest at hand, views where they are cut.

    Ends when any stream has ended; at most one run of each stream is held. Streams of runs without rows are fine.

    Examples
    --------
    >>> import numpy as np
    >>> x = iter([{"x": np.arange(3)}, {"x": np.arange(3, 5)}])
    >>> y = iter([{"y": np.arange(4)}, {"y": np.arange(4, 5)}])
    >>> [(rows["x"].tolist(), rows["y"].tolist()) for rows in in_step([x, y])]
    [([0, 1, 2], [0, 1, 2]), ([3], [3]), ([4], [4])]
    """
    held: list[Rows | None] = [None] * len(streams)
    while True:
        runs = [run if run is not None else _next_run(stream) for run, stream in zip(held, streams, strict=True)]
        present = [run for run in runs if run is not None]
        if len(present) < len(streams):
            return
        n_rows = min(map(n_rows_of, present))
        yield {name: values[:n_rows] for run in present for name, values in run.items()}
        held = [_after(run, n_rows) for run in present]
        # A run that is used up goes before the next one is made.
        del runs, present


def _next_run(stream: Iterator[Rows]) -> Rows | None:
    return next((run for run in stream if n_rows_of(run)), None)


def _after(run: Rows, n_rows: int) -> Rows | None:
    rest = {name: values[n_rows:] for name, values in run.items()}
    return rest if n_rows_of(rest) else None
