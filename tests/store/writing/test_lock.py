"""One writer at a time: a living one is respected, a dead one is not, and two never take the same lock."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from streamtrain.errors import LockedError
from streamtrain.store.writing import lock
from streamtrain.store.writing.lock import check_unlocked, dead_temporaries, lock_path, writer_lock
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

HOLD = """
import sys, time
from pathlib import Path
from streamtrain.system.files import Files
from streamtrain.store.writing.lock import writer_lock
with writer_lock(Path(sys.argv[1]), Files()):
    print("held", flush=True)
    time.sleep(60)
"""


def _write(path: Path, **changes: Any) -> None:
    owner = {"pid": 1, "host": platform.node(), "boot": lock.boot_id(), "started": "1"} | changes
    lock_path(path).write_text(json.dumps(owner))


def test_it_says_who_writes_and_goes_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "d.zarr"
    with writer_lock(path, Files()):
        owner = json.loads(lock_path(path).read_bytes())
        assert (owner["pid"], owner["host"], owner["boot"]) == (os.getpid(), platform.node(), lock.boot_id())
        for attempt in (lambda: check_unlocked(path), writer_lock(path, Files()).__enter__):
            with pytest.raises(LockedError, match=rf"pid {os.getpid()} on host {platform.node()}") as caught:
                attempt()
            assert caught.value.exit_code == 9
            assert str(lock_path(path)) in str(caught.value)
    assert not list(tmp_path.iterdir())
    check_unlocked(path)


def test_a_living_process_is_respected_and_a_killed_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "d.zarr"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"pid {holder.pid} on host"):
                check_unlocked(path)
        finally:
            holder.kill()
            holder.wait()
    assert lock_path(path).exists()
    with writer_lock(path, Files()):
        assert json.loads(lock_path(path).read_bytes())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [{"boot": "an earlier one"}, {"pid": 2**22 + 1}, {"started": "0"}, {"pid": "x"}, {"pid": os.getpid()}],
    ids=["an earlier boot", "no such process", "a number given again", "no number", "ours, long since"],
)
def test_a_dead_writer_is_taken_over(tmp_path: Path, changes: dict[str, Any]) -> None:
    _write(tmp_path / "d", **changes)
    with writer_lock(tmp_path / "d", Files()):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_a_crash_left_of_a_lock_is_taken_over(tmp_path: Path, text: str) -> None:
    lock_path(tmp_path / "d").write_text(text)
    with writer_lock(tmp_path / "d", Files()):
        pass
    assert not list(tmp_path.iterdir())


def test_another_host_is_never_called_dead(tmp_path: Path) -> None:
    _write(tmp_path / "d", host="elsewhere", boot="another")
    with (
        pytest.raises(LockedError, match=r"pid 1 on host elsewhere.*delete this file"),
        writer_lock(tmp_path / "d", Files()),
    ):
        pass
    assert lock_path(tmp_path / "d").exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    lock_path(tmp_path / "d").symlink_to(tmp_path / "other")
    with pytest.raises(LockedError, match="cannot be opened"), writer_lock(tmp_path / "d", Files()):
        pass
    assert (tmp_path / "other").read_text() == "kept"


class WithoutLinks(Syscalls):
    def link(self, old: Path, new: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("dead", [False, True], ids=["none", "a dead one"])
@pytest.mark.parametrize("system", [Syscalls(), WithoutLinks()], ids=["links", "no links"])
def test_of_many_that_find_one_each_is_alone(tmp_path: Path, system: Syscalls, dead: bool) -> None:
    path = tmp_path / "d"
    if dead:
        _write(path, boot="an earlier one")
    inside, most, n_got, counting = 0, 0, 0, threading.Lock()
    start = threading.Barrier(8)

    def take() -> None:
        nonlocal inside, most, n_got
        start.wait()
        for _ in range(10):
            try:
                with writer_lock(path, Files(system=system)):
                    with counting:
                        inside, n_got = inside + 1, n_got + 1
                        most = max(most, inside)
                    with counting:
                        inside -= 1
            except LockedError:
                pass

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert n_got > 0
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_links(tmp_path: Path) -> None:
    files = Files(system=WithoutLinks())
    with writer_lock(tmp_path / "d", files), pytest.raises(LockedError), writer_lock(tmp_path / "d", files):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_does_not_tell_who_holds_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", no_flock)
    path = tmp_path / "d"
    with writer_lock(path, Files()):
        # This process lives, and it is this process that writes: another thread of it would be one too many.
        for attempt in (lambda: check_unlocked(path), writer_lock(path, Files()).__enter__):
            with pytest.raises(LockedError, match=f"pid {os.getpid()} on host"):
                attempt()
    _write(path, pid=2**22 + 1)
    with writer_lock(path, Files()):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_one_left_beside_is_found(tmp_path: Path) -> None:
    left = tmp_path / "..d.lock.0123abcd.tmp"
    left.write_text("")
    (tmp_path / "..d.lock.other").write_text("")
    assert list(dead_temporaries(tmp_path / "d")) == [left]
