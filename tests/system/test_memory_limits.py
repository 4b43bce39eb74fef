"""The memory a process may take: cgroups of both versions as files made here, and this machine's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from streamtrain.errors import BudgetError
from streamtrain.system import memory
from streamtrain.system.memory import MemoryLimit, memory_limit, n_cores, require_memory

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def much_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(total=64 * GIB, available=48 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_without_groups_it_is_the_ram(tmp_path: Path) -> None:
    limit = memory_limit(tmp_path)
    assert (limit.limit_bytes, limit.free_bytes, limit.source) == (64 * GIB, 48 * GIB, "RAM")


def test_version_2_takes_the_tightest_of_all_groups_above(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user.slice/job"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB // 2}\n",
        },
    )
    limit = memory_limit(tmp_path)
    assert limit.limit_bytes == 4 * GIB
    assert limit.free_bytes == 4 * GIB - (3 * GIB - GIB - GIB // 2)
    assert limit.source.endswith("user.slice/memory.max")


def test_version_2_throttles_at_high_and_that_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory.high": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    assert memory_limit(tmp_path).limit_bytes == 2 * GIB


def test_version_1_with_the_hosts_path_in_a_container(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "9:cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"active_file 1\ntotal_inactive_file {GIB // 4}\ntotal_active_file 0\n",
        },
    )
    limit = memory_limit(tmp_path)
    assert limit.limit_bytes == 2 * GIB
    assert limit.free_bytes == GIB + GIB // 4


def test_version_1_without_a_limit_is_the_ram(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
        },
    )
    assert memory_limit(tmp_path).source == "RAM"


def test_a_group_that_allows_more_than_is_free_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = psutil.virtual_memory()._replace(available=GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: busy)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    limit = memory_limit(tmp_path)
    assert (limit.limit_bytes, limit.free_bytes) == (8 * GIB, GIB)


def test_version_1_where_it_is_mounted(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpuset,memory:/job\n",
            "proc/self/mountinfo": "30 20 0:2 / /mnt/c\\040g rw,relatime shared:1 - cgroup cgroup rw,cpuset,memory\n"
            "31 20 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
            "mnt/c g/job/memory.limit_in_bytes": f"{2 * GIB}\n",
            "mnt/c g/job/memory.usage_in_bytes": "0\n",
        },
    )
    assert memory_limit(tmp_path).limit_bytes == 2 * GIB


def test_pages_that_have_still_to_be_written_are_not_free(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.stat": f"inactive_file {GIB}\nactive_file {GIB // 2}\nfile_dirty {GIB}\n"
            f"file_writeback {GIB // 4}\nslab_reclaimable {GIB // 8}\n",
        },
    )
    assert memory_limit(tmp_path).free_bytes == GIB // 4 + GIB // 8


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/pod\n", "sys/fs/cgroup/pod/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/pod\n", "sys/fs/cgroup/pod/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/pod/c\n", "sys/fs/cgroup/pod/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/pod\n",
                "proc/self/mountinfo": "31 20 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cores_are_those_of_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert n_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(("beside", "cores"), [("2", 4), ("3", 2), ("16", 1), ("0", 8), ("", 8), ("two", 8)])
def test_ranks_on_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, beside: str, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert n_cores(Path("/nowhere")) == cores


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory by Linux's rules")
@pytest.mark.parametrize(("name", "option"), [("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")])
def test_a_limit_of_the_process_is_known_and_reported(name: str, option: str) -> None:
    code = f"""
import resource
from streamtrain.errors import BudgetError
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.memory import memory_limit
resource.setrlimit(resource.{name}, (600_000_000, 600_000_000))
limit = memory_limit()
assert limit.source == "ulimit {option}" and limit.limit_bytes == 600_000_000 > limit.free_bytes > 0, limit
try:
    aligned_bytes(10**9)
except BudgetError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the system cannot provide 1.00 GB of memory. A limit on the process (ulimit -v)" in done.stdout


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    limit = memory_limit()
    assert 0 < limit.free_bytes <= limit.limit_bytes <= psutil.virtual_memory().total


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    group = MemoryLimit(limit_bytes=2 * GIB, free_bytes=GIB, source="/sys/fs/cgroup/memory.max")
    monkeypatch.setattr(memory, "memory_limit", lambda: group)
    require_memory(GIB)
    require_memory(GIB + 1, held=True)
    with pytest.raises(
        BudgetError, match=r"1\.07 GB are free of the 2\.15 GB that /sys/fs/cgroup/memory\.max allows"
    ) as e:
        require_memory(GIB + 1)
    assert e.value.exit_code == 5
    assert e.value.fix.startswith("memory='966MB' or less")
    with pytest.raises(BudgetError, match="are needed"):
        require_memory(2 * GIB + 1, held=True)
