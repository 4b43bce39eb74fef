"""The reads that are expected, against the read lists of real orders sent through the pool's slots."""

import numpy as np
import pytest

from streamtrain.loader.budget import shuffle_of, solve
from streamtrain.loader.pool_memory import Slots
from streamtrain.shuffle.expected_reads import expected_reads
from streamtrain.shuffle.order import shuffled_order
from streamtrain.shuffle.read_list import NEVER, read_list
from streamtrain.store.layout import Field, Layout


def counted_reads(layout, sizes, n_epochs):
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


@pytest.mark.parametrize(("n_blocks", "share"), [(1900, 2), (1900, 6), (4000, 8), (4000, 20)])
def test_what_is_expected_is_what_is_read(n_blocks, share):
    field = Field(name="x", dtype=np.dtype("u1"), shape=(20_000,))
    layout = Layout(fields=(field,), n_samples=n_blocks * 20, block_rows=20, shard_blocks=100, codec="none")
    sizes, projection = solve(layout, batch_size=64, memory=layout.n_blocks * layout.block_bytes // share)
    found = counted_reads(layout, sizes, 4)
    first, later = projection.expected.reads
    assert found[0] == pytest.approx(first, abs=0.04)
    assert np.mean(found[2:]) == pytest.approx(later, abs=0.04)
    assert found[0] < 1.08
    assert max(found[1:]) < 1.02


def test_without_a_cache_each_lane_reads_two_more():
    assert expected_reads(2000, 100, n_slots=120, n_cached=0) == pytest.approx((1.1, 1.1), abs=0.01)


def test_what_fits_is_read_once():
    assert expected_reads(50, 64, n_slots=50, n_cached=0) == (1.0, 0.0)
