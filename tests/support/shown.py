"""Errors as a person sees them: the traceback of a script, or the last line of a command."""

from __future__ import annotations

import contextlib
import io
import shlex
import traceback
from pathlib import Path
from typing import Any

from streamtrain.cli import main as command_line
from streamtrain.errors import StreamtrainError

MOST_LINES = 8


def shown(code: str, **names: Any) -> tuple[StreamtrainError, list[str]]:
    """Run a script that fails; return its error and the lines that Python prints of it."""
    script = Path("script.py")
    script.write_text(code)
    try:
        exec(compile(code, str(script.absolute()), "exec"), {"__name__": "__main__", **names})
    except StreamtrainError as error:
        trace = error.__traceback__
        assert trace is not None
        lines = traceback.format_exception(type(error), error, trace.tb_next)
        return error, "".join(lines).splitlines()
    raise AssertionError(f"nothing is refused: {code}")


def works(code: str, **names: Any) -> dict[str, Any]:
    """Run a script that works; return its names."""
    space = {"__name__": "__main__", **names}
    exec(code, space)
    return space


def typed(line: str) -> tuple[int, str, str]:
    """Type a command in this process; return its exit code, and what it printed on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.main(shlex.split(line))
    return code, out.getvalue(), err.getvalue()
