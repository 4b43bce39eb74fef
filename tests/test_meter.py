"""The memory meter."""

from __future__ import annotations

import mmap
import time

import pytest

from streamtrain.meter import MemoryMeter, anonymous_bytes

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


def test_memory_is_read_in_bytes() -> None:
    assert anonymous_bytes() > 5_000_000
