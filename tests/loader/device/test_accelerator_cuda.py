"""CUDA: how it is called, on a stand-in that writes the calls down; and, where there is a GPU, what comes of it."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import DeviceError
from streamtrain.loader.device.accelerator import CudaAccelerator
from streamtrain.loader.device.transfer import Placement

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO CUDA DEVICE: batches on a GPU are tested on a simulated device ONLY"
)


class Runtime:
    """Where page-locking goes; ``code`` is what it answers."""

    def __init__(self, calls):
        self.calls, self.code = calls, 0

    def cudaHostRegister(self, address, n_bytes, flags):  # noqa: N802
        self.calls.append(("lock", n_bytes, flags))
        return self.code

    def cudaHostUnregister(self, address):  # noqa: N802
        self.calls.append(("unlock",))
        return 0


class Stream:
    def __init__(self, calls, name):
        self.calls, self.name, self.device = calls, name, torch.device("cpu")

    def wait_event(self, event):
        self.calls.append((self.name, "waits for", event.name))

    def synchronize(self):
        self.calls.append((self.name, "is waited for"))


@pytest.fixture
def cuda(monkeypatch):
    """A stand-in for torch.cuda: the calls, the streams by name, and the runtime."""
    calls, streams = [], []

    def make_stream(device, priority=0):
        assert device == torch.device("cuda", 3)
        streams.append(Stream(calls, "gathers" if priority else "copies"))
        return streams[-1]

    class Event:
        def __init__(self, blocking):
            assert blocking, "a thread that spins takes a core from the readers"

        def record(self, stream):
            self.name = f"event {sum(call[1] == 'records' for call in calls)}"
            calls.append((stream.name, "records", self.name))

        def synchronize(self):
            calls.append((self.name, "is waited for"))

    @contextmanager
    def stream(chosen):
        calls.append((chosen.name, "begins"))
        yield
        calls.append((chosen.name, "ends"))

    runtime, caller = Runtime(calls), Stream(calls, "caller")
    for name, stand_in in {
        "Stream": make_stream,
        "Event": Event,
        "stream": stream,
        "current_device": lambda: 3,
        "current_stream": lambda device: caller,
        "cudart": lambda: runtime,
        "mem_get_info": lambda device: (700, 1000),
        "memory_reserved": lambda device: 200,
        "memory_allocated": lambda device: 150,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return CudaAccelerator(torch.device("cuda")), calls, runtime


def test_work_stands_in_its_stream_between_what_it_waits_for_and_its_event(cuda):
    device, calls, _ = cuda
    copied = device.copies.run(lambda: calls.append("copy"))
    gathered = device.gathers.run(lambda: calls.append("gather"), after=[copied])
    gathered.wait()
    assert calls == [
        ("copies", "begins"),
        "copy",
        ("copies", "records", "event 0"),
        ("copies", "ends"),
        ("gathers", "begins"),
        ("gathers", "waits for", "event 0"),
        "gather",
        ("gathers", "records", "event 1"),
        ("gathers", "ends"),
        ("event 1", "is waited for"),
    ]


def test_the_caller_waits_for_a_span_and_its_memory_for_the_caller(cuda):
    device, calls, _ = cuda

    class Memory:
        def record_stream(self, stream):
            calls.append(("memory waits for", stream.name))

    arrived = device.copies.run(lambda: None)
    del calls[:]
    device.admit(Memory(), [arrived])
    device.mark().wait()
    assert calls == [
        ("caller", "waits for", "event 0"),
        ("memory waits for", "caller"),
        ("caller", "records", "event 0"),
        ("event 0", "is waited for"),
    ]


def test_host_memory_is_page_locked_as_long_as_anything_refers_to_it(cuda):
    device, calls, runtime = cuda
    memory = device.page_locked(10_000)
    part = torch.from_numpy(memory[5000:])
    del memory
    assert calls == [("lock", 10_000, 1)]
    del part
    assert calls == [("lock", 10_000, 1), ("unlock",)]
    runtime.code = 2
    with pytest.raises(
        DeviceError, match=r"cuda:3: 10\.0 KB of host memory could not be page-locked.*error 2"
    ) as caught:
        device.page_locked(10_000)
    assert caught.value.exit_code == 5


def test_free_memory_counts_what_the_allocator_holds_unused(cuda):
    device, calls, _ = cuda
    assert device.free_bytes() == 750
    device.close()
    assert calls == [("copies", "is waited for"), ("gathers", "is waited for")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    y = np.arange(20_000)
    x = (y[:, None] + np.arange(300)).astype(np.float32)
    path = tmp_path_factory.mktemp("cuda") / "d.zarr"
    return streamtrain.ingest({"x": x, "y": y, "z": y % 2 == 0}, path, block="24KB", codec="lz4")


@on_a_gpu
@pytest.mark.parametrize("pool", ["host", "device"])
def test_a_gpu_computes_on_the_same_batches_bit_for_bit(dataset, pool):
    options = {"batch_size": 100, "memory": "64MB", "seed": 2}
    with StreamLoader(dataset, **options) as loader:
        expected = [(x.double().sum().item(), y.clone()) for _ in range(2) for x, y, _ in loader]
    found = []
    with StreamLoader(dataset, device=Placement(device="cuda", pool=pool), **options) as loader:
        for _ in range(2):
            for x, y, z in loader:
                assert x.device.type == y.device.type == z.device.type == "cuda"
                # Work that keeps the stream behind the caller, so that memory is given back before it is read.
                torch.cuda._sleep(1_000_000)
                found.append((x.double().sum(), y.clone()))
    assert [x.item() for x, _ in found] == [x for x, _ in expected]
    assert all(torch.equal(mine.cpu(), theirs) for (_, mine), (_, theirs) in zip(found, expected, strict=True))


@on_a_gpu
@pytest.mark.parametrize("pool", ["host", "device"])
def test_a_gpus_memory_stays_within_the_projection(dataset, pool):
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    with StreamLoader(dataset, batch_size=100, memory="64MB", device=Placement(device="cuda", pool=pool)) as loader:
        for _ in range(2):
            for batch in loader:
                del batch
        assert torch.cuda.max_memory_reserved() - before <= loader.projection.terms["device"]


@on_a_gpu
def test_a_gpu_too_small_is_told_with_the_budget_that_fits(dataset):
    held = torch.empty(max(0, torch.cuda.mem_get_info()[0] - (64 << 20)), dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceError, match=r"are free.*Fix: memory="):
        StreamLoader(dataset, batch_size=15_000, memory="512MB", device=Placement(device="cuda", pool="device"))
    del held
    torch.cuda.empty_cache()
