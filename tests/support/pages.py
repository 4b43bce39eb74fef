"""The pages of the repository: those for users, their commands as words, and those run in this process."""

from __future__ import annotations

import doctest
import os
import re
import shlex
from pathlib import Path

from forked_python import run_forked
from processes_of_ranks import FOR_ALL

from streamtrain.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GUIDE = ROOT / "streamtrain" / "guide"
GUIDE_PAGES = sorted(GUIDE.glob("*.md"))
ENGINES = GUIDE / "engines.md"
"""It needs other people's trainers; tests/engines runs it."""
FIGURES = ROOT / "scripts" / "README.md"
"""Its commands take hours; that they exist is all that is tested of them."""
PAGES = [README, *GUIDE_PAGES, FIGURES]
ALL_PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for name in ("data", "scripts", "streamtrain", "tests") for page in (ROOT / name).rglob("*.md")),
    ]
)

_SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_DOCTEST_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def shell_blocks(page: Path) -> list[str]:
    return _SHELL_BLOCK.findall(page.read_text())


def follow(page: Path) -> int:
    """Run the commands and the Python of a page from top to bottom, and return how many there were."""
    runner = doctest.DocTestRunner(optionflags=_DOCTEST_OPTIONS)
    n_commands, names, line = 0, {"__name__": "__main__"}, 0
    for place, part in enumerate(_SHELL_BLOCK.split(page.read_text())):  # text and blocks in turn
        if place % 2:
            for command, exit_code in commands(part):
                run(command, exit_code)
                n_commands += 1
        else:
            examples = doctest.DocTestParser().get_doctest(part, names, page.name, str(page), line)
            runner.run(examples, clear_globs=False)
            names = examples.globs
        line += part.count("\n") + 1 - place % 2  # and a fence above a block
    assert runner.failures == 0
    return n_commands + runner.tries


def commands(block: str) -> list[tuple[list[str], int]]:
    """The commands of a block, as words, each with its exit code; one may go over several lines."""
    found: list[tuple[list[str], int]] = []
    pending = ""
    for line in block.replace("\\\n", "").splitlines(keepends=True):
        pending += line
        if pending.count('"') % 2 == 0:
            code = re.search(r"# exit code (\d+)", pending)
            found.append((shlex.split(pending, comments=True), int(code[1]) if code else 0))
            pending = ""
    return [(words, code) for words, code in found if words]


def run(command: list[str], exit_code: int = 0) -> None:
    """Run a command in this process, where torch is imported once for all."""
    program, *words = command
    if program == "python":
        exec(compile(words[1], "a page", "exec"), {})
    elif program == "torchrun":
        several = ["-m", "torch.distributed.run", *words]
        done = run_forked(several, env={**os.environ, **FOR_ALL}, timeout=300)
        assert done.returncode == exit_code, done.stderr
    else:
        assert program == "streamtrain"
        assert main(words) == exit_code, command


def code_spans(page: Path) -> list[str]:
    """What stands in backticks in the text of a page, blocks left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)]
