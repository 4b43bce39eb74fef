"""Places of an ingest: a source or a destination that is missing, a file that is appended twice."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import streamtrain as st
from streamtrain.cli.main import main

HEAD = "a,k,y,more"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [f"{i},{'uv'[i % 2]},{i % 3},{i}" for i in range(60)]
    Path("more.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    Path("t.csv").write_text("\n".join([HEAD.rpartition(",")[0], *(row.rpartition(",")[0] for row in rows)]) + "\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> str:
    assert main(shlex.split(line)) == code
    return capsys.readouterr().err


@pytest.mark.parametrize("files", ["t.csv", "t.csv more.csv"])
def test_a_destination_that_is_missing(table: Path, capsys: pytest.CaptureFixture[str], files: str) -> None:
    last = files.split()[-1]
    err = said(capsys, f"ingest --label-column y --categorical k {files}", 2)
    assert f"DEST is missing. The last argument is the new dataset, and {last} is a file." in err
    fix = err.partition("Fix: streamtrain ")[2].strip().removesuffix(".")
    assert fix == f"ingest --label-column y --categorical k {files} {Path(last).stem}"


def test_a_list_with_blanks_in_it(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, "ingest t.csv d --label-column y --auto --na-values n/a -", 3)
    assert "'-' is no file, and follows --na-values n/a as a word of its own. Lists are separated by commas. " in err
    assert "Fix: --na-values n/a,-." in err
    said(capsys, "ingest --na-values n/a,- --label-column y --auto t.csv d")
    assert "no such file" in said(capsys, "ingest --label-column y nothing.csv e", 3)


def test_an_append_tells_what_is_ignored_and_what_is_there(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "ingest t.csv d --label-column y --categorical k")
    assert "more.csv: ignored, since the dataset has no such columns: 'more'" in said(
        capsys, "ingest more.csv d --append"
    )
    assert "warning: t.csv is among the sources of d already" in said(capsys, "ingest t.csv d --append")
    with pytest.warns(st.StreamtrainWarning, match="among the sources"):
        st.ingest("t.csv", "d", append=True)
    said(capsys, "ingest more.csv left --label-column y --categorical k --exclude more")
    assert "ignored" not in said(capsys, "ingest more.csv left --append")


def test_a_header_alone_is_told_before_any_choice(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("h.csv").write_text(f"{HEAD}\n")
    Path("e.csv").write_text("")
    err = said(capsys, "ingest h.csv d --label-column y --auto", 3)
    assert err.startswith("error: h.csv: the table has columns but no rows")
    assert "the file is empty (0 bytes)" in said(capsys, "ingest e.csv d --auto", 3)


def test_labels_that_are_missing_or_an_id_are_told(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint: there are no labels, which train needs: --label-column NAME" in said(capsys, "ingest t.csv d --auto")
    assert "there are no labels" not in said(capsys, "ingest t.csv e --auto --label-column y")
    rows = [f"{i},n{i}" for i in range(40)]
    Path("n.csv").write_text("\n".join(["a,y", *rows]) + "\n")
    assert "warning: label y has 40 classes for 40 rows, nearly one a row" in said(
        capsys, "ingest n.csv f --label-column y"
    )


def test_rows_without_their_ids_are_told(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "ingest more.csv d --label-column y --categorical k --id-column more")
    list_of_said: list[str] = []
    list(st.rows("t.csv", like="d", say=list_of_said.append))
    assert list_of_said == [
        "t.csv: there is no column 'more', which holds the ids of the dataset: predictions have none"
    ]
