"""The guide on the command line: a list of pages, a page, and the nearest name."""

from __future__ import annotations

import json
import sys

import click
import pytest

from streamtrain.cli.main import main
from streamtrain.cli.manual.guide import guide_pages


def test_the_list_names_every_page_and_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(guide_pages())
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("resume  ") and len(line) > 40 for line in lines)


def test_a_page_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = guide_pages()["tables"].read_text()
    for name in ("tables", "tables.md"):
        assert main(["guide", name]) == 0
        assert capsys.readouterr().out == text
    assert main(["guide", "tables", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": "tables", "text": text}
    paged: list[str] = []
    monkeypatch.setattr(click, "echo_via_pager", paged.append)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert main(["guide", "tables"]) == 0
    assert paged == [text]


def test_an_unknown_page_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", "tabels"]) == 2
    assert "did you mean 'tables'?" in capsys.readouterr().err
