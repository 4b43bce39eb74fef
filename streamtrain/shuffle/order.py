"""The order of an epoch: which sample stands at which position. Pure, numpy only, no I/O.

The order is the *stratified interleave of cyclic lanes*. The sample space is rotated by a random offset and cut into
*lanes*; position after position draws from lane after lane, so that every batch is a stratified sample of the whole
dataset however the data is sorted, while each lane reads its blocks one after another:

1. Group g of G owns a contiguous rotated range of as many samples as there are positions congruent to g modulo G, cut
   into Q = lanes / G lanes whose lengths differ by one at most. Which lanes are the longer ones is drawn: only they
   come in the last sweep, and were they spread evenly, that would meet periodic data.
2. A lane is a cycle. Its samples fall into *runs*, cut at block edges and where the rotation wraps. The runs stand in
   an even random order, the rows of a run in a random order. The lane starts at a place drawn uniformly from its
   samples and goes once around. So at every sweep each sample of the lane is equally likely, independently of the other
   lanes, and lanes change blocks at different times.
3. In *sweep* t each lane emits its t-th sample. A group visits its lanes in *rounds*, as many as batches that hold all
   of them: neighbouring lanes form strata of at most one lane a round, every stratum deals its lanes to the rounds by a
   random order of its own, and within a round lanes come in a random order. The deal is drawn anew every season of 16
   sweeps. Position p is element p // G of group p mod G. Where the batch size divides the lanes, a batch is whole
   rounds: exactly one lane of each stratum.

A *visit* is a stretch of a run that a lane takes without a stop: all of it, except that the run in which the cycle
starts is visited at the beginning and, for the rest of its rows, at the end.

Why so: one place drawn uniformly and independently from each of B equal stretches varies at most as much as a full
reshuffle whatever the labels are. Nothing lies at regular distances that periodic data could meet.

Setting up an epoch, or some of its groups, takes O(lanes + their blocks) time and memory; ``positions`` then finds any
position without those before.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.system.counter_rng import (
    even_orders,
    random_key,
    random_orders,
    word_below,
    words,
    words_below,
)

I64 = npt.NDArray[np.int64]
ORDER_VERSION: Final = 3  # in 1 lanes began and ended at their cuts, in 2 the longer lanes were spread evenly
_WORDS_AT_ONCE: Final = 16_384
_LARGEST: Final = 1 << 63


class _Purpose(IntEnum):
    OFFSET = 0
    CUTS = 1
    RUNS = 2
    STARTS = 3
    ROWS = 4
    ROUNDS = 5
    TURNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleParameters:
    """Parameters of an epoch's order, besides seed and epoch."""

    n_samples: int
    block_rows: int
    batch_size: int
    lanes: int  # at most n_samples
    groups: int = 1  # divides lanes and batch_size

    def __post_init__(self) -> None:
        for name in ("n_samples", "block_rows", "batch_size", "lanes", "groups"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.lanes > self.n_samples:
            raise UsageError(
                f"lanes is {self.lanes}; the dataset has {self.n_samples} samples",
                why="Every lane holds at least one",
                fix=Fix(Argument("lanes", self.n_samples // self.groups * self.groups or 1)),
            )
        if self.batch_size % self.groups:
            raise UsageError(
                f"a batch of {self.batch_size} samples cannot be drawn from {self.groups} groups",
                why="Every group gives the same number of samples",
                fix=Fix(Argument("groups", _nearest_divisor(self.batch_size, self.groups))),
            )
        if self.lanes % self.groups:
            raise UsageError(
                f"{self.lanes} lanes cannot be dealt to {self.groups} groups",
                why="Every group takes the same number of lanes",
                fix=Fix(Argument("lanes", max(1, self.lanes // self.groups) * self.groups)),
            )
        if self.n_blocks * (self.longest_lane + 2) >= _LARGEST:
            raise UsageError(
                f"{self.lanes} lanes are too few for {self.n_samples} samples in {self.n_blocks} blocks",
                why="Blocks times the samples of a lane must stay below 2**63",
                fix=Fix(Argument("lanes", self.n_samples * self.n_blocks // (_LARGEST // 4) * self.groups)),
            )

    @property
    def n_blocks(self) -> int:
        """Blocks of the dataset."""
        return -(-self.n_samples // self.block_rows)

    @property
    def longest_lane(self) -> int:
        """Samples of the longest lane."""
        return -(-self.n_samples // self.lanes)

    @property
    def longest_run(self) -> int:
        """The most rows that a run can have."""
        return min(self.block_rows, self.longest_lane)

    @property
    def most_runs(self) -> int:
        """The most runs that a lane can have: its blocks, cut once more where the rotation wraps."""
        return min(self.longest_lane, (self.longest_lane - 2) // self.block_rows + 3)

    @property
    def n_rounds(self) -> int:
        """Rounds in which a group visits its lanes: the batches that hold all of them."""
        return -(-self.lanes // self.batch_size)


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), -d))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A part of the stored order: the same stretch of every whole batch, and some samples in a row at the end."""

    n_samples: int
    n_whole: int  # whole batches
    batch_size: int
    first: int  # within a batch, of this part's samples
    share: int  # samples of a batch; those after the whole batches are n_samples - n_whole * share
    last: int  # the first sample after the whole batches

    def samples_at(self, positions: I64) -> I64:
        """Find the samples at some positions of this part, (n,) each."""
        samples = positions // self.share * (self.batch_size - self.share) + positions + self.first
        after = positions - self.n_whole * self.share
        return np.where(after < 0, samples, self.last + after)

    def positions_from(self, samples: I64) -> I64:
        """Count the samples of this part before some samples, (n,) each."""
        batch = samples // self.batch_size
        within = np.clip(samples - batch * self.batch_size - self.first, 0, self.share)
        after = np.clip(samples - self.last, 0, self.n_samples - self.n_whole * self.share)
        return np.where(batch < self.n_whole, batch * self.share + within, self.n_whole * self.share + after)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpochOrder:
    """One epoch's order: its visits, lane after lane, each lane's in the order in which they come."""

    n_samples: int
    block_rows: int
    groups: int
    shuffled: bool
    n_rounds: int  # in which a group visits its lanes
    longest_run: int  # the most rows that a run can have
    stride: int
    lane_lengths: I64  # (lanes,) samples of each
    lane_ranks: I64  # (lanes,) rows of a lane's first run that are left for its end
    run_first: I64  # (n_visits,) first sample of the visited run, whose rows are consecutive
    run_length: I64  # (n_visits,) rows of the run; the visit may have fewer
    visit_key: I64  # (n_visits,) lane * stride + first sweep; increasing, for bisection
    rows_key: int  # this and the next two: keys of the random words, 0 for the sequential order
    rounds_key: int
    turns_key: int
    first_group: int = 0  # number of the first group among those of all ranks, and the distance to the next
    group_step: int = 1
    part: StoredPart | None = None  # of the sequential order: the samples at its positions, if not all

    @property
    def lanes(self) -> int:
        """Lanes of the order; 1 when sequential."""
        return len(self.lane_lengths)

    @property
    def n_sweeps(self) -> int:
        """Sweeps of the epoch; the last may be ragged."""
        return -(-self.n_samples // self.lanes)

    def visit_lanes(self) -> I64:
        """The lane of each visit, shape (n_visits,)."""
        return self.visit_key // self.stride

    def visit_sweeps(self) -> tuple[I64, I64]:
        """The sweep in which each visit begins, and the one from which on it is over, (n_visits,) each."""
        lane = self.visit_lanes()
        first = self.visit_key - lane * self.stride
        end = np.empty_like(first)
        end[:-1] = first[1:]
        last = np.append(np.flatnonzero(np.diff(lane)), len(lane) - 1)
        end[last] = self.lane_lengths
        return first, end


def sequential_order(n_samples: int, block_rows: int, part: StoredPart | None = None) -> EpochOrder:
    """Describe the stored order, or a part of it, in the same form: one lane whose runs are the blocks."""
    first = np.arange(0, n_samples, block_rows, dtype=np.int64)
    length = np.diff(first, append=n_samples)
    begins, n_positions = first, n_samples
    if part is not None:
        before = part.positions_from(np.append(first, n_samples))
        visited = np.flatnonzero(np.diff(before))
        first, length, begins, n_positions = first[visited], length[visited], before[visited], part.n_samples
    return EpochOrder(
        n_samples=n_positions,
        block_rows=block_rows,
        groups=1,
        shuffled=False,
        n_rounds=1,
        longest_run=min(block_rows, n_samples),
        stride=n_positions + 1,
        lane_lengths=np.array([n_positions], np.int64),
        lane_ranks=np.zeros(1, np.int64),
        run_first=first,
        run_length=length,
        visit_key=begins,
        rows_key=0,
        rounds_key=0,
        turns_key=0,
        part=part,
    )


def shuffled_order(
    shuffle: ShuffleParameters, *, seed: int, epoch: int, first_group: int = 0, group_step: int = 1
) -> EpochOrder:
    """Set up the order of an epoch, or of its groups from one on, every so many: a function of its arguments alone.

    Setting up some groups takes time and memory for their blocks alone.
    """
    groups = np.arange(first_group, shuffle.groups, group_step)
    lanes_each = shuffle.lanes // shuffle.groups
    lanes = (groups[:, None] * lanes_each + np.arange(lanes_each)).ravel()
    lane_edges = _lane_edges(shuffle, random_key(seed, epoch, _Purpose.CUTS))
    lengths = np.diff(lane_edges)[lanes]
    offset = word_below(random_key(seed, epoch, _Purpose.OFFSET), shuffle.n_samples)
    runs = _runs_of(shuffle, lane_edges, offset, groups)
    places = words_below(random_key(seed, epoch, _Purpose.STARTS), lanes, lengths)
    visits = _visits(shuffle, runs, offset, places, words(random_key(seed, epoch, _Purpose.RUNS), lanes))
    return EpochOrder(
        n_samples=int(lengths.sum()),
        block_rows=shuffle.block_rows,
        groups=len(groups),
        shuffled=True,
        n_rounds=shuffle.n_rounds,
        longest_run=shuffle.longest_run,
        stride=shuffle.longest_lane + 1,
        lane_lengths=lengths,
        lane_ranks=visits.lane_ranks,
        run_first=visits.run_first,
        run_length=visits.run_length,
        visit_key=visits.visit_key,
        rows_key=random_key(seed, epoch, _Purpose.ROWS),
        rounds_key=random_key(seed, epoch, _Purpose.ROUNDS),
        turns_key=random_key(seed, epoch, _Purpose.TURNS),
        first_group=first_group,
        group_step=group_step,
    )


def _lane_edges(shuffle: ShuffleParameters, cuts_key: int) -> I64:
    """Cut the rotated space into lanes: their edges, shape (lanes + 1,)."""
    groups, lanes_each = shuffle.groups, shuffle.lanes // shuffle.groups
    sizes = (shuffle.n_samples - np.arange(groups, dtype=np.int64) + groups - 1) // groups
    shorter, n_longer = np.divmod(sizes, lanes_each)
    random = words(cuts_key, np.arange(shuffle.lanes)).reshape(groups, lanes_each)
    drawn = random_orders(random, np.full(groups, lanes_each))
    lengths = np.empty((groups, lanes_each), np.int64)
    np.put_along_axis(lengths, drawn, shorter[:, None] + (np.arange(lanes_each) < n_longer[:, None]), axis=1)
    return np.append(0, np.cumsum(lengths))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Runs:
    """The runs of some lanes: a run lies between two edges, and those of a lane follow one another."""

    edges: I64  # in the rotated space; the last of a group is followed by the first of the next
    first: I64  # (lanes,) each lane's first run, by the number of its first edge
    n_runs: I64  # (lanes,)


def _runs_of(shuffle: ShuffleParameters, lane_edges: I64, offset: int, groups: I64) -> _Runs:
    """Cut some groups of the rotated space at lanes and block edges."""
    lanes_each = shuffle.lanes // shuffle.groups
    if len(groups) == shuffle.groups:
        # One range of all groups needs no edge twice.
        groups, lanes_each = np.zeros(1, np.int64), shuffle.lanes
    edges, first, n_runs, n_edges = [], [], [], 0
    for group in groups.tolist():
        of_lanes = lane_edges[group * lanes_each : (group + 1) * lanes_each + 1]
        own = _edges_within(shuffle, of_lanes, offset)
        place = np.searchsorted(own, of_lanes)
        edges.append(own)
        first.append(place[:-1] + n_edges)
        n_runs.append(np.diff(place))
        n_edges += len(own)
    return _Runs(edges=np.concatenate(edges), first=np.concatenate(first), n_runs=np.concatenate(n_runs))


def _edges_within(shuffle: ShuffleParameters, of_lanes: I64, offset: int) -> I64:
    """Find the edges of lanes that follow one another, and of blocks between them."""
    rows, wrap, begin, end = shuffle.block_rows, shuffle.n_samples - offset, int(of_lanes[0]), int(of_lanes[-1])
    # Blocks lie at multiples of their rows: before the wrap counted from the offset, behind it from there.
    before = np.arange(begin + -(begin + offset) % rows, min(end, wrap), rows, dtype=np.int64)
    behind = max(begin, wrap)
    after = np.arange(behind + -(behind - wrap) % rows, end, rows, dtype=np.int64)
    edges = np.concatenate([before, after])
    place = np.searchsorted(edges, of_lanes)
    new = np.ones(len(of_lanes), bool)
    inside = place < len(edges)
    new[inside] = edges[place[inside]] != of_lanes[inside]
    return np.insert(edges, place[new], of_lanes[new])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Visits:
    """The visits of an epoch, as in `EpochOrder`."""

    lane_ranks: I64
    run_first: I64
    run_length: I64
    visit_key: I64


def _visits(
    shuffle: ShuffleParameters, runs: _Runs, offset: int, places: I64, random: npt.NDArray[np.uint64]
) -> _Visits:
    """Send each lane around its runs, from the place where it starts, a few lanes at once."""
    lanes, stride = len(places), shuffle.longest_lane + 1
    lane_ranks = np.empty(lanes, np.int64)
    most = len(runs.edges) - 1 + lanes
    run_first, run_length, visit_key = (np.empty(most, np.int64) for _ in range(3))
    lanes_at_once = max(1, _WORDS_AT_ONCE // shuffle.most_runs)
    n_visits = 0
    for start in range(0, lanes, lanes_at_once):
        some = slice(start, min(start + lanes_at_once, lanes))
        around = _around(runs, random, places, some, shuffle.most_runs)
        begins, end = n_visits, n_visits + len(around.run)
        lane_ranks[some] = around.rank
        run_first[begins:end] = runs.edges[around.run]
        run_length[begins:end] = runs.edges[around.run + 1]
        run_length[begins:end] -= run_first[begins:end]
        visit_key[begins:end] = around.lane * stride + around.sweep
        n_visits = end
    run_first = run_first[:n_visits]
    run_first += offset
    run_first[run_first >= shuffle.n_samples] -= shuffle.n_samples
    return _Visits(
        lane_ranks=lane_ranks, run_first=run_first, run_length=run_length[:n_visits], visit_key=visit_key[:n_visits]
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Around:
    """The cycles of a few lanes: a rank for each lane; run, lane and first sweep for each visit."""

    rank: I64
    run: I64
    lane: I64
    sweep: I64


def _around(runs: _Runs, random: npt.NDArray[np.uint64], places: I64, some: slice, most_runs: int) -> _Around:
    """Send a few lanes once around their runs."""
    edges, first, n_runs = runs.edges, runs.first[some], runs.n_runs[some]
    place, length = places[some], edges[first + n_runs] - edges[first]
    turn = np.arange(most_runs)
    run = even_orders(random[some], n_runs, most_runs).astype(np.int64)
    # Entries behind a lane's own runs have no rows, and are dropped below.
    run = np.where(turn < n_runs[:, None], run + first[:, None], first[:, None])
    rows = np.where(turn < n_runs[:, None], edges[run + 1] - edges[run], 0)
    begins = np.cumsum(rows, axis=1)
    started = (begins <= place[:, None]).sum(axis=1)
    begins -= rows
    rank = place - begins[np.arange(len(first)), started]
    visit = np.arange(most_runs + 1)
    at = started[:, None] + visit
    again = at >= n_runs[:, None]
    at -= np.where(again, n_runs[:, None], 0)
    sweep = np.take_along_axis(begins, at, axis=1) - place[:, None] + np.where(again, length[:, None], 0)
    sweep[:, 0] = 0
    kept = visit < (n_runs + (rank > 0))[:, None]
    lane = np.broadcast_to(np.arange(some.start, some.stop)[:, None], kept.shape)
    return _Around(rank=rank, run=np.take_along_axis(run, at, axis=1)[kept], lane=lane[kept], sweep=sweep[kept])
