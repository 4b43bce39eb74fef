"""The profiler's eyes: a process tree sampled, a command run, its events heard, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.diagnostics.profile_command import (
    HeldMemory,
    MemorySample,
    MemorySamples,
    cgroup_memory,
    record_command,
    sample_memory,
)
from streamtrain.diagnostics.profile_timeline import build_timeline
from streamtrain.errors import UsageError
from streamtrain.system.events import LoaderClosed

MB = 10**6
PYTHON = sys.executable


# Sampling.


@given(
    values=st.lists(st.dictionaries(st.integers(1, 3), st.integers(0, 99), max_size=3), max_size=60),
    most=st.integers(2, 20),
)
def test_few_samples_keep_every_peak(values: list[dict[int, int]], most: int) -> None:
    samples = MemorySamples(most=most)
    for i, value in enumerate(values):
        kinds = {pid: HeldMemory(anonymous=n, shared=99 - n, file=n // 2) for pid, n in value.items()}
        samples.add(MemorySample(time=float(i), held=kinds))
    assert len(samples.kept) <= most
    assert [each.time for each in samples.kept] == sorted({each.time for each in samples.kept})
    for pid in (1, 2, 3):
        every = [value[pid] for value in values if pid in value]
        kept = [each.held[pid] for each in samples.kept if pid in each.held]
        assert max((each.anonymous for each in kept), default=None) == max(every, default=None)
        assert min((99 - each.shared for each in kept), default=None) == min(every, default=None)


def test_memory_that_processes_share_counts_once() -> None:
    fork = "import os, sys; held = bytearray(b'x') * 50_000_000; os.write(1, b'%d\\n' % os.fork()); sys.stdin.read()"
    parent = subprocess.Popen([PYTHON, "-c", fork], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [parent.pid, max(int(parent.stdout.readline()) for _ in range(2))]
        alone = [sample_memory([psutil.Process(pid)]).held[pid].anonymous for pid in pids]
        found = sample_memory([psutil.Process(pid) for pid in pids]).held
    finally:
        parent.communicate()
    assert min(alone) > 50_000_000
    assert set(found) == set(pids)
    assert 50_000_000 < sum(each.anonymous for each in found.values()) < 75_000_000


def test_a_process_that_has_ended_holds_nothing() -> None:
    child = subprocess.Popen([PYTHON, "-c", ""])
    process = psutil.Process(child.pid)
    child.wait()
    assert sample_memory([process]).held == {}
    assert sample_memory([psutil.Process()]).held[os.getpid()].file > 1_000_000


def test_the_cgroup_of_either_version(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert cgroup_memory(tmp_path).peak_bytes is None
    put("proc/self/cgroup", "4:memory:/job\n")
    put("sys/fs/cgroup/memory/job/memory.max_usage_in_bytes", "500\n")
    put("sys/fs/cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert (cgroup_memory(tmp_path).peak_bytes, cgroup_memory(tmp_path).n_killed) == (500, 2)
    put("proc/self/cgroup", "0::/job\n")
    put("sys/fs/cgroup/job/memory.peak", "700\n")
    put("sys/fs/cgroup/job/memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n")
    assert (cgroup_memory(tmp_path).peak_bytes, cgroup_memory(tmp_path).n_killed) == (700, 1)
    put("proc/vmstat", "nr_free_pages 7\noom_kill 3\n")
    assert cgroup_memory(tmp_path).n_killed == 3, "the system's count has that of every group in it"


# Running a command.


def test_a_command_is_watched_with_its_children_and_its_code_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It holds the memory until it has been seen with it, however long that takes on a busy machine.
    seen, add = tmp_path / "seen", MemorySamples.add
    before = psutil.Process().children()

    def note(self: MemorySamples, sample: MemorySample) -> None:
        add(self, sample)
        if sum(held.anonymous for held in sample.held.values()) > 40 * MB:
            seen.touch()

    monkeypatch.setattr(MemorySamples, "add", note)
    wait = f"while not os.path.exists('{seen}') and time.monotonic() < ends: time.sleep(0.01)"
    grow = f"import os, time; held, ends = bytearray(b'x') * 40_000_000, time.monotonic() + 60\n{wait}"
    found = record_command(["sh", "-c", f'{PYTHON} -c "{grow}"; exit 3'], interval_seconds=0.02)
    assert found.exit_code == 3
    assert build_timeline(found).peak_bytes > 40 * MB
    assert len({pid for each in found.samples for pid in each.held}) >= 2
    assert found.start < found.samples[0].time < found.stop
    assert psutil.Process().children() == before


def still_runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("command", ["{}; sleep 1", "({}; sleep 1); sleep 0.5"], ids=["to the end", "for a while"])
def test_nothing_that_was_seen_below_the_command_keeps_running(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    leave = f"{PYTHON} -c 'import time; time.sleep(60)' & echo $! > pid"
    found = record_command(["sh", "-c", command.format(leave)], interval_seconds=0.01)
    left = int(Path("pid").read_text())
    assert found.exit_code == 0
    assert found.stop - found.start < 30
    assert left in found.samples[-1].held, "its parent need not be there"
    assert not still_runs(left)


def test_what_does_not_listen_to_reason_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.diagnostics.profile_command._GRACE_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    stubborn = "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    stubborn += "; pathlib.Path('ready').touch(); time.sleep(60)"
    wait = "while ! [ -e ready ]; do sleep 0.02; done; sleep 1"
    command = f'{PYTHON} -c "{stubborn}" & echo $! > pid; {wait}; exit 4'
    found = record_command(["sh", "-c", command], interval_seconds=0.01)
    assert found.exit_code == 4
    assert found.stop - found.start < 30
    assert not still_runs(int(Path("pid").read_text()))


def send_when_ready(number: signal.Signals, ready: Path) -> threading.Thread:
    """Send a signal to this process once the command is ready for it."""

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, name="streamtrain-test-sender")
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.diagnostics.profile_command._in_foreground", lambda: False)
    ready = tmp_path / "ready"
    code = f"import pathlib, signal, time; signal.signal({number.value}, lambda *_: exit(9))"
    code += f"; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    before = signal.getsignal(number)
    sender = send_when_ready(number, ready)
    found = record_command([PYTHON, "-c", code], interval_seconds=0.02)
    sender.join()
    assert found.exit_code == 9
    assert signal.getsignal(number) is before


def test_a_terminals_own_interrupt_is_not_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.diagnostics.profile_command._in_foreground", lambda: True)
    ready = tmp_path / "ready"
    sender = send_when_ready(signal.SIGINT, ready)
    code = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(0.3)"
    found = record_command([PYTHON, "-c", code], interval_seconds=0.02)
    sender.join()
    assert found.exit_code == 0


def test_a_command_that_a_signal_ends_has_the_shells_code() -> None:
    assert record_command([PYTHON, "-c", "import os; os.kill(os.getpid(), 9)"]).exit_code == 137


@pytest.mark.parametrize(
    ("word", "message"), [("no-such-command", "there is no command 'no-such-command'"), ("/etc", "cannot be run")]
)
def test_a_command_that_is_none_is_a_usage_error(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        record_command([word])


def test_the_events_of_a_grandchild_are_heard() -> None:
    tell = "from streamtrain.system.events import *; publish_event(LoaderClosed(loader=4))"
    found = record_command(["sh", "-c", f"{PYTHON} -c '{tell}'; true"])
    assert [told.event for told in found.events] == [LoaderClosed(loader=4)]


def test_sampling_that_takes_long_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(processes: list[psutil.Process]) -> MemorySample:
        time.sleep(0.05)
        return sample_memory(processes)

    monkeypatch.setattr("streamtrain.diagnostics.profile_command.sample_memory", slowly)
    found = record_command([PYTHON, "-c", "import time; time.sleep(0.4)"], interval_seconds=0.001)
    assert 1 <= len(found.samples) <= 1 + (found.stop - found.start) / 0.5
