"""The shell scripts: setup on a stand-in interpreter, and the versions that it pins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version
from run_script import ROOT, SCRIPTS

SHELL_SCRIPTS = ["setup", "test", "demo", "docs", "faults/run"]


@pytest.mark.parametrize("path", [*(f"scripts/{name}" for name in SHELL_SCRIPTS), ".ci/run"])
def test_shell_scripts_are_posix_and_executable(path: str) -> None:
    script = ROOT / path
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_what_a_shell_script_runs_is_there(name: str) -> None:
    named = re.findall(r"(?:scripts|tests)/[\w/]+\.(?:py|txt)", (SCRIPTS / name).read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert named


def test_the_demo_knows_its_words() -> None:
    assert "--sorted" in (SCRIPTS / "demo").read_text()
    assert ".ci/run" not in (SCRIPTS / "test").read_text()
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


def test_every_python_that_is_promised_is_tested_by_the_same_command() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    promised = [line.split()[-1] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)]
    every_python, *ends = re.split(r"^  \w+:$", text.partition("\njobs:\n")[2], flags=re.M)[1:]
    assert re.findall(r'"(3\.\d+)"', every_python) == promised
    assert re.findall(r"- run: (.*)", every_python) == ["scripts/test"]
    others = [f"scripts/test --{environment}" for environment in ("oldest", "newest", "engines")]
    assert [re.findall(r"- run: (.*)", job) for job in ends] == [[command] for command in others]


def test_a_commit_is_checked_by_the_tools_of_the_whole_run() -> None:
    hooks = re.findall(r"entry: (\.venv/bin/\w+)", (ROOT / ".pre-commit-config.yaml").read_text())
    run = (SCRIPTS / "test").read_text()
    assert len(hooks) == 4
    assert all(re.search(rf"^ *{re.escape(tool)}\b", run, flags=re.M) for tool in hooks)


def test_what_quick_leaves_out_is_there() -> None:
    lines = [line for line in (ROOT / "tests" / "slow.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines)
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for line in lines:
        if line.endswith("/"):
            assert list((ROOT / "tests" / line).glob("test_*.py")), line
        elif line.endswith(".py"):
            assert (ROOT / "tests" / line).is_file(), line
        else:
            assert text.count(f"def {line}(") == 1, line
    assert (SCRIPTS / "test").read_text().count("not slow") == 1, "only --quick leaves them out"


def test_trainers_of_other_people_have_tests_of_their_own() -> None:
    run = (SCRIPTS / "test").read_text()
    assert "exec .venv-engines/bin/python -m pytest tests/engines" in run
    others = [f"--ignore={path}" for path in (ROOT / "tests").iterdir() if path.name not in ("engines", "conftest.py")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *others]
    for folder, expected in (("tests", False), ("tests/engines", True)):
        told = subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=False).stdout
        assert ("tests/engines/test_accelerate.py::" in told) == expected, told


def test_constraints_pin_every_requirement_once() -> None:
    pinned = constraints("constraints.txt")
    assert requirements("test", "dev").keys() <= pinned.keys()
    assert pinned["torch"] == "2.13.0"


def test_trainers_of_other_people_are_pinned_beside_the_versions_of_the_other_tests() -> None:
    pinned, tested = constraints("constraints-engines.txt"), constraints("constraints.txt")
    assert requirements("engines").keys() <= pinned.keys()
    assert {name: version for name, version in pinned.items() if tested.get(name, version) != version} == {}
    assert "ray" not in pinned, "it is heavy, and has a script of its own"


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    pinned = constraints("constraints-oldest.txt")
    assert {name: Version(pinned[name]) for name in requirements("test")} == requirements("test")


def test_the_page_of_the_tests_has_the_versions_that_are_pinned() -> None:
    tested, oldest = constraints("constraints.txt"), constraints("constraints-oldest.txt")
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+) \| (\S+) \|", (ROOT / "tests" / "README.md").read_text(), flags=re.M)
    assert {row[0] for row in rows} == requirements("test").keys()
    assert rows == [(name, oldest[name], tested[name]) for name, *_ in rows]


def constraints(file: str) -> dict[str, str]:
    """The version of each package that a file of constraints pins, once each."""
    lines = [line for line in (SCRIPTS / file).read_text().splitlines() if not line.startswith("#")]
    pinned = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    assert len(pinned) == len(lines)
    return pinned


def requirements(*groups: str) -> dict[str, Version]:
    """Lower bounds in pyproject.toml by name: of the core, the extras and these groups."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [
        settings["project"]["dependencies"],
        *settings["project"]["optional-dependencies"].values(),
        *(settings["dependency-groups"][group] for group in groups),
    ]
    asked = [line for lines in lists for line in lines if isinstance(line, str) and not line.startswith("streamtrain")]
    assert all(">=" in line and "<" not in line for line in asked), "lower bounds, and no upper ones"
    return {name: Version(bound) for name, bound in (line.split(">=") for line in asked)}


