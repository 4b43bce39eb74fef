"""A stranger's session: commands in a fresh folder, counted, and what they told; and the checks made of it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamtrain.cli.main import main

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the data, and how often something is tried."""

    flights: int
    epochs: int
    samples: int  # of the small tables
    auc: int  # scores that are kept one by one; ten times as many go into bins
    predicted: int
    repeats: int
    permutations: int
    every: int  # one kill point of so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The outcome of a command."""

    code: int
    result: dict[str, Any]
    text: str  # for people, without the result


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must come out; `met` is None where it cannot be measured, and `found` says why."""

    what: str
    found: Any
    bar: str
    met: bool | None


class Unexpected(Exception):
    """A command ended otherwise than the row says."""


@dataclass(slots=True)
class Session:
    """A folder and the commands run in it; in this process, which has imported torch, or each in a new one."""

    folder: Path
    sizes: Sizes
    in_process: bool
    n_commands: int = 0
    most: int = 0

    def run(self, command: str, *, code: int = 0, json: bool = True) -> Told:
        """Run a command that the task takes."""
        self.n_commands += 1
        self.most = max(self.most, self.n_commands)
        return self.look(command, code=code, json=json)

    def look(self, command: str, *, code: int = 0, json: bool = True) -> Told:
        """Run a command that only looks at what came out, or makes what the task begins with."""
        told = (self._here if self.in_process else self._apart)([*shlex.split(command), *["--json"] * json])
        if told.code != code:
            raise Unexpected(f"streamtrain {command}: exit code {told.code}, not {code}: {told.text[-600:]}")
        return told

    def next_task(self) -> None:
        """Count anew: the row has several tasks, and its bar is of each."""
        self.n_commands = 0

    def python(self, *lines: str) -> str:
        """Return what lines of Python print, run in a new process, in the folder."""
        done = subprocess.run(
            [sys.executable, "-c", "\n".join([f"import sys; sys.path.insert(0, {str(ROOT)!r})", *lines])],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unexpected(f"{lines}: {done.stderr[-600:]}")
        return done.stdout

    def _apart(self, words: list[str]) -> Told:
        start = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from streamtrain.cli.main import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", start, *words], cwd=self.folder, capture_output=True, text=True, check=False
        )
        return _told(done.returncode, done.stdout, done.stderr)

    def _here(self, words: list[str]) -> Told:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        return _told(code, out.getvalue(), err.getvalue())


def _told(code: int, stdout: str, stderr: str) -> Told:
    lines = (stderr + stdout).splitlines()
    result = json.loads(lines.pop()) if lines and lines[-1].startswith("{") else {}
    return Told(code=code, result=result, text="\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table: its number, the task, the most commands of it, and what finds out about it."""

    number: int
    task: str
    at_most: int | None
    checks: Callable[[Session], Iterator[Check]]


def at_most(what: str, found: float, bar: float) -> Check:
    """Check that a figure is at most its bar."""
    return Check(what=what, found=found, bar=f"<= {bar:.6g}", met=found <= bar)


def above(what: str, found: float, bar: float) -> Check:
    """Check that a figure is above its bar."""
    return Check(what=what, found=found, bar=f"> {bar:.6g}", met=found > bar)


def equal(what: str, found: Any, wanted: Any) -> Check:
    """Check that what was found is what is wanted."""
    return Check(what=what, found=found, bar=f"= {wanted}", met=found == wanted)


def unmeasured(what: str, why: str) -> Check:
    """Say that something cannot be measured here, and why."""
    return Check(what=what, found=why, bar="", met=None)
