"""The proof at small size, in a real cgroup where one can be made; where not, that it says so; and both versions."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import streamtrain as st

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
LIMIT = 2**30


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("prove_out_of_core")
    # The machine's whole page cache is no test's to empty.
    monkeypatch.setattr(module, "drop_caches", lambda paths: "not dropped")
    return module


@pytest.fixture
def cgroups(proof: Any) -> Any:
    return importlib.import_module("bench_cgroup")


def run(proof: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prove_out_of_core.py", *map(str, words)])
    try:
        proof.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def can_limit(cgroups: Any) -> bool:
    try:
        with cgroups.memory_group(LIMIT):
            return True
    except cgroups.NoGroup:
        return False


def test_an_epoch_under_a_limit(
    proof: Any, cgroups: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    limited = can_limit(cgroups)
    words = ["--sizes", "3MB", "--memory", "32MB", "--repeats", 1, "--no-naive", "--folder", tmp_path]
    code = run(proof, monkeypatch, *words, *(["--limit", "1GiB"] if limited else ["--no-limit"]))
    out, errors = capfd.readouterr()
    assert code == 0, errors
    (result,) = (json.loads(line) for line in out.splitlines())
    assert (result["finished"], result["exit_status"], result["killed_for_memory"]) == (True, 0, False)
    assert result["decoded_bytes"] == 3080 * (3_000_000 // 3080)
    assert result["limit_bytes"] == (LIMIT if limited else None)
    assert result["cgroup_version"] in ((1, 2) if limited else (None,))
    assert result["loader_projected_bytes"] <= 32e6
    if limited and result["cgroup_peak_bytes"] is not None:
        assert 0 < result["cgroup_peak_bytes"] <= LIMIT
    assert ("proves nothing about memory" in errors) is not limited
    assert "first batch" in errors
    assert not list(tmp_path.iterdir())


def test_without_a_group_nothing_is_made(
    proof: Any, cgroups: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(proof, "memory_group", lambda limit: cgroups.memory_group(limit, root=tmp_path / "nowhere"))
    assert run(proof, monkeypatch, "--folder", tmp_path) == 5
    said = capsys.readouterr().err
    assert "error: no cgroup with a memory limit" in said
    assert "Fix: run it as root" in said
    assert "--no-limit" in said
    assert not list(tmp_path.iterdir())


def test_what_exceeds_a_group_is_killed_and_what_hangs_is_ended(cgroups: Any) -> None:
    if not can_limit(cgroups):
        with pytest.raises(cgroups.NoGroup, match="no cgroup with a memory limit"), cgroups.memory_group(LIMIT):
            raise AssertionError("unreachable")
        return
    with cgroups.memory_group(64 << 20) as group:
        ended = group.run([sys.executable, "-c", "print('alive', flush=True); x = b'1' * (256 << 20)"], timeout=30)
        assert (ended.output, ended.was_killed) == ("alive\n", True)
        assert ended.code not in (0, 1)
    assert not group.path.exists()
    with cgroups.memory_group(64 << 20) as group:
        ended = group.run([sys.executable, "-c", "import sys; sys.exit(3)"], timeout=30)
        assert (ended.code, ended.was_killed) == (3, False)
        with pytest.raises(subprocess.TimeoutExpired):
            group.run(["sleep", "60"], timeout=0.1)
        assert not (group.path / "cgroup.procs").read_text().split()
    assert not group.path.exists()


def test_data_that_is_kept_is_used_again(
    proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["--keep", tmp_path / "data", "--sizes", "1MB", "2MB", "--make-only", "--no-limit"]
    assert run(proof, monkeypatch, *words) == 0
    assert capsys.readouterr().err.count("made ") == 2
    made = sorted((tmp_path / "data").iterdir())
    assert sorted(len(st.open(path)) for path in made) == [1_000_000 // 3080, 2_000_000 // 3080]
    assert run(proof, monkeypatch, *words) == 0
    assert "made " not in capsys.readouterr().err
    assert run(proof, monkeypatch, *words, "--compressibility", 10) == 0
    assert len(list((tmp_path / "data").iterdir())) == 4, "other rows are other data"
    (made[0] / "zarr.json").unlink()
    assert run(proof, monkeypatch, *words) == 4
    assert str(made[0]) in capsys.readouterr().err


def test_the_two_ways_of_training(proof: Any, tmp_path: Path) -> None:
    arguments = argparse.Namespace(row_bytes=100, compressibility=4.0, codec="lz4", memory="16MB", batch_size=64)
    arguments.dataset = proof.make(tmp_path, proof.recipe_of(500_000, arguments), arguments)
    streamed, naive = proof.stream(arguments), proof.naive(arguments)
    assert streamed["accuracy"] > 0.5, "the classes can be told by their first features"
    assert 0 < streamed["first_batch_s"] <= streamed["seconds"] + 1
    assert streamed["loader_projected_bytes"] <= 16e6
    assert min(streamed["seconds"], naive["seconds"], naive["anonymous_peak_bytes"]) > 0


def test_one_that_takes_too_long_or_fails_is_told(proof: Any, cgroups: Any) -> None:
    for limit in [None, LIMIT] if can_limit(cgroups) else [None]:
        late = cgroups.run_within(["sleep", "60"], limit, timeout=0.1)
        assert (late.code < 0, late.was_killed, late.errors) == (True, False, "it took longer than 0.1 s")
    about = {"decoded_bytes": 10**11, "loader": "naive", "cgroup_peak_bytes": None, "limit_bytes": 2**31}
    killed = {**about, "finished": False, "killed_for_memory": True, "error": ""}
    assert "killed for its memory" in proof.describe(killed)
    assert "failed: no room" in proof.describe({**killed, "killed_for_memory": False, "error": "no room"})


def test_the_summary_compares_the_largest_with_the_smallest(proof: Any, capsys: Any) -> None:
    common = {"finished": True, "limit_bytes": 2**31, "open_s": 0.1, "first_batch_s": 0.5}
    streams = [{**common, "decoded_bytes": 10**n, "mb_s": rate} for n, rate in ((9, 2000), (11, 1960), (10, 1000))]
    proof.summarize([*streams, {**common, "finished": False, "decoded_bytes": 10**12}])
    result = json.loads(capsys.readouterr().out)
    assert result["ratio_largest_to_smallest"] == 0.98
    assert (result["smallest_bytes"], result["largest_bytes"]) == (10**9, 10**11)
    proof.summarize(streams[:1])
    assert not capsys.readouterr().out


def test_the_figures_are_medians_and_the_peaks_the_largest(proof: Any) -> None:
    figures = {"seconds": 1.0, "open_s": 0.1, "first_batch_s": 0.1, "stall_fraction": 0.0, "finished": True}
    runs = [{**figures, "mb_s": rate, "cgroup_peak_bytes": 10 * rate} for rate in (3, 1, 2)]
    typical = proof.medians(runs)
    assert (typical["mb_s"], typical["cgroup_peak_bytes"], typical["finished"]) == (2, 30, True)
    assert proof.medians([*runs, {"finished": False}])["finished"] is False
    assert proof.medians([{"finished": False}]) == {}


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
def test_our_own_group_is_found(
    cgroups: Any, tmp_path: Path, groups: str, mounts: dict[str, str], own: str, found: int
) -> None:
    root = system(tmp_path, groups, mounts, [own])
    mount = "sys/fs/cgroup" if found == 2 else "sys/fs/cgroup/memory"
    assert cgroups.own_group(root) == (found, root / mount, root / own)


@pytest.mark.parametrize("groups", ["", "1:name=systemd:/b\n"])
def test_a_system_without_them_is_told(cgroups: Any, tmp_path: Path, groups: str) -> None:
    with pytest.raises(cgroups.NoGroup, match="none is mounted that accounts for memory"):
        cgroups.own_group(system(tmp_path, groups, {}, []))


def test_version_2_limits_a_sibling_and_takes_away_swap(
    cgroups: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = system(tmp_path, "0::/user.slice/a.scope\n", UNIFIED, ["sys/fs/cgroup/user.slice/a.scope"])
    parent = root / "sys/fs/cgroup/user.slice"
    (parent / "cgroup.subtree_control").write_text("cpu pids")
    make = Path.mkdir

    def with_its_files(path: Path, **options: Any) -> None:
        make(path, **options)
        (path / "memory.swap.max").write_text("max")

    monkeypatch.setattr(Path, "mkdir", with_its_files)
    group = cgroups._make(LIMIT, root)
    assert (group.version, group.path.parent) == (2, parent)
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    assert (group.path / "memory.max").read_text() == str(LIMIT)
    assert (group.path / "memory.swap.max").read_text() == "0"
    (group.path / "memory.peak").write_text("12345\n")
    (group.path / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert (group.peak_bytes, group.n_killed) == (12345, 1)


@pytest.mark.skipif(os.name != "posix", reason="there are no cgroups")
def test_a_group_that_may_not_be_made_is_told_with_every_place(cgroups: Any, tmp_path: Path) -> None:
    root = system(tmp_path, "0::/user.slice/a.scope\n", UNIFIED, ["sys/fs/cgroup/user.slice/a.scope"])
    with pytest.raises(cgroups.NoGroup) as refused, cgroups.memory_group(LIMIT, root=root):
        raise AssertionError("unreachable")
    assert "user.slice: No such file or directory; " in str(refused.value)
    assert "a.scope: No such file or directory" in str(refused.value)
