"""The scripts' common part: results on both streams, a folder that goes again whatever happens, a full disk."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamtrain as st
from scripts import runner
from scripts.runner import Result, new_parser, run


def arguments(folder: Path) -> argparse.Namespace:
    return new_parser("", folder=None).parse_args(["--folder", str(folder)])


def describe(result: Result) -> str:
    return f"number {result['n']}"


def test_results_come_as_json_with_what_they_were_measured_on_and_as_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(folder: Path, _: argparse.Namespace) -> Iterator[Result]:
        (folder / "data").touch()
        assert folder.parent == tmp_path / "new"
        yield from ({"n": n} for n in range(2))

    results = run(arguments(tmp_path / "new"), measure, describe)
    out, errors = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == results
    assert [result["n"] for result in results] == [0, 1]
    assert all(result["machine"]["cores"] >= 1 and result["versions"]["torch"] for result in results)
    assert errors == "number 0\nnumber 1\n"
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (st.UsageError("size is many", fix="a number"), 2, "error: size is many. Fix: a number."),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "No space left on device\nFix: less of it"),
        (KeyboardInterrupt(), None, ""),
        (ZeroDivisionError(), None, ""),
    ],
)
def test_nothing_is_left_whatever_ends_it(
    tmp_path: Path, error: BaseException, code: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(folder: Path, _: argparse.Namespace) -> Iterator[Result]:
        (folder / "data").touch()
        yield {"n": 0}
        raise error

    with pytest.raises(type(error) if code is None else SystemExit) as ended:
        run(arguments(tmp_path), measure, describe, fix="less of it")
    assert getattr(ended.value, "code", None) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_polite_kill_leaves_nothing(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, runner.working_folder(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_memory_is_written_to_only_where_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(runner, "SPARE_BYTES", 0)
    assert runner.memory_folder() == tmp_path
    monkeypatch.setattr(runner, "SPARE_BYTES", 10**18)
    assert runner.memory_folder() is None
    monkeypatch.setattr(runner, "SHARED_MEMORY", tmp_path / "none")
    assert runner.memory_folder() is None
