"""Scripts for which the disk is too small: the fix names an option that they have."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_script import help_of, run_script

MANY = str(10**15)


@pytest.mark.parametrize(
    ("script", "words", "fix"),
    [
        ("bench/train.py", ["--samples", MANY], "fewer --samples, or another --folder"),
        ("bench/epoch_rule.py", ["--samples", MANY], "fewer --samples, or another --folder"),
        ("bench/shuffle.py", ["--parts", "table", "--samples", MANY], "fewer --samples, or another --folder"),
        ("bench/checksums.py", ["--size", "900TB"], "a smaller --size, or another --folder"),
        ("proofs/memory.py", ["--sizes", "900TB", "--budgets", "64MB"], "smaller --sizes, or another --folder"),
        ("proofs/out_of_core.py", ["--sizes", "900TB", "--no-limit"], "smaller --sizes, or another --folder or --keep"),
    ],
)
def test_the_fix_is_an_option_of_the_script(
    tmp_path: Path,
    script: str,
    words: list[str],
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run_script(script, *words, "--folder", tmp_path)
    assert done.returncode == 5, done.stderr
    assert "are needed" in done.stderr
    assert done.stderr.strip().endswith(f"Fix: {fix}")
    usage = help_of(script, monkeypatch, capsys)
    assert all(f"[{word.rstrip(',')} " in usage for word in fix.split() if word.startswith("--"))
    assert not list(tmp_path.iterdir())
