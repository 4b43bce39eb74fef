"""A run's folder that is read while it is trained: whole lines only, and what is missing is still to come."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamtrain.diagnostics import run_reader
from streamtrain.diagnostics.run_reader import read_run
from streamtrain.errors import CheckpointError
from streamtrain.training.run.run_folder import RunFolder

LINES = [f'{{"kind": "epoch", "epoch": {number}, "steps": {number}}}\n' for number in range(1, 5)]


def run_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "metrics.jsonl").write_text(text)
    return path


@pytest.mark.parametrize("n_letters", [1, 20, len(LINES[2]) - 1])
def test_a_line_that_is_being_written_is_none_yet(tmp_path: Path, n_letters: int) -> None:
    run = run_of(tmp_path / "run", "".join(LINES[:2]) + LINES[2][:n_letters])
    assert read_run(run).n_epochs == 2


@pytest.mark.parametrize(
    ("before", "after", "n_epochs"),
    [
        pytest.param(LINES[0][:9], "".join(LINES), 4, id="its first line was being written"),
        pytest.param(LINES[0] + "tail of a line that was cut\n", "".join(LINES[:2]), 2, id="lines were cut off"),
    ],
)
def test_what_changes_meanwhile_is_read_anew(
    tmp_path: Path, before: str, after: str, n_epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", before)
    real = run_reader._parse_lines

    def going_on(file: Path, data: bytes) -> object:
        try:
            return real(file, data)
        finally:
            file.write_text(after)

    monkeypatch.setattr(run_reader, "_parse_lines", going_on)
    assert read_run(run).n_epochs == n_epochs


def test_damage_is_damage_though_the_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", LINES[0] + "damaged\n")
    real = run_reader._parse_lines

    def growing(file: Path, data: bytes) -> object:
        with file.open("a") as lines:
            lines.write(LINES[1])
        return real(file, data)

    monkeypatch.setattr(run_reader, "_parse_lines", growing)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:2: is damaged"):
        read_run(run)


def test_a_run_that_has_just_begun_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunFolder(path, {}) as run:
        with pytest.raises(CheckpointError, match=r"config.json is missing. Fix: wait for its first"):
            read_run(path)
        run.log(kind="batch", steps=1)
        assert len(read_run(path).batches) == 1
        for text in ("", None):
            (path / "metrics.jsonl").unlink()
            if text is not None:
                (path / "metrics.jsonl").write_text(text)
            with pytest.raises(CheckpointError, match=r"metrics.jsonl: has no line yet. The run is being trained"):
                read_run(path)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: is missing"):
        read_run(path)
