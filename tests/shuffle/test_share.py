"""Shares of an order: those of all ranks together are the order, from any position on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.shuffle.order import ShuffleParameters, shuffled_order
from streamtrain.shuffle.positions import samples_at
from streamtrain.shuffle.read_list import read_list
from streamtrain.shuffle.share import Rank


@st.composite
def shapes(draw):
    """A world size, and shuffle parameters that it can share."""
    world_size = draw(st.sampled_from([1, 2, 3, 4, 8]))
    groups = world_size * draw(st.integers(1, 4))
    batch_size, lanes = groups * draw(st.integers(1, 6)), groups * draw(st.integers(1, 8))
    n_samples = draw(st.integers(lanes, 30 * lanes))
    parameters = ShuffleParameters(
        n_samples=n_samples,
        block_rows=draw(st.integers(1, 40)),
        batch_size=batch_size,
        lanes=lanes,
        groups=groups,
    )
    return world_size, parameters


def ranks(world_size):
    return [Rank(rank=rank, world_size=world_size) for rank in range(world_size)]


@given(shapes(), st.integers(0, 2**32), st.integers(0, 3), st.floats(0, 1))
def test_a_rank_has_every_nth_position_of_the_shuffled_order(shape, seed, epoch, entered):
    world_size, parameters = shape
    order = shuffled_order(parameters, seed=seed, epoch=epoch)
    samples = samples_at(order, 0, order.n_samples)
    for rank in ranks(world_size):
        own = {"first_group": rank.rank, "group_step": world_size}
        share, expected = shuffled_order(parameters, seed=seed, epoch=epoch, **own), samples[rank.rank :: world_size]
        start = int(entered * (len(expected) - 1))
        assert share.n_samples == len(expected)
        assert samples_at(share, start, len(expected)).tolist() == expected[start:].tolist()
        blocks = set((expected[start:] // parameters.block_rows).tolist())
        assert set(read_list(share, start).block.tolist()) == blocks


@given(shapes(), st.floats(0, 1))
def test_of_the_stored_order_a_rank_has_a_stretch_of_every_batch(shape, entered):
    world_size, parameters = shape
    n, rows, batch_size = parameters.n_samples, parameters.block_rows, parameters.batch_size
    for rank in ranks(world_size):
        expected = []
        for start in range(0, n, batch_size):
            size = min(batch_size, n - start)
            expected += range(start + rank.rank * size // world_size, start + (rank.rank + 1) * size // world_size)
        share = rank.of_stored(n, rows, batch_size)
        assert share.n_samples == len(expected)
        if expected:
            start = int(entered * (len(expected) - 1))
            assert samples_at(share, start, len(expected)).tolist() == expected[start:]
            assert set(read_list(share, start).block.tolist()) == {sample // rows for sample in expected[start:]}


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 9))
def test_blocks_are_dealt_in_ranges_that_meet(n_samples, block_rows, world_size):
    orders = [rank.of_blocks(n_samples, block_rows) for rank in ranks(world_size)]
    dealt = np.concatenate([samples_at(order, 0, order.n_samples) for order in orders if order.n_samples])
    assert dealt.tolist() == list(range(n_samples))
    assert all(order.n_samples == 0 or order.run_first[0] % block_rows == 0 for order in orders)


def test_sizes_of_a_last_batch_differ_by_one_at_most():
    for n_samples in range(20):
        for shuffled in (False, True):
            sizes = [rank.samples_of_batch(n_samples, shuffled=shuffled) for rank in ranks(4)]
            assert sum(sizes) == n_samples
            assert max(sizes) - min(sizes) <= 1
