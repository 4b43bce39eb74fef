"""The lines that several commands print."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import click
import pytest

from streamtrain.cli import main as command_line
from streamtrain.cli.output import (
    as_command_line,
    memory_line,
    note,
    progress_text,
    time_lines,
    verbosity_options,
    warning_text,
)
from streamtrain.errors import Argument, Fix, StreamtrainWarning, UsageError
from streamtrain.system.events import ThreadSeconds
from streamtrain.training.records.history import epoch_head


def test_lines_for_people() -> None:
    assert epoch_head("accuracy", with_val=False) == "epoch      steps        loss    accuracy   samples/s   stall"
    memory = {"budget": 16_000_000, "projected": 15_200_000, "measured": 12_345_678, "step": 4_100}
    short = "memory  budget 16.0 MB, projected 15.2 MB, measured 12.3 MB"
    assert memory_line(memory) == short
    assert memory_line(memory | {"measured": 0}) == short.rpartition(",")[0], "nothing was above a step's memory"
    work = ThreadSeconds(disk=0.5, decode=0.25, gather=1.0, index=0.25)
    wall = {"start": 1.0, "compute": 2.9, "wait": 0.1}
    first = "time    4.0 s: start 25.0%, compute 72.5%, wait 2.5%"
    assert time_lines(wall, work) == [first]
    with verbosity("--verbose"):
        assert memory_line(memory) == f"{short}, step 4.1 KB"
        second = "threads 2.0 s of work: disk 25.0%, decode 12.5%, gather 50.0%, index 12.5%"
        assert time_lines(wall, work) == [first, second]


def verbosity(flag: str) -> click.Context:
    """The context of a command that was given a flag."""
    return click.Command("work", params=verbosity_options()).make_context("work", [flag])


def test_quiet_keeps_dangers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["weights of epoch 5", "hint: more epochs", "warning: few lanes", "error: damaged"]
    for text in texts:
        note(text)
    assert capsys.readouterr().err.splitlines() == texts
    with verbosity("-q"):
        for text in texts:
            note(text)
        progress_text(False)("a line of an epoch")
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", texts[2:])


@pytest.mark.parametrize(
    ("is_terminal", "variables", "has_colors"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colors_are_for_terminals_that_want_them(
    is_terminal: bool,
    variables: dict[str, str],
    has_colors: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    assert command_line.main(["train", "--help"]) == 0
    assert command_line.main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert ("\x1b[1mSteps:\x1b[0m" in out, "\x1b" in out) == (has_colors, has_colors)
    assert err.startswith(f"{click.style('error:', fg='red', bold=True)} " if has_colors else "error: unknown")
    ours = StreamtrainWarning("few samples")
    told = warning_text(ours, type(ours), "a.py", 3)
    assert click.unstyle(told) == "warning: few samples\n"
    assert ("\x1b" in told) == has_colors


@pytest.mark.parametrize(
    ("fix", "python", "shell"),
    [
        (Fix(Argument("normalize", off=True)), "normalize=None", "--normalize none"),
        (Fix(Argument("shape", (28, 28))), "shape=(28, 28)", "--shape 28,28"),
        (Fix(Argument("every", "epoch")), "every='epoch'", "--schedule-every epoch"),
        (Fix("wait longer: ", Argument("timeout")), "wait longer: timeout=", "wait longer: timeout= in Python"),
        (
            Fix(Argument("options", {"cycle_momentum": False, "T_max": 4})),
            "options={'cycle_momentum': False, 'T_max': 4}",
            "--schedule-option cycle_momentum=false --schedule-option T_max=4",
        ),
        (Fix(Argument("lr", {"sgd": 0.1, "batch:adam": 0.01})), None, "--lr sgd=0.1,batch:adam=0.01"),
    ],
)
def test_a_remedy_in_python_and_in_a_shell(fix: Fix, python: str | None, shell: str) -> None:
    assert python in (None, fix)
    assert as_command_line(fix) == shell


def test_a_message_ends_in_its_remedy_as_it_is() -> None:
    assert str(UsageError("what.", why="why", fix="columns=...")) == "what. why. Fix: columns=..."
    message = UsageError("what", where="here", fix=Fix(Argument("drop_last", True))).text()
    assert message == "here: what. Fix: drop_last=True."
    assert as_command_line(message) == "here: what. Fix: --drop-last."


def test_a_warning_of_ours_is_in_a_shell_s_words_and_others_as_ever() -> None:
    ours = StreamtrainWarning("the last batch has one sample", fix=Fix(Argument("drop_last", True)))
    told = warning_text(ours, type(ours), "a.py", 3)
    assert told == "warning: the last batch has one sample. Fix: --drop-last.\n"
    assert warning_text(UserWarning("else"), UserWarning, "a.py", 3) == "a.py:3: UserWarning: else\n"


def test_the_command_line_gives_the_format_of_warnings_back(tmp_path: Path) -> None:
    before = warnings.formatwarning
    assert command_line.main(["info", str(tmp_path)]) == 4
    assert warnings.formatwarning is before
