"""The memory meter."""

from __future__ import annotations

import mmap
import sys
import time
from types import SimpleNamespace

import pytest
from open_file_limits import at_most, needs_proc, nothing_left

from streamtrain.system.memory import MemoryMeter, anonymous_bytes, device_bytes, held_bytes, memory_limit

N_BYTES = 32_000_000


def touch(n_bytes: int, sharing: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    memory = mmap.mmap(-1, n_bytes, flags=sharing | mmap.MAP_ANONYMOUS)
    for start in range(0, n_bytes, mmap.PAGESIZE):
        memory[start] = 1
    return memory


@pytest.mark.parametrize("sharing", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_a_peak_in_the_middle_is_seen(sharing: int) -> None:
    with MemoryMeter() as meter:
        memory = touch(N_BYTES, sharing)
        time.sleep(0.1)
        memory.close()
        time.sleep(0.05)
    assert 0.9 * N_BYTES < meter.peak_bytes < 2 * N_BYTES


def test_what_was_there_before_is_not_counted() -> None:
    memory = touch(N_BYTES)
    with MemoryMeter() as meter:
        time.sleep(0.05)
    memory.close()
    assert meter.peak_bytes < N_BYTES / 2


def test_the_last_value_is_seen_however_short_the_block() -> None:
    with MemoryMeter(interval_seconds=60) as meter:
        memory = touch(N_BYTES)
    assert meter.peak_bytes > 0.9 * N_BYTES
    memory.close()


@needs_proc
def test_a_peak_is_seen_while_no_file_can_be_opened() -> None:
    with at_most(20), MemoryMeter() as meter, nothing_left():
        memory = touch(N_BYTES)
        time.sleep(0.1)
        memory.close()
    assert meter.peak_bytes > 0.9 * N_BYTES


@needs_proc
def test_a_limit_that_cannot_be_read_is_not_left_out() -> None:
    with at_most(20), nothing_left(), pytest.raises(OSError, match="Too many open files"):
        memory_limit()


def test_memory_is_read_in_bytes() -> None:
    assert anonymous_bytes() > 5_000_000


def test_what_torch_holds_on_devices_and_pinned_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_allocated=lambda i: [1_000_000_000, 500_000_000][i],
        host_memory_stats=lambda: {"allocated_bytes.current": 250_000_000},
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert device_bytes() == (250_000_000, 1_500_000_000)
    assert held_bytes() > 1_750_000_000
    with MemoryMeter() as meter:
        cuda.host_memory_stats = lambda: {"allocated_bytes.current": 350_000_000}
    assert 100_000_000 <= meter.peak_bytes < 150_000_000


def test_an_older_torch_tells_nothing_of_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 1, memory_allocated=lambda i: 7)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert device_bytes() == (0, 7)


@pytest.mark.parametrize(
    "torch", [None, SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False))]
)
def test_without_cuda_nothing_is_held_there(torch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert device_bytes() == (0, 0)
