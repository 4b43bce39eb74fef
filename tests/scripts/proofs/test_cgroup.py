"""Memory groups: a real one where it can be made, and both versions on made-up files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from memory_groups import can_limit

from scripts.proofs import cgroup

LIMIT = 2**30


def test_what_exceeds_a_group_is_killed_and_what_hangs_is_ended() -> None:
    if not can_limit(LIMIT):
        with pytest.raises(cgroup.NoGroup, match="no cgroup with a memory limit"), cgroup.memory_group(LIMIT):
            raise AssertionError("unreachable")
        return
    with cgroup.memory_group(64 << 20) as group:
        ended = group.run([sys.executable, "-c", "print('alive', flush=True); x = b'1' * (256 << 20)"], timeout=30)
        assert (ended.output, ended.was_killed) == ("alive\n", True)
        assert ended.code not in (0, 1)
    assert not group.path.exists()
    with cgroup.memory_group(64 << 20) as group:
        ended = group.run([sys.executable, "-c", "import sys; sys.exit(3)"], timeout=30)
        assert (ended.code, ended.was_killed) == (3, False)
        with pytest.raises(subprocess.TimeoutExpired):
            group.run(["sleep", "60"], timeout=0.1)
        assert not (group.path / "cgroup.procs").read_text().split()
    assert not group.path.exists()


def test_one_that_takes_too_long_is_ended_and_told() -> None:
    for limit in [None, LIMIT] if can_limit(LIMIT) else [None]:
        late = cgroup.run_within(["sleep", "60"], limit, timeout=0.1)
        assert (late.code < 0, late.was_killed, late.errors) == (True, False, "it took longer than 0.1 s")


def system(root: Path, groups: str, mounts: dict[str, str], folders: list[str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    lines = [f"30 23 0:26 / {point} rw,relatime shared:4 - {rest}\n" for point, rest in mounts.items()]
    (root / "proc/self/mountinfo").write_text("".join(lines))
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    return root


UNIFIED = {"/sys/fs/cgroup": "cgroup2 cgroup2 rw,nsdelegate"}
HYBRID = {
    "/sys/fs/cgroup/memory": "cgroup cgroup rw,memory",
    "/sys/fs/cgroup/systemd": "cgroup cgroup rw,name=systemd",
    "/sys/fs/cgroup/unified": "cgroup2 cgroup2 rw",
}


@pytest.mark.parametrize(
    ("groups", "mounts", "own", "found"),
    [
        ("0::/user.slice/a.scope\n", UNIFIED, "sys/fs/cgroup/user.slice/a.scope", 2),
        ("4:cpu,memory:/a\n1:name=systemd:/b\n0::/c\n", HYBRID, "sys/fs/cgroup/memory/a", 1),
        ("4:memory:/docker/of-the-host\n0::/\n", HYBRID, "sys/fs/cgroup/memory", 1),
        ("1:name=systemd:/b\n0::/c\n", UNIFIED, "sys/fs/cgroup/c", 2),
    ],
)
def test_our_own_group_is_found(tmp_path: Path, groups: str, mounts: dict[str, str], own: str, found: int) -> None:
    root = system(tmp_path, groups, mounts, [own])
    mount = "sys/fs/cgroup" if found == 2 else "sys/fs/cgroup/memory"
    assert cgroup.own_group(root) == (found, root / mount, root / own)


@pytest.mark.parametrize("groups", ["", "1:name=systemd:/b\n"])
def test_a_system_without_them_is_told(tmp_path: Path, groups: str) -> None:
    with pytest.raises(cgroup.NoGroup, match="none is mounted that accounts for memory"):
        cgroup.own_group(system(tmp_path, groups, {}, []))


def test_version_2_limits_a_sibling_and_takes_away_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system(tmp_path, "0::/user.slice/a.scope\n", UNIFIED, ["sys/fs/cgroup/user.slice/a.scope"])
    parent = root / "sys/fs/cgroup/user.slice"
    (parent / "cgroup.subtree_control").write_text("cpu pids")
    make = Path.mkdir

    def with_its_files(path: Path, **options: Any) -> None:
        make(path, **options)
        (path / "memory.swap.max").write_text("max")

    monkeypatch.setattr(Path, "mkdir", with_its_files)
    group = cgroup._make(LIMIT, root)
    assert (group.version, group.path.parent) == (2, parent)
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    assert (group.path / "memory.max").read_text() == str(LIMIT)
    assert (group.path / "memory.swap.max").read_text() == "0"
    (group.path / "memory.peak").write_text("12345\n")
    (group.path / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert (group.peak_bytes, group.n_killed) == (12345, 1)


@pytest.mark.skipif(os.name != "posix", reason="there are no cgroups")
def test_a_group_that_may_not_be_made_is_told_with_every_place(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/user.slice/a.scope\n", UNIFIED, ["sys/fs/cgroup/user.slice/a.scope"])
    with pytest.raises(cgroup.NoGroup) as refused, cgroup.memory_group(LIMIT, root=root):
        raise AssertionError("unreachable")
    assert "user.slice: No such file or directory; " in str(refused.value)
    assert "a.scope: No such file or directory" in str(refused.value)
