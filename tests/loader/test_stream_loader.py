import textwrap
from itertools import chain

import numpy as np
import pytest
import torch
from forked_python import run_forked
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import BudgetError, DamagedBlock, UsageError
from streamtrain.loader.budget import solve
from streamtrain.shuffle.order import ShuffleParameters, shuffled_order
from streamtrain.shuffle.positions import samples_at

N = 5003


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Rows that hold their own number, in about two thousand blocks."""
    path = tmp_path_factory.mktemp("loader") / "d.zarr"
    y = np.arange(N)
    x = np.stack([y, y**2 % 251, y % 7], axis=1).astype(np.float32)
    return streamtrain.ingest({"x": x, "y": y}, path, block="60B", shard="2KB", codec="lz4")


def labels(batches):
    return [y.tolist() for _, y in batches]


def own_order(loader, epoch):
    """The order of an epoch straight from `streamtrain.shuffle`."""
    layout = loader.dataset.layout
    shuffle = ShuffleParameters(
        n_samples=layout.n_samples,
        block_rows=layout.block_rows,
        batch_size=loader.batch_size,
        lanes=loader.sizes.lanes,
        groups=loader.sizes.groups,
    )
    order = samples_at(shuffled_order(shuffle, seed=loader.seed, epoch=epoch), 0, layout.n_samples)
    return [order[i : i + loader.batch_size].tolist() for i in range(0, len(order), loader.batch_size)]


@pytest.mark.parametrize("batch_size", [1, 32, 333, N, 2 * N])
@pytest.mark.parametrize("memory", ["4MB", "64MB"])
def test_batches_follow_the_order_epoch_after_epoch(dataset, batch_size, memory):
    with StreamLoader(dataset, batch_size=batch_size, memory=memory, seed=5) as loader:
        for epoch in range(2 if batch_size > 1 else 1):
            found = [(batch.x, batch.y) for batch in loader]
            assert labels(found) == own_order(loader, epoch)
            assert len(found) == len(loader)
            for x, y in found:
                assert x.shape == (len(y), 3)
                assert torch.equal(x[:, 1], (y**2 % 251).float())


@given(
    n_samples=st.integers(1, 300),
    block_rows=st.integers(1, 40),
    batch_size=st.integers(1, 70),
    lanes=st.none() | st.integers(1, 24),
    drop_last=st.booleans(),
    start=st.integers(0, 20),
)
def test_any_shape_any_lanes_any_start(tmp_path_factory, n_samples, block_rows, batch_size, lanes, drop_last, start):
    path = tmp_path_factory.mktemp("any") / "d.zarr"
    small = streamtrain.ingest({"y": np.arange(n_samples)}, path, block=8 * block_rows, codec="none")
    drop_last = drop_last and batch_size <= n_samples
    lanes = lanes and min(lanes, n_samples)
    with StreamLoader(small, batch_size=batch_size, memory="8MB", lanes=lanes, drop_last=drop_last) as loader:
        expected = own_order(loader, 0)[: len(loader)]
        assert [batch.y.tolist() for batch in loader] == expected
        state = loader.state_dict() | {"epoch": 0, "batch": min(start, len(loader))}
        loader.load_state_dict(state)
        assert [batch.y.tolist() for batch in loader] == expected[start:]


def test_the_pool_may_be_as_small_as_the_budget_allows(dataset):
    least = 0
    with pytest.raises(BudgetError) as caught:
        StreamLoader(dataset, batch_size=64, memory=1000)
    least = int(caught.value.fix.removeprefix("memory='").removesuffix("B'"))
    with StreamLoader(dataset, batch_size=64, memory=least) as loader:
        assert sorted(chain(*labels(loader))) == list(range(N))
        assert loader.sizes.slots < 10


def test_samples_larger_than_a_block(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (12, 1_000_000), dtype=np.uint8)
    big = streamtrain.ingest({"x": x, "y": np.arange(12)}, tmp_path / "big.zarr", memory="100MB")
    assert big.layout.block_rows == 1
    with StreamLoader(big, batch_size=3, memory="32MB") as loader:
        for rows, y in loader:
            assert np.array_equal(rows.numpy(), x[y.numpy()])


def test_stored_order_without_shuffle(dataset):
    with StreamLoader(dataset, batch_size=100, shuffle=False, memory="8MB") as loader:
        assert [*chain(*labels(loader))] == list(range(N))
    with StreamLoader(dataset, batch_size=100, drop_last=True, memory="8MB") as loader, loader.sequential() as plain:
        assert [*chain(*labels(plain))] == list(range(N))


def test_an_epoch_can_be_named(dataset):
    with StreamLoader(dataset, batch_size=500, memory="8MB") as loader:
        first, second = labels(loader), labels(loader)
        assert first != second
        loader.set_epoch(0)
        assert labels(loader) == first
        assert loader.epoch == 1


def test_a_break_ends_the_epoch(dataset):
    with StreamLoader(dataset, batch_size=500, memory="8MB") as loader:
        for _ in loader:
            break
        assert labels(loader) == own_order(loader, 1)


def test_a_state_resumes_inside_an_epoch(dataset):
    with StreamLoader(dataset, batch_size=64, memory="4MB", seed=3) as loader:
        whole = labels(loader) + labels(loader)
        loader.set_epoch(0)
        batches = iter(loader)
        taken = [next(batches) for _ in range(30)]
        state = loader.state_dict()
    assert labels(taken) == whole[:30]
    assert state["dataset"] == dataset.id
    assert all(isinstance(value, int | str | bool) for value in state.values())
    # Another budget would solve for other lanes; the state's are taken.
    with StreamLoader(dataset, batch_size=64, memory="20MB", seed=3) as other:
        other.load_state_dict(state)
        assert labels(other) + labels(other) == whole[30:]


def test_a_state_of_the_end_goes_on_with_the_next_epoch(dataset):
    with StreamLoader(dataset, batch_size=1000, memory="8MB") as loader:
        list(loader)
        state = loader.state_dict()
        assert (state["epoch"], state["batch"]) == (1, 0)
        loader.load_state_dict(state)
        assert labels(loader) == own_order(loader, 1)


def test_a_state_of_another_loader_is_refused(dataset):
    with StreamLoader(dataset, batch_size=64, memory="8MB") as loader:
        state = loader.state_dict() | {"batch_size": 32, "dataset": "other"}
        with pytest.raises(UsageError, match=r"dataset: 'other' there.*batch_size: 32 there, 64 here"):
            loader.load_state_dict(state)


def test_a_batch_belongs_to_the_caller(dataset):
    with StreamLoader(dataset, batch_size=50, memory="4MB") as loader:
        kept = list(loader)
        copies = [(x.clone(), y.clone()) for x, y in kept]
        for _ in loader:
            pass
        for (x, y), (x_then, y_then) in zip(kept, copies, strict=True):
            assert torch.equal(x, x_then)
            assert torch.equal(y, y_then)
            x.add_(1)  # and may be changed


def test_a_transform_gets_whole_batches(dataset):
    with StreamLoader(dataset, batch_size=64, memory="4MB", transform=lambda b: (b.x * 2, b.y)) as loader:
        for x, y in loader:
            assert torch.equal(x[:, 2], 2.0 * (y % 7))


def test_damage_reaches_the_caller_with_the_readers_traceback(tmp_path):
    dataset = streamtrain.ingest({"y": np.arange(4000)}, tmp_path / "d.zarr", block="80B", shard="8KB", codec="none")
    path = dataset.shard_path("y", 2)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with StreamLoader(dataset, batch_size=64, memory="4MB") as loader:
        with pytest.raises(DamagedBlock, match="field y") as caught:
            list(loader)
        assert "check" in [entry.name for entry in caught.traceback]
        # The loader goes on from any place, and meets the damage again.
        with pytest.raises(DamagedBlock):
            list(loader)
        data[100] ^= 1
        path.write_bytes(data)
        assert sorted(chain(*(batch.y.tolist() for batch in loader))) == list(range(4000))


def test_two_iterations_at_once_are_an_error(dataset):
    with StreamLoader(dataset, batch_size=64, memory="4MB") as loader:
        first = iter(loader)
        next(first)
        next(iter(loader))
        with pytest.raises(UsageError, match="a new iteration of the loader began"):
            next(first)


def test_the_next_epoch_needs_no_restart(dataset, monkeypatch):
    seeks = []
    seek = streamtrain.loader.reading.pool.Pool.seek
    monkeypatch.setattr(streamtrain.loader.reading.pool.Pool, "seek", lambda *a: seeks.append(a[1:3]) or seek(*a))
    with StreamLoader(dataset, batch_size=64, memory="4MB") as loader:
        for _ in range(3):
            list(loader)
    assert seeks == [(0, 0)]


def test_a_dataset_that_fits_is_read_once(dataset, monkeypatch):
    reads = []
    read = streamtrain.loader.reading.block_reader.BlockReader.read
    monkeypatch.setattr(
        streamtrain.loader.reading.block_reader.BlockReader, "read", lambda *a: reads.append(a[1]) or read(*a)
    )
    with StreamLoader(dataset, batch_size=64, memory="64MB") as loader:
        assert loader.sizes.slots == dataset.layout.n_blocks
        for _ in range(3):
            list(loader)
    assert sorted(reads) == list(range(dataset.layout.n_blocks))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"batch_size": N + 1, "drop_last": True}, "0 batches"),
        ({"memory": "512"}, "'512' is not a size"),
        ({"lanes": 0}, "lanes is 0"),
        ({"lanes": N + 1}, f"lanes is {N + 1}; the dataset has {N} samples"),
        ({"groups": 3}, "256 samples cannot be drawn from 3 groups"),
        ({"groups": True}, "groups is True"),
        ({"lanes": 12, "groups": 8}, "12 lanes cannot be dealt to 8 groups"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, r"seed is 1\.5"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"lanes": "4"}, "lanes is '4'"),
        ({"lanes": 4.0}, r"lanes is 4\.0"),
    ],
)
def test_wrong_arguments_are_refused(dataset, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        StreamLoader(dataset, **arguments)
    assert caught.value.exit_code == 2


def test_the_order_does_not_depend_on_threads(dataset, monkeypatch):
    monkeypatch.setattr("streamtrain.loader.stream_loader.n_cores", lambda: 1)
    with StreamLoader(dataset, batch_size=64, memory="4MB") as one:
        alone = labels(one)
    monkeypatch.setattr("streamtrain.loader.stream_loader.n_cores", lambda: 4)
    with StreamLoader(dataset, batch_size=64, memory="4MB") as four:
        assert labels(four) == alone


def test_lanes_do_not_depend_on_the_machine(dataset):
    sizes, _ = solve(dataset.layout, batch_size=64, memory=4_000_000)
    assert (sizes.lanes, sizes.groups) == (192, 16)


MEMORY_SCRIPT = """
    import sys, numpy as np, torch, streamtrain as st
    from streamtrain.system.memory import MemoryMeter
    dataset = st.open(sys.argv[1])
    budget = int(sys.argv[2])
    with MemoryMeter() as meter:
        with st.StreamLoader(dataset, batch_size=64, memory=budget) as loader:
            for _ in range(2):
                for batch in loader:
                    pass
    print(meter.peak_bytes, loader.projection.total_bytes)
"""


@pytest.mark.parametrize(
    ("n", "row_bytes", "budget"),
    [(40_000, 1000, 8_000_000), (40_000, 1000, 32_000_000), (8_000_000, 1, 24_000_000), (150_000, 300, 200_000_000)],
)
def test_memory_measured_stays_under_the_budget(tmp_path, n, row_bytes, budget):
    x = np.random.default_rng(0).integers(0, 30, (n, row_bytes), dtype=np.uint8)
    y = {"y": np.arange(n)} if row_bytes > 1 else {}
    streamtrain.ingest({"x": x, **y}, tmp_path / "d.zarr", memory="100MB", block="64KB")
    done = run_forked(["-c", textwrap.dedent(MEMORY_SCRIPT), str(tmp_path / "d.zarr"), str(budget)])
    assert done.returncode == 0, done.stderr
    measured, projected = map(int, done.stdout.split())
    assert measured <= budget
    assert projected <= budget
