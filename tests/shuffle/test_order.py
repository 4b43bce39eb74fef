"""The order against a twin written out from its description, one sample at a time."""

import hashlib
import time
import tracemalloc
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import UsageError
from streamtrain.shuffle.order import ShuffleParameters, sequential_order, shuffled_order
from streamtrain.shuffle.positions import iter_positions, samples_at
from streamtrain.system.counter_rng import random_key

M64 = 2**64 - 1


def mix64(z):
    z &= M64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def noble(*terms):
    """[0; terms, 1, 1, 1, ...] in units of 2**-64, from the golden ratio by integer square roots."""
    bits = 256
    value = Fraction(isqrt(5 << 2 * bits) - (1 << bits), 2 << bits)  # (sqrt(5) - 1) / 2
    for term in reversed(terms):
        value = 1 / (term + value)
    return int(value * 2**64)


GOLDEN_RATIO = [noble()]
NOBLE = [noble(a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)]


def even_order(n, word, numbers, width):
    """Things by their multiple of one of the numbers, forwards or backwards; ties and low bits by index."""
    step = [way for number in numbers for way in (number, 2**64 - number)][word % (2 * len(numbers))]
    return random_order(n, width, lambda i: word + i * step & M64)


def random_order(n, width, word):
    bits = max(width - 1, 1).bit_length()

    def rank(i):
        return (word(i) >> 32 >> bits << bits | i) if bits <= 14 else (word(i) >> bits << bits | i)

    return sorted(range(n), key=rank)


