"""The samples at the positions of an epoch, computed from any position on.

An epoch's order is set up once (`streamtrain.shuffle.order`); the samples are computed a few sweeps at a time. The
result does not depend on how the positions are cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.counter_rng import NOBLE_STEPS, even_orders, random_orders, words

INDEX_SAMPLES: Final = 65_536
"""Samples whose places are worked out at once: enough that numpy's cost per call does not count."""
_WORDS_AT_ONCE: Final = 16_384
_SEASON_SWEEPS: Final = 16
"""Sweeps with one order of lanes. Longer ones mix little better, and the same lanes meet in a batch more often."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePositions:
    """The samples at consecutive positions, by run and row.

    Attributes
    ----------
    start : int
        The first position.
    runs : (n,) int64
        Indexes into the epoch's runs.
    rows : (n,) int64
        Rows within the runs; the sample is ``order.run_first[runs] + rows``.
    """

    start: int
    runs: I64
    rows: I64

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + len(self.runs)


def iter_positions(
    order: EpochOrder, start: int = 0, *, index_samples: int = INDEX_SAMPLES
) -> Iterator[SamplePositions]:
    """Work out the order from any position on, in pieces of about ``index_samples``, at least one sweep each.

    The pieces do not depend on how the order is cut into them: any ``start`` and ``index_samples`` give the same
    samples at the same positions.
    """
    sweeps = max(1, index_samples // order.lanes)
    whole = order.n_samples // order.lanes
    rows = _RowOrders(order) if order.shuffled else None
    sweep = start // order.lanes
    while sweep < order.n_sweeps:
        stop = min(sweep + sweeps, whole) if sweep < whole else order.n_sweeps
        piece = _sweeps(order, rows, sweep, stop)
        skip = max(0, start - piece.start)
        yield piece if not skip else SamplePositions(start=start, runs=piece.runs[skip:], rows=piece.rows[skip:])
        sweep = stop


def samples_at(order: EpochOrder, start: int, stop: int) -> I64:
    """The samples at positions [start, stop), shape (stop - start,) int64.

    Examples
    --------
    >>> from streamtrain.shuffle.order import sequential_order
    >>> samples_at(sequential_order(10, 4), 3, 7).tolist()
    [3, 4, 5, 6]
    """
    out = np.empty(stop - start, np.int64)
    for piece in iter_positions(order, start):
        if piece.start >= stop:
            break
        n = min(piece.stop, stop) - piece.start
        out[piece.start - start : piece.start - start + n] = order.run_first[piece.runs[:n]] + piece.rows[:n]
    return out


def _sweeps(order: EpochOrder, rows: _RowOrders | None, start: int, stop: int) -> SamplePositions:
    """The picks of sweeps [start, stop): whole ones, or the ragged last alone."""
    visited = _visited(order, start, stop)
    if rows is None:
        ranks = np.arange(visited.n_samples) + np.repeat(visited.rank - visited.place, visited.length)
        return SamplePositions(start=start, runs=np.repeat(visited.run, visited.length), rows=ranks)
    run_of = np.repeat(visited.run, visited.length)
    row_of = rows.take(visited, start, stop)
    source = _lane_orders(order, start, stop)
    return SamplePositions(start=start * order.lanes, runs=run_of.take(source), rows=row_of.take(source))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Visited:
    """The stretches of runs that lie in some sweeps, lane after lane; arrays of one entry per stretch."""

    lane: I64
    run: I64
    rank: I64
    """How much of the run came in sweeps before."""
    length: I64
    place: I64
    """Where the stretch begins when all are laid end to end."""

    @property
    def n_samples(self) -> int:
        return int(self.place[-1] + self.length[-1])


def _visited(order: EpochOrder, start: int, stop: int) -> _Visited:
    """Find the stretches by bisection."""
    lanes = np.flatnonzero(order.lane_lengths > start)
    ends = np.minimum(order.lane_lengths[lanes], stop)
    first = np.searchsorted(order.run_key, lanes * order.stride + start, side="right") - 1
    n_runs = np.searchsorted(order.run_key, lanes * order.stride + ends - 1, side="right") - first
    lane = np.repeat(lanes, n_runs)
    place_in_lane = np.arange(len(lane)) - np.repeat(np.cumsum(n_runs) - n_runs, n_runs)
    run = np.repeat(first, n_runs) + place_in_lane
    begins = order.run_key[run] - lane * order.stride
    enters = np.maximum(begins, start)
    leaves = np.empty_like(enters)
    leaves[:-1] = enters[1:]
    leaves[np.cumsum(n_runs) - 1] = ends
    length = leaves - enters
    return _Visited(lane=lane, run=run, rank=enters - begins, length=length, place=np.cumsum(length) - length)


def _lane_orders(order: EpochOrder, start: int, stop: int) -> I64:
    """Where, lane after lane, the samples of sweeps [start, stop) stand that are emitted one after another."""
    groups, lanes_each = order.groups, order.lanes // order.groups
    season = np.arange(start, stop) // _SEASON_SWEEPS
    seasons = np.arange(season[0], season[-1] + 1)
    active = (order.lane_lengths > start).reshape(groups, lanes_each).sum(axis=1)
    random = words(order.lanes_key, np.arange(seasons[0] * groups, (seasons[-1] + 1) * groups))
    lanes = even_orders(random, np.tile(active, len(seasons)), lanes_each, steps=NOBLE_STEPS)
    drawn = lanes.reshape(len(seasons), groups, lanes_each).transpose(0, 2, 1).astype(np.int64)
    turns = drawn[season - season[0]]
    if active.sum() == order.lanes:
        turns += np.arange(groups) * lanes_each
        turns *= stop - start
        turns += np.arange(stop - start)[:, None, None]
        whole: I64 = turns.ravel()
        return whole
    turns += np.cumsum(active) - active
    ragged: I64 = turns[0][np.arange(lanes_each)[:, None] < active]
    return ragged


class _RowOrders:
    """The random order of the rows of each lane's present run, carried from piece to piece.

    The table has a row for each lane, and below them one for each run that begins in the present piece: at most one a
    lane where runs are not shorter than pieces. Its memory is the system's own, so that all of it goes back.
    """

    def __init__(self, order: EpochOrder) -> None:
        self._order = order
        self._runs_at_once = max(1, _WORDS_AT_ONCE // order.block_rows)
        self._table = self._new_table(2 * order.lanes)
        self._next_sweep = -1

    def _new_table(self, n_rows: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        dtype = np.dtype(np.uint16 if self._order.block_rows <= 1 << 16 else np.uint32)
        n_bytes = n_rows * self._order.block_rows * dtype.itemsize
        return aligned_bytes(n_bytes).view(dtype).reshape(n_rows, self._order.block_rows)

    def take(self, visited: _Visited, start: int, stop: int) -> I64:
        """The rows of all stretches laid end to end, those of sweeps [start, stop)."""
        lanes, block_rows = self._order.lanes, self._order.block_rows
        new = visited.rank == 0 if start == self._next_sweep else np.ones(len(visited.run), bool)
        fresh = np.arange(lanes, lanes + np.count_nonzero(new))
        self._draw(visited.run[new])
        at = visited.lane.copy()
        at[new] = fresh
        shift = at * block_rows + visited.rank - visited.place
        places = np.arange(visited.n_samples) + np.repeat(shift, visited.length)
        rows = self._table.ravel().take(places).astype(np.int64)
        stays = np.append(visited.lane[1:] != visited.lane[:-1], True)
        self._move(fresh[stays[new]], visited.lane[new & stays])
        self._next_sweep = stop
        return rows

    def _draw(self, runs: I64) -> None:
        """Fill the table below the lanes' own rows with the row orders of these runs."""
        order, lanes = self._order, self._order.lanes
        if lanes + len(runs) > len(self._table):
            larger = self._new_table(lanes + len(runs))
            larger[:lanes] = self._table[:lanes]
            self._table = larger
        for start in range(0, len(runs), self._runs_at_once):
            piece = runs[start : start + self._runs_at_once]
            counters = order.run_first[piece, None] + np.arange(order.block_rows)
            rows = random_orders(words(order.rows_key, counters), order.run_length[piece])
            self._table[lanes + start : lanes + start + len(piece)] = rows

    def _move(self, sources: I64, targets: I64) -> None:
        """Copy rows of the table, a few at once, since NumPy makes a copy of its own first."""
        for start in range(0, len(sources), self._runs_at_once):
            some = slice(start, start + self._runs_at_once)
            self._table[targets[some]] = self._table[sources[some]]
