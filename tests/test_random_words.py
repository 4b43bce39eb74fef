import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.random_words import even_orders, key, random_orders, word_below, words


def test_words_are_splitmix64():
    # The first outputs of splitmix64 seeded with 0: its state advances by the golden gamma, then is finalised.
    gamma = np.uint64(0x9E3779B97F4A7C15)
    assert words(0, np.array([gamma])).tolist() == [0xE220A8397B1DCDAF]


def test_keys_are_pinned():
    assert [key(0), key(0, 1), key(0, 1, 2), key(7, 1, 2)] == [
        15793235383387715774,
        4881901421217228719,
        9247832928889101276,
        10549271650533257363,
    ]
    assert len({key(0, 0, 1), key(0, 1, 0), key(1, 0, 0), key(0, 0, 0)}) == 4


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**40))
def test_word_below_stays_below(some_key, bound):
    assert 0 <= word_below(some_key, bound) < bound


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 300), min_size=1, max_size=5), st.booleans())
def test_orders_hold_every_thing_once(some_key, lengths, even):
    width = max(*lengths, 1)
    counters = np.arange(len(lengths) * width).reshape(len(lengths), width)
    random = words(some_key, counters)
    orders = even_orders(random[:, 0], np.array(lengths), width) if even else random_orders(random, np.array(lengths))
    for order, length in zip(orders.tolist(), lengths, strict=True):
        assert sorted(order[:length]) == list(range(length))
        assert order[length:] == list(range(length, width))


def test_wide_orders_agree_with_narrow_ones_where_both_apply():
    scrambles = words(3, np.arange(4))
    narrow = even_orders(scrambles, np.full(4, 500), 500)
    wide = even_orders(scrambles, np.full(4, 500), (1 << 16) + 1)[:, :500]
    # Both rank by the same bits, and 500 things differ in the upper 16 of them.
    assert np.array_equal(narrow, wide)


def test_every_prefix_of_an_even_order_spreads_over_the_range():
    order = even_orders(words(5, np.arange(1)), np.array([1024]), 1024)[0].astype(int)
    for n in (16, 64, 256):
        per_cell = np.bincount(order[:n] * 16 // 1024, minlength=16)
        assert per_cell.max() - per_cell.min() <= 1


def test_random_orders_are_uniform():
    orders = random_orders(words(9, np.arange(60_000).reshape(-1, 3)), np.full(20_000, 3))
    counts = np.unique(orders @ np.array([9, 3, 1]), return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 20_000 / 6).max() < 5 * np.sqrt(20_000 / 6)


def test_long_random_orders_take_all_bits():
    order = random_orders(words(1, np.arange(20_000).reshape(1, -1)), np.array([20_000]))[0]
    assert sorted(order.tolist()) == list(range(20_000))
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.05
