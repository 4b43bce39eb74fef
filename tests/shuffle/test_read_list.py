import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.shuffle.order import ShuffleParameters, sequential_order, shuffled_order
from streamtrain.shuffle.positions import iter_positions
from streamtrain.shuffle.read_list import largest_lead, most_live, read_list, reads_within


@st.composite
def orders(draw):
    n_samples, block_rows = draw(st.integers(1, 600)), draw(st.integers(1, 50))
    if draw(st.booleans()):
        return sequential_order(n_samples, block_rows)
    shuffle = ShuffleParameters(n_samples=n_samples, block_rows=block_rows, lanes=2 * draw(st.integers(1, 12)))
    return shuffled_order(shuffle, seed=draw(st.integers(0, 99)), epoch=0)


@given(orders(), st.integers(1, 200))
def test_every_sample_finds_its_block_read_before_and_freed_after(order, index_samples):
    reads = read_list(order)
    read_of_run = np.empty(len(order.run_first), np.int64)
    read_of_run[reads.runs] = np.repeat(np.arange(len(reads)), np.diff(reads.runs_at))
    for piece in iter_positions(order, index_samples=index_samples):
        sweep = np.arange(piece.start, piece.stop) // order.lanes
        read = read_of_run[piece.runs]
        samples = order.run_first[piece.runs] + piece.rows
        assert np.array_equal(reads.block[read], samples // order.block_rows)
        assert (reads.first[read] <= sweep).all()
        assert (sweep < reads.end[read]).all()


@given(orders())
def test_reads_are_listed_in_the_order_of_need_and_serve_each_run_once(order):
    reads = read_list(order)
    assert (np.diff(reads.first) >= 0).all()
    assert np.array_equal(np.sort(reads.runs), np.arange(len(order.run_first)))
    assert reads.runs_at[-1] == len(reads.runs)


@given(orders())
def test_a_block_is_never_in_two_live_reads(order):
    reads = read_list(order)
    for block in np.unique(reads.block):
        mine = np.flatnonzero(reads.block == block)
        assert (reads.first[mine][1:] > reads.end[mine][:-1]).all()


@given(orders())
def test_no_more_blocks_are_live_than_lanes(order):
    reads = read_list(order)
    counted = max(np.count_nonzero((reads.first <= t) & (t < reads.end)) for t in range(int(reads.end.max())))
    assert most_live(reads) == counted <= order.lanes


@given(st.integers(0, 3), st.integers(4, 60), st.integers(20, 60))
def test_a_shuffled_epoch_reads_every_block_once(epoch, lanes, blocks_per_lane):
    """Two neighbours share the block between them, so cutting lanes costs no reads."""
    rows, lanes = 10, 2 * (lanes // 2)
    n_samples = lanes * blocks_per_lane * rows // 8 + 3
    order = shuffled_order(ShuffleParameters(n_samples=n_samples, block_rows=rows, lanes=lanes), seed=0, epoch=epoch)
    assert len(read_list(order)) == -(-n_samples // rows)


@given(orders(), st.data())
def test_within_keeps_what_the_sweeps_need_and_no_more(order, data):
    reads = read_list(order)
    start = data.draw(st.integers(0, order.n_sweeps - 1))
    stop = data.draw(st.integers(start + 1, order.n_sweeps))
    kept = reads_within(reads, start, stop)
    needed = (reads.end > start) & (reads.first < stop)
    assert np.array_equal(kept.block, reads.block[needed])
    assert np.array_equal(kept.runs, np.concatenate([reads.runs[a:b] for a, b, k in _ranges(reads, needed) if k]))


def _ranges(reads, needed):
    return zip(reads.runs_at[:-1], reads.runs_at[1:], needed, strict=True)


@pytest.mark.parametrize("epoch", range(3))
@pytest.mark.parametrize(
    ("n_samples", "block_rows", "lanes"), [(1_000_000, 100, 254), (1_000_000, 100, 1006), (999_983, 64, 400)]
)
def test_the_lead_bounds_how_far_reads_run_ahead_of_even_demand(n_samples, block_rows, lanes, epoch):
    shuffle = ShuffleParameters(n_samples=n_samples, block_rows=block_rows, lanes=lanes)
    reads = read_list(shuffled_order(shuffle, seed=5, epoch=epoch))
    middle = slice(lanes, len(reads) - lanes)
    ahead = np.arange(len(reads))[middle] - reads.first[middle] * lanes / block_rows
    assert np.ptp(ahead) <= largest_lead(shuffle) + 1


def test_lanes_that_move_together_have_the_largest_lead():
    assert largest_lead(ShuffleParameters(n_samples=1_000_000, block_rows=100, lanes=1000)) == 1000
    assert largest_lead(ShuffleParameters(n_samples=1_000_000, block_rows=100, lanes=254)) < np.sqrt(254)
