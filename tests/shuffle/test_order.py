"""The order compared with a twin written out from its description, one sample at a time."""

import hashlib
import time
import tracemalloc
from fractions import Fraction
from itertools import accumulate, pairwise
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import UsageError
from streamtrain.shuffle.order import ShuffleParameters, sequential_order, shuffled_order
from streamtrain.shuffle.positions import deals_of, iter_positions, positions_of, samples_at

M64 = 2**64 - 1
OFFSET, CUTS, RUNS, STARTS, ROWS, ROUNDS, TURNS = range(7)


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


STEPS = [
    way
    for number in [noble(a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)]
    for way in (number, 2**64 - number)
]


def random_order(n, width, word):
    """The things 0..n-1 by their words, of whose bits the low ones give way to the index."""
    bits = max(width - 1, 1).bit_length()

    def rank(i):
        return (word(i) >> 32 >> bits << bits | i) if bits <= 14 else (word(i) >> bits << bits | i)

    return sorted(range(n), key=rank)


class Twin:
    """The order of an epoch, by the book."""

    def __init__(self, n, block_rows, batch_size, lanes, groups, seed, epoch):
        self.n, self.block_rows, self.groups, self.lanes = n, block_rows, groups, lanes
        self.keys = [
            int(np.random.SeedSequence(seed, spawn_key=(epoch, purpose)).generate_state(1, np.uint64)[0])
            for purpose in range(7)
        ]
        self.offset = self.below(OFFSET, 0, n)
        self.of_group, of_batch = lanes // groups, batch_size // groups
        self.n_rounds = -(-self.of_group // of_batch)
        self.cycles, start = [], 0
        for group in range(groups):
            size = len(range(group, n, groups))
            cuts = self.cuts(group, start, size)
            self.cycles += [self.cycle(a, b, len(self.cycles) + i) for i, (a, b) in enumerate(pairwise(cuts))]
            start += size
        assert start == n

    def cuts(self, group, start, size):
        """Where a group's lanes begin, and its end: as many longer ones as need be, drawn."""
        shorter, n_longer = divmod(size, self.of_group)
        drawn = random_order(self.of_group, self.of_group, lambda i: self.word(CUTS, group * self.of_group + i))
        lengths = [shorter + (lane in drawn[:n_longer]) for lane in range(self.of_group)]
        return list(accumulate(lengths, initial=start))

    def word(self, purpose, counter):
        return mix64(self.keys[purpose] + counter)

    def below(self, purpose, counter, bound):
        return self.word(purpose, counter) * bound >> 64

    def cycle(self, first, end, lane):
        """A lane's samples [first, end) of the rotated space as it emits them."""
        runs = []
        for at in range(first, end):
            sample = (at + self.offset) % self.n
            if runs and sample == runs[-1][-1] + 1 and sample % self.block_rows:
                runs[-1].append(sample)
            else:
                runs.append([sample])
        longest = -(-self.n // self.lanes)
        most_runs = min(longest, (longest - 2) // self.block_rows + 3)
        assert len(runs) <= most_runs
        word = self.word(RUNS, lane)
        step = STEPS[word % len(STEPS)]
        around = []
        for run in random_order(len(runs), most_runs, lambda i: word + i * step & M64):
            rows = runs[run]
            width = min(self.block_rows, longest)
            order = random_order(len(rows), width, lambda i, rows=rows: self.word(ROWS, rows[0] + i))
            around += [rows[i] for i in order]
        place = self.below(STARTS, lane, len(around))
        return around[place:] + around[:place]

    def deal(self, season, group):
        """The group's lanes, as they come in a sweep of a season."""
        number = season * self.groups + group
        n_strata = -(-self.of_group // self.n_rounds)
        strata = np.array_split(np.arange(self.of_group), n_strata)
        rounds = {}
        for index, stratum in enumerate(strata):
            first = (number * n_strata + index) * self.n_rounds
            drawn = random_order(self.n_rounds, self.n_rounds, lambda i, first=first: self.word(ROUNDS, first + i))
            rounds |= dict(zip(stratum.tolist(), drawn, strict=False))
        bits, rank_bits = max(self.of_group - 1, 1).bit_length(), (self.n_rounds - 1).bit_length()
        n_bits = 32 if bits + rank_bits <= 14 else 64

        def rank(lane):
            word = self.word(TURNS, number * self.of_group + lane)
            return rounds[lane], word >> (64 - n_bits + rank_bits) >> bits, lane

        return sorted(range(self.of_group), key=rank)

    def samples(self):
        out = []
        for group in range(self.groups):
            cycles = self.cycles[group * self.of_group :][: self.of_group]
            out.append([])
            for sweep in range(max(map(len, cycles))):
                out[-1] += [cycles[k][sweep] for k in self.deal(sweep // 16, group) if sweep < len(cycles[k])]
        return [out[p % self.groups][p // self.groups] for p in range(self.n)]


@st.composite
def shuffles(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    n_samples = draw(st.integers(groups, 400))
    return ShuffleParameters(
        n_samples=n_samples,
        block_rows=draw(st.integers(1, 60)),
        batch_size=groups * draw(st.integers(1, 20)),
        lanes=groups * draw(st.integers(1, min(30, n_samples // groups))),
        groups=groups,
    )


def twin_of(shuffle, seed, epoch):
    return Twin(shuffle.n_samples, shuffle.block_rows, shuffle.batch_size, shuffle.lanes, shuffle.groups, seed, epoch)


@given(shuffles(), st.integers(0, 2**40), st.integers(0, 10**6))
def test_the_order_is_its_description(shuffle, seed, epoch):
    order = shuffled_order(shuffle, seed=seed, epoch=epoch)
    assert samples_at(order, 0, shuffle.n_samples).tolist() == twin_of(shuffle, seed, epoch).samples()


@given(st.integers(1, 20_000), st.integers(1, 3000), st.integers(1, 80), st.integers(1, 300), st.integers(0, 5))
def test_every_sample_comes_exactly_once(n_samples, block_rows, lanes, batch_size, epoch):
    lanes = min(lanes, n_samples)
    shuffle = ShuffleParameters(n_samples=n_samples, block_rows=block_rows, batch_size=batch_size, lanes=lanes)
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
        assert np.array_equal(order.run_first[piece.visits] + piece.rows, whole[piece.start : piece.stop])
    assert position == shuffle.n_samples


@given(shuffles())
def test_a_rank_of_a_world_reads_its_own_groups_blocks_alone(shuffle):
    seen = samples_at(shuffled_order(shuffle, seed=0, epoch=0), 0, shuffle.n_samples)
    for g in range(shuffle.groups):
        own = np.sort(seen[g :: shuffle.groups])
        gaps = np.count_nonzero(np.diff(own) > 1) + (own[0] > 0) + (own[-1] < shuffle.n_samples - 1) if len(own) else 0
        assert gaps <= 2  # one contiguous range of the rotated space


def test_epochs_and_seeds_differ():
    shuffle = ShuffleParameters(n_samples=1000, block_rows=10, batch_size=8, lanes=16)
    orders = [
        samples_at(shuffled_order(shuffle, seed=s, epoch=e), 0, 1000).tobytes() for s in range(4) for e in range(4)
    ]
    assert len(set(orders)) == 16


def test_the_golden_order():
    """The order of a release never changes: who resumes an older run gets the same samples."""
    order = shuffled_order(
        ShuffleParameters(n_samples=40, block_rows=4, batch_size=4, lanes=8, groups=2), seed=2024, epoch=3
    )
    assert samples_at(order, 0, 40).tolist() == GOLDEN
    longer = shuffled_order(
        ShuffleParameters(n_samples=5000, block_rows=7, batch_size=4, lanes=12, groups=2), seed=2024, epoch=3
    )
    digest = hashlib.sha256(samples_at(longer, 0, 5000).astype("<i8").tobytes()).hexdigest()
    assert digest == GOLDEN_DIGEST, "417 sweeps of 60 runs a lane, which a short order has not"


def test_the_last_sweep_meets_no_periodic_data():
    """Only the longer lanes come in it: spread evenly, their samples would all lie on one side of some period."""
    n_samples, lanes = 1000, 117
    shuffle = ShuffleParameters(n_samples=n_samples, block_rows=1, batch_size=39, lanes=lanes)
    n_epochs, n_longer = 60, n_samples % lanes
    marks = np.zeros((n_epochs, n_samples))
    for epoch in range(n_epochs):
        order = shuffled_order(shuffle, seed=1, epoch=epoch)
        marks[epoch, samples_at(order, n_samples - n_longer, n_samples)] = 1
    power = (np.abs(np.fft.rfft(marks, axis=1)[:, 1:]) ** 2).mean(axis=0)
    assert power.max() < 2 * n_longer * (1 - n_longer / n_samples), "what chance gives at 500 frequencies"


@given(st.integers(1, 500), st.integers(1, 60), st.data())
def test_the_sequential_order_is_the_stored_one(n_samples, block_rows, data):
    start = data.draw(st.integers(0, n_samples))
    assert samples_at(sequential_order(n_samples, block_rows), start, n_samples).tolist() == list(
        range(start, n_samples)
    )


def test_a_billion_samples_are_set_up_in_little_memory_and_time():
    shuffle = ShuffleParameters(n_samples=10**9, block_rows=1000, batch_size=256, lanes=1024, groups=8)
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
    few = shuffled_order(ShuffleParameters(n_samples=10**6, block_rows=10**4, batch_size=16, lanes=16), seed=0, epoch=0)
    many = shuffled_order(
        ShuffleParameters(n_samples=10**8, block_rows=10**6, batch_size=16, lanes=16), seed=0, epoch=0
    )
    assert len(few.run_first) <= 100 + 3 * 16
    assert len(many.run_first) <= 100 + 3 * 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_samples": 0}, "n_samples is 0"),
        ({"block_rows": 0}, "block_rows is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lanes": 0}, "lanes is 0"),
        ({"lanes": 31}, "lanes is 31; the dataset has 30 samples.*Fix: lanes=30"),
        ({"groups": 3}, "a batch of 4 samples cannot be drawn from 3 groups.*Fix: groups=4"),
        ({"lanes": 15, "groups": 4}, "15 lanes cannot be dealt to 4 groups.*Fix: lanes=12"),
        ({"n_samples": 4 * 10**13, "block_rows": 100, "lanes": 4}, r"4 lanes are too few.*Fix: lanes="),
    ],
)
def test_impossible_parameters_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        ShuffleParameters(**{"n_samples": 30, "block_rows": 2, "batch_size": 4, "lanes": 4, **wrong})


def test_the_lanes_that_a_refusal_names_are_enough():
    few = {"n_samples": 4 * 10**13, "block_rows": 100, "batch_size": 4}
    with pytest.raises(UsageError) as caught:
        ShuffleParameters(**few, lanes=4)
    ShuffleParameters(**few, lanes=int(caught.value.fix.removeprefix("lanes=")))


@given(shuffles(), st.integers(0, 99), st.data())
def test_a_lanes_position_in_a_sweep_is_where_its_sample_stands(shuffle, seed, data):
    order = shuffled_order(shuffle, seed=seed, epoch=1)
    twin = twin_of(shuffle, seed, 1)
    lane = data.draw(st.integers(0, shuffle.lanes - 1))
    sweeps = np.arange(len(twin.cycles[lane]))
    positions = positions_of(order, np.full(len(sweeps), lane), sweeps)
    whole = samples_at(order, 0, shuffle.n_samples)
    assert whole[positions].tolist() == twin.cycles[lane]


def test_every_row_of_a_lane_is_equally_likely_at_every_sweep():
    """Over many epochs, by chi-squared; lanes that are fixed in place, since the rotation alone would make them so."""
    shuffle = ShuffleParameters(n_samples=210, block_rows=8, batch_size=10, lanes=10, groups=2)
    n_epochs, n_cells = 3000, 7
    counts = np.zeros((21, n_cells), np.int64)
    for epoch in range(n_epochs):
        order = shuffled_order(shuffle, seed=11, epoch=epoch)
        lane = 3 + epoch % 2  # one of each parity
        cycle = samples_at(order, 0, 210)[positions_of(order, np.full(21, lane), np.arange(21))]
        # The lane's place in the data: how far each sample lies behind the lane's own first one.
        first = cycle[np.argmax(~np.isin((cycle - 1) % 210, cycle))]
        counts[np.arange(21), (cycle - first) % 210 // 3] += 1
    expected = n_epochs / n_cells
    chi_squared = ((counts - expected) ** 2 / expected).sum(axis=1)
    # 6 degrees of freedom: 22.5 is exceeded once in a thousand, and there are 21 sweeps.
    assert chi_squared.max() < 27
    assert chi_squared.mean() < 8


def test_two_lanes_are_independent():
    shuffle = ShuffleParameters(n_samples=240, block_rows=12, batch_size=4, lanes=4, groups=1)
    n_epochs, pairs = 4000, [(0, 1), (1, 2), (0, 3)]
    counts = np.zeros((len(pairs), 3, 4, 4), np.int64)
    for epoch in range(n_epochs):
        order = shuffled_order(shuffle, seed=5, epoch=epoch)
        whole = samples_at(order, 0, 240)
        cycles = [whole[positions_of(order, np.full(60, lane), np.arange(60))] for lane in range(4)]
        places = [(cycle - cycle[np.argmax(~np.isin((cycle - 1) % 240, cycle))]) % 240 // 15 for cycle in cycles]
        for i, (one, other) in enumerate(pairs):
            for j, sweep in enumerate((0, 30, 59)):
                counts[i, j, places[one][sweep], places[other][sweep]] += 1
    expected = n_epochs / 16
    chi_squared = ((counts - expected) ** 2 / expected).sum(axis=(2, 3))
    # 15 degrees of freedom: 37.7 is exceeded once in a thousand.
    assert chi_squared.max() < 40


@pytest.mark.parametrize(("lanes", "batch_size"), [(12, 6), (12, 12), (10, 4), (7, 3), (30, 4)])
def test_a_batch_of_whole_rounds_takes_one_lane_of_each_stratum(lanes, batch_size):
    shuffle = ShuffleParameters(n_samples=40 * lanes, block_rows=5, batch_size=batch_size, lanes=lanes)
    order = shuffled_order(shuffle, seed=2, epoch=0)
    n_rounds = -(-lanes // batch_size)
    strata = np.array_split(np.arange(lanes), -(-lanes // n_rounds))
    stratum_of = np.concatenate([np.full(len(some), number) for number, some in enumerate(strata)])
    for dealt in deals_of(order, np.arange(3)):
        assert sorted(dealt.tolist()) == list(range(lanes))
        if lanes % batch_size == 0:
            for batch in dealt.reshape(-1, batch_size):
                assert sorted(stratum_of[batch].tolist()) == list(range(batch_size))


# fmt: off
GOLDEN = [
    6, 35, 11, 28, 17, 19, 3, 32, 8, 37, 9, 25, 18, 22, 2, 29, 5, 36, 12, 24, 16, 20, 0, 31, 4, 38, 13, 27, 14, 21,
    1, 30, 7, 34, 10, 26, 15, 23, 39, 33,
]
# fmt: on
GOLDEN_DIGEST = "8e242e73c6f7381efcdb942292486cadefed22b6ac79d824140bed3dff4f83df"
