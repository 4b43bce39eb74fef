"""Batches on their way to a device that is as late as it may be: data that nobody waits for is not there."""

import itertools
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
from streamtrain.loader.device import cuda, device_pool, memory_terms
from streamtrain.loader.device.transfer import Placement
from tests.support.simulated_cuda import OUT_OF_ORDER, WAITS_FOR_NOTHING, SimulatedCuda

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


def on(dataset, pool, **options):
    """A loader whose batches end on the simulated device."""
    return StreamLoader(dataset, device=Placement(device="cuda", pool=pool), **options)


def squeezed(loader):
    """A loader whose pool has no room for blocks that are not needed, so that every slot is used again and again."""
    loader._own_sizes = replace(loader.sizes, slots=loader.sizes.working_slots)
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
def test_the_same_batches_as_on_the_cpu_bit_for_bit(simulated, dataset, pool, batch_size, larger):
    options = {"batch_size": batch_size, "memory": larger * BUDGET[pool], "seed": 4}
    device = simulated()
    with on(dataset, pool, **options) as loader:
        squeezed(loader)
        assert same(computed(device, loader, n_epochs=2), on_cpu(dataset, n_epochs=2, **options))
        assert loader.projection.total_bytes <= loader.memory_bytes
        assert device.allocator.peak_bytes <= loader.projection.terms["device"]
        assert sum(device.registered.values()) == cuda._process().locking.registered_bytes
        assert sum(device.registered.values()) <= loader.projection.terms["pinned"]


@settings(max_examples=20)
@given(
    n_samples=st.integers(1, 400),
    block_rows=st.integers(1, 30),
    batch_size=st.integers(1, 70),
    lanes=st.none() | st.integers(1, 16),
    pool=st.sampled_from(WAYS),
    luck=st.none() | st.integers(0, 2**32),
)
def test_any_shape_on_a_device_of_any_pace(tmp_path_factory, n_samples, block_rows, batch_size, lanes, pool, luck):
    y = np.arange(n_samples)
    fields = {"y": y, "w": np.stack([y, -y, y], axis=1).astype(np.int16)}
    small = streamtrain.ingest(fields, tmp_path_factory.mktemp("any") / "d.zarr", block=14 * block_rows, codec="none")
    options = {"batch_size": batch_size, "memory": "32MB", "lanes": lanes and min(lanes, n_samples)}
    device = SimulatedCuda(luck=None if luck is None else np.random.default_rng(luck))
    with device.installed(), on(small, pool, **options) as loader:
        assert same(computed(device, loader, n_epochs=2), on_cpu(small, n_epochs=2, **options))


def put_out_of_action(monkeypatch, what, device):
    """Let the loader leave out one of the things that it does against races."""
    if what == "wait":
        monkeypatch.setattr(cuda._CudaMark, "wait", lambda *_: True)
    elif what == "admit":
        admit = cuda.CudaAccelerator.admit
        monkeypatch.setattr(cuda.CudaAccelerator, "admit", lambda self, memory, marks: admit(self, memory, []))
    elif what == "record":
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    else:
        device.broken = what


@pytest.mark.parametrize(
    ("what", "prompt", "pool"),
    [
        ("wait", "", "host"),  # a buffer is filled again while it is copied from
        ("wait", "", "device"),
        (WAITS_FOR_NOTHING, "gathers", "device"),  # rows are gathered, or blocks put in slots, before they have come
        (OUT_OF_ORDER, "", "device"),  # a slot is written again before the rows of its old block are gathered
        ("admit", "caller", "host"),  # the caller computes on what has not come
        ("admit", "caller", "device"),
        ("record", "copies", "host"),  # memory that the caller still computes on is given to the next span
        ("record", "gathers", "device"),
    ],
)
def test_this_device_shows_every_race_and_there_is_none(simulated, dataset, what, prompt, pool, monkeypatch):
    options = {"batch_size": 100, "memory": BUDGET[pool], "lanes": 16}
    expected = on_cpu(dataset, n_epochs=2, **options)
    device = simulated(prompt=prompt)
    with squeezed(on(dataset, pool, **options)) as loader:
        assert same(computed(device, loader, n_epochs=2), expected)
    device = simulated(prompt=prompt)
    put_out_of_action(monkeypatch, what, device)
    # What is read too early may also be an index past all rows.
    with suppress(IndexError, RuntimeError), squeezed(on(dataset, pool, **options)) as loader:
        if what == "admit":
            # With few buffers, waiting for one of them brings much to the device by the way.
            for module in (memory_terms, device_pool):
                monkeypatch.setattr(module, "n_buffers", lambda _: 100)
        assert not same(computed(device, loader, n_epochs=2), expected)


