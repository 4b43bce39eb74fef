"""The read list of an epoch: its blocks, when each is first needed, and when its slot is free again.

A read serves all runs of its block whose visits touch or overlap in time; so the block that two neighbouring lanes
share is read once. Reads are listed by the sweep in which they are first needed, then by lane: reading down the list
never lacks what comes next, and continues into the next epoch's list without a stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamtrain.shuffle.order import I64, EpochOrder, ShuffleParameters, lane_lengths


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadList:
    """What an epoch reads, in the order of need; arrays of one entry per read unless said.

    Attributes
    ----------
    block : int64
        The block to read.
    first, end : int64
        The first sweep that needs it, and the sweep from which on none does.
    runs : (n_runs,) int64
        The runs each read serves, read after read.
    runs_at : (n_reads + 1,) int64
        Where each read's runs begin in ``runs``.
    """

    block: I64
    first: I64
    end: I64
    runs: I64
    runs_at: I64

    def __len__(self) -> int:
        return len(self.block)


def read_list(order: EpochOrder) -> ReadList:
    """List the reads of an epoch, in O(blocks) memory.

    Examples
    --------
    >>> from streamtrain.shuffle.order import sequential_order
    >>> reads = read_list(sequential_order(10, 4))
    >>> reads.block.tolist(), reads.first.tolist(), reads.end.tolist()
    ([0, 1, 2], [0, 4, 8], [4, 8, 10])
    """
    block = order.run_first // order.block_rows
    sweep = order.run_sweeps()
    stride = order.stride + 1
    begins = block * stride + sweep
    runs = np.argsort(begins)
    begins = begins[runs]
    ends = np.maximum.accumulate(begins + order.run_length[runs])
    head = np.flatnonzero(np.append(True, begins[1:] > ends[:-1]))
    return _by_need(order, runs, head, block, sweep, ends[np.append(head[1:], len(runs)) - 1] % stride)


def _by_need(order: EpochOrder, runs: I64, head: I64, block: I64, sweep: I64, end: I64) -> ReadList:
    """Order the reads, given runs grouped by read and the place of each group's first."""
    lead = runs[head]
    need = np.argsort(sweep[lead] * order.lanes + order.run_key[lead] // order.stride)
    lead = lead[need]
    n_runs = np.diff(head, append=len(runs))[need]
    runs_at = np.append(0, np.cumsum(n_runs))
    within = np.arange(len(runs)) - np.repeat(runs_at[:-1], n_runs)
    return ReadList(
        block=block[lead],
        first=sweep[lead],
        end=end[need],
        runs=runs[np.repeat(head[need], n_runs) + within],
        runs_at=runs_at,
    )


def reads_within(reads: ReadList, start: int, stop: int) -> ReadList:
    """Keep the reads that sweeps [start, stop) need, as when an epoch is entered midway or left early."""
    kept = (reads.end > start) & (reads.first < stop)
    if kept.all():
        return reads
    n_runs = np.diff(reads.runs_at)
    return ReadList(
        block=reads.block[kept],
        first=reads.first[kept],
        end=reads.end[kept],
        runs=reads.runs[np.repeat(kept, n_runs)],
        runs_at=np.append(0, np.cumsum(n_runs[kept])),
    )


def most_live(reads: ReadList) -> int:
    """The most blocks needed in any one sweep, at most the lanes: the slots without which an epoch cannot run."""
    at = np.append(reads.first, reads.end)
    change = np.repeat([1, -1], len(reads))
    order = np.argsort(at)
    live = np.cumsum(change[order])[np.append(np.diff(at[order]) > 0, True)]
    return int(live.max())


def largest_lead(shuffle: ShuffleParameters) -> int:
    """How many blocks the lanes may need ahead of an even demand, whatever the rotation.

    Lanes move on to a next block when they cross a block's edge. An even lane and the odd one after it begin with the
    block they share, so they cross at phases ``s`` and ``-s`` modulo ``block_rows`` where the odd one starts at sample
    s. Spread phases ask for blocks evenly; where two lanes are about a multiple of ``block_rows`` long all cross at
    once. This is twice the discrepancy of the odd lanes' starts over all arcs.

    Examples
    --------
    >>> largest_lead(ShuffleParameters(n_samples=1_000_000, block_rows=100, lanes=1000))
    1000
    >>> largest_lead(ShuffleParameters(n_samples=1_000_000, block_rows=100, lanes=254))
    7
    """
    lengths = lane_lengths(shuffle)
    starts = (np.cumsum(lengths) - lengths)[1::2]
    phases: npt.NDArray[np.int64] = np.sort(starts % shuffle.block_rows)
    before = np.searchsorted(phases, phases, side="left")
    upto = np.searchsorted(phases, phases, side="right")
    even = phases * (len(phases) / shuffle.block_rows)
    return int(np.ceil(2 * ((upto - even).max() - (before - even).min())))
