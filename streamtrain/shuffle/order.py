"""The stratified interleave: the order of an epoch's samples, set up once and found at any position.

The sample space is rotated by a random offset and cut into as many *lanes* as blocks fit in memory; position after
position draws from lane after lane, so that every batch is spread over the whole dataset however the data is sorted,
while each lane reads its blocks one after another:

1. Group g of G owns a contiguous rotated range of as many samples as there are positions congruent to g modulo G, cut
   into Q = lanes / G lanes of equal length, the first ones one sample longer.
2. A lane's samples fall into *runs*, cut at block edges and where the rotation wraps. Odd lanes visit their first run
   first and their last run last, even lanes the other way round, so neighbours use the block they share at the same
   time. The runs between are visited in an even random order, a run's rows in a random order.
3. In *sweep* t every group visits its lanes in an even random order, drawn anew every 16 sweeps, and each lane emits
   its t-th sample. Position p is element p // G of group p mod G. Between two draws the lanes go round and round: any
   stretch of positions spreads over them, and takes none again before it has taken all.

Setting up an epoch takes O(lanes + blocks) time and memory; `streamtrain.shuffle.positions` then finds any position
without the ones before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import UsageError
from streamtrain.system.counter_rng import GOLDEN_STEPS, even_orders, random_key, word_below, words

I64 = npt.NDArray[np.int64]
_WORDS_AT_ONCE: Final = 16_384


class _Purpose(IntEnum):
    OFFSET = 0
    RUNS = 1
    ROWS = 2
    LANES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleParameters:
    """What the order of an epoch depends on, beside seed and epoch.

    Parameters
    ----------
    n_samples, block_rows : int
        Samples of the dataset, and of one block.
    lanes, groups : int
        Lanes of the shuffle, and groups they are dealt to; ``groups`` divides ``lanes``, and ``lanes`` is even.

    Raises
    ------
    UsageError
        A number is not positive, or does not divide as it must.
    """

    n_samples: int
    block_rows: int
    lanes: int
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("n_samples", "block_rows", "lanes", "groups"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.lanes % (2 * self.groups):
            raise UsageError(
                f"{self.lanes} lanes cannot be dealt to {self.groups} groups",
                why="Every group takes the same even number of lanes",
                fix=f"lanes={max(1, self.lanes // (2 * self.groups)) * 2 * self.groups}",
            )

    @property
    def n_blocks(self) -> int:
        """Blocks of the dataset."""
        return -(-self.n_samples // self.block_rows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpochOrder:
    """One epoch's order: its runs, lane after lane, each lane's in the order they are visited.

    Attributes
    ----------
    lane_lengths : (lanes,) int64
        Samples of each lane.
    run_first : (n_runs,) int64
        The first sample of a run; its rows are consecutive from there.
    run_length : (n_runs,) int64
        Its rows, at most ``block_rows``.
    run_key : (n_runs,) int64
        ``lane * stride + sweep`` where the run begins; increasing, so that a run is found by bisection.
    rows_key, lanes_key : int
        Keys of the random words, 0 for the sequential order.
    """

    n_samples: int
    block_rows: int
    groups: int
    shuffled: bool
    stride: int
    lane_lengths: I64
    run_first: I64
    run_length: I64
    run_key: I64
    rows_key: int
    lanes_key: int

    @property
    def lanes(self) -> int:
        """Lanes of the order; 1 when sequential."""
        return len(self.lane_lengths)

    @property
    def n_sweeps(self) -> int:
        """Sweeps of the epoch; the last may be ragged."""
        return -(-self.n_samples // self.lanes)

    def run_sweeps(self) -> I64:
        """The sweep in which each run's visit begins, shape (n_runs,); it takes ``run_length`` sweeps."""
        return self.run_key - self.run_key // self.stride * self.stride


def sequential_order(n_samples: int, block_rows: int) -> EpochOrder:
    """The stored order, in the same form: one lane whose runs are the blocks.

    Examples
    --------
    >>> sequential_order(10, 4).run_first.tolist()
    [0, 4, 8]
    """
    first = np.arange(0, n_samples, block_rows, dtype=np.int64)
    return EpochOrder(
        n_samples=n_samples,
        block_rows=block_rows,
        groups=1,
        shuffled=False,
        stride=n_samples + 1,
        lane_lengths=np.array([n_samples], np.int64),
        run_first=first,
        run_length=np.diff(first, append=n_samples),
        run_key=first,
        rows_key=0,
        lanes_key=0,
    )


