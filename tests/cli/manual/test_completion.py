"""Completion: what is suggested, and that bash suggests it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streamtrain.cli.commands import values
from streamtrain.cli.main import COMMANDS, main
from streamtrain.cli.manual import completion

BIN = Path(sys.executable).parent


def suggested(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str) -> list[tuple[str, str]]:
    """The type and value of what a shell is told where a line ends."""
    words = line.split(" ")
    monkeypatch.setenv(values.COMPLETION, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert main([]) == 0
    found = [each.split(",", 1) for each in capsys.readouterr().out.splitlines() if each]
    return [(kind, value) for kind, value in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("flights/train", "flights/val", "more/trees", "zoo data"):
        (tmp_path / name / "_streamtrain").mkdir(parents=True)
        (tmp_path / name / "_streamtrain" / "manifest.json").write_text("{}")
    (tmp_path / "flights/_streamtrain").mkdir()
    (tmp_path / "flights/_streamtrain/splits.json").write_text("{}")
    for name in ("runs/1", "runs/2", "runs/empty", "fog"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/1", "runs/2"):
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "net.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "values_"),
    [
        ("streamtrain tr", ["train"]),
        ("streamtrain ", list(COMMANDS)),
        ("streamtrain train --opt", ["--optimizer"]),
        ("streamtrain train --optimizer ada", ["adam", "adamw", "adagrad", "adamax", "adadelta", "adafactor"]),
        ("streamtrain train --loss m", ["mse"]),
        ("streamtrain train --schedule co", ["cosine", "constant"]),
        ("streamtrain train --memory 512", ["512MB", "512GB"]),
        ("streamtrain train --max-memory a", ["auto"]),
        ("streamtrain train --model n", ["net.py"]),
        ("streamtrain train --model m", ["mlp"]),
        ("streamtrain train f", ["flights", "fog/"]),
        ("streamtrain train more/", ["more/trees"]),
        ("streamtrain evaluate runs/", ["runs/1", "runs/2", "runs/empty/"]),
        ("streamtrain info flights --split ", ["train", "val"]),
        ("streamtrain evaluate runs/1 flights --split v", ["val"]),
        ("streamtrain compare flights --rules batch,e", ["batch,epoch"]),
        ("streamtrain ingest --codec z", ["zstd"]),
        ("streamtrain guide ta", ["tables"]),
        ("streamtrain completion z", ["zsh"]),
        ("streamtrain train --lonas", []),
    ],
)
def test_names_are_completed(
    folder: Path,
    line: str,
    values_: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert suggested(capsys, monkeypatch, line) == [("plain", value) for value in values_]


@pytest.mark.parametrize(
    ("line", "kind"),
    [("streamtrain ingest fl", "file"), ("streamtrain train --out ru", "file"), ("streamtrain train mo", "dir")],
)
def test_other_paths_are_the_shell_s(
    folder: Path, line: str, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert suggested(capsys, monkeypatch, line) == [(kind, line.rpartition(" ")[2])]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("# Add this line to ~/.bashrc:  eval ")
    lines = ["streamtrain com", "streamtrain train --optimizer rp", "streamtrain info fl", "streamtrain info zo"]
    asked = "\n".join(
        f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; COMPREPLY=(); _streamtrain_completion streamtrain\n"
        'echo "${COMPREPLY[*]}"'
        for line in lines
    )
    run = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asked}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
    )
    assert run.stdout.splitlines() == ["compare completion", "rprop", "flights", r"zoo\ data"]


def test_what_is_mended_in_the_scripts_is_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, (as_made, mended) in completion._MENDED.items():
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert mended in script
        assert not as_made or as_made not in script


@pytest.mark.parametrize(("shell", "comment"), [("zsh", "~/.zshrc"), ("fish", "fish/completions/streamtrain.fish")])
def test_each_shell_has_its_script(shell: str, comment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert first.startswith("# ")
    assert comment in first
    assert values.COMPLETION in rest


@pytest.mark.parametrize(("version", "code"), [("3.2.57(1)-release", 2), ("4.3.48", 2), ("4.4.20", 0), ("", 0)])
def test_an_old_bash_is_refused(
    tmp_path: Path, version: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bash"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["completion", "bash"]) == code
    told = capsys.readouterr().err
    assert bool(re.search(r"error: bash is \d.*; completion needs 4.4 or newer", told)) == (code == 2)