LATE = {
    "nothing": {},
    "copies late": {"prompt": "gathers"},
    "gathers late": {"prompt": "copies"},
    "consumer late": {"prompt": "copies"},
    "switching": {},
}


@pytest.mark.parametrize(("pool", "how"), list(itertools.product(WAYS, LATE)))
def test_no_tensor_is_wrong_whoever_is_late(simulated, dataset, pool, how):
    options = {"batch_size": 100, "memory": BUDGET[pool], "lanes": 16, "seed": 9}
    device = simulated(**LATE[how])
    queues = [device.caller, device.another_stream()]
    found = []
    with squeezed(on(dataset, pool, **options)) as loader:
        for i, batch in enumerate(batch for _ in range(2) for batch in loader):
            into = []
            for tensor in batch:
                device.compute(tensor, into)
            found.append(into)
            del batch, tensor
            if how == "switching":
                device.caller = queues[(i + 1) % 2]
            elif how != "consumer late":
                device.finish()
    for queue in queues:
        queue.synchronize()
    assert same([array for arrays in found for array in arrays], on_cpu(dataset, n_epochs=2, **options))


@pytest.mark.parametrize("pool", WAYS)
def test_batches_that_are_kept_stay_as_they_are(simulated, dataset, pool):
    device = simulated()
    with on(dataset, pool, batch_size=50, memory=BUDGET[pool]) as loader:
        kept = list(loader)
        device.finish()
    expected = on_cpu(dataset, batch_size=50, memory=BUDGET[pool])
    assert same([tensor.numpy() for batch in kept for tensor in batch], expected)