def shuffled_order(shuffle: ShuffleParameters, *, seed: int, epoch: int) -> EpochOrder:
    """Set up the order of an epoch: a function of its arguments alone.

    Examples
    --------
    >>> order = shuffled_order(ShuffleParameters(n_samples=12, block_rows=4, lanes=2), seed=0, epoch=0)
    >>> order.lane_lengths.tolist(), int(order.run_length.sum())
    ([6, 6], 12)
    """
    offset = word_below(random_key(seed, epoch, _Purpose.OFFSET), shuffle.n_samples)
    lengths_of_lanes = lane_lengths(shuffle)
    stride = int(lengths_of_lanes.max()) + 1
    cuts, run_of_lane = _cut(shuffle, lengths_of_lanes, offset)
    visits = _visits(run_of_lane, random_key(seed, epoch, _Purpose.RUNS))
    lengths = np.diff(cuts, append=shuffle.n_samples)[visits]
    run_key = np.cumsum(lengths)
    run_key -= lengths
    lane_starts = np.cumsum(lengths_of_lanes) - lengths_of_lanes
    run_key += np.repeat(np.arange(shuffle.lanes) * stride - lane_starts, np.diff(run_of_lane))
    cuts += offset
    cuts[cuts >= shuffle.n_samples] -= shuffle.n_samples
    return EpochOrder(
        n_samples=shuffle.n_samples,
        block_rows=shuffle.block_rows,
        groups=shuffle.groups,
        shuffled=True,
        stride=stride,
        lane_lengths=lengths_of_lanes,
        run_first=cuts[visits],
        run_length=lengths,
        run_key=run_key,
        rows_key=random_key(seed, epoch, _Purpose.ROWS),
        lanes_key=random_key(seed, epoch, _Purpose.LANES),
    )


def lane_lengths(shuffle: ShuffleParameters) -> I64:
    """The samples of each lane, shape (lanes,)."""
    groups, lanes_each = shuffle.groups, shuffle.lanes // shuffle.groups
    sizes = (shuffle.n_samples - np.arange(groups, dtype=np.int64) + groups - 1) // groups
    whole, longer = np.divmod(sizes, lanes_each)
    lengths: I64 = (whole[:, None] + (np.arange(lanes_each) < longer[:, None])).ravel()
    return lengths


def _cut(shuffle: ShuffleParameters, lengths: I64, offset: int) -> tuple[I64, I64]:
    """Cut the rotated space at lanes and block edges.

    Returns where the runs begin in it, and for each lane the index of its first run (lanes + 1 of them).
    """
    n, rows = shuffle.n_samples, shuffle.block_rows
    ahead = np.arange(-(-offset // rows) * rows - offset, n - offset, rows, dtype=np.int64)
    edges = np.append(ahead, np.arange(n - offset, n, rows))
    lane_starts = np.cumsum(lengths) - lengths
    between = lane_starts[lengths > 0]
    place = np.searchsorted(edges, between)
    new = edges[np.minimum(place, len(edges) - 1)] != between
    cuts = np.insert(edges, place[new], between[new])
    run_of_lane = np.searchsorted(cuts, np.append(lane_starts, n)).astype(np.int64)
    return cuts, run_of_lane


def _visits(run_of_lane: I64, runs_key: int) -> I64:
    """Put each lane's runs into the order in which it visits them, shape (n_runs,)."""
    visits = np.arange(run_of_lane[-1])
    first, last = run_of_lane[:-1], run_of_lane[1:] - 1
    inner = np.maximum(last - first - 1, 0)
    width = max(int(inner.max()), 1)
    random = words(runs_key, np.arange(len(first)))
    lanes_at_once = max(1, _WORDS_AT_ONCE // width)
    for start in range(0, len(first), lanes_at_once):
        piece = slice(start, start + lanes_at_once)
        inside = np.arange(width) < inner[piece, None]
        runs = first[piece, None] + 1 + np.arange(width)
        turns = first[piece, None] + 1 + even_orders(random[piece], inner[piece], width, steps=GOLDEN_STEPS)
        # The even order says whose turn it is at each place, not where each turn goes: so the first turns, however
        # few, are spread over the lane as the first multiples of the golden ratio are over the circle.
        visits[turns[inside]] = runs[inside]
    swap = (np.arange(len(first)) % 2 == 0) & (last > first)
    visits[first[swap]], visits[last[swap]] = last[swap], first[swap]
    return visits
