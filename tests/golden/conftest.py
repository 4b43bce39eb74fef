"""The golden files are compared, never written: every test works on copies in a folder of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import golden
import pytest

FOLDERS = ("datasets", "sources")


@pytest.fixture(scope="session")
def read_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets and their sources, that no test may change."""
    path = tmp_path_factory.mktemp("golden")
    for name in FOLDERS:
        shutil.copytree(golden.GOLDEN / name, path / name)
    return path


@pytest.fixture(autouse=True)
def in_own_place(read_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """Relative paths begin in a folder of the test's own, from which the datasets are seen."""
    for name in FOLDERS:
        (tmp_path / name).symlink_to(read_copy / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_datasets(in_own_place: Path) -> Path:
    """Copies of the datasets and their sources, that the test may change."""
    for name in FOLDERS:
        (in_own_place / name).unlink()
        shutil.copytree(golden.GOLDEN / name, in_own_place / name)
    return in_own_place / "datasets"


@pytest.fixture(scope="session")
def facts() -> Any:
    return json.loads((golden.GOLDEN / "facts.json").read_text())
