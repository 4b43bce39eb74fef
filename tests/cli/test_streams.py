"""Standard streams that are closed, full, or left by their reader: no bug, no wrong file written, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="streams are closed and filled by a shell")


def run(folder: Path, words: str, streams: str) -> tuple[int, str]:
    command = f"'{sys.executable}' -m streamtrain {words} {streams}"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,0\n3,4,1\n5,6,0\n")
    return tmp_path


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/null 2>/dev/full"])
def test_work_is_done_whatever_the_streams_are(table: Path, streams: str) -> None:
    assert run(table, "ingest t.csv d.zarr --label-column y", streams)[0] == 0
    assert run(table, "verify d.zarr --full", streams)[0] == 0


def test_a_full_stdout_is_said_and_has_its_code(table: Path) -> None:
    code, err = run(table, "ingest t.csv d.zarr --label-column y", ">/dev/full")
    assert code == 5
    assert err.splitlines()[-1] == "error: stdout: cannot write: No space left on device. Fix: free some space."
    assert run(table, "verify d.zarr --full", ">/dev/null")[0] == 0, "the dataset is whole"


def test_a_reader_that_has_left(table: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "streamtrain", "ingest", "t.csv", "d.zarr", "--label-column", "y"]
    done = subprocess.run(words, cwd=table, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
