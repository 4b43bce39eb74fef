"""The doctor: facts of this machine, rates that are measured, and nothing left on the disk."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import streamtrain
from streamtrain.cli.main import main
from streamtrain.diagnostics import doctor
from streamtrain.diagnostics.doctor import check_up
from streamtrain.errors import UsageError
from streamtrain.loader.budget import solve
from streamtrain.store.layout import CODECS, Field, Layout

QUICK = 0.05


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_FILE_BYTES", 8 << 20)
    monkeypatch.setattr(doctor, "check_up", partial(check_up, seconds=QUICK))


def found_in(folder: Path) -> dict[str, Any]:
    """The values of a quick check-up, by their names in JSON."""
    return {each.name or each.label: each.value for each in check_up(folder, seconds=QUICK)}


def test_it_finds_what_is_here(tmp_path: Path) -> None:
    found = found_in(tmp_path)
    assert found["versions"]["streamtrain"] == streamtrain.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["memory"]["ram"] == psutil.virtual_memory().total
    assert 0 < found["memory"]["limit"] <= found["memory"]["ram"]
    assert found["threads"] >= 2
    disk, decoding = found["disk"], found["decode_bytes_per_second"]
    assert disk["folder"] == tmp_path
    assert 0 < disk["free"] <= disk["total"]
    assert disk["problem"] is None
    assert list(decoding) == list(CODECS)
    rates = [disk["write_bytes_per_second"], disk["warm_read_bytes_per_second"]]
    rates += [rate for each in decoding.values() for rate in each.values()]
    assert all(rate is not None and rate > 1e5 for rate in rates)
    assert not list(tmp_path.iterdir()), "nothing is left on the disk"


def test_threads_are_those_that_a_loader_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = Field(name="x", dtype=np.dtype("float32"), shape=(16,))
    layout = Layout(fields=(x,), n_samples=10**6, block_rows=100, shard_blocks=10, codec="none")
    most, _ = solve(layout, batch_size=256, memory=10**10)
    for cores, threads in ((2, 2), (3, 3), (64, most.threads)):
        monkeypatch.setattr(doctor, "n_cores", lambda cores=cores: cores)
        assert found_in(tmp_path)["threads"] == threads


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"h5py", "pillow"} <= {*doctor.PACKAGES}, "the extras hdf5 and image"
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    assert found_in(tmp_path)["versions"]["no-such-package"] is None


def test_a_dataset_is_not_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = streamtrain.ingest({"x": np.arange(10)}, tmp_path / "d.zarr")
    places: list[object] = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **more: places.append(more["dir"]) or make(**more))
    assert found_in(dataset.path)["disk"]["folder"] == tmp_path
    assert places == [tmp_path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        check_up(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        check_up(tmp_path / "file")


def test_a_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10 - 10**6, 10**6))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: pytest.fail("it wrote"))
    disk = found_in(tmp_path)["disk"]
    assert (disk["free"], disk["cold_read_bytes_per_second"]) == (10**6, None)
    assert disk["problem"] is not None


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert found_in(tmp_path)["disk"]["problem"] == "Permission denied"
    assert main(["doctor", str(tmp_path)]) == 0
    assert "not measured: Permission denied" in capsys.readouterr().out


def test_a_system_without_the_fast_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.preadv")
    monkeypatch.delattr("os.posix_fadvise")
    monkeypatch.setattr(doctor, "_HUGE_PAGES", tmp_path / "absent")
    found = found_in(tmp_path)
    assert found["fast_path"] == {"direct_reads": False, "cache_control": False, "huge_pages": False}
    assert found["disk"]["cold_read_bytes_per_second"] is None
    assert found["disk"]["warm_read_bytes_per_second"] is not None


@pytest.mark.parametrize(("setting", "used"), [("[madvise] never", True), ("always madvise [never]", False)])
def test_huge_pages_as_the_system_is_set(
    setting: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(doctor, "_HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 14, raising=False)
    assert found_in(tmp_path)["fast_path"]["huge_pages"] is used


def with_torch(monkeypatch: pytest.MonkeyPatch, **cuda: Any) -> None:
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(**cuda)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)


def test_devices_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    card = SimpleNamespace(name="Card 9000", total_memory=24 * 10**9)
    with_torch(monkeypatch, is_available=lambda: True, device_count=lambda: 1, get_device_properties=lambda _: card)
    assert main(["doctor", str(tmp_path)]) == 0
    assert "cuda:0 Card 9000, 24.00 GB" in capsys.readouterr().out


def test_a_broken_torch_is_told_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("driver too old\nmore")

    with_torch(monkeypatch, is_available=broken)
    found = found_in(tmp_path)
    assert (found["devices"], found["devices_problem"]) == ([], "RuntimeError: driver too old")


def test_json_and_text_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["decode_bytes_per_second"]) == set(CODECS)
    assert result["disk"]["folder"] == str(tmp_path)
    assert set(result) == {
        *("system", "cores", "threads", "versions", "absent", "memory", "disk", "decode_bytes_per_second"),
        *("fast_path", "devices", "devices_problem"),
    }
    assert main(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in ("system", "versions", "memory", "disk", "decoding", "devices"))
    assert f"numpy {result['versions']['numpy']}" in out


def test_the_module_is_loaded_without_torch() -> None:
    code = "import sys, streamtrain.diagnostics.doctor, streamtrain.cli.diagnostics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
