"""The memory terms of a device, as arithmetic, and the errors where they do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import BudgetError, DeviceError, UsageError
from streamtrain.loader.budget import project, solve
from streamtrain.loader.device.memory_terms import (
    AllocatorTraits,
    allocated_bytes,
    buffer_bytes,
    fit_to_device,
    gather_index_bytes,
    n_buffers,
    pool_bytes,
    sections,
    span_sections,
)
from streamtrain.loader.device.resolve import resolve_device
from streamtrain.loader.device.transfer import Placement, make_transfer
from streamtrain.store.layout import Field, plan_layout
from streamtrain.training import step_errors as rooms
from streamtrain.training.batch_stream import fields_on
from streamtrain.training.step_errors import explain_device

X = Field(name="x", dtype=np.dtype("uint8"), shape=(28, 28))
Y = Field(name="y", dtype=np.dtype("int64"), shape=())

sizings = st.fixed_dictionaries(
    {
        "n_samples": st.integers(1, 10**7),
        "batch_size": st.sampled_from([1, 32, 256, 1000]),
        "memory": st.integers(24, 4000).map(lambda megabytes: megabytes * 10**6),
        "shuffle": st.booleans(),
        "codec": st.sampled_from(["none", "lz4"]),
    }
)


def solved(n_samples, codec, **options):
    layout = plan_layout((X, Y), n_samples, shard_bytes=64_000_000, codec=codec)
    return layout, solve(layout, **options)[0]


@given(sizings, st.booleans())
def test_what_a_device_needs_comes_out_of_the_budget_and_not_of_the_shuffle(sizing, pool_on_device):
    try:
        layout, sizes = solved(**sizing)
    except BudgetError:
        return
    budget = sizing["memory"]
    try:
        fitted, projection = fit_to_device(layout, sizes, budget_bytes=budget, pool_on_device=pool_on_device)
        most = sizes.slots
    except BudgetError as error:
        needed = int(error.fix.removeprefix("memory='").split("B'")[0])
        assert needed > budget
        again, _ = solve(
            layout,
            batch_size=sizing["batch_size"],
            memory=needed,
            shuffle=sizing["shuffle"],
            lanes=sizes.lanes if sizes.lanes > 1 else None,
        )
        fitted, projection = fit_to_device(layout, again, budget_bytes=needed, pool_on_device=pool_on_device)
        budget, most = needed, again.slots
    assert projection.total_bytes <= budget
    assert (fitted.lanes, fitted.groups) == (sizes.lanes, sizes.groups)
    assert min(layout.n_blocks, fitted.lanes + 1) <= fitted.slots <= max(most, fitted.working_slots)
    on_device = projection.terms["device"]
    span_bytes = span_sections(layout, fitted)[-1].stop
    assert on_device >= (fitted.spans + 1) * span_bytes + pool_on_device * pool_bytes(layout, fitted)[1]
    assert projection.host_bytes == projection.total_bytes - on_device
    buffer = buffer_bytes(layout, fitted, pool_on_device=pool_on_device)
    assert projection.terms["pinned"] == n_buffers(fitted) * buffer
    on_host = project(layout, fitted, budget_bytes=budget).terms
    assert ("lanes" in projection.terms) != pool_on_device
    assert all(on_host[name] == n for name, n in projection.terms.items() if name not in ("pinned", "device"))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.integers(0, 40), st.sampled_from([1, 8, 256, 4096]))
def test_sections_lie_apart_and_aligned(row_bytes, n_rows, alignment):
    found = sections(row_bytes, n_rows=n_rows, alignment=alignment)
    assert all(section.start % alignment == 0 for section in found)
    assert all(before.stop <= after.start < before.stop + alignment for before, after in zip(found, found[1:]))  # noqa: B905, RUF007
    assert [section.stop - section.start for section in found] == [n_rows * n for n in row_bytes]


@given(st.integers(1, 10**8), st.integers(0, 20))
def test_the_allocator_takes_no_less_than_it_is_asked_for(n_bytes, count):
    assert allocated_bytes(n_bytes, count) >= n_bytes * count
    assert allocated_bytes(n_bytes, count) <= n_bytes * count + (20 << 20) + 2 * count * max(n_bytes, 2 << 20)


@pytest.mark.parametrize(
    ("n_bytes", "count", "is_expandable", "expected"),
    [(8 << 20, 3, False, 40), (11 << 20, 1, False, 12), (1000, 3, False, 2), (11 << 20, 3, True, 40)],
)
def test_the_allocator_takes_whole_segments(n_bytes, count, is_expandable, expected):
    traits = AllocatorTraits(is_expandable=is_expandable)
    assert allocated_bytes(n_bytes, count, traits=traits) == expected << 20


def test_large_budgets_keep_large_pieces():
    layout, sizes = solved(10**7, "none", batch_size=256, memory=2 * 10**9)
    for pool_on_device in (False, True):
        fitted, _ = fit_to_device(layout, sizes, budget_bytes=2 * 10**9, pool_on_device=pool_on_device)
        assert fitted.span_batches * 256 * layout.row_bytes > 1_000_000, (
            "spans of a megabyte cross the bus at its speed"
        )


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", torch.device("cuda", 1), Placement(device="cuda")):
        with pytest.raises(DeviceError, match=r"there is no device 'cuda.*Found: cpu. Fix: device='auto'") as caught:
            make_transfer(device)
        assert caught.value.exit_code == 5
    assert make_transfer("auto") is None
    assert make_transfer("cpu") is None
    assert resolve_device("auto") == torch.device("cpu")


def test_devices_and_places_that_nobody_knows():
    for device in ("gpu", 3.5):
        with pytest.raises(
            UsageError, match=r"(not a device|no device 'gpu')\. Fix: device='auto', cpu, cuda or cuda:0"
        ):
            make_transfer(device)
    with pytest.raises(UsageError, match=r"pool is 'both'\. Fix: one of auto, host, device"):
        Placement(pool="both")


@pytest.mark.parametrize(
    ("held", "most", "fix"),
    [
        (3_000_000_000, 4_000_000_000, "batch_size=50."),  # a batch of 100 took 3 GB and wanted 2 more; 4 are there
        (3_000_000_000, 1_000_000_000, "batch_size=19."),
        (3_000_000_000, 20_000_000, "a smaller model, or device='cpu'."),
    ],
)
def test_a_step_without_room_is_told_with_the_batch_size_that_fits(monkeypatch, held, most, fix):
    weight = torch.nn.Parameter(torch.zeros(1_000_000))
    monkeypatch.setattr(rooms, "_usage", lambda _: (held, most))
    with (
        pytest.raises(
            DeviceError, match=r"cpu: the device is out of memory at batch_size 100\. Besides the 4\.0 MB"
        ) as caught,
        explain_device(torch.device("cpu"), batch_size=100, optimizer=torch.optim.SGD([weight])),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.86 GiB. GPU 0 has a total capacity")
    assert str(caught.value).endswith(f"Fix: {fix}")
    assert "the step needs more than 4.99 GB" in str(caught.value)


def test_a_step_without_room_beside_a_loader_names_its_share_and_less_memory_for_it(monkeypatch):
    monkeypatch.setattr(rooms, "_usage", lambda _: (3_000_000_000, 4_000_000_000))
    weight = torch.nn.Parameter(torch.zeros(1_000_000))
    how = {"batch_size": 100, "optimizer": torch.optim.SGD([weight]), "loader_bytes": 2_000_000_000}
    with (
        pytest.raises(DeviceError, match=r"keep and up to 2\.00 GB that the loader holds, .*or a smaller memory= for"),
        explain_device(torch.device("cpu"), **how),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.86 GiB.")


def test_other_errors_pass():
    with (
        pytest.raises(RuntimeError, match="shape"),
        explain_device(torch.device("cpu"), batch_size=1, optimizer=None),
    ):
        raise RuntimeError("shape")


def test_what_is_on_its_device_is_not_copied_again():
    batch = {"x": torch.zeros(3), "y": torch.ones(3)}
    assert fields_on(torch.device("cpu"), batch, ("x",))["x"].data_ptr() == batch["x"].data_ptr()


def test_an_index_is_as_small_as_the_pool_lets_it_be():
    layout, sizes = solved(10**7, "none", batch_size=256, memory=10**9)
    small = buffer_bytes(layout, replace(sizes, span_batches=4000, read_blocks=1), pool_on_device=True)
    assert small == -(-4 * 256 * 4000 // 4096) * 4096
    last = 2**31 // layout.block_rows
    assert gather_index_bytes(layout, replace(sizes, slots=last - 1)) == 4
    assert gather_index_bytes(layout, replace(sizes, slots=last + 1)) == 8
