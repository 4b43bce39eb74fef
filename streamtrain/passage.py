"""An epoch on its way through the pool: how far it has been read, worked out and gathered.

Sweeps and positions count from the epoch's own start; ``sweeps_before`` puts the sweeps of all epochs on one line, so
that a slot knows until when it is needed across the boundary. Only the pool's lock holder changes anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import Picks, picks
from streamtrain.shuffle.read_list import ReadList, read_list, within


@dataclass(slots=True, kw_only=True, eq=False)
class Passage:
    """An epoch on its way through the pool. Sweeps and positions count from the epoch's own start."""

    number: int
    order: EpochOrder
    reads: ReadList
    start: int
    stop: int
    sweeps_before: int
    base: I64
    """For each run, the pool row its first row has been read to."""
    places: Iterator[Picks]
    indexed: int
    """Positions before this one have been worked out."""
    pieces: deque[Picks] = field(default_factory=deque)
    n_asked: int = 0
    """Reads handed out, from the front of the list."""
    reading: dict[int, None] = field(default_factory=dict)
    """The first of the reads of each job under way, in order."""

    @property
    def n_loaded(self) -> int:
        """Reads done, from the front of the list."""
        return next(iter(self.reading), self.n_asked)

    @property
    def loaded(self) -> int:
        """Positions before this one have all their blocks in the pool."""
        n_loaded = self.n_loaded
        if n_loaded == len(self.reads):
            return self.stop
        return min(self.stop, int(self.reads.first[n_loaded]) * self.order.lanes)

    def place(self, slots: I64, block_rows: int) -> None:
        """Note the slots of the next reads asked for."""
        reads, first, stop = self.reads, self.n_asked, self.n_asked + len(slots)
        runs = reads.runs[reads.runs_at[first] : reads.runs_at[stop]]
        shift = (slots - reads.block[first:stop]) * block_rows
        self.base[runs] = self.order.run_first[runs] + np.repeat(shift, np.diff(reads.runs_at[first : stop + 1]))
        self.n_asked = stop


def enter(order: EpochOrder, *, number: int, start: int, stop: int, sweeps_before: int, index_samples: int) -> Passage:
    """Set up the passage of positions [start, stop) of an epoch."""
    return Passage(
        number=number,
        order=order,
        reads=within(read_list(order), start // order.lanes, -(-stop // order.lanes)),
        start=start,
        stop=stop,
        sweeps_before=sweeps_before,
        base=np.zeros(len(order.run_first), np.int64),
        places=picks(order, start, index_samples=index_samples),
        indexed=start,
    )
