"""A real GPU, where there is one: the same batches as on the CPU, and memory within the projection."""

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import DeviceError
from streamtrain.loader.device.transfer import Placement

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO CUDA DEVICE: batches on a GPU are tested on a simulated device ONLY"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    y = np.arange(20_000)
    x = (y[:, None] + np.arange(300)).astype(np.float32)
    path = tmp_path_factory.mktemp("cuda") / "d.zarr"
    return streamtrain.ingest({"x": x, "y": y, "z": y % 2 == 0}, path, block="24KB", codec="lz4")


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


@pytest.mark.parametrize("pool", ["host", "device"])
def test_a_gpus_memory_stays_within_the_projection(dataset, pool):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    with StreamLoader(dataset, batch_size=100, memory="64MB", device=Placement(device="cuda", pool=pool)) as loader:
        for _ in range(2):
            for batch in loader:
                del batch
        assert torch.cuda.max_memory_reserved() - before <= loader.projection.terms["device"]


def test_a_gpu_too_small_is_told_with_the_budget_that_fits(dataset):
    torch.cuda.empty_cache()
    held = torch.empty(max(0, torch.cuda.mem_get_info()[0] - (64 << 20)), dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceError, match=r"are free.*Fix: memory="):
        StreamLoader(dataset, batch_size=15_000, memory="512MB", device=Placement(device="cuda", pool="device"))
    del held
    torch.cuda.empty_cache()
