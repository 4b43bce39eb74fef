"""The README does what it says: its Python is a doctest, its commands run, it shows what to do first."""

from __future__ import annotations

import doctest
import os
from pathlib import Path

import pytest
from pages import GUIDE_PAGES, README, ROOT, commands, run, shell_blocks

FIRST_BLOCK_BY = 25

pytestmark = pytest.mark.usefixtures("one_thread")


def test_python_runs_as_a_doctest(in_own_folder: Path) -> None:
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_commands_run(in_own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart = next(block for block in shell_blocks(README) if "streamtrain ingest" in block)
    for command, exit_code in commands(quickstart):
        run(command, exit_code)
    assert "test rmse" in capsys.readouterr().out


def test_it_begins_with_two_commands_that_are_there() -> None:
    lines = README.read_text().splitlines()
    assert lines.index("```sh") < FIRST_BLOCK_BY
    words = [words for words, _ in commands(shell_blocks(README)[0])]
    assert words == [["scripts/setup"], ["scripts/demo"]]  # tests/scripts runs both
    assert all(os.access(ROOT / name, os.X_OK) for [name] in words)


def test_it_lists_every_page_of_the_guide() -> None:
    text = README.read_text()
    assert [page.name for page in GUIDE_PAGES if f"(streamtrain/guide/{page.name})" not in text] == []
