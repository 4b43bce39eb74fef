"""The reads of real orders, counted by the pool's slots alone: no threads, no disk."""

from __future__ import annotations

import numpy as np

from streamtrain.loader.budget import LoaderSizes, shuffle_of
from streamtrain.loader.reading.pool_memory import Slots
from streamtrain.shuffle.order import shuffled_order
from streamtrain.shuffle.read_list import NEVER, read_list
from streamtrain.store.layout import Layout


def counted_reads(layout: Layout, sizes: LoaderSizes, n_epochs: int) -> list[float]:
    """Blocks read ÷ blocks stored in each epoch, where reading ahead takes every slot it may have."""
    slots = Slots(layout, sizes.slots, sizes.working_slots, on_host=False)
    orders = [shuffled_order(shuffle_of(layout, sizes), seed=0, epoch=epoch) for epoch in range(n_epochs + 1)]
    lists = [read_list(order) for order in orders]
    n_sweeps, now, found = orders[0].n_sweeps, 0, []
    slots.foresee(lists[0].block, lists[0].first)
    for epoch, reads in enumerate(lists[:-1]):
        before, n_read, at = epoch * n_sweeps, 0, 0
        slots.foresee(lists[epoch + 1].block, lists[epoch + 1].first + before + n_sweeps)
        while at < len(reads):
            following = reads.next[at] + (before if reads.next[at] < NEVER else 0)
            until = reads.end[at : at + 1] + before
            taken, missing = slots.assign(reads.block[at : at + 1], until, np.array([following]), now)
            if len(taken):
                n_read, at = n_read + int(missing.sum()), at + 1
            else:
                assert now < reads.first[at] + before, "there are enough slots for what is needed at once"
                now += 1
        found.append(n_read / layout.n_blocks)
    return found
