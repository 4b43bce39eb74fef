"""The guide does what it says: its commands and its Python run, and what it names is there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pages import ENGINES, FIGURES, GUIDE, GUIDE_PAGES, PAGES, ROOT, code_spans, follow
from run_script import help_of

import streamtrain
from streamtrain.cli.main import COMMANDS, main
from streamtrain.errors import UsageError

CONCEPTS = GUIDE / "concepts.md"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def name_of(page: Path) -> str:
    return page.parent.name if page == FIGURES else page.stem


@pytest.fixture(scope="module", autouse=True)
def one_thread_throughout() -> Iterator[None]:
    """Torch computes in one thread, for all tests here: the work is small, and other tests run beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def after_concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the example of the concepts was made, which the other pages begin in."""
    folder = tmp_path_factory.mktemp("concepts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert follow(CONCEPTS) > 3
    return folder


@pytest.mark.parametrize("page", [page for page in GUIDE_PAGES if page not in (CONCEPTS, ENGINES)], ids=name_of)
def test_a_page_s_commands_and_python_run(
    page: Path, after_concepts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(after_concepts, tmp_path / "here"))
    assert follow(page) > 0


def test_the_page_on_other_trainers_runs_where_they_are() -> None:
    assert "follow(ENGINES)" in (ROOT / "tests" / "engines" / "test_engines_page.py").read_text()


def commands_named(page: Path) -> Iterator[tuple[str, set[str]]]:
    """Each command that a page names in its text, or "" where it names options alone, with the options."""
    for span in code_spans(page):
        words = span.split()
        name = words[1] if words[0] == "streamtrain" and len(words) > 1 else words[0]
        if not span.startswith(("scripts/", "torchrun ")):
            yield name if name in COMMANDS else "", set(OPTION.findall(span.partition(" -- ")[0]))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_a_page_names_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, set[str]] = {}
    for name in COMMANDS:
        assert main([name, "--help-all"]) == 0
        known[name] = set(OPTION.findall(capsys.readouterr().out))
    known[""] = set().union(*known.values())
    named = [(name, options) for name, options in commands_named(page) if name or page != FIGURES]
    assert [(name, missing) for name, options in named if (missing := options - known[name])] == []


def test_scripts_take_the_options_that_pages_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_own_folder: Path
) -> None:
    named: dict[str, set[str]] = {}
    for span in (span for page in PAGES for span in code_spans(page) if span.startswith("scripts/")):
        script = span.split()[0].removeprefix("scripts/")
        assert (ROOT / "scripts" / script).exists(), span
        if script.endswith(".py"):
            named.setdefault(script, set()).update(OPTION.findall(span))
    for script, options in named.items():
        if options:
            assert options - set(OPTION.findall(help_of(script, monkeypatch, capsys))) == set(), script


def test_the_error_that_a_page_shows_is_the_one_printed(
    after_concepts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(after_concepts)
    capsys.readouterr()
    assert main(["train", "clouds.zarr", "--model", "mpl", "--json"]) == UsageError.exit_code
    shown = re.findall(r"^    (error: .*|\{.*)$", (GUIDE / "errors.md").read_text(), re.MULTILINE)
    assert capsys.readouterr().err.splitlines()[-2:] == shown


def test_the_lines_of_train_that_a_page_shows_are_printed(
    after_concepts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(after_concepts)
    capsys.readouterr()
    words = ["--model", "mlp:32", "--epochs", "1", "--memory", "16MB", "--verbose", "--out", str(tmp_path / "run")]
    assert main(["train", "clouds.zarr", *words]) == 0
    printed = {without_figures(line) for line in capsys.readouterr().out.splitlines()}
    shown = re.findall(r"^    (\w+ .*)$", (GUIDE / "profile.md").read_text(), re.MULTILINE)
    assert len(shown) > 2
    assert [line for line in shown if without_figures(line) not in printed] == []


def without_figures(line: str) -> str:
    return re.sub(r"[\d,.]+( [KMG]?B\b| m?s\b|%)?", "N", line)


def test_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| .*? \| (.+?) \|$", (GUIDE / "errors.md").read_text(), re.MULTILINE)
    for code, names in rows:
        for name in re.findall(r"`(\w+Error)`", names):
            assert getattr(streamtrain, name).exit_code == int(code)
    assert len(rows) >= 9
