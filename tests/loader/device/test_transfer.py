"""The way of batches to a device, on one that is as late as it may be: what is not waited for is not there."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import DamagedBlock, DeviceError
from streamtrain.loader.device import device_pool, memory_terms, transfer
from streamtrain.loader.device.transfer import Placement

N = 3001
WAYS = ("host", "device")
BUDGET = {"host": 16_000_000, "device": 48_000_000}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Rows that hold their own number, in many blocks and a few spans; fields of 2400, 8 and 1 bytes a row."""
    y = np.arange(N)
    x = (y[:, None] + np.arange(600)).astype(np.float32)
    path = tmp_path_factory.mktemp("device") / "d.zarr"
    return streamtrain.ingest({"x": x, "y": y, "z": y % 2 == 0}, path, block="24KB", shard="2MB", codec="none")


@pytest.fixture
def on(monkeypatch):
    """Make loaders whose device is the one given."""

    def make(device, dataset, pool, **options):
        monkeypatch.setattr(transfer, "make_accelerator", lambda _: device)
        monkeypatch.setattr(transfer, "resolve_device", lambda _: torch.device("meta"))
        return StreamLoader(dataset, device=Placement(pool=pool), **options)

    return make


def squeezed(loader):
    """A loader whose pool has no room for blocks that are not needed, so that every slot is used again and again."""
    loader._sizes = replace(loader.sizes, slots=loader.sizes.working_slots)
    return loader


def computed(device, loader, n_epochs=1):
    """What kernels read that a caller queues batch by batch, waiting for nothing and keeping nothing."""
    found = []
    for _ in range(n_epochs):
        for batch in loader:
            for tensor in batch:
                device.compute(tensor, found)
            del batch, tensor
    device.finish()
    return found


def on_cpu(dataset, n_epochs=1, **options):
    with StreamLoader(dataset, **options) as loader:
        return [tensor.numpy().copy() for _ in range(n_epochs) for batch in loader for tensor in batch]


def same(found, expected):
    assert len(found) == len(expected)
    return all(a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected))  # noqa: B905


@pytest.mark.parametrize("pool", WAYS)
@pytest.mark.parametrize("batch_size", [7, 100, 300])
@pytest.mark.parametrize("larger", [1, 4])
def test_the_same_batches_as_on_the_cpu_bit_for_bit(on, late, dataset, pool, batch_size, larger):
    options = {"batch_size": batch_size, "memory": larger * BUDGET[pool], "seed": 4}
    device = late()
    with on(device, dataset, pool, **options) as loader:
        squeezed(loader)
        assert same(computed(device, loader, n_epochs=2), on_cpu(dataset, n_epochs=2, **options))
        assert loader.projection.total_bytes <= loader.memory_bytes
        assert device.peak_bytes <= loader.projection.terms["device"]
        assert sum(locked().nbytes for locked in device.locked) <= loader.projection.terms["pinned"]


@settings(max_examples=20)
@given(
    n_samples=st.integers(1, 400),
    block_rows=st.integers(1, 30),
    batch_size=st.integers(1, 70),
    lanes=st.none() | st.integers(1, 16),
    pool=st.sampled_from(WAYS),
    luck=st.none() | st.integers(0, 2**32),
)
def test_any_shape_on_a_device_of_any_pace(
    late, tmp_path_factory, n_samples, block_rows, batch_size, lanes, pool, luck
):
    y = np.arange(n_samples)
    fields = {"y": y, "w": np.stack([y, -y, y], axis=1).astype(np.int16)}
    small = streamtrain.ingest(fields, tmp_path_factory.mktemp("any") / "d.zarr", block=14 * block_rows, codec="none")
    options = {"batch_size": batch_size, "memory": "32MB", "lanes": lanes and min(lanes, n_samples)}
    device = late(luck=None if luck is None else np.random.default_rng(luck))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "make_accelerator", lambda _: device)
        with StreamLoader(small, device=Placement(device="cpu", pool=pool), **options) as loader:
            assert same(computed(device, loader, n_epochs=2), on_cpu(small, n_epochs=2, **options))


