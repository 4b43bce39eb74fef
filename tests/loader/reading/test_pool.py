"""The pool with as many slots as there are lanes and no more, and less: every order comes whole, and nothing waits."""

import time
from pathlib import Path

import numpy as np
import pytest
from counted_reads import counted_reads
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain.loader.budget import LoaderSizes
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.loader.reading.pool import Pool
from streamtrain.shuffle.order import ShuffleParameters, shuffled_order
from streamtrain.shuffle.positions import samples_at

N = 300
STALL_SECONDS = 30.0
"""A deadlock is an error instead of a test without an end."""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, streamtrain.Dataset]:
    """The same numbered rows in blocks of several sizes."""
    folder: Path = tmp_path_factory.mktemp("pool")
    rows = {"y": np.arange(N)}
    return {r: streamtrain.ingest(rows, folder / f"{r}.zarr", block=8 * r, codec="none") for r in (1, 7, 40, 250)}


@settings(max_examples=30)
@given(
    block_rows=st.sampled_from([1, 7, 40, 250]),
    groups=st.sampled_from([1, 1, 2, 3]),
    lanes_each=st.integers(1, 20),
    batch_of_group=st.integers(1, 25),
    spare_slots=st.sampled_from([0, 0, 0, 1, 5]),
    read_blocks=st.integers(1, 5),
    span_batches=st.integers(1, 4),
    index_samples=st.sampled_from([1, 50, 4096]),
    threads=st.integers(1, 3),
    position=st.integers(0, N - 1),
    n_left_out=st.integers(0, 60),
)
def test_as_many_slots_as_lanes_are_enough(
    datasets,
    block_rows,
    groups,
    lanes_each,
    batch_of_group,
    spare_slots,
    read_blocks,
    span_batches,
    index_samples,
    threads,
    position,
    n_left_out,
):
    dataset, n_positions = datasets[block_rows], N - n_left_out
    lanes, batch_size = groups * lanes_each, groups * batch_of_group
    shuffle = ShuffleParameters(n_samples=N, block_rows=block_rows, batch_size=batch_size, lanes=lanes, groups=groups)
    sizes = LoaderSizes(
        batch_size=batch_size,
        lanes=lanes,
        groups=groups,
        slots=min(dataset.layout.n_blocks, lanes + spare_slots),
        prefetch=0,
        read_blocks=read_blocks,
        span_batches=span_batches,
        spans=3,
        index_samples=index_samples,
        threads=threads,
        reserve_bytes=0,
    )

    orders = {}

    def order_of(epoch):
        if epoch not in orders:
            orders[epoch] = shuffled_order(shuffle, seed=4, epoch=epoch)
        return orders[epoch]

    pool = Pool(BlockReader(dataset), dataset.layout, sizes, order_of, n_positions=n_positions, threads=threads)
    try:
        start = min(position, n_positions - 1) // batch_size * batch_size
        pool.seek(7, start)
        for epoch in (7, 8, 9):
            found, expected = start, samples_at(order_of(epoch), 0, n_positions).tolist()
            while found < n_positions:
                span = pool.next_span(STALL_SECONDS)
                assert (span.epoch, span.start) == (epoch, found)
                assert span.arrays[0].tolist() == expected[span.start : span.stop]
                found = span.stop
            start = 0
        order = order_of(7)
        assert pool.n_read <= 4 * len(order.run_first) + 3 * lanes
    finally:
        pool.close()


def test_the_next_epoch_is_known_in_time_however_busy_the_threads_are(datasets, monkeypatch):
    """The cache keeps what that epoch needs soonest; reads that are always waiting to be made must not put it off."""
    read = BlockReader.read

    def slow(self, block, buffers):
        time.sleep(2e-4)
        return read(self, block, buffers)

    monkeypatch.setattr(BlockReader, "read", slow)
    dataset, lanes = datasets[1], 24
    shuffle = ShuffleParameters(n_samples=N, block_rows=1, batch_size=24, lanes=lanes, groups=2)
    sizes = LoaderSizes(
        batch_size=24, lanes=lanes, groups=2, slots=120, prefetch=16, read_blocks=2, span_batches=1, spans=3,
        index_samples=4096, threads=2, reserve_bytes=0,
    )  # fmt: skip
    pool = Pool(
        BlockReader(dataset), dataset.layout, sizes, lambda epoch: shuffled_order(shuffle, seed=0, epoch=epoch),
        n_positions=N, threads=2,
    )  # fmt: skip
    n_read = []
    try:
        pool.seek(0, 0)
        for _ in range(8):
            while pool.next_span(STALL_SECONDS).stop < N:
                pass
            n_read.append(pool.n_read)
    finally:
        pool.close()
    by_slots_alone = counted_reads(dataset.layout, sizes, 7)
    assert np.mean(np.diff(n_read)[1:]) / N == pytest.approx(np.mean(by_slots_alone[2:]), abs=0.01)
