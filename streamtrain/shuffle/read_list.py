"""The order of an epoch as a read list: which block, when it is first needed, when its slot is free again. Pure.

Every visit of a lane to a run asks for the run's block once. Visits are listed by their first positions, so reading
down the list never lacks what comes next, and reading continues into the next epoch's list without a stop. A block that
is visited again carries the time of that visit, by which a cache keeps what is needed soonest.

Setting the list up takes O(visits). At first it is in the order of sweeps; where in its sweep a lane comes depends on
the deal of the season, so exact positions are worked out a few reads at a time, as reading comes near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import SAMPLES_PER_LANE_DEALT, positions_of

NEVER: Final = np.iinfo(np.int64).max  # the sweep of a visit that does not come


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadList:
    """An epoch's reads, in the order of need; arrays of one entry per visit."""

    block: I64  # to read, unless it is in memory
    visit: I64  # that it is read for
    first: I64  # the first sweep that needs it
    end: I64  # sweep from which on this visit does not need it
    next: I64  # first later sweep that needs the block again, NEVER if there is none in this epoch

    def __len__(self) -> int:
        return len(self.block)

    def take(self, which: I64) -> ReadList:
        """Select some of the reads."""
        return ReadList(
            block=self.block[which],
            visit=self.visit[which],
            first=self.first[which],
            end=self.end[which],
            next=self.next[which],
        )

    def put(self, start: int, reads: ReadList) -> None:
        """Replace the reads from ``start`` on by the same reads in another order."""
        for mine, theirs in (
            (self.block, reads.block),
            (self.visit, reads.visit),
            (self.first, reads.first),
            (self.end, reads.end),
            (self.next, reads.next),
        ):
            mine[start : start + len(reads)] = theirs


def read_list(order: EpochOrder, start: int = 0, stop: int | None = None) -> ReadList:
    """List the reads that positions [start, stop) of an epoch need, by sweep, in O(visits) memory."""
    stop = order.n_samples if stop is None else stop
    first, end = order.visit_sweeps()
    visit = np.arange(len(first))
    if start > 0 or stop < order.n_samples:
        visit, first = _needed(order, first, end, start, stop)
        end = end[visit]
    by_sweep = np.argsort(first, kind="stable")
    visit, first, end = visit[by_sweep], first[by_sweep], end[by_sweep]
    block = order.run_first[visit] // order.block_rows
    return ReadList(block=block, visit=visit, first=first, end=end, next=_next_sweeps(block, first))


def _needed(order: EpochOrder, first: I64, end: I64, start: int, stop: int) -> tuple[I64, I64]:
    """Find the visits that some positions need, and the first sweep in which each is needed there."""
    entered, last = start // order.lanes, -(-stop // order.lanes) - 1
    visit = np.flatnonzero((end > entered) & (first <= last))
    first = np.maximum(first[visit], entered)
    lanes = order.visit_lanes()[visit]
    # Some lanes may have come already in the sweep in which the epoch is entered.
    at_once = np.flatnonzero(first == entered)
    first[at_once] += positions_of(order, lanes[at_once], first[at_once]) < start
    at_last = np.flatnonzero(first == last)
    beyond = at_last[positions_of(order, lanes[at_last], first[at_last]) >= stop]
    kept = (first < end[visit]) & (first <= last)
    kept[beyond] = False
    return visit[kept], first[kept]


def _next_sweeps(block: I64, first: I64) -> I64:
    """Find for each read the first later sweep that needs its block, given reads by sweep."""
    n = len(block)
    following = np.full(n, NEVER)
    order = np.argsort(block, kind="stable")
    same = block[order[1:]] == block[order[:-1]]
    following[order[:-1][same]] = first[order[1:][same]]
    # Two visits of a block may begin in one sweep, in either order: for both, the next is after that sweep.
    again = np.flatnonzero(following == first)
    while len(again):
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        following[again] = following[order[place[again] + 1]]
        again = again[following[again] == first[again]]
    return following


def n_to_place(order: EpochOrder, reads: ReadList, start: int, *, index_samples: int) -> int:
    """Count the reads to place at once from ``start`` on: some, and the others of the last one's sweep.

    However the reads lie, dealing that many groups takes no more memory than working out ``index_samples``.
    """
    lanes_each = order.lanes // order.groups
    stop = min(start + max(1, index_samples // SAMPLES_PER_LANE_DEALT // lanes_each), len(reads))
    return int(np.searchsorted(reads.first, reads.first[stop - 1], side="right")) - start


def place(order: EpochOrder, reads: ReadList, start: int, n: int) -> tuple[ReadList, I64]:
    """Put n reads from ``start`` on, of whole sweeps, into the order of their first positions; return both."""
    some = reads.take(np.arange(start, start + n))
    positions = positions_of(order, order.visit_lanes()[some.visit], some.first)
    by_position = np.argsort(positions)
    return some.take(by_position), positions[by_position]
