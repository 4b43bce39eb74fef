"""Figures and refusals on systems that are not this one: Windows, ZFS, memory as a disk, larger pages."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from streamtrain.loader.budget import solve
from streamtrain.store.layout import Field, Layout
from streamtrain.system.memory import is_in_memory, memory_limit


def test_windows_is_refused_as_it_is_imported() -> None:
    code = "import os, importlib.util; os.name = 'nt'; import streamtrain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: streamtrain runs on Linux and macOS")


def test_what_zfs_gives_back_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ram = psutil.virtual_memory()._replace(total=64 << 30, available=20 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    stats = tmp_path / "proc/spl/kstat/zfs/arcstats"
    stats.parent.mkdir(parents=True)
    stats.write_text(f"13 1 0x01 147\nname type data\nc_min 4 {2 << 30}\nsize 4 {30 << 30}\n")
    assert memory_limit(tmp_path).free_bytes == 48 << 30


@pytest.mark.parametrize(("kind", "found"), [("tmpfs", True), ("ext4", False)])
def test_a_folder_in_memory_is_known(tmp_path: Path, kind: str, found: bool) -> None:
    device = tmp_path.stat().st_dev
    (tmp_path / "proc/self").mkdir(parents=True)
    line = f"30 23 {os.major(device)}:{os.minor(device)} / /tmp rw shared:4 - {kind} none rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(line)
    assert is_in_memory(tmp_path, tmp_path) is found


@pytest.mark.parametrize("memory", [8, 16, 64, 512])
def test_larger_pages_keep_the_order_and_the_budget(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (Field(name=name, dtype=np.dtype("uint8"), shape=shape) for name, shape in (("x", (3072,)), ("y", ())))
    layout = Layout(fields=(x, y), n_samples=500_000, block_rows=50, shard_blocks=100, codec="none")
    usual, _ = solve(layout, batch_size=64, memory=memory << 20)
    monkeypatch.setattr(mmap, "PAGESIZE", 65536)
    sizes, projection = solve(layout, batch_size=64, memory=memory << 20)
    assert (sizes.lanes, sizes.groups) == (usual.lanes, usual.groups)
    assert projection.terms["pages"] > 0
    assert projection.total_bytes <= memory << 20
