"""Devices that do not work, fail, or hang, and forks beside them: a clear error, and nothing hangs or is lost."""

import gc
import os
import signal
import threading
import time
import types
import warnings
from collections import deque
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_python import run_forked
from torch import nn

import streamtrain
from streamtrain import StreamLoader, Trainer
from streamtrain.errors import DeviceError, StallError, UsageError
from streamtrain.loader.device import device_pool, resolve, transfer
from streamtrain.loader.device.failures import is_device_failure, is_out_of_memory
from streamtrain.loader.device.transfer import Placement
from streamtrain.models.seeding import seeded_random
from streamtrain.optim import gradients
from streamtrain.training import batch_stream

ROOT = Path(__file__).resolve().parents[3]
WAYS = ("host", "device")
BROKEN = [
    getattr(torch, "AcceleratorError", RuntimeError)(
        "CUDA error: device-side assert triggered\nCUDA kernel errors ..."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    y = np.arange(901) % 3
    x = np.random.default_rng(0).normal(size=(901, 40)).astype(np.float32)
    return streamtrain.ingest({"x": x, "y": y}, tmp_path_factory.mktemp("failures") / "d.zarr", block="1KB")


def on(dataset, pool, **options):
    options = {"batch_size": 20, "memory": "48MB", "lanes": 8} | options
    return StreamLoader(dataset, device=Placement(device="cuda", pool=pool), **options)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("streamtrain-")]


def endless(loader):
    while True:
        yield from loader


def fails_at_once(loader, device):
    with loader:
        next(iter(loader))
        device.lose()
        raise ZeroDivisionError


# A device that has failed.


@pytest.mark.parametrize("pool", WAYS)
def test_what_failed_first_is_what_is_told(simulated, dataset, pool):
    device = simulated()
    loader = on(dataset, pool)
    with pytest.raises(ZeroDivisionError):
        fails_at_once(loader, device)
    assert not threads()
    with pytest.raises(UsageError, match="the loader is closed"):
        iter(loader)


@pytest.mark.parametrize("pool", WAYS)
def test_a_device_that_fails_in_a_thread_is_ours_to_tell(simulated, dataset, pool):
    device = simulated()
    loader = on(dataset, pool)
    batches = endless(loader)
    next(batches)
    device.lose()
    with pytest.raises(DeviceError, match="cuda:0: the device failed: CUDA error: unspecified launch") as caught:
        deque(batches, maxlen=1)
    assert caught.value.exit_code == 5
    with pytest.raises(DeviceError, match="the device failed"):
        loader.close()
    loader.close()
    assert not threads()


@pytest.mark.parametrize("pool", WAYS)
def test_a_device_that_hangs_ends_nothing_but_the_waiting(simulated, dataset, pool, monkeypatch):
    monkeypatch.setattr(device_pool, "_DRAIN_SECONDS", 0.3)
    gc.collect()  # letting go of what another test has left would wait for this device
    device = simulated()
    loader = on(dataset, pool, timeout=0.5)
    batches = endless(loader)
    next(batches)
    device.hang()
    registered = dict(device.registered)
    with pytest.raises(StallError, match=r"within 0\.5 seconds"):
        deque(batches, maxlen=1)
    began = time.monotonic()
    with warnings.catch_warnings():
        # Which of the two it is that does not end, a thread or the device, is chance.
        warnings.filterwarnings("ignore", message=".*the loader's memory is kept")
        loader.close()
    assert time.monotonic() - began < 10
    del loader, batches
    gc.collect()
    assert device.registered == registered, "the device may still write there, or read"
    device.recover()
    device_pool._kept.clear()
    for thread in threads():
        thread.join(10)


@pytest.mark.parametrize("how", ["lose", "hang", "assert"])
@pytest.mark.parametrize("pool", WAYS)
def test_the_process_ends_with_the_first_error(how, pool, tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import numpy as np, streamtrain
from streamtrain import StreamLoader
from streamtrain.loader.device import device_pool
from streamtrain.loader.device.transfer import Placement
from tests.support.simulated_cuda import SimulatedCuda
data = streamtrain.ingest({{"y": np.arange(901)}}, {str(tmp_path / "d.zarr")!r}, block="160B", progress=False)
device_pool._DRAIN_SECONDS = 0.3
device = SimulatedCuda()
with device.installed():
    device.recover = lambda: None
    with StreamLoader(data, batch_size=20, memory="48MB", device=Placement(device="cuda", pool={pool!r})) as loader:
        for batch in loader:
            device.{"hang" if how == "hang" else "lose"}()
            raise RuntimeError("CUDA error: device-side assert triggered" if {how == "assert"} else "the first error")
"""
    # A process that waits for the device, or for a thread of its own, waits for ever.
    ended = run_forked(["-c", script], timeout=120)
    last = ended.stderr.strip().splitlines()[-1]
    assert last.endswith("RuntimeError: CUDA error: device-side assert triggered" if how == "assert" else "first error")
    assert ended.returncode == 1


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (5.00 GB allocated)")],
)
def test_a_device_without_room_has_not_failed(error):
    assert is_out_of_memory(error)
    assert not is_device_failure(error)


def test_wrong_shapes_are_no_failure_of_the_device():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")
    assert not is_out_of_memory(error)
    assert not is_device_failure(error)


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: str(error)[:30])
def test_a_device_that_fails_in_a_step_is_no_misfit(dataset, error):
    class Broken(nn.Linear):
        fails = True

        def forward(self, x):
            if self.fails:
                raise error
            return super().forward(x)

    assert is_device_failure(error)
    assert not is_out_of_memory(error)
    trainer = Trainer(Broken(40, 3), loss="cross_entropy", device="cpu")
    with StreamLoader(dataset, batch_size=64, memory="32MB") as loader:
        for act in (lambda: trainer.fit(loader, max_epochs=1, progress=False), lambda: trainer.evaluate(loader)):
            with pytest.raises(DeviceError, match=r"cpu: the device failed: .*Fix: ") as caught:
                act()
            assert caught.value.cause is error
        trainer.model.fails = False
        trainer.fit(loader, max_epochs=1, progress=False)
        assert trainer.counts.n_epochs == 1
        trainer.model.fails = True
        with pytest.raises(DeviceError, match="the device failed"):
            trainer.fit(loader, max_epochs=2, progress=False)


# A device that does not work.


def no_kernels(*_, **__):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


def taken(*_, **__):
    raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")


@pytest.fixture
def gpu(monkeypatch):
    """Let torch see a GPU, which computes what ``ones`` does."""

    def see(ones=torch.ones, version="12.8"):
        cuda = types.SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 1,
            get_device_name=lambda _: "Tesla K80",
            get_arch_list=lambda: ["sm_75", "sm_90"],
            get_device_capability=lambda _: (3, 7),
        )
        monkeypatch.setattr(torch, "cuda", cuda)
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch, "ones", lambda *a, device=None: ones(*a))
        monkeypatch.setattr(resolve, "_working", set())

    return see


def test_a_gpu_that_computes_is_taken(gpu):
    gpu()
    assert resolve.resolve_device("auto") == torch.device("cuda")
    assert resolve.resolve_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        (no_kernels, r"It is of sm_37, and torch \S+ has kernels for sm_75, sm_90: .*Fix: a build of torch for it"),
        (taken, r"Another process uses it exclusively: .*Fix: end that process, another GPU, or device='cpu'"),
    ],
)
def test_a_gpu_that_does_not_compute_is_told_with_the_reason(gpu, fails, why):
    gpu(fails)
    with pytest.raises(DeviceError, match=rf"the device 'cuda' does not work\. {why}"):
        resolve.resolve_device("cuda")
    with pytest.warns(UserWarning, match=f"there is a GPU, but it does not work, so the CPU is used.*{why[:20]}"):
        assert resolve.resolve_device("auto") == torch.device("cpu")


def test_a_build_of_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError, match=r"This torch, \S+, is built without CUDA\. Found: cpu"):
        resolve.resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(DeviceError, match=r"The driver is missing, too old .* Found: cpu"):
        resolve.resolve_device("cuda")


def test_fields_that_a_device_does_not_have_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "resolve_device", lambda _: torch.device("mps"))
    data = streamtrain.ingest({"wide": np.zeros((9, 2)), "y": np.arange(9)}, tmp_path / "d.zarr")
    with pytest.raises(UsageError, match="mps: field wide is float64, which MPS does not have"):
        StreamLoader(data, device="mps", memory="32MB")


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_random_state_of_every_device_is_seeded_and_put_back(kind, monkeypatch):
    state = torch.Generator().get_state()
    calls = []
    module = types.SimpleNamespace(
        get_rng_state=lambda device: calls.append("get") or state,
        set_rng_state=lambda state, device: calls.append("set"),
        manual_seed=lambda seed: calls.append(seed),
        device=lambda device: nullcontext(),
    )
    monkeypatch.setattr(torch, kind, module)
    with seeded_random(1, 2, device=torch.device(kind)):
        seeded = calls[-1]
    assert calls == ["get", seeded, "set"]
    assert isinstance(seeded, int)


# Forks.


@pytest.mark.parametrize("pool", WAYS)
@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_touches_nothing_of_the_devices(simulated, dataset, pool, how):
    device = simulated()
    loader = on(dataset, pool)
    batches = iter(loader)
    batch = next(batches)
    child = os.fork()
    if not child:
        code = 1
        with suppress(BaseException):
            # Of what the child asks, all fails.
            device.lock = nullcontext()
            device.lose()
            device.contexts.clear()
            if how == "close":
                loader.close()
            del loader, batches
            gc.collect()
            code = 2 if device.contexts else 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    device.compute(batch.y, found := [])
    device.finish()
    assert len(found) == 1
    loader.close()
    assert not device.registered


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_loader_made_before_a_fork_is_used_and_closed_after_it(dataset):
    loader = StreamLoader(dataset, memory="16MB", device=Placement(device="cpu", pool="host"))
    kept = list(device_pool._kept)  # by an earlier test whose device hung, on a busy machine
    child = os.fork()
    if not child:
        code = 1
        signal.alarm(60)
        with suppress(BaseException):
            n_batches = sum(1 for _ in loader)
            loader.close()
            code = 0 if n_batches == len(loader) and not threads() and device_pool._kept == kept else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loader.close()


# Weights where reading them waits.


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("update", ["batch", "epoch"])
def test_bad_weights_are_found_with_the_loss_and_named(tmp_path, monkeypatch, update, bad):
    for module in (gradients, batch_stream):
        monkeypatch.setattr(module, "waits_for_reads", lambda _: True)
    data = {"x": np.ones((60, 2), np.float32), "y": np.zeros(60, np.float32), "w": np.ones(60, np.float32)}
    good = streamtrain.ingest(data, tmp_path / "d.zarr")
    weights = torch.ones(60)
    weights[[41, 7]] = bad
    trainer = Trainer(nn.Linear(2, 1), loss="mse", weight="w", update=update, device="cpu")
    before = trainer.model.weight.detach().clone()
    how = {"batch_size": 60, "memory": "16MB", "shuffle": False}
    with StreamLoader(good, transform=lambda batch: batch._replace(w=weights), **how) as loader:
        for act in (lambda: trainer.fit(loader, max_epochs=1, progress=False), lambda: trainer.evaluate(loader)):
            with pytest.raises(streamtrain.InputError, match=r"field w: the weight of sample 7 is .*, of 41 is"):
                act()
    assert torch.equal(trainer.model.weight, before)
    with StreamLoader(good, **how) as loader:
        trainer.fit(loader, max_epochs=1, progress=False)
    assert trainer.counts.n_epochs == 1
