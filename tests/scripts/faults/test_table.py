"""The fault table: its parts at their smallest, and what is made of their lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from forked_python import run_forked
from run_script import ROOT, results_of


def run(script: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])}
    if not text:
        return run_forked([str(ROOT / script), *words], timeout=600, cwd=ROOT, env=env)
    command = [sys.executable, str(ROOT / script), *words]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=600, cwd=ROOT, env=env)


def line(stage: str, fault: str, cases: int, wrong: int = 0) -> str:
    return json.dumps({"stage": stage, "fault": fault, "cases": cases, "wrong": wrong, "seconds": 0.1})


def test_the_table_adds_up_what_concerns_the_same(tmp_path: Path) -> None:
    kills = {"bench": "resume", "rule": "epoch", "optimizer": "adam", "kills": 50, "different": 0}
    (tmp_path / "a").write_text("\n".join([line("create", "EIO", 1000), line("create", "power loss", 7)]) + "\n")
    (tmp_path / "b").write_text("\n".join([line("append", "EIO", 3), line("append", "power loss", 4), ""]))
    (tmp_path / "c").write_text(line("create", "EIO", 500) + "\n" + json.dumps(kills))
    done = run("scripts/faults/table.py", *(str(tmp_path / name) for name in "abc"))
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == """\
| cases tried / wrong results | EIO | power loss |
| --- | --- | --- |
| create | 1,500 / 0 | 7 / 0 |
| append | 3 / 0 | 4 / 0 |

| cases tried / wrong results | kill -9 |
| --- | --- |
| training by epoch, adam | 50 / 0 |

All: 1,564 / 0.
"""
    )


def test_a_wrong_result_stands_out_and_is_its_exit_code() -> None:
    done = run("scripts/faults/table.py", text=line("create", "EIO", 9, 2))
    assert done.returncode == 1
    assert "| create | 9 / **2** |" in done.stdout


def test_the_parts_speak_its_language() -> None:
    parsed = run("tests/ingestion/sources/test_mutations.py", "7:20", "npy")
    assert parsed.returncode == 0, parsed.stderr
    (found,) = map(json.loads, parsed.stdout.splitlines())
    assert (found["stage"], found["fault"], found["cases"], found["wrong"]) == ("parsing npy", "mutated file", 20, 0)
    assert "npy: 20 mutations" in parsed.stderr
    written = run("scripts/faults/writing.py", "--stage", "create", "--fault", "EIO", "--every", "240", "--first", "1")
    (tried,) = results_of(written)
    assert tried["cases"] >= 2
    table = run("scripts/faults/table.py", text=parsed.stdout + written.stdout)
    assert "| parsing npy | 20 / 0 |" in table.stdout
    assert f"| create | {tried['cases']} / 0 |" in table.stdout
    assert run("scripts/faults/writing.py", "--every", "2", "--first", "2").returncode == 2
