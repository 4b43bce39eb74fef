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
    assert sizes.lanes <= max(2, min(MOST_LANES, layout.n_blocks // 2))
    if shuffle:
        assert batch_size % sizes.groups == 0
        assert sizes.lanes % (2 * sizes.groups) == 0
    else:
        assert sizes.lanes == 1


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


def test_lanes_that_would_all_move_at_once_are_avoided():
    # 2,000 blocks of 500: a thousand lanes of 1,000 samples would cross their block edges together.
    layout = layout_of(n_samples=1_000_000, row_shape=(8,), block_rows=500)
    sizes, _ = solve(layout, batch_size=255, memory=100 * 10**6)
    assert 900 <= sizes.lanes < 1000


def test_stated_lanes_are_kept():
    sizes, _ = solve(layout_of(), batch_size=256, memory=512 * 10**6, lanes=62)
    assert (sizes.lanes, sizes.groups) == (62, 1)


@pytest.mark.parametrize("lanes", [0, -2, 3])
def test_impossible_lanes_are_refused(lanes):
    with pytest.raises(UsageError, match="must be even and at least 2"):
        solve(layout_of(), batch_size=256, memory=512 * 10**6, lanes=lanes)


def test_a_budget_below_one_block_and_one_batch_says_what_would_do():
    with pytest.raises(BudgetError) as caught:
        solve(layout_of(), batch_size=256, memory=1_000_000)
    message = str(caught.value)
    assert "memory is 1.0 MB, and the smallest that works is" in message
    for term in ("lanes", "prefetch", "cache", "batches", "decoding", "order", "index work", "checksums", "threads"):
        assert term in message
    assert caught.value.exit_code == 5
    assert isinstance(caught.value, MemoryError)


def test_lanes_that_the_labels_do_not_need_leave_their_memory_to_the_cache():
    layout = layout_of(400_000, (100,), 200)
    shuffled, _ = solve(layout, batch_size=256, memory=24_000_000, rho=0.001)
    sorted_by_class, _ = solve(layout, batch_size=256, memory=24_000_000, rho=1.0)
    unknown, _ = solve(layout, batch_size=256, memory=24_000_000)
    assert 0.9 * 200 <= shuffled.lanes <= 200
    assert sorted_by_class == unknown
    assert sorted_by_class.lanes > 400
    assert shuffled.slots - shuffled.working_slots > sorted_by_class.slots - sorted_by_class.working_slots
