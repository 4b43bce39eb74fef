"""Calls of CUDA: page-locking, contexts, memory kept and released, waits, captures, forks."""

import gc
import threading
import time
import warnings

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain import StreamLoader, Trainer
from streamtrain.loader.device import accelerator, cuda, memory_terms
from streamtrain.loader.device.cuda import CudaAccelerator
from streamtrain.loader.device.memory_terms import AllocatorTraits, project_on_device
from streamtrain.loader.device.transfer import Placement
from tests.support.simulated_cuda import Stream

N = 1501
WAYS = ("host", "device")
MEMORY = {"host": "16MB", "device": "48MB"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    y = np.arange(N)
    x = (y[:, None] + np.arange(300)).astype(np.float32)
    return streamtrain.ingest(
        {"x": x, "y": y, "z": y % 2 == 0}, tmp_path_factory.mktemp("cuda") / "d.zarr", block="12KB", codec="none"
    )


def on(dataset, pool, **options):
    options = {"batch_size": 50, "memory": MEMORY[pool]} | options
    return StreamLoader(dataset, device=Placement(device="cuda", pool=pool), **options)


def computed(device, loader, n_epochs=1):
    found = []
    for _ in range(n_epochs):
        for batch in loader:
            device.compute(batch.y, found)
            del batch
    device.finish()
    return np.concatenate(found)


def on_cpu(dataset, n_epochs=1, **options):
    options = {"batch_size": 50} | options
    with StreamLoader(dataset, memory="16MB", **options) as loader:
        return np.concatenate([batch.y.numpy().copy() for _ in range(n_epochs) for batch in loader])


def test_streams_compare_as_the_simulated_ones_do(simulated):
    ours, real = simulated().another_stream(), torch.Stream(device="cpu")
    for stream in (ours, real):
        assert (stream != None) is False  # noqa: E711
        assert (stream == None) is False  # noqa: E711
        assert stream == stream
        assert (stream != stream) is False
    assert isinstance(ours, Stream)


@pytest.mark.parametrize("pool", WAYS)
def test_every_span_is_handed_over_once(simulated, dataset, pool, monkeypatch):
    device, spans = simulated(), []
    admit = CudaAccelerator.admit
    monkeypatch.setattr(
        CudaAccelerator, "admit", lambda self, memory, marks: spans.append(memory) or admit(self, memory, marks)
    )
    with on(dataset, pool) as loader:
        computed(device, loader)
        n_spans = -(-N // loader.sizes.span_samples(N))
        assert len(spans) == n_spans >= 2
        assert len(set(map(id, spans))) == n_spans


# Page-locked memory.


@pytest.mark.parametrize("has_last_error", [True, False])
def test_a_refusal_leaves_no_error_behind_for_who_computes_next(simulated, has_last_error):
    device = simulated(refuses=lambda n_bytes: 2 if n_bytes > 4096 else 0, has_last_error=has_last_error)
    with pytest.warns(UserWarning, match=r"cuda:0: host memory cannot be page-locked .*error 2"):
        CudaAccelerator(device.device).page_locked(10_000)
    device.launch()


@pytest.mark.parametrize("pool", WAYS)
@pytest.mark.parametrize(
    ("refuses", "way"),
    [
        (lambda _: 801, "allocated"),  # a virtual GPU, a container
        (lambda _: 1, "pageable"),
        (lambda n_bytes: 2 if n_bytes > 4096 else 0, "pageable"),  # a limit
    ],
)
def test_where_page_locking_is_refused_the_next_way_is_taken_and_said_once(simulated, dataset, pool, refuses, way):
    device = simulated(refuses=refuses)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with on(dataset, pool) as loader:
                found = computed(device, loader, n_epochs=2)
                assert cuda._process().locking.way == way
                if way == "allocated":
                    assert loader.projection.terms["pinned"] >= sum(device.registered.values())
                    device.registered.clear()
                assert loader.projection.total_bytes <= loader.memory_bytes
    assert len(caught) == 1, [str(each.message) for each in caught]
    assert "cuda:0: host memory cannot be " in str(caught[0].message)
    assert np.array_equal(found, on_cpu(dataset, n_epochs=2))
    assert (device.n_blocking_copies > 0) == (way == "pageable"), "plain memory may be read after the call comes back"


def test_a_refusal_is_named_with_its_number_and_text(simulated, dataset):
    simulated(refuses=lambda _: 801)
    with pytest.warns(UserWarning, match="gave error 801, operation not supported"), on(dataset, "host"):
        pass


def test_host_memory_is_page_locked_as_long_as_anything_refers_to_it(simulated):
    device = simulated()
    made = CudaAccelerator(device.device)
    memory = made.page_locked(10_000)
    part = torch.from_numpy(memory[5000:])
    del memory
    assert list(device.registered.values()) == [10_000]
    assert made.registered_bytes == 10_000
    del part
    assert not device.registered
    assert made.registered_bytes == 0


@pytest.mark.parametrize("pool", WAYS)
def test_after_a_fork_the_device_copies_what_the_loader_writes(simulated, dataset, pool, monkeypatch):
    def trained(device):
        found = []
        with on(dataset, pool, lanes=8, batch_size=10) as loader:
            for i, batch in enumerate(batch for _ in range(3) for batch in loader):
                device.compute(batch.y, found)
                if i == 3:
                    device.fork()
        device.finish()
        return np.concatenate(found)

    expected = on_cpu(dataset, n_epochs=3, lanes=8, batch_size=10)
    assert np.array_equal(trained(simulated()), expected)
    aligned_bytes = cuda.aligned_bytes
    monkeypatch.setattr(cuda, "aligned_bytes", lambda n_bytes, **_: aligned_bytes(n_bytes))
    try:
        found = trained(simulated())
    except (IndexError, RuntimeError):
        return
    assert not np.array_equal(found, expected), "this device shows what a fork does"


# The device that is used, and no other.


@pytest.mark.parametrize("pool", WAYS)
def test_no_thread_makes_a_context_on_another_device(simulated, dataset, pool):
    gc.collect()  # what another test's loaders have left is of another device
    device = simulated(index=3)
    with on(dataset, pool) as loader:
        computed(device, loader, n_epochs=2)
    del loader
    assert device.contexts == {3}
    assert device.thread.device == 0, "the caller's own current device is as it was"


# What is kept and given back.


@pytest.mark.parametrize("pool", WAYS)
def test_forty_loaders_take_no_more_than_two(simulated, dataset, pool):
    device, reserved = simulated(), []
    for _ in range(40):
        with on(dataset, pool) as loader:
            computed(device, loader)
            most = loader.projection.terms["device"]
            del loader
        reserved.append(device.allocator.reserved_bytes)
    assert reserved[-1] <= reserved[1] == 0
    assert device.allocator.peak_bytes <= most
    assert len(device.streams) == 3
    assert not device.registered


def test_validation_after_every_epoch_takes_no_more_than_after_the_second(simulated, tmp_path):
    device, reserved = simulated(prompt="all"), []
    x = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    data = streamtrain.ingest({"x": x, "y": np.arange(600) % 3}, tmp_path / "d.zarr", block="400B", codec="none")
    trainer = Trainer(torch.nn.Linear(5, 3), loss="cross_entropy", device="cpu")
    with on(data, "host", memory="64MB") as loader, on(data, "host", memory="64MB") as val:
        trainer.fit(
            loader,
            val=val,
            max_epochs=6,
            progress=False,
            on_epoch=lambda _: reserved.append(device.allocator.reserved_bytes),
        )
    assert reserved[-1] <= reserved[1]
    assert len(device.streams) == 3


@pytest.mark.parametrize("pool", WAYS)
def test_a_closed_loader_has_given_its_memory_back(simulated, dataset, pool):
    device = simulated()
    loader = on(dataset, pool)
    computed(device, loader)
    assert device.allocator.reserved_bytes > 0
    loader.close()
    assert device.allocator.reserved_bytes == 0


def test_free_memory_is_what_the_device_and_whole_segments_have(simulated):
    device = simulated(room=100 << 20)
    made = CudaAccelerator(device.device)
    assert made.free_bytes() == 100 << 20
    whole, part = made.copies.empty(30 << 20), made.copies.empty(6 << 20)
    assert made.free_bytes() == 50 << 20
    del whole
    assert made.free_bytes() == 80 << 20, "a segment that nothing lies in is given to whoever asks"
    more = made.copies.empty(6 << 20)
    del part
    assert made.free_bytes() == 80 << 20, "what is free in a segment is for its own stream"
    del more
    assert made.free_bytes() == 100 << 20


def test_a_limit_of_the_process_is_looked_at(simulated, monkeypatch):
    device = simulated(room=100 << 20)
    made = CudaAccelerator(device.device)
    monkeypatch.setattr(cuda.torch.cuda, "get_per_process_memory_fraction", lambda _: 0.3)
    held = made.copies.empty(20 << 20)
    assert made.free_bytes() == 10 << 20
    del held


# Waiting.


def test_a_wait_for_the_bus_is_as_long_as_the_callers_queue_stood_still(simulated):
    device = simulated()
    made = CudaAccelerator(device.device)
    memory, source = made.copies.empty(512), torch.from_numpy(made.page_locked(512))
    device.seconds["copies"] = 2.0
    arrived = made.copies.run(lambda: memory.copy_(source, non_blocking=True))
    wait = made.admit(memory, [arrived])
    assert wait.seconds() is None, "not known before the device comes to it"
    device.finish()
    assert wait.seconds() == pytest.approx(2)
    assert made.admit(memory, [arrived]).seconds() == 0, "what has come already is not waited for"


@pytest.mark.parametrize("pool", WAYS)
def test_what_the_callers_queue_waits_for_the_bus_is_told_as_waited(simulated, dataset, pool, monkeypatch):
    class Wait:
        n_asked = 0

        def seconds(self):
            self.n_asked += 1
            return 100.0 if self.n_asked == 3 else None

    device, admit = simulated(), CudaAccelerator.admit
    monkeypatch.setattr(CudaAccelerator, "admit", lambda *a: admit(*a) and Wait())
    with on(dataset, pool, batch_size=10) as loader:
        computed(device, loader, n_epochs=3)
        n_spans = 3 * -(-N // loader.sizes.span_samples(N))
        # The last three are not known yet when the last span is taken.
        assert 100 * (n_spans - 3) <= loader.wait_seconds < 100 * (n_spans - 2)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_mark_is_waited_for(simulated, timeout):
    device = simulated()
    queue = CudaAccelerator(device.device).copies
    mark = queue.run(lambda: None)
    assert mark.wait(timeout)


def test_a_mark_is_not_waited_for_beyond_the_timeout(simulated):
    device = simulated()
    mark = CudaAccelerator(device.device).copies.run(lambda: None)
    device.hang()
    began = time.monotonic()
    assert not mark.wait(0.2)
    assert time.monotonic() - began < 5


# Captures.


@pytest.mark.parametrize("pool", WAYS)
def test_a_capture_beside_the_loader_holds_it_up_and_no_more(simulated, dataset, pool):
    device, found = simulated(), []
    with on(dataset, pool, lanes=8) as loader:
        for i, batch in enumerate(loader):
            device.compute(batch.y, found)
            del batch
            if i == 5:
                device.is_capturing = True
                threading.Timer(0.2, setattr, (device, "is_capturing", False)).start()
                while device.is_capturing:
                    time.sleep(0.01)
    device.finish()
    assert np.array_equal(np.concatenate(found), on_cpu(dataset, lanes=8))


# Devices whose copies are done later, and which have no marks.


@pytest.mark.parametrize("pool", WAYS)
def test_elsewhere_copies_hold_the_caller_until_they_are_done(dataset, pool, monkeypatch):
    copy, late = torch.Tensor.copy_, []

    def copy_later(target, source, non_blocking=False):
        if non_blocking:
            late.append((target, source))
            return target
        return copy(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_later)
    with StreamLoader(dataset, batch_size=50, memory=MEMORY[pool], device=Placement(device="cpu", pool=pool)) as loader:
        found = np.concatenate([batch.y.numpy().copy() for batch in loader])
    assert np.array_equal(found, on_cpu(dataset))
    assert not late


def test_memory_that_is_the_hosts_too_counts_as_the_hosts(dataset):
    with StreamLoader(dataset, batch_size=50, memory="48MB", device=Placement(device="cpu", pool="device")) as loader:
        assert loader.projection.terms["unified"] > 0
        assert loader.projection.host_bytes == loader.projection.total_bytes
    assert accelerator.SynchronousAccelerator(torch.device("mps")).traits.is_unified
    assert not accelerator.SynchronousAccelerator(torch.device("xpu")).traits.is_unified


# What allocators take beside.


def test_sizes_that_are_rounded_up_are_counted():
    assert memory_terms.allocated_bytes(33 << 20, 2, traits=AllocatorTraits(rounds_up=True)) == 128 << 20


@pytest.mark.parametrize("setting", ["locks_powers_of_two", "is_expandable", "is_deterministic"])
def test_settings_of_the_allocator_are_counted(simulated, dataset, setting):
    simulated()
    with on(dataset, "device") as loader:
        how = {"budget_bytes": 10**9, "pool_on_device": True}
        layout, sizes = dataset.layout, loader.sizes
        plain = project_on_device(layout, sizes, **how)
        counted = project_on_device(layout, sizes, traits=AllocatorTraits(**{setting: True}), **how)
    needed = 5 * memory_terms.span_sections(layout, sizes)[-1].stop + memory_terms.pool_bytes(layout, sizes)[1]
    if setting == "is_expandable":
        assert needed <= counted.terms["device"] <= needed + (44 << 20)
    else:
        assert counted.total_bytes > plain.total_bytes


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_settings_of_the_allocator_are_read(simulated, monkeypatch, name):
    device = simulated()
    monkeypatch.setenv(name, "expandable_segments:True, roundup_power2_divisions:[256:1,>:4]")
    traits = CudaAccelerator(device.device).traits
    assert traits.is_expandable
    assert traits.rounds_up
