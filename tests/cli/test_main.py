"""The frame of the command line: every outcome has its message, its stream and its exit code."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest

import streamtrain
from streamtrain import errors
from streamtrain.cli import main as frame
from streamtrain.cli.main import COMMANDS, main
from streamtrain.cli.output import as_command_line, emit, json_option
from streamtrain.system.json_values import to_json_value

Raiser = Callable[[BaseException], None]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Raiser:
    """Adds a command ``work`` that ends with the error it is given."""

    def add(error: BaseException) -> None:
        @click.command()
        @click.option("--memory")
        @json_option
        def command(memory: str | None, as_json: bool) -> None:
            raise error

        module = ModuleType("streamtrain.cli.work")
        module.work_command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(frame.COMMANDS, "work", "Raise an error.")

    return add


def test_no_cycles_are_looked_for_at_exit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    at_exit: list[object] = []
    monkeypatch.setattr(frame.atexit, "register", at_exit.append)
    monkeypatch.setattr(sys, "argv", ["streamtrain", "--version"])
    assert main(["--version"]) == 0
    assert at_exit == []
    assert main() == 0
    assert at_exit == [gc.freeze]


OUTCOMES: list[tuple[BaseException, int, str]] = [
    (errors.StreamtrainError("lost"), 1, "error: lost"),
    (errors.UsageError("batch_size is 0", fix="use 1"), 2, "error: batch_size is 0. Fix: use 1."),
    (errors.InputError("3 columns", where="a.csv:7"), 3, "error: a.csv:7: 3 columns"),
    (errors.DatasetError("incomplete"), 4, "error: incomplete"),
    (errors.BudgetError("16 MB is too small"), 5, "error: 16 MB is too small"),
    (errors.CheckpointError("damaged"), 6, "error: damaged"),
    (errors.StallError("no block in 30 s"), 7, "error: no block in 30 s"),
    (errors.DivergedError("loss is nan"), 8, "error: loss is nan"),
    (errors.LockedError("held by 17"), 9, "error: held by 17"),
    (MemoryError(), 5, "error: out of memory. Fix: a smaller --memory"),
    (MemoryError("cannot allocate 9 GB"), 5, "error: out of memory: cannot allocate 9 GB"),
    (OSError(errno.ENOSPC, "No space left on device", "d.zarr"), 5, "No space left on device: 'd.zarr'. Fix:"),
    (KeyboardInterrupt(), 130, "error: interrupted"),
    (click.Abort(), 130, "error: interrupted"),
    (KeyError("x"), 1, "error: a bug in streamtrain: KeyError: 'x' (--debug shows the traceback)"),
    (OSError(errno.EIO, "Input/output error"), 1, "error: a bug in streamtrain: OSError"),
]


@pytest.mark.parametrize(("error", "code", "message"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_an_error_has_its_message_and_its_code(
    work: Raiser, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    work(error)
    assert main(["work"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert main(["work", "--json"]) == code
    out, told = capsys.readouterr()
    assert out == ""
    assert told.startswith(err)
    values = json.loads(told.splitlines()[-1])["error"]
    assert list(values) == ["class", "code", "what", "where", "why", "fix"]
    assert (values["class"], values["code"]) == (type(error).__name__, code)


def test_an_error_in_json_has_its_remedy_as_it_is_typed(work: Raiser, capsys: pytest.CaptureFixture[str]) -> None:
    fix = errors.Fix(errors.Argument("memory", n_bytes=6_000_001), " or more")
    work(errors.BudgetError("too small", where="train.zarr", why="3 < 6", fix=fix))
    assert main(["work", "--json"]) == 5
    values = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    assert values == {
        "class": "BudgetError",
        "code": 5,
        "what": "too small",
        "where": "train.zarr",
        "why": "3 < 6",
        "fix": "--memory 7MB or more",
    }


@pytest.mark.parametrize(
    ("fix", "typed"),
    [
        (errors.Fix(errors.Argument("memory", n_bytes=6_035_592), ", or fewer lanes"), "--memory 7MB, or fewer lanes"),
        (
            errors.Fix(errors.Argument("batch_size", 64), ", or ", errors.Argument("drop_last", False)),
            "--batch-size 64, or no --drop-last",
        ),
        (errors.Fix(errors.Call("repair", "d.zarr", ("remove",))), "streamtrain repair d.zarr --remove"),
    ],
)
def test_a_remedy_is_written_as_it_is_typed(fix: errors.Fix, typed: str) -> None:
    assert as_command_line(fix) == typed


@pytest.mark.parametrize("args", [["--debug", "work"], ["work", "--debug"], ["work", "--debug", "--json"]])
def test_debug_adds_the_traceback_and_keeps_the_code(
    work: Raiser, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    work(errors.InputError("3 columns"))
    assert main(args) == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "\nerror: 3 columns\n" in err


def test_debug_shows_why_a_command_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(frame.COMMANDS, "absent", "Not there.")
    assert main(["absent", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_of_a_wrapped_command_is_not_ours(work: Raiser, capsys: pytest.CaptureFixture[str]) -> None:
    work(errors.InputError("3 columns"))
    assert main(["work", "--", "--debug"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], f"unknown command 'trian'. Known: {', '.join(sorted(COMMANDS))}. Fix: did you mean 'train'?"),
        (["xyzzy"], "Fix: use one of these."),
        (["--verison"], "Did you mean --version?"),
        (["ingest", "x.npy", "d.zarr", "--label", "y.npy"], "Did you mean --labels?"),
        (["ingest", "x.npy", "d.zarr", "--val", "0.2"], "Did you mean --split val=0.2?"),
        (["train", "d.zarr", "--optim", "sgd"], "Did you mean --optimizer?"),
        (["work", "--memroy", "1GB"], "Did you mean --memory?"),
        (["work", "--memory"], "requires an argument"),
        (["work", "more"], "See 'streamtrain work --help'."),
    ],
)
def test_wrong_words_are_usage_errors(
    work: Raiser, capsys: pytest.CaptureFixture[str], args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(AssertionError("never called"))
    if args[0] != "work":
        monkeypatch.delitem(frame.COMMANDS, "work")
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    # Some versions of click quote the names of options.
    assert message in re.sub(r"'(--\w+)'", r"\1", err)


def test_a_terminal_gets_wrapped_lines_and_whole_tables(
    work: Raiser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    work(
        errors.BudgetError(
            errors.Lines.of(["the budget is too small for one block and one batch:", "  " + "pool    12.5 MB  " * 5])
        )
    )
    assert main(["work"]) == 5
    first, second, table = click.unstyle(capsys.readouterr().err).splitlines()
    assert (first, second) == ("error: the budget is too small for one", "  block and one batch:")
    assert len(table) > 40


def test_no_words_ask_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: streamtrain")
    assert err == ""


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}  " in out and line in out for name, line in frame.COMMANDS.items())


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_every_command_has_help_with_json_and_debug(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: streamtrain {name} ")
    assert "--json" in out
    assert out.count("--debug") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"streamtrain {streamtrain.__version__}\n"


def test_python_dash_m_leaves_with_the_code() -> None:
    run = subprocess.run([sys.executable, "-m", "streamtrain", "trian"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: unknown command 'trian'")


@pytest.mark.skipif(os.name == "nt", reason="a pipe without a reader is POSIX's")
def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = subprocess.run([sys.executable, "-m", "streamtrain", "--help"], stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert run.returncode == 141
    assert run.stderr == b""


def test_emit_prints_one_object_or_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "loss": np.float32(0.5),
        "worst": np.float64("nan"),
        "steps": np.int64(3),
        "sorted": np.bool_(True),
        "shape": (2, 3),
        "mean": np.array([0.25, np.inf]),
        "run": Path("runs/a"),
        "memory": {"budget": 16_000_000, "measured": None},
    }
    emit(True, result, "unused")
    assert json.loads(capsys.readouterr().out) == {
        "loss": 0.5,
        "worst": None,
        "steps": 3,
        "sorted": True,
        "shape": [2, 3],
        "mean": [0.25, None],
        "run": "runs/a",
        "memory": {"budget": 16_000_000, "measured": None},
    }
    emit(False, result, "3 steps")
    assert capsys.readouterr().out == "3 steps\n"


def test_emit_prints_a_file_name_of_no_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.npy")
    emit(False, {}, name)
    emit(True, {"file": name}, "")
    text, line = capsys.readouterr().out.splitlines()
    assert text == "caf\\udce9.npy"
    assert json.loads(line) == {"file": name}


def test_plain_refuses_what_has_no_json_form() -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        to_json_value({"names": {"x"}})


@pytest.mark.parametrize(
    ("part", "typed"),
    [
        (errors.Argument("fields", {"x": "my pic"}), "--fields 'x=my pic'"),
        (errors.Argument("columns", ["a", "b c"]), "--columns 'a,b c'"),
        (errors.Argument("options", {"milestones": [30, 80]}), "--schedule-option 'milestones=[30,80]'"),
        (errors.Argument("checkpoint"), "--out"),
        (errors.Argument("resume", "auto"), "--resume"),
        (errors.Argument("device", "cuda:0"), "--device cuda:0"),
        (errors.Call("repair", "sp ace/d.zarr", ("remove",)), "streamtrain repair 'sp ace/d.zarr' --remove"),
    ],
)
def test_a_remedy_is_what_a_shell_takes(part: errors.Argument | errors.Call, typed: str) -> None:
    assert as_command_line(errors.Fix(part)) == typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--json info d.zarr", "info d.zarr --json"),
        ("--memory 3MB plan d.zarr", "plan d.zarr --memory 3MB"),
        ("--json train --epochs 1", "train --epochs 1 --json"),
    ],
)
def test_an_option_before_its_command_is_put_behind_it(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    assert f"Fix: streamtrain {meant}." in capsys.readouterr().err
    assert main(["--jsn", "info", "d.zarr"]) == 2
    assert "Fix" not in capsys.readouterr().err
