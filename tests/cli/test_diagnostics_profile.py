"""The command ``profile``: figures and drawings of a command, whose exit code it passes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.diagnostics import charts

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dataset() -> Any:
    generator = np.random.default_rng(0)
    source = {"x": generator.standard_normal((2000, 16)).astype(np.float32), "y": generator.integers(0, 3, 2000)}
    return st.ingest(source, "d.zarr")


def test_a_training_run_from_end_to_end(dataset: Any, capfd: pytest.CaptureFixture[str]) -> None:
    train = ["streamtrain", "train", "d.zarr", "--model", "linear", "--epochs", "2", "--memory", "16MB"]
    assert main(["profile", "--out", "p", "--interval", "0.01", "--json", "--", *train]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert "epoch      steps" in err, "the command's own output is out of the way of the one object"
    (memory,) = result["memory"]
    assert memory["budget"] == 16_000_000
    assert 0 < memory["projected"] <= memory["budget"]
    assert memory["before"] > 50_000_000
    assert [epoch["samples"] for epoch in result["epochs"]] == [2000, 2000]
    assert result["peak"]["held"] > memory["before"]
    assert result["files"] == ["p/timeline.png", "p/timeline.html", "p/profile.json"]
    assert all(Path(file).stat().st_size > 1000 for file in result["files"])
    stored = json.loads(Path("p/profile.json").read_text())
    assert stored == {name: value for name, value in result.items() if name != "files"}


def test_the_exit_code_is_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--no-png", "--", PYTHON, "-c", "print('hello'); exit(7)"]) == 7
    out, err = capfd.readouterr()
    assert out.splitlines()[0] == "hello"
    assert "exit code 7" in out
    assert "no streamtrain loader" in out
    assert err == ""
    assert sorted(path.name for path in Path("profiles/1").iterdir()) == ["profile.json", "timeline.html"]
    assert main(["profile", "--no-png", PYTHON, "-c", ""]) == 0
    assert Path("profiles/2").is_dir()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--", "no-such-command"], "there is no command 'no-such-command'"),
        (["--interval", "0", "--", "true"], "interval is 0.0 s; it must be positive"),
        (["--out", "taken", "--", "true"], "the profile's folder is taken"),
        ([], "Missing argument"),
    ],
)
def test_wrong_words(args: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    assert main(["profile", *args]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert out == ""
    assert not Path("profiles").exists()


@pytest.mark.parametrize("out", ["taken/file/p", "taken", "taken/file"])
def test_a_folder_that_cannot_be_made_is_told_before_the_command_runs(
    out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    assert main(["profile", "--no-png", "--out", out, "--", "touch", "ran"]) == 2
    assert f"{out}: the profile's folder " in capfd.readouterr().err
    assert not Path("ran").exists()


def test_the_folder_is_there_when_the_command_runs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--no-png", "--out", "a/b", "--", "test", "-d", "a/b"]) == 0
    assert main(["profile", "--no-png", "--out", "c", "--", "no-such-command"]) == 2
    assert "no-such-command" in capfd.readouterr().err
    assert not Path("c").exists(), "what was not run leaves nothing"


def test_without_matplotlib_nothing_is_run_in_vain(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda _: None)
    assert main(["profile", "--", "touch", "ran"]) == 2
    assert "pip install 'streamtrain[plot]', or --no-png" in capfd.readouterr().err
    assert not Path("ran").exists()


def test_an_interrupt_goes_to_the_command_and_the_profile_is_still_made() -> None:
    code = "import time, pathlib; pathlib.Path('ready').touch(); time.sleep(60)"
    words = [PYTHON, "-m", "streamtrain", "profile", "--out", "p", "--no-png", "--", PYTHON, "-c", code]
    # A session of its own has no terminal, which would send the signal itself.
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        while not Path("ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"KeyboardInterrupt" in err, "the command had the signal"
    assert b"exit code 130" in out
    assert Path("p/timeline.html").exists()
