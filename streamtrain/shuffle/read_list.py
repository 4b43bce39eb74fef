"""The order of an epoch as a read list: which block, when it is first needed, when its slot is free again. Pure.

Every visit of a lane to a run asks for the run's block once. Visits are listed by their first positions, so reading
down the list never lacks what comes next, and it goes on into the next epoch's list without a stop. A block that is
visited again says when, by which a cache keeps what is needed soonest.

Setting the list up takes O(visits). At first it is in the order of sweeps; where in its sweep a lane comes depends on
the deal of the season, so exact positions are worked out a few reads at a time, as reading comes near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import SAMPLES_PER_LANE_DEALT, positions_of

NEVER: Final = np.iinfo(np.int64).max
"""The sweep of what does not come."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadList:
    """What an epoch reads, in the order of need; arrays of one entry per visit.

    Attributes
    ----------
    block : int64
        The block to read, unless it is in memory.
    visit : int64
        The visit it is for.
    first, end : int64
        The first sweep that needs it, and the sweep from which on this visit does not.
    next : int64
        The sweep in which the block is needed again after ``first``, NEVER where it is not in this epoch.
    """

    block: I64
    visit: I64
    first: I64
    end: I64
    next: I64

    def __len__(self) -> int:
        return len(self.block)

    def take(self, which: I64) -> ReadList:
        """Some of the reads."""
        return ReadList(
            block=self.block[which],
            visit=self.visit[which],
            first=self.first[which],
            end=self.end[which],
            next=self.next[which],
        )

    def put(self, start: int, reads: ReadList) -> None:
        """Put the same reads in another order in the place of those from ``start`` on."""
        for mine, theirs in (
            (self.block, reads.block),
            (self.visit, reads.visit),
            (self.first, reads.first),
            (self.end, reads.end),
            (self.next, reads.next),
        ):
            mine[start : start + len(reads)] = theirs


def read_list(order: EpochOrder, start: int = 0, stop: int | None = None) -> ReadList:
    """List the reads that positions [start, stop) of an epoch need, by sweep, in O(visits) memory.

    Examples
    --------
    >>> from streamtrain.shuffle.order import sequential_order
    >>> reads = read_list(sequential_order(10, 4))
    >>> reads.block.tolist(), reads.first.tolist(), reads.end.tolist()
    ([0, 1, 2], [0, 4, 8], [4, 8, 10])
    """
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
    """The visits that some positions need, and the first sweep in which each is needed there."""
    entered, last = start // order.lanes, -(-stop // order.lanes) - 1
    visit = np.flatnonzero((end > entered) & (first <= last))
    first = np.maximum(first[visit], entered)
    lanes = order.visit_lanes()[visit]
    # Of the sweep in which the epoch is entered, some lanes may have come already.
    at_once = np.flatnonzero(first == entered)
    first[at_once] += positions_of(order, lanes[at_once], first[at_once]) < start
    at_last = np.flatnonzero(first == last)
    beyond = at_last[positions_of(order, lanes[at_last], first[at_last]) >= stop]
    kept = (first < end[visit]) & (first <= last)
    kept[beyond] = False
    return visit[kept], first[kept]


def _next_sweeps(block: I64, first: I64) -> I64:
    """For each read the first later sweep that needs its block, given reads by sweep."""
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
    """How many reads from ``start`` on to place at once: some, and the others of the last one's sweep.

    However they lie, the deals of so many groups take no more memory than working out ``index_samples``.
    """
    lanes_each = order.lanes // order.groups
    stop = min(start + max(1, index_samples // SAMPLES_PER_LANE_DEALT // lanes_each), len(reads))
    return int(np.searchsorted(reads.first, reads.first[stop - 1], side="right")) - start


def place(order: EpochOrder, reads: ReadList, start: int, n: int) -> tuple[ReadList, I64]:
    """Put n reads from ``start`` on, of whole sweeps, into the order of their first positions, and give these."""
    some = reads.take(np.arange(start, start + n))
    positions = positions_of(order, order.visit_lanes()[some.visit], some.first)
    by_position = np.argsort(positions)
    return some.take(by_position), positions[by_position]
