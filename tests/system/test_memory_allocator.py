"""The allocator's limits in a process of their own, where large memory returns to the system."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from in_memory import Arrays, Batches
from torch import nn

import streamtrain as st
from streamtrain.system import memory
from streamtrain.system.memory import limit_heap_growth, trim_heap

FREED = """
from streamtrain.system.memory import limit_heap_growth
from streamtrain.system.memory import anonymous_bytes
import ctypes, os
assert limit_heap_growth() and os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def take():
    held = libc.malloc(16 << 20)
    ctypes.memset(ctypes.c_void_p(held), 1, 16 << 20)
    return held
libc.free(take())
# By now glibc's own limit would be 16 MiB, and a small piece above a large one would keep it.
before = anonymous_bytes()
large, small = take(), libc.malloc(100)
libc.free(large)
print(anonymous_bytes() - before)
"""


REUSED = """
from streamtrain.system.memory import limit_heap_growth
import ctypes, resource, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
    held = libc.malloc(12 << 20)
    ctypes.memset(ctypes.c_void_p(held), 1, 12 << 20)
    libc.free(held)
for reused in 0, 16 << 20:
    limit_heap_growth(reused)
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="its limits are glibc's")
def test_memory_that_is_taken_again_and_again_is_kept_where_that_is_asked() -> None:
    done = subprocess.run([sys.executable, "-c", REUSED], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 20 * (12 << 20) // (64 << 10), "pages are taken each time"
    assert kept < given_back / 10


@pytest.mark.skipif(sys.platform != "linux", reason="its limits are glibc's")
def test_large_memory_is_given_back_though_small_memory_lies_above_it() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20


def test_the_heap_is_trimmed_on_linux() -> None:
    assert trim_heap() or sys.platform != "linux"


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert limit_heap_growth() is False
    assert trim_heap() is False


def test_freed_memory_is_given_back_in_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, trims = [0.0], []

    def trim() -> bool:
        trims.append(now[0])
        now[0] += 0.05
        return True

    monkeypatch.setattr(memory, "return_freed", trim)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    freed = memory.FreedMemory()
    for _ in range(1000):
        freed.give_back()
        now[0] += 0.1
    assert trims[0] == 0
    assert 19 <= len(trims) <= 21
    assert len(trims) * 0.05 <= 0.0105 * now[0]


@pytest.mark.usefixtures("one_thread")
def test_a_training_gives_it_back_between_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    n_asked = [0]
    monkeypatch.setattr(memory.FreedMemory, "give_back", lambda self: n_asked.__setitem__(0, n_asked[0] + 1))
    rows = Arrays(x=np.ones((40, 3), np.float32), y=np.arange(40) % 2)
    trainer = st.Trainer(nn.Linear(3, 3), loss="cross_entropy", device="cpu")
    trainer.fit(Batches(rows, batch_size=20), val=Batches(rows, batch_size=20), max_epochs=3)
    assert n_asked == [6]
