"""The device benchmark at small size, without a bus; and what it says where there is no CUDA."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from run_script import run_script

SMALL = ["--size", "3MB", "--memory", "48MB", "--repeats", "1", "--batch-size", "64", "--row-bytes", "700"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_script("bench/device.py", *arguments, env={**os.environ, **environment})


def test_every_way_is_measured_beside_its_limit_and_nothing_is_left(tmp_path: Path) -> None:
    done = run(*SMALL, "--device", "cpu", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = {result["way"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert list(results) == ["own", "host", "device"]
    for result in results.values():
        assert result["device"] == "cpu"
        assert min(result["bus_gb_s"], result["h2d_gb_s"], result["ratio_to_bus"], result["samples_s"]) > 0
        assert 0 <= result["stall_fraction"] < 1
        assert 0 <= result["wait_fraction"] < 1
        assert sum(result["terms"].values()) <= 48_000_000
    assert "pinned" not in results["own"]["terms"]
    assert results["host"]["terms"]["unified"] < results["device"]["terms"]["unified"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "messages"),
    [
        ((), 5, ["there is no device 'cuda'", "Found: cpu", "--device cpu shows that it runs"]),
        (("--device", "gpu"), 2, ["torch knows no device 'gpu'"]),
    ],
)
def test_what_it_cannot_do_it_says(tmp_path: Path, arguments: tuple[str, ...], code: int, messages: list[str]) -> None:
    # No GPU is to be seen, on whatever machine this runs.
    done = run("--folder", str(tmp_path), *SMALL, *arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == code
    assert all(message in done.stderr for message in messages)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
