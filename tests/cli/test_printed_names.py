"""Names that would steer a terminal are printed with escapes, wherever one is printed; ``--json`` stays JSON."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.cli.output import command_line
from streamtrain.errors import Lines, printable

pytestmark = pytest.mark.usefixtures("one_thread")

HOSTILE = "c\x1b[31m\u202e\r\x9b\u2028d"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a table whose name, columns and classes are hostile."""
    (tmp_path / HOSTILE).mkdir()
    monkeypatch.chdir(tmp_path)
    lines = [f'{i},{i * i},"{"kl"[i % 2]}{HOSTILE}"' for i in range(40)]
    Path(HOSTILE, "t.csv").write_text("\n".join([f'"a{HOSTILE}",b,"y{HOSTILE}"', *lines, ""]), newline="")
    return Path(HOSTILE)


COMMANDS: dict[str, tuple[list[str], int]] = {
    "ingest": (["ingest", "{f}/t.csv", "{f}/e.zarr", "--label-column", "y{f}"], 0),
    "there already": (["ingest", "{f}/t.csv", "{f}/d.zarr", "--label-column", "y{f}"], 2),
    "no label": (["ingest", "{f}/t.csv", "{f}/e.zarr"], 3),
    "no such label": (["ingest", "{f}/t.csv", "{f}/e.zarr", "--label-column", "{f}"], 3),
    "other class": (["ingest", "{f}/t.csv", "{f}/e.zarr", "--label-column", "y{f}", "--classes", "{f}"], 3),
    "no file": (["ingest", "{f}/none.csv", "{f}/e.zarr"], 3),
    "info": (["info", "{f}/d.zarr"], 0),
    "no dataset": (["info", "{f}/none.zarr"], 4),
    "verify": (["verify", "{f}/d.zarr", "--full"], 0),
    "repair": (["repair", "{f}/d.zarr"], 0),
    "plan": (["plan", "{f}/d.zarr", "--memory", "16MB", "--batch-size", "8"], 0),
    "train": (["train", "{f}/d.zarr", "--model", "linear", "--memory", "16MB", "--epochs", "1", "--out", "{f}/b"], 0),
    "no model": (["train", "{f}/d.zarr", "--model", "{f}", "--out", "{f}/b"], 2),
    "no code": (["train", "{f}/d.zarr", "--model", "{f}.py:f", "--out", "{f}/b"], 2),
    "no option": (["train", "{f}/d.zarr", "--{f}"], 2),
    "evaluate": (["evaluate", "{f}/a", "{f}/d.zarr", "--memory", "16MB"], 0),
    "report": (["report", "{f}/a"], 0),
    "doctor": (["doctor", "{f}/none"], 2),
}


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_text_alone(
    name: str, as_json: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    st.ingest(folder / "t.csv", folder / "d.zarr", label_column=f"y{HOSTILE}", progress=False)
    made = ["train", f"{folder}/d.zarr", "--model", "linear", "--memory", "16MB", "--epochs", "1", "--device", "cpu"]
    if name in ("evaluate", "report"):
        assert main([*made, "--out", f"{folder}/a"]) == 0
    capsys.readouterr()
    words, code = COMMANDS[name]
    given = [word.replace("{f}", HOSTILE) for word in words]
    assert main([*given, *(["--json"] if as_json else [])]) in ({code, 0, 5} if name == "doctor" else {code})
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not (found := CONTROL.search(text)), f"{found[0]!r} in {text!r}"
    if as_json:
        json.loads(out if code == 0 else err.splitlines()[-1])


def test_an_error_and_a_warning_in_python_are_text_alone(folder: Path) -> None:
    with pytest.raises(st.DatasetError) as caught:
        st.open(folder / "none.zarr")
    assert not CONTROL.search(str(caught.value))
    assert HOSTILE in str(caught.value.where), "the values are what they are"
    from streamtrain.store.schema.matching import warn_of_unnamed

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_unnamed(f"{HOSTILE} has no names", stacklevel=1)
    assert not CONTROL.search(str(told[0].message))


def test_lines_are_laid_out_and_what_stands_in_them_is_not() -> None:
    laid_out = Lines.of(["a", Lines.of(["  b", "  c\nd"])])
    assert printable(laid_out) == "a\n  b\n  c\\nd"
    assert str(st.StreamtrainError(laid_out, where="f\n")) == "f\\n: a\n  b\n  c\\nd"
    assert printable("\ud800\x00 \u00e9") == "\\ud800\\x00 \u00e9"


def test_a_remedy_that_is_not_printable_is_read_back_by_bash() -> None:
    assert (
        command_line(["streamtrain", "repair", "a b", "c\n'\u00e9"]) == r"streamtrain repair 'a b' $'c\x0a\x27\xc3\xa9'"
    )
