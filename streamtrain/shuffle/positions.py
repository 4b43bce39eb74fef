"""Positions of an epoch: the sample that stands at each, worked out in numpy from any position on.

An epoch's order is set up once (``order``); the samples are found a few sweeps at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.counter_rng import random_orders, random_orders_by, words

INDEX_SAMPLES: Final = 65_536
"""Samples whose positions are worked out at once: enough that numpy's cost per call does not count."""
_WORDS_AT_ONCE: Final = 16_384
SAMPLES_PER_LANE_DEALT: Final = 4  # samples worked out at once for each lane dealt at once: dealing takes less memory
SEASON_SWEEPS: Final = 16
"""Sweeps with one deal of lanes to rounds. Longer ones mix little better, and the same lanes meet more often."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePositions:
    """The samples at consecutive positions, by visit and row: ``order.run_first[visits] + rows``."""

    start: int  # the first position
    visits: I64  # (n,) indexes into the epoch's visits
    rows: I64  # (n,) rows within their runs

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + len(self.visits)


def iter_positions(
    order: EpochOrder, start: int = 0, *, index_samples: int = INDEX_SAMPLES
) -> Iterator[SamplePositions]:
    """Work out the order from any position on, in pieces of about ``index_samples``, at least one sweep each.

    Any ``start`` and ``index_samples`` give the same samples at the same positions.
    """
    sweeps = max(1, index_samples // order.lanes)
    if order.shuffled and sweeps >= SEASON_SWEEPS:
        # Whole seasons, so that none is dealt twice.
        sweeps -= sweeps % SEASON_SWEEPS
    whole = order.n_samples // order.lanes
    rows, deals = _RowOrders(order), _Deals(order, index_samples // SAMPLES_PER_LANE_DEALT)
    sweep = start // order.lanes
    while sweep < order.n_sweeps:
        stop = min(sweep - sweep % sweeps + sweeps, whole) if sweep < whole else order.n_sweeps
        piece = _shuffled_sweeps(order, rows, deals, sweep, stop) if order.shuffled else _stored(order, sweep, stop)
        skip = max(0, start - piece.start)
        yield piece if not skip else SamplePositions(start=start, visits=piece.visits[skip:], rows=piece.rows[skip:])
        sweep = stop


def samples_at(order: EpochOrder, start: int, stop: int) -> I64:
    """Find the samples at positions [start, stop), shape (stop - start,) int64."""
    out = np.empty(stop - start, np.int64)
    for piece in iter_positions(order, start, index_samples=min(INDEX_SAMPLES, max(1, stop - start))):
        if piece.start >= stop:
            break
        n = min(piece.stop, stop) - piece.start
        out[piece.start - start : piece.start - start + n] = order.run_first[piece.visits[:n]] + piece.rows[:n]
    return out


def _stored(order: EpochOrder, start: int, stop: int) -> SamplePositions:
    """Find positions [start, stop) of the sequential order."""
    visited = _visited(order, start, stop, None)
    visits = np.repeat(visited.visit, visited.length)
    if order.part is not None:
        samples = order.part.samples_at(np.arange(start, start + len(visits)))
        return SamplePositions(start=start, visits=visits, rows=samples - order.run_first[visits])
    rows = np.arange(visited.n_samples) + np.repeat(visited.rank - visited.place, visited.length)
    return SamplePositions(start=start, visits=visits, rows=rows)


def _shuffled_sweeps(order: EpochOrder, rows: _RowOrders, deals: _Deals, start: int, stop: int) -> SamplePositions:
    """Find the positions of sweeps [start, stop): whole ones, or the ragged last alone."""
    visited = rows.visited(start, stop)
    # A visit and its row in one number: half the arrays to put in order.
    bits = max(order.longest_run - 1, 1).bit_length()
    packed = np.repeat(visited.visit << bits, visited.length)
    packed |= rows.take(visited, start, stop)
    emitted = _emitted(order, deals, packed, start, stop)
    return SamplePositions(start=start * order.lanes, visits=emitted >> bits, rows=emitted & ((1 << bits) - 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Visited:
    """The stretches of visits that lie in some sweeps, lane after lane; arrays of one entry per stretch."""

    lane: I64
    visit: I64
    begins: npt.NDArray[np.bool_]  # whether the visit begins in these sweeps
    rank: I64  # rows of the run before the stretch
    length: I64
    place: I64  # where the stretch begins when all are laid end to end
    following: I64  # for each lane that continues, the visit of the sweep after these

    @property
    def n_samples(self) -> int:
        return int(self.place[-1] + self.length[-1])


def _visited(order: EpochOrder, start: int, stop: int, present: I64 | None) -> _Visited:
    """Find the stretches, by bisection where the visits of sweep ``start`` are not known."""
    lanes = np.flatnonzero(order.lane_lengths > start)
    keys, heads = order.visit_key, lanes * order.stride
    ends = np.minimum(order.lane_lengths[lanes], stop)
    first = np.searchsorted(keys, heads + start, side="right") - 1 if present is None else present[lanes]
    last = np.searchsorted(keys, heads + ends - 1, side="right") - 1
    n_visits = last - first + 1
    lane = np.repeat(lanes, n_visits)
    at = np.cumsum(n_visits)
    at -= n_visits
    visit = np.arange(len(lane)) + np.repeat(first - at, n_visits)
    sweep = keys[visit] - lane * order.stride
    enters = np.maximum(sweep, start)
    leaves = np.empty_like(enters)
    leaves[:-1] = enters[1:]
    leaves[at + n_visits - 1] = ends
    length = leaves - enters
    rank = enters - sweep
    if start < order.block_rows:
        # Lanes start inside a run.
        rank[at] += np.where(sweep[at] == 0, order.lane_ranks[lanes], 0)
    place = np.cumsum(length) - length
    # The visits of the sweep after these; nobody requests those of lanes that have ended.
    last += keys[np.minimum(last + 1, len(keys) - 1)] == heads + stop
    return _Visited(
        lane=lane, visit=visit, begins=sweep >= start, rank=rank, length=length, place=place, following=last
    )


def _emitted(order: EpochOrder, deals: _Deals, by_lane: I64, start: int, stop: int) -> I64:
    """Put sweeps [start, stop), given lane after lane, into the order in which they are emitted."""
    first, lanes = start // SEASON_SWEEPS, order.lanes
    dealt = deals.take(first, (stop - 1) // SEASON_SWEEPS + 1)
    if len(by_lane) < lanes * (stop - start):
        longer = order.lane_lengths > start
        ragged = np.zeros(lanes, np.int64)
        ragged[longer] = by_lane
        return _without_ended(ragged, dealt[0], longer)
    emitted, by_lane = np.empty((stop - start, lanes), np.int64), by_lane.reshape(lanes, -1)
    for season, seen in enumerate(dealt.transpose(0, 2, 1), first):
        some = slice(max(season * SEASON_SWEEPS - start, 0), min((season + 1) * SEASON_SWEEPS, stop) - start)
        emitted[some] = by_lane[:, some].take(seen.ravel(), axis=0).T
    return emitted.ravel()


def _without_ended(by_lane: I64, dealt: I64, longer: npt.NDArray[np.bool_]) -> I64:
    """Emit the last sweep of dealt lanes, (groups, lanes of a group), without the lanes that have ended."""
    groups, lanes_each = dealt.shape
    stays = longer[dealt]
    n_longer = stays.sum(axis=1)
    emitted = np.empty((lanes_each, groups), np.int64)
    turns = np.arange(lanes_each)[:, None] < n_longer
    emitted.T[turns.T] = by_lane[dealt[stays]]
    found: I64 = emitted[turns]
    return found


class _Deals:
    """The lanes in their order, season by season, dealt some seasons ahead when requested in sequence."""

    def __init__(self, order: EpochOrder, lanes_ahead: int) -> None:
        self._order = order
        self._lanes_ahead = lanes_ahead
        self._first = self._end = -1
        self._dealt = np.empty((0, 0, 0), np.int64)

    def take(self, first: int, end: int) -> I64:
        """Give each group's lanes in order, as numbers among all lanes: (seasons, groups, lanes of a group) int64."""
        if not self._first <= first < end <= self._end:
            resumes = self._first <= first <= self._end
            ahead = max(end, first + self._lanes_ahead // self._order.lanes) if resumes else end
            self._dealt = self._deal(first, min(ahead, -(-self._order.n_sweeps // SEASON_SWEEPS)))
            self._first, self._end = first, first + len(self._dealt)
        return self._dealt[first - self._first : end - self._first]

    def _deal(self, first: int, end: int) -> I64:
        groups, lanes_each = self._order.groups, self._order.lanes // self._order.groups
        dealt = deals_of(self._order, np.arange(first * groups, end * groups)).reshape(-1, groups, lanes_each)
        dealt += np.arange(groups)[:, None] * lanes_each
        return dealt


def deals_of(order: EpochOrder, numbers: I64) -> I64:
    """Order a group's lanes for each ``season * groups + group``: (n, lanes of a group) int64."""
    lanes_each = order.lanes // order.groups
    season, group = np.divmod(numbers, order.groups)
    # Words are drawn by the group's number among those of all ranks.
    numbers = season * (order.groups * order.group_step) + order.first_group + group * order.group_step
    lanes = np.arange(lanes_each)
    rounds = np.zeros((len(numbers), lanes_each), np.uint32)
    if order.n_rounds > 1:
        # Strata are as equal as possible, the first ones a lane longer, none longer than there are rounds.
        n_strata = -(-lanes_each // order.n_rounds)
        shorter, n_longer = divmod(lanes_each, n_strata)
        stratum = np.where(
            lanes < n_longer * (shorter + 1), lanes // (shorter + 1), (lanes - n_longer) // max(shorter, 1)
        )
        within = lanes - stratum * shorter - np.minimum(stratum, n_longer)
        random = _words_of(order.rounds_key, numbers, n_strata * order.n_rounds).reshape(-1, order.n_rounds)
        drawn = random_orders(random, np.full(len(random), order.n_rounds)).reshape(len(numbers), -1)
        rounds = drawn[:, stratum * order.n_rounds + within]
    return random_orders_by(rounds, order.n_rounds, _words_of(order.turns_key, numbers, lanes_each))


def _words_of(key: int, numbers: I64, n_each: int) -> npt.NDArray[np.uint64]:
    """Draw ``n_each`` words for each of some numbers, shape (n, n_each)."""
    return words(key, numbers[:, None] * n_each + np.arange(n_each))


class _RowOrders:
    """The random order of the rows of each lane's present run, carried from piece to piece.

    The table has a row for each lane, and below them one for each visit that begins in the present piece: at most one a
    lane where visits are not shorter than pieces. It is a mapping of its own, so all of its memory goes back at once.
    """

    def __init__(self, order: EpochOrder) -> None:
        self._order = order
        self._width = order.longest_run
        self._runs_at_once = max(1, _WORDS_AT_ONCE // self._width)
        self._table = self._new_table(2 * order.lanes) if order.shuffled else np.empty((0, 0), np.uint16)
        self._next_sweep = -1
        self._following: I64 | None = None

    def visited(self, start: int, stop: int) -> _Visited:
        """Find the stretches of visits in sweeps [start, stop)."""
        visited = _visited(self._order, start, stop, self._following if start == self._next_sweep else None)
        # Lanes end together, or one sweep after the others.
        self._following = visited.following if len(visited.following) == self._order.lanes else None
        return visited

    def _new_table(self, n_rows: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        dtype = np.dtype(np.uint16 if self._width <= 1 << 16 else np.uint32)
        return aligned_bytes(n_rows * self._width * dtype.itemsize).view(dtype).reshape(n_rows, self._width)

    def take(self, visited: _Visited, start: int, stop: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Give the rows of all stretches of sweeps [start, stop), laid end to end."""
        lanes, width = self._order.lanes, self._width
        new = visited.begins if start == self._next_sweep else np.ones(len(visited.visit), bool)
        fresh = np.arange(lanes, lanes + np.count_nonzero(new))
        self._draw(visited.visit[new])
        at = visited.lane.copy()
        at[new] = fresh
        shift = at * width + visited.rank - visited.place
        places = np.repeat(shift, visited.length)
        places += np.arange(len(places))
        rows = self._table.ravel().take(places)
        stays = np.append(visited.lane[1:] != visited.lane[:-1], True)
        self._move(fresh[stays[new]], visited.lane[new & stays])
        self._next_sweep = stop
        return rows

    def _draw(self, visits: I64) -> None:
        """Fill the table, below the lanes' own rows, with the row orders of these visits' runs."""
        order, lanes = self._order, self._order.lanes
        if lanes + len(visits) > len(self._table):
            larger = self._new_table(lanes + len(visits))
            larger[:lanes] = self._table[:lanes]
            self._table = larger
        lengths = order.run_length[visits]
        # Runs of similar length together: few words are drawn that no row needs.
        by_length = np.argsort(lengths, kind="stable")
        for start in range(0, len(visits), self._runs_at_once):
            some = by_length[start : start + self._runs_at_once]
            longest = int(lengths[some[-1]])
            counters = order.run_first[visits[some], None] + np.arange(longest)
            rows = random_orders(words(order.rows_key, counters), lengths[some], width=self._width)
            self._table[lanes + some, :longest] = rows

    def _move(self, sources: I64, targets: I64) -> None:
        """Copy rows of the table, a few at once, since NumPy copies them to fresh memory first."""
        for start in range(0, len(sources), self._runs_at_once):
            some = slice(start, start + self._runs_at_once)
            self._table[targets[some]] = self._table[sources[some]]


def positions_of(order: EpochOrder, lanes: I64, sweeps: I64) -> I64:
    """Find the positions at which some lanes emit their samples of some sweeps, (n,) each."""
    if not order.shuffled or not len(lanes):
        return sweeps
    lanes_each = order.lanes // order.groups
    group, lane = np.divmod(lanes, lanes_each)
    numbers, which = np.unique(sweeps // SEASON_SWEEPS * order.groups + group, return_inverse=True)
    dealt = deals_of(order, numbers)
    place_of = np.empty_like(dealt)
    np.put_along_axis(place_of, dealt, np.broadcast_to(np.arange(lanes_each), dealt.shape), axis=1)
    place = place_of[which, lane]
    last = order.n_samples // order.lanes
    ragged = np.flatnonzero(sweeps == last)
    if len(ragged):
        longer = order.lane_lengths.reshape(-1, lanes_each) > last
        before = np.cumsum(longer[(numbers % order.groups)[:, None], dealt], axis=1) - 1
        place[ragged] = before[which[ragged], place[ragged]]
    return (sweeps * lanes_each + place) * order.groups + group