@pytest.mark.parametrize(
    ("broken", "prompt", "pool"),
    [
        ("wait", "", "host"),  # a buffer is filled again while it is copied from
        ("wait", "", "device"),
        ("after", "gathers", "device"),  # rows are gathered, or blocks put in their slots, before they have come
        ("order", "", "device"),  # a slot is written again before the rows of its old block are gathered
        ("admit", "caller", "host"),  # the caller computes on what has not come
        ("admit", "caller", "device"),
        ("record", "copies", "host"),  # memory that the caller still computes on is given to the next span
        ("record", "gathers", "device"),
    ],
)
def test_this_device_shows_every_race_and_there_is_none(on, late, dataset, broken, prompt, pool, monkeypatch):
    options = {"batch_size": 100, "memory": BUDGET[pool], "lanes": 16}
    expected = on_cpu(dataset, n_epochs=2, **options)
    device = late(prompt=prompt)
    with squeezed(on(device, dataset, pool, **options)) as loader:
        assert same(computed(device, loader, n_epochs=2), expected)
    device = late(broken=broken, prompt=prompt)
    # What is read too early may also be an index past all rows.
    with suppress(IndexError, RuntimeError), squeezed(on(device, dataset, pool, **options)) as loader:
        if broken == "admit":
            # With few buffers, waiting for one of them brings much to the device by the way.
            monkeypatch.setattr(memory_terms, "n_buffers", lambda _: 100)
            monkeypatch.setattr(device_pool, "n_buffers", lambda _: 100)
        assert not same(computed(device, loader, n_epochs=2), expected)


@pytest.mark.parametrize("pool", WAYS)
def test_batches_that_are_kept_stay_as_they_are(on, late, dataset, pool):
    device = late()
    with on(device, dataset, pool, batch_size=50, memory=BUDGET[pool]) as loader:
        kept = list(loader)
        device.finish()
    expected = on_cpu(dataset, batch_size=50, memory=BUDGET[pool])
    assert same([tensor.numpy() for batch in kept for tensor in batch], expected)


def loader_span_bytes(loader):
    return memory_terms.span_sections(loader.dataset.layout, loader.sizes)[-1].stop


@pytest.mark.parametrize("pool", WAYS)
def test_a_caller_that_waits_for_nothing_takes_no_more_memory(on, late, dataset, pool):
    device = late()
    with on(device, dataset, pool, batch_size=20, memory=BUDGET[pool], lanes=8) as loader:
        computed(device, loader, n_epochs=4)
        spans = [piece for piece in device.pieces.values() if len(piece.memory) == loader_span_bytes(loader)]
        assert len(loader) * 20 > 3 * loader.sizes.span_samples(N)
        assert len(spans) <= loader.sizes.spans + 2


@pytest.mark.parametrize("pool", WAYS)
def test_a_caller_may_change_its_queue_inside_a_span(on, late, dataset, pool):
    device = late()
    queues = [device.caller, device.another_queue()]
    found = [[], []]
    with on(device, dataset, pool, batch_size=10, memory=BUDGET[pool]) as loader:
        for i, batch in enumerate(loader):
            device.compute(batch.y, found[i % 2])
            device.caller = queues[(i + 1) % 2]
    for queue in queues:
        queue.reach(queue.n_queued)
    expected = on_cpu(dataset, batch_size=10, memory=BUDGET[pool])[1::3]
    assert same(found[0], expected[::2])
    assert same(found[1], expected[1::2])


@pytest.mark.parametrize("pool", WAYS)
def test_a_transform_runs_once_the_batch_is_handed_over(on, late, dataset, pool):
    device, found = late(), []
    with on(
        device, dataset, pool, batch_size=64, memory=BUDGET[pool], transform=lambda b: device.compute(b.y, found)
    ) as loader:
        assert set(loader) == {None}
        device.finish()
    assert same(found, on_cpu(dataset, batch_size=64, memory=BUDGET[pool])[1::3])


@pytest.mark.parametrize("pool", WAYS)
def test_an_epoch_left_early_and_a_state_go_on_as_on_the_cpu(on, late, dataset, pool):
    device = late()
    options = {"batch_size": 30, "memory": BUDGET[pool]}
    expected = on_cpu(dataset, n_epochs=2, **options)
    with on(device, dataset, pool, **options) as loader:
        for i, _ in enumerate(loader):
            if i == 17:
                state = loader.state_dict()
                break
        assert same(computed(device, loader), expected[3 * len(loader) :])
        loader.load_state_dict(state)
        assert same(computed(device, loader), expected[3 * 18 : 3 * len(loader)])


