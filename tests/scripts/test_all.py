"""Every script: it answers from anywhere what it is for, and no name of theirs hides another."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
from run_script import SCRIPTS, help_of, run_script

FILES = sorted(path.relative_to(SCRIPTS) for path in SCRIPTS.rglob("*.py") if "peers" not in path.parts)
ROOT_ON_THE_PATH = "\nsys.path.insert(0, str(Path(__file__).resolve().parents[{}]))"
COMMANDS = [str(path) for path in FILES if '__name__ == "__main__"' in (SCRIPTS / path).read_text()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_says_what_it_is_for(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_own_folder: Path
) -> None:
    said = help_of(name, monkeypatch, capsys)
    assert said.startswith(f"usage: {Path(name).name} [-h]")
    assert len(said.splitlines()) > 3
    assert not list(in_own_folder.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_is_run_by_its_name(name: str) -> None:
    assert os.access(SCRIPTS / name, os.X_OK)
    assert (SCRIPTS / name).read_text().startswith("#!/usr/bin/env python3\n")


@pytest.mark.parametrize("name", [name for name in COMMANDS if "from scripts." in (SCRIPTS / name).read_text()])
def test_a_script_finds_what_it_imports(name: str) -> None:
    before, _, after = (SCRIPTS / name).read_text().partition(ROOT_ON_THE_PATH.format(len(Path(name).parts)))
    assert "from scripts." in after
    assert "from scripts." not in before
    assert "streamtrain" not in before.partition("from __future__")[2]


def test_from_anywhere(tmp_path: Path) -> None:
    done = run_script("data/synthetic.py", tmp_path / "d.zarr", "--size", "1kB", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_no_script_hides_a_module_that_others_import() -> None:
    """Python looks for modules beside a script that is run as a file before it looks anywhere else."""
    known = sys.stdlib_module_names | metadata.packages_distributions().keys()
    assert not {path.stem for path in FILES} - {"__init__"} & known


def test_the_page_names_every_script() -> None:
    page = (SCRIPTS / "README.md").read_text()
    names = [*COMMANDS, "setup", "demo", "docs", "test", "faults/run"]
    assert [name for name in names if f"`{name}`" not in page and f"`{Path(name).name}`" not in page] == []
