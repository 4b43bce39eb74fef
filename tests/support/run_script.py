"""Scripts in a process of their own, results read from stdout."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked_python import run_forked

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


def run_script(name: str, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script, named by its path below ``scripts/``, to its end."""
    env = options.pop("env", {name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    return run_forked([str(SCRIPTS / name), *map(str, words)], env=env, **options)


def help_of(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``--help`` of a script prints; in this process, where torch is imported once for all."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert ended.value.code == 0
    said, errors = capsys.readouterr()
    assert errors == ""
    return said


def is_ratio_of_rounded(ratio: float, numerator: float, denominator: float, *, digits: int = 0) -> bool:
    """Whether a ratio, to three digits, can be that of two figures which were rounded afterwards."""
    half, of_ratio = 0.5 * 10.0**-digits, 0.0006
    most = (numerator + half) / (denominator - half) if denominator > half else math.inf
    return (numerator - half) / (denominator + half) - of_ratio <= ratio <= most + of_ratio


def results_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a script that succeeded printed, a JSON object a line."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
