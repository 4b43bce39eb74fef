"""The README does what it says: its Python is a doctest, its commands run, its table is the exceptions' tree."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

import streamtrain
from streamtrain.cli.main import main

README = Path(__file__).resolve().parent.parent / "README.md"


def test_python_runs_as_a_doctest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    quickstart = next(block for block in blocks if "streamtrain ingest" in block)
    for command in commands(quickstart):
        run(command)
    assert "accuracy" in capsys.readouterr().out


def test_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| .*? \| (.+?) \|$", README.read_text(), re.MULTILINE)
    for code, names in rows:
        for name in re.findall(r"`(\w+Error)`", names):
            assert getattr(streamtrain, name).exit_code == int(code)
    assert len(rows) >= 9


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block, as words; a quoted word may go over several lines."""
    found: list[list[str]] = []
    pending = ""
    for line in block.splitlines(keepends=True):
        pending += line
        if pending.count('"') % 2 == 0:
            found.append(shlex.split(pending))
            pending = ""
    return found


def run(command: list[str]) -> None:
    """Run a command in this process, where torch is imported once for all."""
    program, *words = command
    if program == "python":
        exec(compile(words[1], "README.md", "exec"), {})
    else:
        assert program == "streamtrain"
        assert main(words) == 0, command
