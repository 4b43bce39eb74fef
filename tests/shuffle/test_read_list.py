import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.shuffle.order import ShuffleParameters, sequential_order, shuffled_order
from streamtrain.shuffle.positions import iter_positions
from streamtrain.shuffle.read_list import NEVER, n_to_place, place, read_list


@st.composite
def orders(draw):
    n_samples, block_rows = draw(st.integers(1, 600)), draw(st.integers(1, 50))
    if draw(st.booleans()):
        return sequential_order(n_samples, block_rows)
    groups = draw(st.integers(1, min(3, n_samples)))
    shuffle = ShuffleParameters(
        n_samples=n_samples,
        block_rows=block_rows,
        batch_size=groups * draw(st.integers(1, 20)),
        lanes=groups * draw(st.integers(1, min(24, n_samples // groups))),
        groups=groups,
    )
    return shuffled_order(shuffle, seed=draw(st.integers(0, 99)), epoch=0)


def positions_by_visit(order):
    """For each visit the positions of its samples, from the picks."""
    found = {}
    for piece in iter_positions(order):
        for position, visit in enumerate(piece.visits.tolist(), piece.start):
            found.setdefault(visit, []).append(position)
    return found


def placed(order, reads, index_samples):
    """The whole list in its exact order, and the first positions."""
    needed_at = []
    while len(needed_at) < len(reads):
        n = n_to_place(order, reads, len(needed_at), index_samples=index_samples)
        some, positions = place(order, reads, len(needed_at), n)
        reads.put(len(needed_at), some)
        needed_at += positions.tolist()
    return needed_at


@given(orders(), st.integers(1, 4000), st.data())
def test_reads_are_the_visits_by_their_first_positions(order, index_samples, data):
    start = data.draw(st.integers(0, order.n_samples - 1))
    stop = data.draw(st.integers(start + 1, order.n_samples))
    reads = read_list(order, start, stop)
    needed_at = placed(order, reads, index_samples)
    needed = {}
    for visit, positions in positions_by_visit(order).items():
        if inside := [position for position in positions if start <= position < stop]:
            needed[visit] = inside[0]
    assert list(zip(needed_at, reads.visit.tolist(), strict=True)) == sorted((p, v) for v, p in needed.items())


@given(orders())
def test_a_visit_is_over_with_its_last_sample_and_its_block_is_the_runs(order):
    reads = read_list(order)
    positions = positions_by_visit(order)
    assert sorted(reads.visit.tolist()) == sorted(positions) == list(range(len(order.run_first)))
    for i, visit in enumerate(reads.visit.tolist()):
        assert reads.first[i] == min(positions[visit]) // order.lanes
        assert reads.end[i] == max(positions[visit]) // order.lanes + 1
        assert reads.end[i] - reads.first[i] == len(positions[visit])
        assert reads.block[i] == order.run_first[visit] // order.block_rows


@given(orders(), st.data())
def test_each_read_knows_when_its_block_is_needed_next(order, data):
    start = data.draw(st.integers(0, order.n_samples - 1))
    reads = read_list(order, start)
    for i in range(len(reads)):
        later = reads.first[(reads.block == reads.block[i]) & (reads.first > reads.first[i])]
        assert reads.next[i] == min(later, default=NEVER)


@given(orders())
def test_no_more_visits_are_live_than_lanes_and_there_are_few_of_them(order):
    reads = read_list(order)
    n_blocks = -(-order.n_samples // order.block_rows)
    assert max(np.count_nonzero((reads.first <= t) & (t < reads.end)) for t in range(order.n_sweeps)) <= order.lanes
    assert len(reads) <= (n_blocks + 3 * order.lanes if order.shuffled else n_blocks)


def test_what_is_placed_at_once_is_bounded_however_the_reads_lie():
    shuffle = ShuffleParameters(n_samples=400_000, block_rows=4000, batch_size=64, lanes=64, groups=1)
    order = shuffled_order(shuffle, seed=0, epoch=0)
    reads = read_list(order)
    assert n_to_place(order, reads, 0, index_samples=4096) == 64, "all lanes begin in the first sweep"
    assert n_to_place(order, reads, 64, index_samples=4096) <= 4096 // 4 // 64 + 2
