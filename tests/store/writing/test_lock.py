"""One writer at a time: a living one is respected, a dead one is not, and two never have the same lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import streamtrain
from scripts.faults.stand_ins import lock_by_range
from streamtrain.errors import LockedError, ResourceError
from streamtrain.store.writing import lock
from streamtrain.store.writing.lock import (
    FOLDER_LOCK,
    check_folder_unlocked,
    check_unlocked,
    folder_lock,
    is_folder_locked,
    lock_path,
    writer_lock,
)
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


def _lock(path: Path, files: Files | None = None) -> AbstractContextManager[None]:
    return writer_lock(path, files or Files())


def test_it_says_who_writes_and_goes_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "d.zarr"
    with _lock(path):
        assert json.loads(lock_path(path).read_bytes()) == {"pid": os.getpid(), "host": platform.node()}
        for attempt in (lambda: check_unlocked(path), _lock(path).__enter__):
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
            # Not even what its file says makes a living one dead.
            for text in (lock_path(path).read_text(), '{"pid": 0, "host": "elsewhere"}', ""):
                lock_path(path).write_text(text)
                for attempt in (lambda: check_unlocked(path), _lock(path).__enter__):
                    with pytest.raises(LockedError, match=r"pid \S+ on host \S+"):
                        attempt()
            lock_path(path).write_text(json.dumps({"pid": holder.pid, "host": platform.node()}))
            with pytest.raises(LockedError, match=f"pid {holder.pid} on host {platform.node()}"):
                streamtrain.ingest({"x": [1.0]}, path)
        finally:
            holder.kill()
            holder.wait()
    assert lock_path(path).exists()
    check_unlocked(path)
    with _lock(path):
        assert json.loads(lock_path(path).read_bytes())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"pid": os.getppid(), "host": platform.node()})])
def test_what_a_dead_writer_left_is_free_whatever_it_says(tmp_path: Path, text: str) -> None:
    lock_path(tmp_path / "d").write_text(text)
    check_unlocked(tmp_path / "d")
    with _lock(tmp_path / "d"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_another_user_left_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = os.open, []
    monkeypatch.setattr(lock.os, "access", lambda path, mode: False)
    monkeypatch.setattr(lock.os, "open", lambda path, flags, *args: opened.append(flags) or real(path, flags, *args))
    lock_path(tmp_path / "d").write_text("{}")
    with _lock(tmp_path / "d"):
        pass
    assert not any(flags & os.O_RDWR for flags in opened)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path.parent / "other"), os.mkdir, os.mkfifo])
def test_what_is_no_file_in_its_place_is_left(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "other").write_text("kept")
    make(lock_path(tmp_path / "d"))
    before = sorted(tmp_path.iterdir())
    if make is not os.mkfifo:
        with pytest.raises((LockedError, ResourceError), match="cannot"), _lock(tmp_path / "d"):
            pass
        assert sorted(tmp_path.iterdir()) == before
    else:
        with _lock(tmp_path / "d"):  # which nothing waits for
            pass
    assert (tmp_path / "other").read_text() == "kept"


@pytest.mark.parametrize("dead", [False, True], ids=["none", "a dead one"])
def test_of_many_that_find_one_each_is_alone(tmp_path: Path, dead: bool) -> None:
    path = tmp_path / "d"
    if dead:
        lock_path(path).write_text("{}")
    inside, most, n_got, counting = 0, 0, 0, threading.Lock()
    start = threading.Barrier(8)

    def take() -> None:
        nonlocal inside, most, n_got
        start.wait()
        for _ in range(10):
            try:
                with _lock(path):
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


COUNT = """
import sys
from pathlib import Path
from streamtrain.errors import LockedError
from streamtrain.system.files import Files
from streamtrain.store.writing.lock import writer_lock
path, n_got = Path(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.readline()
while n_got < 100:
    try:
        with writer_lock(path, Files()):
            path.with_name("inside").mkdir()  # fails where another is inside
            path.with_name("inside").rmdir()
            n_got += 1
    except LockedError:
        pass
print(n_got)
"""


def test_two_processes_at_once_are_never_both_inside(tmp_path: Path) -> None:
    """Each gets the lock a hundred times, beside the other that does the same."""
    command = [sys.executable, "-c", COUNT, str(tmp_path / "d")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in both] == ["100\n", "100\n"]
    assert [process.returncode for process in both] == [0, 0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["before it is locked", "before it is compared"])
def test_a_file_that_loses_its_name_meanwhile_is_no_lock(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is taken for a dead writer's and removed, just after it was made."""
    path, removed = tmp_path / "d", []
    function = "_flock" if step == "before it is locked" else "_is_same"
    real = getattr(lock, function)

    def late(*args: object, **options: bool) -> bool:
        if not removed:
            removed.append(lock_path(path).unlink())
        return bool(real(*args, **options))

    monkeypatch.setattr(lock, function, late)
    with _lock(path):
        assert json.loads(lock_path(path).read_bytes())["pid"] == os.getpid()
        with pytest.raises(LockedError):
            check_unlocked(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_with_a_way_out(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    for act in (_lock(tmp_path / "d").__enter__, lambda: streamtrain.ingest({"x": [1.0]}, tmp_path / "d")):
        with pytest.raises(ResourceError, match=rf"cannot lock: {os.strerror(code)}.*Fix: .*flock") as caught:
            act()
        assert caught.value.exit_code == 5
        assert not list(tmp_path.iterdir())
    lock_path(tmp_path / "d").write_text("{}")
    with pytest.raises(ResourceError, match="cannot lock"):
        check_unlocked(tmp_path / "d")


def test_a_lock_of_another_user_is_not_taken_over_where_locking_takes_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: looking is possible, and a writer is told what to do."""
    monkeypatch.setattr(fcntl, "flock", lock_by_range)
    monkeypatch.setattr(lock.os, "access", lambda path, mode: False)
    lock_path(tmp_path / "d").write_text("{}")
    check_unlocked(tmp_path / "d")
    with (
        pytest.raises(LockedError, match=r"belongs to another user.*Fix: delete it if nobody writes there"),
        _lock(tmp_path / "d"),
    ):
        pass
    assert lock_path(tmp_path / "d").read_text() == "{}"


def test_any_number_may_look_at_once(tmp_path: Path) -> None:
    lock_path(tmp_path / "d").write_text("{}")
    with lock_path(tmp_path / "d").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        check_unlocked(tmp_path / "d")
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            check_unlocked(tmp_path / "d")


class FullDisk(Syscalls):
    def writev(self, fd: int, buffers: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No space"), _lock(tmp_path / "d", Files(system=FullDisk())):
        pass
    assert not list(tmp_path.iterdir())
    with _lock(tmp_path / "d"):
        pass


def test_a_folder_has_one_writer_and_goes_again_if_it_stays_empty(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "1"
    with folder_lock(folder):
        assert [path.name for path in folder.iterdir()] == [FOLDER_LOCK]
        assert is_folder_locked(folder)
        for attempt in (lambda: check_folder_unlocked(folder), folder_lock(folder).__enter__):
            with pytest.raises(LockedError, match=rf"pid {os.getpid()} on host {platform.node()}"):
                attempt()
    assert not folder.exists()
    assert not is_folder_locked(folder)
    with folder_lock(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with folder_lock(tmp_path / "runs"):
        pass
    assert (tmp_path / "runs").is_dir(), "which was there before"


def test_a_folder_that_goes_as_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "run", Syscalls.open

    def late(self: Syscalls, path: Path) -> int:
        monkeypatch.setattr(Syscalls, "open", real)
        folder.rmdir()  # by another writer, who ended without a file in it
        return real(self, path)

    monkeypatch.setattr(Syscalls, "open", late)
    with folder_lock(folder):
        assert is_folder_locked(folder)


FORK = """
import os, sys
from pathlib import Path
from streamtrain.store.writing.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0 and sys.argv[2] == "ends":
        sys.exit()  # by way of the end of the block
    if child == 0:
        os.read(0, 1)  # until the test has looked
        os._exit(0)
    if sys.argv[2] == "stays":
        os._exit(0)
    os.wait()
    print("alone", flush=True)
    os.read(0, 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path / "run"), "stays"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        assert parent.wait() == 0
        assert (tmp_path / "run" / FOLDER_LOCK).exists()
        assert not is_folder_locked(tmp_path / "run")
        with folder_lock(tmp_path / "run"):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_that_ends_does_not_let_go_of_its_parent_s_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path / "run"), "ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"alone\n"
        with pytest.raises(LockedError, match=f"pid {parent.pid} on host"):
            check_folder_unlocked(tmp_path / "run")
        parent.communicate(b".")
    assert not is_folder_locked(tmp_path / "run")


def test_a_writer_is_named_as_soon_as_it_has_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the lock and whatever its writer does next, others know already who it is."""
    real, seen = lock._is_same, []

    def looked_at(path: Path, fd: int) -> bool:
        if path.exists() and not seen:
            seen.append(path.read_text())
        return real(path, fd)

    monkeypatch.setattr(lock, "_is_same", looked_at)
    with folder_lock(tmp_path / "run"):
        pass
    assert json.loads(seen[0]) == {"pid": os.getpid(), "host": platform.node()}
