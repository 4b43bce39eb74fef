"""The README does what it says: its Python is a doctest, its commands run, it is short."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from pages import GUIDE_PAGES, README, commands, run, shell_blocks

MAX_LINES = 150

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


def test_it_is_short_and_lists_every_page_of_the_guide() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert [page.name for page in GUIDE_PAGES if f"(streamtrain/guide/{page.name})" not in text] == []