# A stand-in for Python: it makes a .venv with itself in it, and writes down what pip is asked for.
STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip") echo "$*" >>pip.log; [ ! -e broken ] || [ "$3" = --version ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with spaces in its name, and in it what setup reads."""
    folder = tmp_path / "a check out"
    (folder / "scripts").mkdir(parents=True)
    for name in ("pyproject.toml", "scripts/setup", *(f"scripts/{path.name}" for path in SCRIPTS.glob("constraints*"))):
        shutil.copy(ROOT / name, folder / name)
    stand_in = folder / "my python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder


def setup(checkout: Path, *words: str) -> tuple[int, str]:
    """Run setup from elsewhere; its exit code and what pip was asked for."""
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHON": str(checkout / "my python")}
    run = subprocess.run([checkout / "scripts" / "setup", *words], cwd="/", env=environment, check=False)
    return run.returncode, log.read_text() if log.exists() else ""


def test_setup_installs_once(checkout: Path) -> None:
    code, asked = setup(checkout)
    assert code == 0
    assert "--constraint scripts/constraints.txt --editable .[all] --group dev" in asked
    assert setup(checkout) == (0, "")


def test_other_versions_and_other_people_s_trainers_have_environments_of_their_own(checkout: Path) -> None:
    code, asked = setup(checkout, "--oldest")
    assert code == 0
    assert "--constraint scripts/constraints-oldest.txt --editable .[all] --group test" in asked
    assert setup(checkout, "--oldest") == (0, "")
    code, asked = setup(checkout, "--engines")
    assert code == 0
    assert "--constraint scripts/constraints-engines.txt --editable .[all] --group engines" in asked
    assert setup(checkout, "--engines") == (0, "")
    for _ in range(2):
        code, asked = setup(checkout, "--newest")
        assert code == 0
        assert "--upgrade --upgrade-strategy eager --editable .[all] --group test" in asked
        assert "--constraint" not in asked
    assert {path.name for path in checkout.glob(".venv*")} == {".venv-oldest", ".venv-newest", ".venv-engines"}
    assert setup(checkout, "--latest") == (2, "")


@pytest.mark.parametrize("name", ["pyproject.toml", "scripts/constraints.txt"])
def test_setup_installs_again_when_the_requirements_change(checkout: Path, name: str) -> None:
    setup(checkout)
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    code, asked = setup(checkout)
    assert code == 0
    assert "--group dev" in asked


def test_an_interrupted_setup_is_taken_up_again(checkout: Path) -> None:
    (checkout / "broken").touch()
    assert setup(checkout)[0] != 0
    (checkout / "broken").unlink()
    code, asked = setup(checkout)
    assert code == 0
    assert "--group dev" in asked
    (checkout / ".venv" / "bin" / "python").unlink()
    assert "--group dev" in setup(checkout)[1]


def test_setup_says_which_python_it_wants(checkout: Path) -> None:
    (checkout / "my python").write_text("#!/bin/sh\nexit 1\n")
    run = subprocess.run(
        [checkout / "scripts" / "setup"],
        env={**os.environ, "PYTHON": str(checkout / "my python")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "error: no Python 3.11 or newer" in run.stderr
    assert "Fix: PYTHON=" in run.stderr
