"""Expected reads, compared with the read lists of real orders sent through the pool's slots."""

import numpy as np
import pytest
from counted_reads import counted_reads

from streamtrain.loader.budget import solve
from streamtrain.shuffle.expected_reads import expected_reads
from streamtrain.store.layout import Field, Layout


@pytest.mark.parametrize(("n_blocks", "share"), [(1900, 2), (1900, 6), (4000, 8), (4000, 20)])
def test_what_is_expected_is_what_is_read(n_blocks, share):
    field = Field(name="x", dtype=np.dtype("u1"), shape=(20_000,))
    layout = Layout(fields=(field,), n_samples=n_blocks * 20, block_rows=20, shard_blocks=100, codec="none")
    sizes, projection = solve(layout, batch_size=64, memory=layout.n_blocks * layout.block_bytes // share)
    found = counted_reads(layout, sizes, 4)
    first, later = projection.expected.reads
    assert found[0] == pytest.approx(first, abs=0.04)
    assert np.mean(found[2:]) == pytest.approx(later, abs=0.04)
    assert found[0] < 1.08
    assert max(found[1:]) < 1.02


def test_without_a_cache_each_lane_reads_two_more():
    assert expected_reads(2000, 100, n_slots=120, n_cached=0) == pytest.approx((1.1, 1.1), abs=0.01)


def test_what_fits_is_read_once():
    assert expected_reads(50, 64, n_slots=50, n_cached=0) == (1.0, 0.0)
