"""Planning rows, blocks and shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import UsageError
from streamtrain.store.layout import PAGE_BYTES, UNKNOWN_SAMPLES, Field, Layout, plan_layout

Y = Field(name="y", dtype=np.dtype("int64"), shape=())


def _x(row_bytes: int) -> Field:
    return Field(name="x", dtype=np.dtype("uint8"), shape=(row_bytes,))


def _plan(
    row_bytes: int, n_samples: int | None, block_bytes: int | None = None, shard_bytes: int = 64_000_000
) -> Layout:
    return plan_layout((_x(row_bytes), Y), n_samples, block_bytes=block_bytes, shard_bytes=shard_bytes, codec="none")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("x", "X"), "'x' and 'X' would share a folder"),
        (("straße", "STRASSE"), "would share a folder"),
        (("y", "\N{FULLWIDTH LATIN SMALL LETTER Y}"), "would share a folder"),
        (("e\u0301tat", "état"), "would share a folder"),
        (("x", "Aux"), "reserves it for a device"),
        (("com1", "x"), "reserves it for a device"),
    ],
)
def test_names_that_some_disks_take_for_one_are_refused(names: tuple[str, ...], match: str) -> None:
    fields = tuple(Field(name=name, dtype=np.dtype("u1"), shape=()) for name in names)
    with pytest.raises(UsageError, match=match):
        plan_layout(fields, 10, shard_bytes=10**6, codec="none")


@pytest.mark.parametrize(
    ("row_bytes", "n_samples", "block_rows"),
    [
        (3072, 1_000_000, 172),  # 512 KiB, in steps of 4 rows
        (784, 60_000, 30),  # about 2,000 blocks
        (784, 1_000, 20),  # not below 16 KiB
        (784, 5, 5),
        (4_000_000, 100, 1),
        (8, 10, 10),
    ],
)
def test_default_block(row_bytes: int, n_samples: int, block_rows: int) -> None:
    assert _plan(row_bytes, n_samples).block_rows == block_rows


def test_a_given_block_goes_down_to_one_sample() -> None:
    assert _plan(3072, 1000, block_bytes=1).block_rows == 1
    assert _plan(3072, 1000, block_bytes=3080 * 7).block_rows == 8
    assert _plan(100, 1000, block_bytes=108 * 7).block_rows == 7


def test_unknown_length_is_planned_as_large() -> None:
    layout = _plan(3072, None)
    assert layout.n_samples == UNKNOWN_SAMPLES
    assert layout.block_rows == _plan(3072, 10**9).block_rows


def test_shards_hold_at_least_one_block_and_at_most_all() -> None:
    assert _plan(3072, 1000, shard_bytes=1).shard_blocks == 1
    small = _plan(3072, 1000, shard_bytes=10**12)
    assert small.shard_blocks == small.n_blocks


@given(
    row_bytes=st.integers(1, 100_000),
    n_samples=st.integers(1, 10**9),
    block_bytes=st.none() | st.integers(1, 10**7),
    shard_bytes=st.integers(1, 10**9),
)
def test_plan_is_within_its_limits(row_bytes: int, n_samples: int, block_bytes: int | None, shard_bytes: int) -> None:
    layout = _plan(row_bytes, n_samples, block_bytes, shard_bytes)
    step = PAGE_BYTES // np.gcd(PAGE_BYTES, max(row_bytes, 8))
    assert 1 <= layout.block_rows <= n_samples
    assert 1 <= layout.shard_blocks <= layout.n_blocks
    assert layout.block_rows < step or layout.block_rows % step == 0 or layout.block_rows == n_samples
    assert layout.block_range(layout.n_blocks - 1)[1] == n_samples
    assert layout.shard_blocks_range(layout.n_shards - 1)[1] == layout.n_blocks


@pytest.mark.parametrize("name", ["", "a b", "_x", "count", "index", "../x"])
def test_field_names_are_identifiers(name: str) -> None:
    with pytest.raises(UsageError, match="rename the field") as caught:
        Field(name=name, dtype=np.dtype("int8"), shape=())
    assert caught.value.exit_code == 2


def test_the_layout_of_small_images_is_pinned() -> None:
    image, label = Field(name="x", dtype=np.dtype("uint8"), shape=(28, 28)), Y
    layout = plan_layout((image, label), 60_000, shard_bytes=64_000_000, codec="lz4")
    assert (layout.block_rows, layout.block_bytes, layout.n_blocks, layout.n_shards) == (30, 23760, 2000, 1)
    assert plan_layout((image, label), 10**9, shard_bytes=64_000_000, codec="lz4").block_rows * 784 % PAGE_BYTES == 0
