"""Scripts for which the disk is too small: the fix names an option that they have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
MANY = str(10**15)


@pytest.mark.parametrize(
    ("script", "words", "fix"),
    [
        ("bench_train", ["--samples", MANY], "fewer --samples, or another --folder"),
        ("bench_epoch_rule", ["--samples", MANY], "fewer --samples, or another --folder"),
        ("bench_shuffle", ["--parts", "table", "--samples", MANY], "fewer --samples, or another --folder"),
        ("bench_checking", ["--size", "900TB"], "a smaller --size, or another --folder"),
        ("profile_memory", ["--sizes", "900TB", "--budgets", "64MB"], "smaller --sizes, or another --folder"),
        ("prove_out_of_core", ["--sizes", "900TB", "--no-limit"], "smaller --sizes, or another --folder or --keep"),
    ],
)
def test_the_fix_is_an_option_of_the_script(tmp_path: Path, script: str, words: list[str], fix: str) -> None:
    command = [sys.executable, SCRIPTS / f"{script}.py", *words, "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "are needed" in done.stderr
    assert done.stderr.strip().endswith(f"Fix: {fix}")
    for option in (word.rstrip(",") for word in fix.split() if word.startswith("--")):
        assert f'add_argument("{option}"' in (SCRIPTS / f"{script}.py").read_text()
    assert not list(tmp_path.iterdir())
