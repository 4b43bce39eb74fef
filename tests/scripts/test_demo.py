"""The demo: its commands, taken down by stand-ins, run in this process on small images."""

from __future__ import annotations

import gzip
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pages import run
from run_script import SCRIPTS

TAKES_DOWN = """#!/bin/sh
echo "$(basename "$0") $*" >>commands.txt
"""


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the demo, stand-ins of what it calls, and data of the names that Fashion-MNIST has."""
    data = tmp_path / "data" / "fashion-mnist"
    for folder in (tmp_path / "scripts", tmp_path / ".venv" / "bin", data):
        folder.mkdir(parents=True)
    (tmp_path / "scripts" / "demo").write_text((SCRIPTS / "demo").read_text())
    for name in ("scripts/setup", ".venv/bin/python", ".venv/bin/streamtrain"):
        (tmp_path / name).write_text(TAKES_DOWN)
        (tmp_path / name).chmod(0o755)
    labels = np.arange(600, dtype=np.uint8) % 10
    images = np.random.default_rng(0).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(data / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(data / f"{part}-labels-idx1-ubyte.gz", labels)
    return tmp_path


@pytest.mark.usefixtures("one_thread")
def test_its_commands_lead_to_predictions(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["sh", "scripts/demo"], cwd=checkout, check=True)
    setup, fetch, *commands = (checkout / "commands.txt").read_text().splitlines()
    assert setup.split() == ["setup"]
    assert fetch == "python scripts/data/fashion_mnist.py"
    monkeypatch.chdir(checkout)
    for command in commands:
        run(command.split())
    said = capsys.readouterr().out
    assert "best    epoch" in said
    assert said.rstrip().splitlines()[-1].startswith("all of them: streamtrain predict")


def test_other_words_are_refused(checkout: Path) -> None:
    done = subprocess.run(["sh", "scripts/demo", "--unsorted"], cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: scripts/demo [--sorted]\n")