def twin(n, block_rows, lanes, groups, seed, epoch):
    """The order of an epoch, by the book."""
    offset = mix64(random_key(seed, epoch, 0)) * n >> 64
    lanes_each = lanes // groups
    visited, start = [], 0
    for g in range(groups):
        size = len(range(g, n, groups))
        for q in range(lanes_each):
            length = size // lanes_each + (q < size % lanes_each)
            visited.append(runs_of([(start + i + offset) % n for i in range(length)], block_rows))
            start += length
    assert start == n
    width = max(1, *(len(runs) - 2 for runs in visited))
    visited = [visit(runs, lane, width, block_rows, seed, epoch) for lane, runs in enumerate(visited)]
    emitted = [[] for _ in range(groups)]
    sweep = 0
    while any(len(lane) > sweep for lane in visited):
        for g in range(groups):
            mine = visited[g * lanes_each : (g + 1) * lanes_each]
            active = [lane for lane in mine if len(lane) > sweep]
            word = mix64(random_key(seed, epoch, 3) + sweep // 16 * groups + g)
            order = even_order(len(active), word, NOBLE, lanes_each)
            emitted[g] += [active[q][sweep] for q in order]
        sweep += 1
    return [emitted[p % groups][p // groups] for p in range(n)]


def runs_of(lane_samples, block_rows):
    runs = []
    for sample in lane_samples:
        if runs and sample == runs[-1][-1] + 1 and sample % block_rows:
            runs[-1].append(sample)
        else:
            runs.append([sample])
    return runs


def visit(runs, lane, width, block_rows, seed, epoch):
    if len(runs) > 1:
        turns = even_order(len(runs) - 2, mix64(random_key(seed, epoch, 1) + lane), GOLDEN_RATIO, width)
        inner = [run for _, run in sorted(zip(turns, runs[1:-1], strict=True))]
        runs = [runs[0], *inner, runs[-1]] if lane % 2 else [runs[-1], *inner, runs[0]]
    rows_key = random_key(seed, epoch, 2)
    out = []
    for run in runs:
        order = random_order(len(run), block_rows, lambda i, run=run: mix64(rows_key + run[0] + i))
        out += [run[i] for i in order]
    return out


@st.composite
def shuffles(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    return ShuffleParameters(
        n_samples=draw(st.integers(1, 400)),
        block_rows=draw(st.integers(1, 60)),
        lanes=2 * groups * draw(st.integers(1, 8)),
        groups=groups,
    )


@given(shuffles(), st.integers(0, 2**40), st.integers(0, 10**6))
def test_the_order_is_its_description(shuffle, seed, epoch):
    order = shuffled_order(shuffle, seed=seed, epoch=epoch)
    expected = twin(shuffle.n_samples, shuffle.block_rows, shuffle.lanes, shuffle.groups, seed, epoch)
    assert samples_at(order, 0, shuffle.n_samples).tolist() == expected


@given(st.integers(1, 20_000), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 5))
def test_every_sample_comes_exactly_once(n_samples, block_rows, half_lanes, epoch):
    shuffle = ShuffleParameters(n_samples=n_samples, block_rows=block_rows, lanes=2 * half_lanes)
    seen = samples_at(shuffled_order(shuffle, seed=1, epoch=epoch), 0, n_samples)
    assert np.array_equal(np.sort(seen), np.arange(n_samples))


@given(shuffles(), st.data())
def test_any_start_and_any_piece_size_give_the_same_order(shuffle, data):
    order = shuffled_order(shuffle, seed=3, epoch=2)
    whole = samples_at(order, 0, shuffle.n_samples)
    start = data.draw(st.integers(0, shuffle.n_samples - 1))
    position = start
    for piece in iter_positions(order, start, index_samples=data.draw(st.integers(1, 200))):
        assert piece.start == position
        position = piece.stop
        assert np.array_equal(order.run_first[piece.runs] + piece.rows, whole[piece.start : piece.stop])
    assert position == shuffle.n_samples


@given(shuffles())
def test_a_rank_of_a_world_reads_its_own_groups_blocks_alone(shuffle):
    seen = samples_at(shuffled_order(shuffle, seed=0, epoch=0), 0, shuffle.n_samples)
    for g in range(shuffle.groups):
        own = np.sort(seen[g :: shuffle.groups])
        gaps = np.count_nonzero(np.diff(own) > 1) + (own[0] > 0) + (own[-1] < shuffle.n_samples - 1) if len(own) else 0
        assert gaps <= 2  # one contiguous range of the rotated space


def test_epochs_and_seeds_differ():
    shuffle = ShuffleParameters(n_samples=1000, block_rows=10, lanes=16)
    orders = [
        samples_at(shuffled_order(shuffle, seed=s, epoch=e), 0, 1000).tobytes() for s in range(4) for e in range(4)
    ]
    assert len(set(orders)) == 16


def test_the_golden_order():
    """The order of a release never changes: who resumes an older run gets the same samples."""
    order = shuffled_order(ShuffleParameters(n_samples=40, block_rows=4, lanes=8, groups=2), seed=2024, epoch=3)
    assert samples_at(order, 0, 40).tolist() == GOLDEN
    longer = shuffled_order(ShuffleParameters(n_samples=5000, block_rows=7, lanes=12, groups=2), seed=2024, epoch=3)
    digest = hashlib.sha256(samples_at(longer, 0, 5000).astype("<i8").tobytes()).hexdigest()
    assert digest == GOLDEN_DIGEST, "417 sweeps of 60 runs a lane, which a short order has not"


@given(st.integers(1, 500), st.integers(1, 60), st.data())
def test_the_sequential_order_is_the_stored_one(n_samples, block_rows, data):
    start = data.draw(st.integers(0, n_samples))
    assert samples_at(sequential_order(n_samples, block_rows), start, n_samples).tolist() == list(
        range(start, n_samples)
    )


def test_a_billion_samples_are_set_up_in_little_memory_and_time():
    shuffle = ShuffleParameters(n_samples=10**9, block_rows=1000, lanes=1024, groups=8)
    tracemalloc.start()
    started = time.process_time()
    order = shuffled_order(shuffle, seed=0, epoch=0)
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    # No benchmark: a guard against work that grows with samples instead of blocks, which would take minutes.
    assert seconds < 20
    assert len(samples_at(order, 5 * 10**8, 5 * 10**8 + 1000)) == 1000


def test_what_is_held_grows_with_blocks_and_lanes_alone():
    few = shuffled_order(ShuffleParameters(n_samples=10**6, block_rows=10**4, lanes=16), seed=0, epoch=0)
    many = shuffled_order(ShuffleParameters(n_samples=10**8, block_rows=10**6, lanes=16), seed=0, epoch=0)
    assert len(few.run_first) <= 100 + 16 + 1
    assert len(many.run_first) <= 100 + 16 + 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_samples": 0}, "n_samples is 0"),
        ({"block_rows": 0}, "block_rows is 0"),
        ({"lanes": 3}, "3 lanes cannot be dealt to 1 groups"),
        ({"lanes": 12, "groups": 4}, "Fix: lanes=8"),
    ],
)
def test_impossible_parameters_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        ShuffleParameters(**{"n_samples": 10, "block_rows": 2, "lanes": 4, **wrong})


# fmt: off
GOLDEN = [
    3, 27, 4, 32, 13, 35, 15, 22, 1, 26, 7, 33, 12, 34, 14, 20, 0, 25, 6, 30, 9, 37, 16, 21, 2, 24, 5, 31, 11, 38,
    18, 23, 39, 28, 8, 29, 10, 36, 17, 19,
]
# fmt: on
GOLDEN_DIGEST = "2a0b44a7dd5fc94c36fc7f69e77d6076532cf32aeea84c2af785f6aa829b98cb"
