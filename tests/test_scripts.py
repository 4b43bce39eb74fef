"""The scripts, without the network: setup on a stand-in interpreter, the data's places on made-up files."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fashion = load("get_fashion_mnist")

CONTENTS = {"images.gz": b"pixels" * 100, "labels.gz": b"classes"}
FILES = {name: fashion.Content(len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENTS.items()}


def put(folder: Path, contents: dict[str, bytes] = CONTENTS) -> None:
    for name, data in contents.items():
        (folder / name).write_bytes(gzip.compress(data))


def fail(_: Path) -> None:
    raise fashion.Unavailable("no network")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_place_that_works_gives_the_files(tmp_path: Path) -> None:
    target = tmp_path / "data" / "fashion"
    assert fashion.get(target, FILES, {"mirror": fail, "publisher": put, "never": fail}) == "publisher"
    assert names(target) == ["images.gz", "labels.gz"]
    assert fashion.get(target, FILES, {"never": fail}) == "already there"


def test_compression_does_not_matter_and_content_does(tmp_path: Path) -> None:
    for name, data in CONTENTS.items():
        (tmp_path / name).write_bytes(gzip.compress(data, compresslevel=1, mtime=0))
    fashion.check(tmp_path, FILES)
    put(tmp_path, {"labels.gz": b"Classes"})
    with pytest.raises(fashion.Unavailable, match=r"labels\.gz decompresses to .* expected"):
        fashion.check(tmp_path, FILES)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"images.gz": b"pixels" * 100}, "labels.gz is missing"),
        ({**CONTENTS, "labels.gz": b"class"}, "n_bytes=5"),
        ({**CONTENTS, "labels.gz": b"0" * 10**6}, "n_bytes=8"),
    ],
)
def test_other_files_are_refused_and_none_is_placed(tmp_path: Path, contents: dict[str, bytes], reason: str) -> None:
    with pytest.raises(fashion.Unavailable) as caught:
        fashion.get(tmp_path, FILES, {"mirror": lambda folder: put(folder, contents), "publisher": fail})
    lines = str(caught.value).splitlines()
    assert lines[1].strip().startswith("already there: images.gz is missing")
    assert reason in lines[2]
    assert lines[3].strip() == "publisher: no network"
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", [b"\x1f\x8b", b"not gzip at all", gzip.compress(b"classes")[:-4]])
def test_a_file_that_is_no_whole_gzip_is_refused(tmp_path: Path, damage: bytes) -> None:
    put(tmp_path)
    (tmp_path / "labels.gz").write_bytes(damage)
    with pytest.raises(fashion.Unavailable, match=r"labels\.gz is not a whole gzip file"):
        fashion.check(tmp_path, FILES)


def test_a_failing_command_is_told_by_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(fashion.Unavailable, match="there is no no-such-command here"):
        fashion.run(["no-such-command"], tmp_path)
    with pytest.raises(fashion.Unavailable, match="failed with 3: because"):
        fashion.run([sys.executable, "-c", "import sys; print('because', file=sys.stderr); sys.exit(3)"], tmp_path)


@pytest.mark.parametrize("path", ["scripts/setup", "scripts/test", "scripts/demo", ".ci/run"])
def test_shell_scripts_are_posix_and_executable(path: str) -> None:
    script = ROOT / path
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_the_demo_knows_its_words() -> None:
    assert "--sorted" in (SCRIPTS / "demo").read_text()
    assert ".ci/run" not in (SCRIPTS / "test").read_text()
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


def test_constraints_pin_every_requirement_once() -> None:
    lines = (SCRIPTS / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==")[0].lower() for line in lines if line and not line.startswith("#")]
    assert len(pinned) == len(set(pinned))
    assert requirements() <= set(pinned)
    assert "torch==2.13.0" in lines


def requirements() -> set[str]:
    """What pyproject.toml asks for by name: the core, the extras and the groups."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [
        settings["project"]["dependencies"],
        *settings["project"]["optional-dependencies"].values(),
        *settings["dependency-groups"].values(),
    ]
    asked = [line for lines in lists for line in lines if isinstance(line, str) and not line.startswith("streamtrain")]
    assert all(">=" in line and "<" not in line for line in asked), "lower bounds, and no upper ones"
    return {line.split(">=")[0] for line in asked}


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
    for name in ("pyproject.toml", "scripts/setup", "scripts/constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    stand_in = folder / "my python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder


def setup(checkout: Path) -> tuple[int, str]:
    """Run setup from elsewhere; its exit code and what pip was asked for."""
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHON": str(checkout / "my python")}
    run = subprocess.run([checkout / "scripts" / "setup"], cwd="/", env=environment, check=False)
    return run.returncode, log.read_text() if log.exists() else ""


def test_setup_installs_once(checkout: Path) -> None:
    code, asked = setup(checkout)
    assert code == 0
    assert "--constraint scripts/constraints.txt --editable .[all] --group dev" in asked
    assert setup(checkout) == (0, "")


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


def test_the_loader_benchmark_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = [
        "--size",
        "3MB",
        "--memory",
        "16MB",
        "--repeats",
        "1",
        "--folder",
        str(tmp_path),
        "--caches",
        "warm",
        "cold",
    ]
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench_loader.py", *small], capture_output=True, text=True, check=True
    )
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(result["codec"], result["cache"]) for result in results] == [
        (codec, cache) for codec in ("none", "lz4") for cache in ("warm", "cold")
    ]
    assert all(result["ratio_to_read"] > 0 for result in results)
    assert all(result["ratio_to_floor"] > 0 for result in results if result["cache"] == "warm")
    assert not list(tmp_path.iterdir())
