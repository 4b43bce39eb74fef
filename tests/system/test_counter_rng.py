import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.system.counter_rng import (
    NOBLE_STEPS,
    even_orders,
    random_key,
    random_orders,
    word_below,
    words,
    words_below,
)


def test_words_are_splitmix64():
    # The first outputs of splitmix64 seeded with 0: its state advances by the golden gamma, then is finalised.
    gamma = np.uint64(0x9E3779B97F4A7C15)
    assert words(0, np.array([gamma])).tolist() == [0xE220A8397B1DCDAF]
    assert words(0, np.arange(1, 3)).tolist() == [0x5692161D100B05E5, 0xDBD238973A2B148A]


def test_draws_and_orders_are_pinned():
    assert words_below(0, np.arange(4), np.array([1, 10, 10, 2**40])).tolist() == [0, 3, 8, 130247749091]
    order = even_orders(words(0, np.arange(1)), np.array([8]), 8)
    assert order.tolist() == [[0, 5, 2, 7, 4, 1, 6, 3]]


def test_keys_are_pinned():
    assert [random_key(0), random_key(0, 1), random_key(0, 1, 2), random_key(7, 1, 2)] == [
        15793235383387715774,
        4881901421217228719,
        9247832928889101276,
        10549271650533257363,
    ]
    assert len({random_key(0, 0, 1), random_key(0, 1, 0), random_key(1, 0, 0), random_key(0, 0, 0)}) == 4


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**40))
def test_word_below_stays_below(some_key, bound):
    assert 0 <= word_below(some_key, bound) < bound


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 300), min_size=1, max_size=5), st.booleans())
def test_orders_hold_every_thing_once(some_key, lengths, even):
    width = max(*lengths, 1)
    counters = np.arange(len(lengths) * width).reshape(len(lengths), width)
    random = words(some_key, counters)
    ordered = even_orders(random[:, 0], np.array(lengths), width)
    orders = ordered if even else random_orders(random, np.array(lengths))
    for order, length in zip(orders.tolist(), lengths, strict=True):
        assert sorted(order[:length]) == list(range(length))
        assert order[length:] == list(range(length, width))


def test_wide_orders_agree_with_narrow_ones_where_both_apply():
    random = words(3, np.arange(4))
    narrow = even_orders(random, np.full(4, 500), 500)
    wide = even_orders(random, np.full(4, 500), 20_000)[:, :500]
    # The narrow one ranks by 23 bits, the wide one by 49, and 500 multiples differ in the upper 23 of them.
    assert np.array_equal(narrow, wide)


def test_the_golden_ratio_is_a_noble_step_both_ways():
    ratio = (math.isqrt(5 << 128) - (1 << 64)) // 2
    assert [ratio, 2**64 - ratio] == NOBLE_STEPS[:2].tolist() == [0x9E3779B97F4A7C15, 0x61C8864680B583EB]


def test_noble_steps_have_small_partial_quotients():
    for step in NOBLE_STEPS.tolist():
        quotients, above, below = [], step, 1 << 64
        while above and len(quotients) < 30:  # within what 64 bits fix
            quotients.append(below // above)
            above, below = below % above, above
        # 1 - [0; a, ...] is [0; 1, a - 1, ...], or [0; b + 1, ...] where a is 1.
        assert max(quotients) <= 4
    assert len(set(NOBLE_STEPS.tolist())) == 54


@given(st.integers(0, 2**40), st.integers(16, 1100), st.integers(0, 5000), st.integers(1, 5000))
def test_every_stretch_of_a_repeated_even_order_spreads_over_the_range(some_key, n, start, length):
    order = even_orders(words(some_key, np.arange(1)), np.array([n]), n)[0].astype(int)
    stretch = np.resize(np.roll(order, -(start % n)), length % n + 1)
    found = np.cumsum(np.bincount(stretch, minlength=n))
    expected = np.arange(1, n + 1) * len(stretch) / n
    # The discrepancy of such sequences grows with the logarithm; a random order's is about sqrt(n).
    assert abs(found - expected).max() < 2 + 0.7 * np.log2(n)


def test_every_prefix_of_turns_spreads_over_the_range():
    turns = even_orders(words(5, np.arange(1)), np.array([1024]), 1024)[0].astype(int)
    places = np.argsort(turns)
    for n in (16, 64, 256):
        per_cell = np.bincount(places[:n] * 16 // 1024, minlength=16)
        assert per_cell.max() - per_cell.min() <= 2


def test_random_orders_are_uniform():
    orders = random_orders(words(9, np.arange(60_000).reshape(-1, 3)), np.full(20_000, 3))
    counts = np.unique(orders @ np.array([9, 3, 1]), return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 20_000 / 6).max() < 5 * np.sqrt(20_000 / 6)


def test_long_random_orders_take_all_bits():
    order = random_orders(words(1, np.arange(20_000).reshape(1, -1)), np.array([20_000]))[0]
    assert sorted(order.tolist()) == list(range(20_000))
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.05
