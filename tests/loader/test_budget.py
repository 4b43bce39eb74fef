import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import BudgetError, UsageError
from streamtrain.loader.budget import MOST_LANES, LoaderSizes, project, solve
from streamtrain.store.layout import Field, Layout


def layout_of(n_samples=1_000_000, row_shape=(3072,), block_rows=168, codec="none"):
    x = Field(name="x", dtype=np.dtype("uint8"), shape=row_shape)
    y = Field(name="y", dtype=np.dtype("int64"), shape=())
    return Layout(fields=(x, y), n_samples=n_samples, block_rows=block_rows, shard_blocks=100, codec=codec)


def test_the_projection_is_the_sum_of_its_terms():
    layout = layout_of(codec="lz4")
    sizes = LoaderSizes(
        batch_size=256,
        lanes=64,
        groups=1,
        slots=100,
        prefetch=24,
        read_blocks=8,
        span_batches=4,
        spans=3,
        index_samples=10_000,
        threads=2,
        reserve_bytes=0,
    )
    projection = project(layout, sizes, budget_bytes=10**9)
    block_bytes = 168 * (3072 + 8)
    pool = 100 * 168 * 3072 + math.ceil(100 * 168 * 8 / 4096) * 4096
    assert projection.terms["lanes"] == 64 * block_bytes
    assert projection.terms["cache"] == 12 * block_bytes
    assert projection.terms["prefetch"] == pool - 76 * block_bytes
    assert projection.terms["batches"] == 3 * (4 * 256 * 3072 + 4 * 256 * 8)
    assert projection.total_bytes == sum(projection.terms.values())
    assert str(projection).startswith("lanes 33.1 MB + prefetch 12.4 MB + cache 6.2 MB + batches 9.5 MB + ")
    assert str(projection).endswith(" of 1.00 GB")


