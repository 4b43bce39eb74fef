"""Expected reads of an epoch: what lanes read twice, less what stays in memory in between.

A visit whose block is still in memory reads nothing. The times of visits are known: the run in which a lane
starts at both ends of the epoch, the two runs of a block that a lane's edge cuts at two independent times, any other
run once, at a uniform time. A model of few blocks, of the same proportions, is sent through a cache that evicts what is
needed last.
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from streamtrain.system.counter_rng import random_key, words

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_MODEL_BLOCKS: Final = 2000
_EPOCHS: Final = 4  # the first, one that settles, and those that are averaged; one more is foreseen


@lru_cache(maxsize=64)
def expected_reads(n_blocks: int, lanes: int, *, n_slots: int, n_cached: int) -> tuple[float, float]:
    """Estimate blocks read ÷ blocks stored, in the first epoch and in a later one.

    Memory holds ``n_slots`` blocks; ``n_cached`` of them are besides those that lanes and reading ahead take.
    """
    if n_slots >= n_blocks:
        return 1.0, 0.0
    scale = min(1.0, _MODEL_BLOCKS / n_blocks)
    n_model = max(round(n_blocks * scale), 1)
    n_reads = _reads_of_model(n_model, min(round(lanes * scale), n_model // 2), round(n_cached * scale))
    return n_reads[0] / n_model, sum(n_reads[2:]) / (_EPOCHS - 2) / n_model


def _reads_of_model(n_blocks: int, lanes: int, n_cached: int) -> list[int]:
    """Count the reads of each epoch."""
    begins, ends, block = (
        np.concatenate(some)
        for some in zip(*(_visits_of_model(n_blocks, lanes, epoch) for epoch in range(_EPOCHS + 1)), strict=True)
    )
    by_block = np.lexsort((begins, block))
    following = np.full(len(begins), np.inf)
    same = block[by_block[1:]] == block[by_block[:-1]]
    following[by_block[:-1][same]] = begins[by_block[1:][same]]
    cache = _ModelCache(n_cached)
    n_reads = [0] * (_EPOCHS + 1)
    events = np.argsort(np.concatenate([begins, ends]), kind="stable").tolist()
    blocks, epochs, again = block.tolist(), begins.astype(int).tolist(), following.tolist()
    for event in events:
        if event < len(blocks):
            n_reads[epochs[event]] += cache.enter(blocks[event], again[event])
        else:
            cache.leave(blocks[event - len(blocks)])
    return n_reads[:_EPOCHS]


class _ModelCache:
    """Blocks in use, and as many of the others as fit; the one that is needed last is evicted."""

    def __init__(self, n_cached: int) -> None:
        self._n_cached = n_cached
        self._in_use: dict[int, int] = {}
        self._next: dict[int, float] = {}
        self._kept: dict[int, float] = {}
        self._last: list[tuple[float, int]] = []

    def enter(self, block: int, following: float) -> bool:
        """Take a block into use, with the time of its next use; return whether it has to be read."""
        is_here = self._kept.pop(block, None) is not None or block in self._in_use
        self._in_use[block] = self._in_use.get(block, 0) + 1
        self._next[block] = following
        return not is_here

    def leave(self, block: int) -> None:
        """Release a block into the cache."""
        self._in_use[block] -= 1
        if self._in_use[block]:
            return
        del self._in_use[block]
        self._kept[block] = self._next[block]
        heapq.heappush(self._last, (-self._next[block], block))
        while len(self._kept) > self._n_cached:
            latest, given_up = heapq.heappop(self._last)
            if self._kept.get(given_up) == -latest:
                del self._kept[given_up]


def _visits_of_model(n_blocks: int, lanes: int, epoch: int) -> tuple[F64, F64, I64]:
    """Draw when an epoch's visits begin and end, in epochs, and their blocks; each lasts lanes / n_blocks."""
    order = np.argsort(words(random_key(0, epoch, 0), np.arange(n_blocks)))
    uniform = (words(random_key(0, epoch, 1), np.arange(n_blocks + 2 * lanes)) >> np.uint64(11)) * 2.0**-53
    starts, cut, lasts = order[:lanes], order[lanes : 2 * lanes], lanes / n_blocks
    begins = uniform[: n_blocks + lanes] * (1 - lasts)
    leaves = begins + lasts
    begins[starts], leaves[starts] = 0.0, uniform[n_blocks + lanes :] * lasts
    returns = 1 - lasts + leaves[starts]
    begins = np.concatenate([begins, returns]) * (1 - 1e-9) + epoch
    ends: F64 = np.concatenate([leaves, np.ones(lanes)]) + epoch
    return begins, ends, np.concatenate([np.arange(n_blocks), cut, starts])
