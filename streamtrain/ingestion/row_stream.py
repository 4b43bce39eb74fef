"""Rows of an in-order source in exact amounts, and parts: the runs of whole blocks that are encoded at once.

A part is about two mebibytes, so that the work per call outweighs the call, and never crosses a shard's edge. Parts
follow from the layout alone: the statistics depend on how rows were cut, so no budget may change it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import Rows, Source, describe_kinds, kinds_of, n_rows_of, unmasked
from streamtrain.store.layout import Layout

Stage = Mapping[str, npt.NDArray[Any]]


class RowStream:
    """The rows of a source from ``first_row`` on, maybe to ``stop``, in exact amounts; its head can be held first."""

    def __init__(self, source: Source, max_bytes: int, *, first_row: int = 0, stop: int | None = None) -> None:
        self.first_row = first_row
        self._stop = stop
        self._source = source
        self._max_bytes = max_bytes
        self._runs: Iterator[Rows] | None = None
        self._head: deque[Rows] = deque()
        self._n_read = first_row
        self.head_bytes = 0

    def ask_for(self, max_bytes: int) -> None:
        """Ask the source for so many bytes at once, if it has not been asked yet."""
        self._max_bytes = max_bytes

    def peek(self, n_bytes: int) -> bool:
        """Hold at least so many bytes of the first rows; return False where the source ended before."""
        while self.head_bytes < n_bytes:
            run = self._next_run()
            if run is None:
                return False
            # The source may use its buffer again.
            self._head.append({name: np.array(values) for name, values in run.items()})
            self.head_bytes += rows_bytes(run)
            del run
        return True

    def again(self) -> RowStream:
        """Read the same rows a second time, from their first."""
        return RowStream(self._source, self._max_bytes, first_row=self.first_row, stop=self._stop)

    @property
    def row(self) -> int:
        """The number of the next row."""
        return self._n_read - sum(n_rows_of(run) for run in self._head)

    @property
    def n_read(self) -> int:
        """Rows up to the last that the source has given so far."""
        return self._n_read

    def first_rows(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """Return the first of the rows that are held, up to so many."""
        held: list[npt.NDArray[Any]] = []
        for run in self._head:
            held.append(run[name][: n_rows - sum(map(len, held))])
        return np.concatenate(held)

    def fill(self, stage: Stage, n_rows: int) -> int:
        """Fill the first rows of a stage; return how many there were, fewer than asked only at the end."""
        n_filled = 0
        while n_filled < n_rows:
            run = self._head.popleft() if self._head else self._next_run()
            if run is None:
                break
            n_taken = min(n_rows - n_filled, n_rows_of(run))
            for name, values in run.items():
                stage[name][n_filled : n_filled + n_taken] = values[:n_taken]
            rest = {name: values[n_taken:] for name, values in run.items()}
            if n_rows_of(rest):
                self._head.appendleft(rest)
            n_filled += n_taken
            # Views of the source's memory, which it may want to free before it gives the next run.
            del run, rest, values
        return n_filled

    def take(self, n_rows: int) -> Rows:
        """Return the next rows, in arrays of their own; fewer than asked only at the end."""
        stage = {field.name: field.empty(n_rows) for field in self._source.fields}
        n_filled = self.fill(stage, n_rows)
        return {name: values[:n_filled] for name, values in stage.items()}

    def skip_rest(self) -> int:
        """Read and count the rows left; only at its end may a source compare its data with a checksum."""
        n_rows = sum(n_rows_of(run) for run in self._head)
        n_before = self._n_read
        self._head.clear()
        while self._next_run() is not None:
            pass
        return n_rows + self._n_read - n_before

    def close(self) -> None:
        """End the reading; what the source has open is closed."""
        if isinstance(self._runs, Generator):
            self._runs.close()

    def _next_run(self) -> Rows | None:
        if self._runs is None:
            self._runs = (
                self._source.iter_blocks(self._max_bytes)
                if self._stop is None
                else self._source.iter_range(self.first_row, self._stop, self._max_bytes)
            )
        run = next(self._runs, None)
        if run is not None:
            self._n_read += check_rows(run, self._source, self._n_read)
        return run


def rows_bytes(rows: Rows) -> int:
    """Count the bytes of some rows, those of encoded samples included."""
    return sum(sum(map(len, each)) if each.dtype == object else each.nbytes for each in rows.values())


_PART_BYTES: Final = 2**21


def part_rows(layout: Layout) -> int:
    """Count the rows of a whole part."""
    return layout.block_rows * max(1, min(_PART_BYTES // layout.block_bytes, layout.shard_blocks))


def part_ranges(layout: Layout, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut rows [start, stop) into parts; ``start`` is the edge of one, and ``stop`` may cut the last."""
    shard_rows = layout.block_rows * layout.shard_blocks
    while start < stop:
        shard_end = (start // shard_rows + 1) * shard_rows
        end = min(start + part_rows(layout), shard_end, stop)
        yield start, end
        start = end


def check_rows(rows: Rows, source: Source, first_row: int, n_rows: int | None = None) -> int:
    """Compare a run of rows with what its source promised; return how many rows it has."""
    found = {name: (values.dtype, values.shape[1:]) for name, values in rows.items()}
    promised = kinds_of(source.fields)
    lengths = {len(values) for values in rows.values()}
    if found != promised or len(lengths) != 1 or (n_rows is not None and lengths != {n_rows}):
        counts = "/".join(map(str, sorted(lengths)))
        raise InputError(
            f"the source gave {counts} rows of {describe_kinds(found)}; it promised "
            f"{'some' if n_rows is None else n_rows} of {describe_kinds(promised)}",
            where=source.where(first_row),
            fix="correct the source's reader",
        )
    for values in rows.values():
        unmasked(values, lambda row: source.where(first_row + row))
    return lengths.pop()
