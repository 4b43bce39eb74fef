"""The memory a process may take: cgroups of both versions as files made here, and this machine's own."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from streamtrain.errors import BudgetError
from streamtrain.system import memory
from streamtrain.system.memory import MemoryLimit, memory_limit, require_memory

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