@given(
    n_samples=st.integers(1, 10**7),
    row_bytes=st.integers(1, 5000),
    block_rows=st.integers(1, 500),
    batch_size=st.integers(1, 600),
    memory=st.integers(2 * 10**6, 10**9),
    shuffle=st.booleans(),
)
def test_what_is_solved_fits_and_can_run_or_is_refused_with_what_would_do(
    n_samples, row_bytes, block_rows, batch_size, memory, shuffle
):
    layout = layout_of(n_samples, (row_bytes,), block_rows)
    try:
        sizes, projection = solve(layout, batch_size=batch_size, memory=memory, shuffle=shuffle)
    except BudgetError as refusal:
        smallest = int(refusal.fix.removeprefix("memory='").removesuffix("B'"))
        assert smallest > memory
        assert solve(layout, batch_size=batch_size, memory=smallest, shuffle=shuffle)[1].total_bytes <= smallest
        return
    assert projection.total_bytes <= memory
    assert sizes.slots <= layout.n_blocks
    assert sizes.slots >= min(layout.n_blocks, sizes.lanes + 1)
    assert sizes.shuffle == shuffle
    if shuffle:
        assert batch_size % sizes.groups == 0
        assert sizes.lanes % sizes.groups == 0
        held_whole = sizes.slots == layout.n_blocks
        most = max(min(MOST_LANES, layout.n_blocks // 8), batch_size if held_whole else 1)
        assert sizes.lanes <= min(most, n_samples)
        assert sizes.lanes < batch_size or sizes.lanes % batch_size == 0
    else:
        assert (sizes.lanes, sizes.groups) == (1, 1)


@pytest.mark.parametrize("memory", [16 << 20, 64 << 20, 1 << 30])
def test_the_sequential_order_reads_larger_pieces_since_no_lane_needs_the_memory(memory):
    layout = layout_of(row_shape=(784,), block_rows=100)
    in_order, shuffled = (solve(layout, batch_size=256, memory=memory, shuffle=shuffle)[0] for shuffle in (False, True))
    assert in_order.read_blocks >= 2 * shuffled.read_blocks
    assert in_order.span_batches >= shuffled.span_batches
    assert in_order.slots >= in_order.threads * in_order.read_blocks


def test_more_memory_never_gives_fewer_slots():
    slots = [solve(layout_of(), batch_size=256, memory=m * 10**6)[0].slots for m in (32, 64, 128, 512, 2000)]
    assert slots == sorted(slots)


def test_a_dataset_that_fits_is_held_whole():
    sizes, _ = solve(layout_of(n_samples=50_000), batch_size=256, memory=512 * 10**6)
    assert sizes.slots == layout_of(n_samples=50_000).n_blocks


def test_lanes_take_a_third_of_the_slots_in_whole_batches():
    sizes, _ = solve(layout_of(n_samples=3_000_000), batch_size=64, memory=512 * 10**6)
    assert sizes.lanes == sizes.slots // 3 // 64 * 64
    assert sizes.slots - sizes.working_slots > sizes.slots // 2


def test_lanes_take_more_where_what_they_read_twice_stays_small():
    # 100 GB in blocks of 512 KB.
    sizes, projection = solve(layout_of(n_samples=200_000 * 168), batch_size=256, memory=512 * 10**6)
    assert sizes.lanes > sizes.slots // 3
    assert sizes.lanes % 256 == 0
    assert projection.expected.reads == pytest.approx((1.0, 1.0), abs=0.02)


def test_data_that_is_held_whole_has_an_eighth_of_its_blocks_as_lanes_or_a_batch():
    few_blocks, _ = solve(layout_of(60_000, (784,), 384), batch_size=256, memory=512 * 10**6)
    many_blocks, _ = solve(layout_of(60_000, (784,), 12), batch_size=256, memory=512 * 10**6)
    few_samples, _ = solve(layout_of(100, (784,), 12), batch_size=256, memory=512 * 10**6)
    assert (few_blocks.lanes, few_blocks.slots) == (256, 157)
    assert many_blocks.lanes == 512  # of 5,000 blocks
    assert few_samples.lanes * few_samples.batch_size % few_samples.groups == 0
    assert 90 < few_samples.lanes <= 100


def test_where_there_are_fewer_lanes_than_a_batch_has_samples_that_is_expected_of_it():
    layout = layout_of(n_samples=100_000)
    sizes, projection = solve(layout, batch_size=256, memory=64 * 10**6, rho=0.5)
    assert 16 < sizes.lanes < 256
    assert sizes.lanes <= 0.6 * sizes.slots
    assert projection.expected.same_block == 256 / sizes.lanes
    assert projection.expected.variance == pytest.approx(1 + (256 / sizes.lanes - 1) * 0.5)
    assert solve(layout, batch_size=256, memory=64 * 10**6)[0] == sizes, "labels choose nothing"


@pytest.mark.parametrize(
    ("batch_size", "n_blocks", "groups"),
    [(256, 100_000, 128), (256, 2000, 16), (100, 2000, 20), (25, 2000, 5), (7, 2000, 7), (1, 2000, 1), (97, 3000, 1)],
)
def test_groups_are_the_divisor_of_the_batch_with_the_most_twos(batch_size, n_blocks, groups):
    sizes, _ = solve(layout_of(n_samples=168 * n_blocks), batch_size=batch_size, memory=512 * 10**6)
    assert sizes.groups == groups


@pytest.mark.parametrize("n_blocks", [1, 3, 16, 100, 1000, 20_000])
@pytest.mark.parametrize("memory", [20, 60, 500, 20_000])
def test_groups_divide_batch_and_lanes_whatever_the_batch_is(n_blocks, memory):
    for batch_size in range(1, 601, 13):
        try:
            sizes, _ = solve(layout_of(168 * n_blocks), batch_size=batch_size, memory=memory * 10**6)
        except BudgetError:
            continue
        assert batch_size % sizes.groups == sizes.lanes % sizes.groups == 0


def test_stated_lanes_and_groups_are_kept():
    sizes, _ = solve(layout_of(), batch_size=256, memory=512 * 10**6, lanes=62)
    assert (sizes.lanes, sizes.groups) == (62, 2)
    sizes, _ = solve(layout_of(), batch_size=256, memory=512 * 10**6, lanes=1)
    assert (sizes.lanes, sizes.groups) == (1, 1)
    sizes, _ = solve(layout_of(), batch_size=256, memory=512 * 10**6, lanes=640, groups=128)
    assert (sizes.lanes, sizes.groups) == (640, 128)
    sizes, _ = solve(layout_of(), batch_size=256, memory=512 * 10**6, groups=2)
    assert (sizes.lanes, sizes.groups) == (256, 2)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"lanes": 0}, "lanes is 0; it must be an integer of at least 1"),
        ({"lanes": -2}, "lanes is -2"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": 3}, "256 samples cannot be drawn from 3 groups.*groups=4"),
        ({"lanes": 10, "groups": 4}, "10 lanes cannot be dealt to 4 groups.*lanes=8"),
        ({"lanes": 1_000_001}, "the dataset has 1000000 samples"),
    ],
)
def test_impossible_lanes_and_groups_are_refused(order, message):
    with pytest.raises(UsageError, match=message):
        solve(layout_of(), batch_size=256, memory=512 * 10**6, **order)


def test_a_budget_below_one_block_and_one_batch_says_what_would_do():
    with pytest.raises(BudgetError) as caught:
        solve(layout_of(), batch_size=256, memory=1_000_000)
    message = str(caught.value)
    assert "memory is 1.0 MB, and the smallest that works is" in message
    for term in ("lanes", "prefetch", "cache", "batches", "decoding", "order", "index work", "checksums", "threads"):
        assert term in message
    assert caught.value.exit_code == 5
    assert isinstance(caught.value, MemoryError)