@pytest.mark.parametrize("pool", WAYS)
def test_a_damaged_block_is_told_and_no_buffer_is_lost(on, late, dataset, pool, monkeypatch):
    read, bad = streamtrain.loader.block_reader.BlockReader.read, [5, 60, 100, 150, 201]

    def damaged(reader, block, slots):
        if block in bad:
            bad.remove(block)
            raise DamagedBlock(f"block {block}")
        return read(reader, block, slots)

    monkeypatch.setattr(streamtrain.loader.block_reader.BlockReader, "read", damaged)
    device = late()
    with on(device, dataset, pool, batch_size=64, memory=BUDGET[pool], lanes=4) as loader:
        told = 0
        while bad:
            try:
                list(squeezed(loader))
            except DamagedBlock:
                told += 1
            loader.set_epoch(0)
        assert told >= 3, "one that strikes in reads for the next epoch may be forgotten with them"
        assert same(computed(device, loader), on_cpu(dataset, batch_size=64, memory=BUDGET[pool], lanes=4))


@pytest.mark.parametrize("pool", WAYS)
def test_closing_gives_all_memory_back(on, late, dataset, pool):
    device = late()
    loader = on(device, dataset, pool, batch_size=64, memory=BUDGET[pool])
    batch = next(iter(loader))
    loader.close()
    assert device.n_closed == 1
    del loader, batch
    assert not [locked for locked in device.locked if locked() is not None]
    assert len(device.let_go) == len(device.pieces), "a queue's memory is still referred to"


@pytest.mark.parametrize("pool", WAYS)
def test_a_device_that_fills_up_is_told_with_a_budget_that_fits_and_nothing_is_lost(on, late, dataset, pool):
    options = {"batch_size": 64, "memory": "32MB"}
    device = late(free_bytes=10**9)
    with on(device, dataset, pool, **options) as loader:
        batches = iter(loader)
        device.compute(next(batches).y, first := [])
        device.room, device.free = 0, 3_000_000
        with pytest.raises(DeviceError, match=r"on the device, and 3\.0 MB are free.*memory='\d+B'") as caught:
            _ = [device.compute(batch.y, first) for batch in batches]
        assert caught.value.exit_code == 5
        state = loader.state_dict()
        device.room = 10**9
        loader.load_state_dict(state)
        for batch in loader:
            device.compute(batch.y, first)
        device.finish()
    assert same(first, on_cpu(dataset, **options)[1::3])


def test_the_pool_goes_to_a_device_that_has_the_room(on, late, dataset):
    def placed(free_bytes, pool="auto"):
        with on(late(free_bytes=free_bytes), dataset, pool, batch_size=64, memory="48MB") as loader:
            return loader, loader.projection.terms

    roomy, terms = placed(10**9)
    assert "lanes" not in terms, "the pool is on the device"
    tight, terms = placed(2 * terms["device"] - 1)
    assert terms["lanes"] > 0, "the pool is on the host"
    assert [loader.sizes.lanes for loader in (roomy, tight)] == [tight.sizes.lanes] * 2
    with pytest.raises(DeviceError, match=r"batches need .* are free.*or a smaller batch_size"):
        placed(terms["device"] - 1)
    with pytest.raises(DeviceError, match=r"pool and batches need .*pool='host'"):
        placed(1_000_000, "device")


def test_what_waits_for_the_bus_is_told_as_transfer(on, late, dataset):
    device = late()
    with on(device, dataset, "device", batch_size=64, memory="48MB") as loader:
        computed(device, loader)
        work = loader.work
        assert work.transfer > 0
        assert work.gather >= 0
        assert work.decode >= 0


def test_stored_order_keeps_the_device(on, late, dataset):
    device = late()
    with on(device, dataset, "host", batch_size=64, memory="16MB") as loader, loader.sequential() as ordered:
        assert ordered.device == loader.device
        assert same(computed(device, ordered), on_cpu(dataset, batch_size=64, memory="16MB", shuffle=False))
