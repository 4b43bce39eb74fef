import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.loader.reading.pool_memory import Slots, row_dtype
from streamtrain.shuffle.read_list import NEVER
from streamtrain.store.layout import Field, Layout
from streamtrain.system.buffers import aligned_bytes


def slots_of(n_slots, n_blocks=20):
    return working_slots_of(n_slots, None, n_blocks)


def working_slots_of(n_slots, n_working, n_blocks=20):
    x = Field(name="x", dtype=np.dtype("float32"), shape=(3,))
    y = Field(name="y", dtype=np.dtype("int64"), shape=())
    layout = Layout(fields=(x, y), n_samples=n_blocks * 4, block_rows=4, shard_blocks=5, codec="none")
    return Slots(layout, n_slots, n_working)


def assign(slots, blocks, until, now, following=NEVER):
    """Slots for blocks, all of which are needed again in some sweep, or not in their epoch."""
    blocks, until = np.array(blocks), np.array(until)
    return slots.assign(blocks, until, np.broadcast_to(following, blocks.shape), now)


def test_memory_is_page_aligned_and_zero():
    memory = aligned_bytes(10_000)
    assert memory.ctypes.data % 4096 == 0
    assert memory.flags.writeable
    assert not memory.any()


def test_rows_reach_through_all_slots():
    slots = slots_of(3)
    x, y = slots.buffers(2)
    assert (x.nbytes, y.nbytes) == (48, 32)
    y[:] = np.arange(4, dtype=np.int64).tobytes()
    assert slots.rows[1].view(np.int64)[8:12].tolist() == [0, 1, 2, 3]
    assert slots.rows[0].dtype == row_dtype(12)
    assert row_dtype(8) == np.dtype("u8")


def test_blocks_that_are_here_keep_their_slots():
    slots = slots_of(4)
    given_slots, missing = assign(slots, [5, 6], [10, 10], now=0)
    assert missing.all()
    again, missing = assign(slots, [6, 7], [20, 20], now=0)
    assert missing.tolist() == [False, True]
    assert again[0] == given_slots[1]
    assert slots.n_free(10) == 2
    assert slots.n_free(20) == 4


def test_only_as_many_blocks_as_there_are_free_slots():
    slots = slots_of(3)
    assign(slots, [0, 1], [5, 9], now=0)
    taken, _ = assign(slots, [2, 3], [9, 9], now=0)
    assert len(taken) == 1
    taken, _ = assign(slots, [3, 4], [9, 9], now=5)
    assert len(taken) == 1


def test_released_blocks_are_found_again_unless_forgotten():
    slots = slots_of(3)
    assign(slots, [0, 1], [5, 5], now=0)
    slots.release(keep=True)
    assert not assign(slots, [1], [5], now=0)[1].any()
    slots.release(keep=False)
    assert assign(slots, [1], [5], now=0)[1].all()


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 19), st.integers(1, 6)), max_size=60))
def test_a_slot_in_use_is_never_given_to_another_block(n_slots, requests):
    slots = slots_of(n_slots)
    held = {}
    for now, (block, duration) in enumerate(requests):
        held = {slot: (b, until) for slot, (b, until) in held.items() if until > now}
        got, _ = assign(slots, [block], [now + duration], now)
        if len(got):
            slot = int(got[0])
            assert held.get(slot, (block, 0))[0] == block
            held[slot] = (block, max(now + duration, held.get(slot, (0, 0))[1]))
        else:
            assert len(held) == n_slots


def test_of_idle_blocks_the_one_needed_furthest_in_the_future_gives_way():
    slots = slots_of(4)
    slots.foresee(np.arange(6), np.arange(6))
    assign(slots, [0, 1, 2], [3, 3, 3], now=0)
    assign(slots, [3], [4], now=3)  # the empty slot goes first
    slots.foresee(np.array([2, 0, 1]), np.array([10, 11, 12]))
    assign(slots, [4], [6], now=4)  # block 3 is not needed any more
    assert assign(slots, [2, 0, 1], [20, 20, 20], now=4)[1].tolist() == [False, False, False]


def test_a_block_that_is_visited_again_in_its_epoch_outlasts_those_that_are_not():
    slots = slots_of(3)
    slots.foresee(np.arange(4), np.arange(4))
    assign(slots, [0, 1, 2], [1, 1, 1], now=0, following=np.array([9, NEVER, 7]))
    assign(slots, [3], [2], now=1)  # in place of block 1
    slots.foresee(np.array([1, 2]), np.array([10, 11]))
    assign(slots, [1], [4], now=2)  # in place of block 3, which nobody needs any more
    assert assign(slots, [2, 0], [8, 10], now=7)[1].tolist() == [False, False]
    # From here on block 2 is needed in the coming epoch, block 0 no more.
    assign(slots, [3], [12], now=10)
    assert assign(slots, [2], [12], now=11)[1].tolist() == [False]


def test_slots_beyond_the_working_ones_only_keep_blocks():
    slots = working_slots_of(5, 2)
    taken, _ = assign(slots, [0, 1, 2], [5, 5, 5], now=0)
    assert len(taken) == 2
    assign(slots, [2, 3], [9, 9], now=5)
    assert slots.n_free(5) == 0
    assert not assign(slots, [0, 1], [12, 12], now=9)[1].any()


@given(st.integers(3, 10), st.integers(0, 2**32))
def test_a_cache_saves_as_many_reads_as_it_has_slots(n_cached, seed):
    # Whatever the orders: blocks kept over the epoch's end are all of use, and none is given up before its use.
    n_blocks, rng = 20, np.random.default_rng(seed)
    slots = working_slots_of(n_cached + 1, 1)
    n_read, orders = 0, [rng.permutation(n_blocks) for _ in range(4)]
    slots.foresee(orders[0], np.arange(n_blocks))
    for epoch, order in enumerate(orders):
        if epoch + 1 < len(orders):
            slots.foresee(orders[epoch + 1], np.arange(n_blocks) + (epoch + 1) * n_blocks)
        for i, block in enumerate(order):
            now = epoch * n_blocks + i
            n_read += int(assign(slots, [block], [now + 1], now)[1].sum())
    assert n_read <= 4 * n_blocks - 3 * n_cached
