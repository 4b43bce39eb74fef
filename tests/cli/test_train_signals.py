"""``train`` and real signals: a clean end with the shell's code, and the command that resumes the run."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from forked_python import Forked, run_forked

import streamtrain as st

ENDLESS = "100000"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    st.ingest({"x": rng.normal(size=(2000, 8)).astype("float32"), "y": rng.integers(0, 3, 2000)}, "d.zarr")
    return tmp_path


@contextmanager
def training(*options: str) -> Iterator[Forked]:
    words = ["-m", "streamtrain", "train", "d.zarr", "--memory", "8MB", "--epochs", ENDLESS, *options]
    with Forked(words) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: Forked, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def error_of(process: Forked) -> str:
    _, error = process.communicate(timeout=60)
    return "".join(line for line in error.splitlines(keepends=True) if not line.startswith("hint: "))


def test_ctrl_c_saves_and_says_how_to_go_on() -> None:
    with training("--model", "linear", "--out", "run") as process:
        wait_for(process, lambda: Path("run/metrics.jsonl").exists() and Path("run/metrics.jsonl").stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        error = error_of(process)
    assert process.returncode == 130
    (line,) = error.splitlines()
    found = re.fullmatch(
        r"error: interrupted by SIGINT; saved (run/checkpoints/\d+); resume with: (streamtrain .*)", line
    )
    assert found is not None, line
    assert (Path(found[1]) / "manifest.json").exists()
    # The command can be typed as it stands; with fewer epochs than are done it ends at once.
    words = shlex.split(found[2].replace(f"--epochs {ENDLESS}", "--epochs 1"))
    done = run_forked(["-m", *words, "--json"], timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_from_batch"] == int(Path(found[1]).name)


def test_sigterm_before_the_first_step_ends_cleanly() -> None:
    net = "import pathlib, time\ndef build():\n    pathlib.Path('building').touch()\n    time.sleep(60)\n"
    Path("net.py").write_text(net)
    with training("--model", "net.py:build", "--out", "run") as process:
        wait_for(process, Path("building").exists)
        process.send_signal(signal.SIGTERM)
        assert error_of(process) == "error: interrupted by SIGTERM\n"
    assert process.returncode == 143
    assert not Path("run").exists()


def test_a_second_signal_ends_it_within_the_step() -> None:
    net = (
        "import pathlib, time\nfrom torch import nn\n"
        "class Slow(nn.Linear):\n    n = 0\n    def forward(self, x):\n        self.n += 1\n"
        "        if self.n > 20:\n            pathlib.Path('stepping').touch()\n            time.sleep(3600)\n"
        "        return super().forward(x)\ndef build(): return Slow(8, 3)\n"
    )
    Path("net.py").write_text(net)
    with training("--model", "net.py:build", "--out", "run", "--batch-size", "20") as process:
        wait_for(process, Path("stepping").exists)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None, "the first waits for the step's end"
        process.send_signal(signal.SIGINT)
        assert error_of(process) == "error: interrupted by SIGINT\n"
    assert process.returncode == 130