def loader_span_bytes(loader):
    return -(-memory_terms.span_sections(loader.dataset.layout, loader.sizes)[-1].stop // 512) * 512


@pytest.mark.parametrize("pool", WAYS)
def test_a_caller_that_waits_for_nothing_takes_no_more_memory(simulated, dataset, pool):
    device = simulated()
    with on(dataset, pool, batch_size=20, memory=BUDGET[pool], lanes=8) as loader:
        computed(device, loader, n_epochs=4)
        spans = [1 for piece in device.allocator.pieces.values() if len(piece.memory) == loader_span_bytes(loader)]
        assert len(loader) * 20 > 3 * loader.sizes.span_samples(N)
        assert len(spans) <= loader.sizes.spans + 2


@pytest.mark.parametrize("pool", WAYS)
def test_a_caller_may_change_its_queue_inside_a_span(simulated, dataset, pool):
    device = simulated()
    queues = [device.caller, device.another_stream()]
    found = [[], []]
    with on(dataset, pool, batch_size=10, memory=BUDGET[pool]) as loader:
        for i, batch in enumerate(loader):
            device.compute(batch.y, found[i % 2])
            device.caller = queues[(i + 1) % 2]
    for queue in queues:
        queue.reach(queue.n_queued)
    expected = on_cpu(dataset, batch_size=10, memory=BUDGET[pool])[1::3]
    assert same(found[0], expected[::2])
    assert same(found[1], expected[1::2])


@pytest.mark.parametrize("pool", WAYS)
def test_a_transform_runs_once_the_batch_is_handed_over(simulated, dataset, pool):
    device, found = simulated(), []
    with on(
        dataset, pool, batch_size=64, memory=BUDGET[pool], transform=lambda b: device.compute(b.y, found) or b
    ) as loader:
        assert all(len(batch) for batch in loader)
        device.finish()
    assert same(found, on_cpu(dataset, batch_size=64, memory=BUDGET[pool])[1::3])


@pytest.mark.parametrize("pool", WAYS)
def test_an_epoch_left_early_and_a_state_go_on_as_on_the_cpu(simulated, dataset, pool):
    device = simulated()
    options = {"batch_size": 30, "memory": BUDGET[pool]}
    expected = on_cpu(dataset, n_epochs=2, **options)
    with on(dataset, pool, **options) as loader:
        for i, _ in enumerate(loader):
            if i == 17:
                state = loader.state_dict()
                break
        assert same(computed(device, loader), expected[3 * len(loader) :])
        loader.load_state_dict(state)
        assert same(computed(device, loader), expected[3 * 18 : 3 * len(loader)])


@pytest.mark.parametrize("pool", WAYS)
def test_a_damaged_block_is_told_and_no_buffer_is_lost(simulated, dataset, pool, monkeypatch):
    read, bad = streamtrain.loader.reading.block_reader.BlockReader.read, [5, 60, 100, 150, 201]

    def damaged(reader, block, slots):
        if block in bad:
            bad.remove(block)
            raise DamagedBlock(f"block {block}")
        return read(reader, block, slots)

    monkeypatch.setattr(streamtrain.loader.reading.block_reader.BlockReader, "read", damaged)
    device = simulated()
    with on(dataset, pool, batch_size=64, memory=BUDGET[pool], lanes=4) as loader:
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
def test_closing_gives_all_memory_back(simulated, dataset, pool):
    device = simulated()
    loader = on(dataset, pool, batch_size=64, memory=BUDGET[pool])
    batch = next(iter(loader))
    loader.close()
    assert all(stream.n_done == stream.n_queued for stream in device.streams)
    assert not device.registered
    held = device.allocator.reserved_bytes
    assert 0 < held <= 20 << 20, "the caller's batch is its own"
    del loader, batch
    device.allocator.empty_cache()
    assert device.allocator.reserved_bytes == 0


@pytest.mark.parametrize("pool", WAYS)
def test_a_device_that_fills_up_is_told_with_a_budget_that_fits_and_nothing_is_lost(simulated, dataset, pool):
    options = {"batch_size": 64, "memory": "32MB"}
    device = simulated()
    with on(dataset, pool, **options) as loader:
        batches = iter(loader)
        device.compute(next(batches).y, first := [])
        device.room = 0
        with pytest.raises(DeviceError, match=r"on the device, and .* are free.*memory='\d+B'") as caught:
            # Kept, so that no memory is let go of.
            _ = [(batch, device.compute(batch.y, first)) for batch in batches]
        assert caught.value.exit_code == 5
        del caught
        state = loader.state_dict()
        device.room = 10**9
        loader.load_state_dict(state)
        for batch in loader:
            device.compute(batch.y, first)
        device.finish()
    assert same(first, on_cpu(dataset, **options)[1::3])


@pytest.mark.parametrize("pool", WAYS)
def test_a_device_that_is_full_for_a_while_holds_the_loader_up_and_ends_no_epoch(simulated, dataset, pool):
    device, found = simulated(), []
    with on(dataset, pool, batch_size=20, memory=BUDGET[pool], lanes=8) as loader:
        for i, batch in enumerate(loader):
            device.compute(batch.y, found)
            del batch
            if i == 20:
                device.room = device.allocator.reserved_bytes
                for _ in range(2 * loader.sizes.spans):
                    device.allocator.empty_cache()
            if i == 60:
                device.room = 10**9
        device.finish()
    assert same(found, on_cpu(dataset, batch_size=20, memory=BUDGET[pool], lanes=8)[1::3])


def test_the_pool_goes_to_a_device_that_has_the_room(simulated, dataset):
    def placed(room, pool="auto"):
        simulated(room=room)
        with on(dataset, pool, batch_size=64, memory="48MB") as loader:
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


def test_what_waits_for_the_bus_is_told_as_transfer(simulated, dataset):
    device = simulated()
    with on(dataset, "device", batch_size=64, memory="48MB") as loader:
        computed(device, loader)
        work = loader.work
        assert work.transfer > 0
        assert work.gather >= 0
        assert work.decode >= 0


def test_stored_order_keeps_the_device(simulated, dataset):
    device = simulated()
    with on(dataset, "host", batch_size=64, memory="16MB") as loader, loader.sequential() as ordered:
        assert ordered.device == loader.device
        assert same(computed(device, ordered), on_cpu(dataset, batch_size=64, memory="16MB", shuffle=False))
