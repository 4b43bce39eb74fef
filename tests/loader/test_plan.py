"""A plan is what the loader then does: sizes, reads, quality; and the memory it names is enough, and less is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import streamtrain as st
from streamtrain.loader.plan import few_lanes, plan
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.shuffle.quality import label_population, measure_quality

N = 60_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    """Sixty classes sorted, in six hundred blocks; the last one is short."""
    path = tmp_path_factory.mktemp("planning") / "d.zarr"
    n = N - 37
    x = np.repeat(np.arange(n, dtype=np.int64)[:, None], 49, axis=1)
    return st.ingest({"x": x, "y": x[:, 0] * 60 // n}, path, block=400 * 100, codec="none")


@pytest.fixture
def reads() -> Iterator[list[int]]:
    """Every block that a loader reads."""
    blocks: list[int] = []

    read = BlockReader.read

    def counted(self: BlockReader, block: int, slots: Sequence[memoryview]) -> float:
        blocks.append(block)
        return read(self, block, slots)

    with mock.patch.object(BlockReader, "read", counted):
        yield blocks


@pytest.mark.parametrize(("memory", "lanes"), [("12MB", 62), ("12MB", None), ("64MB", None)])
def test_a_plan_is_what_the_loader_does(dataset: st.Dataset, reads: list[int], memory: str, lanes: int | None) -> None:
    found = plan(dataset, batch_size=96, memory=memory, lanes=lanes, seed=3)
    reads.clear()  # which the labels took
    order, n_reads = [], []
    with st.StreamLoader(dataset, batch_size=96, memory=memory, lanes=lanes, seed=3) as loader:
        assert found.sizes == loader.sizes
        assert found.projection == loader.projection
        assert found.n_batches == len(loader)
        for _ in range(6):
            order.append(np.concatenate([batch.x[:, 0].numpy() for batch in loader]))
            n_reads.append(len(reads))
    population, classes = label_population(np.arange(len(dataset)) * 60 // len(dataset))
    assert found.quality == measure_quality([order[0]], classes.take, population, batch_size=96, block_rows=100)
    # What is read ahead of the next epoch is counted with the epoch before.
    ahead = found.sizes.working_slots
    assert abs(n_reads[0] - found.first.n_blocks) <= ahead + 0.04 * found.first.n_stored
    later = (n_reads[5] - n_reads[1]) / 4
    assert later == pytest.approx(found.later.n_blocks, rel=0.06, abs=2)
    assert found.first.ratio <= 1 + 2 * found.sizes.lanes / found.first.n_stored
    assert loader.blocks_read == len(reads), "the loader counts them itself"


def test_the_memory_it_names_is_enough_and_less_is_not(dataset: st.Dataset) -> None:
    found = plan(dataset, batch_size=96, memory="64MB")
    assert found.enough is not None
    assert found.quality is not None
    assert found.quality.is_random
    assert not str(found.enough.memory_bytes)[2:].strip("0"), "a number of two digits"
    enough = plan(dataset, batch_size=96, memory=found.enough.memory_bytes)
    assert enough.sizes.lanes == found.enough.lanes
    assert enough.quality == found.enough.quality
    assert enough.quality.is_random
    less = plan(dataset, batch_size=96, memory=found.enough.memory_bytes * 8 // 10)
    assert less.quality is not None
    assert not less.quality.is_random
    assert less.enough is not None
    assert less.enough == found.enough, "what would be enough does not depend on what is given"


def test_held_whole_few_blocks_are_as_good_as_many(tmp_path: Path) -> None:
    y = np.arange(6000) // 600
    found = plan(st.ingest({"y": y}, tmp_path / "d.zarr", block=8 * 600, codec="none"), batch_size=100, memory="8MB")
    assert found.sizes.slots * 10 - 20 == found.sizes.lanes == 100
    assert found.quality is not None
    assert found.quality.is_random
    assert found.enough is not None
    assert found.most is not None
    assert found.most.variance < 0.5


def test_what_fewer_lanes_than_samples_of_a_batch_cost_and_what_mends_it(tmp_path: Path) -> None:
    rows = {"x": np.zeros((40_000, 100), np.float32), "y": np.arange(40_000) // 400}
    dataset = st.ingest(rows, tmp_path / "d.zarr", block=408 * 40, codec="none")
    found = plan(dataset, batch_size=64, memory="6MB")
    assert found.sizes.lanes < 64
    said = few_lanes(dataset.layout, found.sizes, 6_000_000)
    assert said is not None
    assert said.startswith(f"{found.sizes.lanes} lanes for batches of 64: about {64 / found.sizes.lanes:.3g} samples")
    memory, block = said.argument("memory"), said.argument("block")
    assert memory is not None
    assert block is not None
    assert plan(dataset, batch_size=64, memory=memory.n_bytes).sizes.lanes >= 64
    smaller = st.ingest(rows, tmp_path / "s.zarr", block=block.value, codec="none")
    assert plan(smaller, batch_size=64, memory="6MB").sizes.lanes >= 64
    assert few_lanes(dataset.layout, plan(dataset, batch_size=64, memory="64MB").sizes, 64_000_000) is None
    one = plan(dataset, batch_size=64, memory="6MB", lanes=1)
    assert str(few_lanes(dataset.layout, one.sizes, 6_000_000)).startswith("1 lane for batches of 64: about 40 samples")


def test_samples_that_are_blocks_of_their_own_are_drawn_alone_from_any_lanes(tmp_path: Path) -> None:
    rows = {"x": np.zeros((400, 100), np.float32), "y": np.arange(400) // 4}
    dataset = st.ingest(rows, tmp_path / "d.zarr", block=408, codec="none")
    found = plan(dataset, batch_size=64, memory="6MB", lanes=1)
    assert dataset.layout.block_rows == 1
    assert found.quality is not None
    assert found.quality.variance < 1.3, "as in a full reshuffle"
    assert few_lanes(dataset.layout, found.sizes, 6_000_000) is None


def test_shuffled_data_is_as_good_as_random_at_once(tmp_path: Path) -> None:
    y = np.random.default_rng(0).integers(0, 10, 50_000)
    found = plan(st.ingest({"y": y}, tmp_path / "d.zarr", block=800, codec="none"), memory="64MB")
    assert found.quality is not None
    assert found.quality.variance == pytest.approx(1, abs=0.1)
    assert found.enough is not None
    with pytest.raises(st.BudgetError):
        plan(st.open(tmp_path / "d.zarr"), memory=found.enough.memory_bytes * 9 // 10)


@pytest.mark.parametrize(("batch_size", "mixes"), [(999, True), (1000, False), (5000, False)])
def test_of_one_batch_there_is_nothing_to_mix(tmp_path: Path, batch_size: int, mixes: bool) -> None:
    found = plan(st.ingest({"y": np.arange(1000) // 100}, tmp_path / "d.zarr", block=80), batch_size=batch_size)
    assert (found.quality is not None) is mixes
    assert found.why == ("" if mixes else "one batch: nothing to mix")
    assert mixes or found.enough is None


@pytest.mark.parametrize("fields", [{"x": np.arange(100)}, {"y": np.zeros((100, 2))}])
def test_without_labels_there_is_no_quality(tmp_path: Path, fields: dict[str, np.ndarray]) -> None:
    found = plan(st.ingest(fields, tmp_path / "d.zarr"), batch_size=10, memory="8MB")
    assert (found.quality, found.most, found.enough) == (None, None, None)
    assert "field y" in found.why


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"batch_size": 0}, st.UsageError, "batch_size is 0"),
        ({"batch_size": 10**6, "drop_last": True}, st.UsageError, "0 batches"),
        ({"seed": -1}, st.UsageError, "seed is -1"),
        ({"lanes": 0}, st.UsageError, "lanes is 0"),
        ({"groups": 7}, st.UsageError, "256 samples cannot be drawn from 7 groups"),
        ({"memory": "1MB"}, st.BudgetError, "the smallest that works is"),
    ],
)
def test_what_cannot_be_is_refused(
    dataset: st.Dataset, wrong: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(dataset, **wrong)
