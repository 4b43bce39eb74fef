"""Commands beside others on the same folders: each takes a name of its own, waits for nobody, and mixes with nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.store.writing.lock import folder_lock
from streamtrain.system.syscalls import Syscalls

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "d.zarr"
    return str(st.ingest({"x": rng.normal(size=(60, 4)), "y": rng.integers(0, 3, 60)}, path).path)


TRAIN = ["--model", "linear", "--memory", "16MB", "--epochs", "1"]
COMPARE = ["--model", "linear", "--rules", "batch", "--optimizers", "sgd", "--epochs", "1"]
PROFILE = ["profile", "--no-png"]


def commands(stored: str) -> dict[str, list[str]]:
    return {
        "runs": ["train", stored, *TRAIN],
        "comparisons": ["compare", stored, *COMPARE],
        "profiles": [*PROFILE, "--", "true"],
    }


@pytest.fixture
def beaten(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Another process takes each number just before this one does, twice."""
    real, taken = Syscalls.mkdir, []

    def late(self: Syscalls, path: Path) -> None:
        if path.name.isdecimal() and len(taken) < 2:
            real(self, path)
            taken.append(path)
        real(self, path)

    monkeypatch.setattr(Syscalls, "mkdir", late)
    yield taken
    assert all(not list(path.iterdir()) for path in taken), "nothing is written into another's"


@pytest.mark.parametrize("parent", ["runs", "comparisons", "profiles"])
def test_a_number_that_another_takes_meanwhile_is_left_to_it(parent: str, stored: str, beaten: list[Path]) -> None:
    assert main(commands(stored)[parent]) == 0
    assert beaten == [Path(parent, "1"), Path(parent, "2")]
    assert sorted(path.name for path in Path(parent).iterdir()) == ["1", "2", "3"]
    assert list(Path(parent, "3").iterdir())
    assert not list(Path(parent, "3").glob("**/.lock"))


@pytest.mark.parametrize("parent", ["runs", "comparisons", "profiles"])
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "empty"])
def test_a_folder_that_another_writes_is_refused(
    parent: str, is_there: bool, stored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = commands(stored)[parent]
    words[1:1] = ["--out", "here"]
    if is_there:
        Path("here").mkdir()
    with folder_lock(Path("here")):
        assert main(words) == 9
        assert f"error: here/.lock: another process is writing it: pid {os.getpid()}" in capsys.readouterr().err
        assert [path.name for path in Path("here").iterdir()] == [".lock"]
    assert main(words) == 0


def test_a_run_that_is_trained_can_be_read_and_not_resumed(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", stored, *TRAIN, "--out", "run"]
    assert main(train) == 0
    with folder_lock(Path("run")):
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        for words in ([*train, "--resume"], train, ["train", "none.zarr", *TRAIN, "--out", "run", "--resume"]):
            capsys.readouterr()
            assert main(words) == 9, "also before the data is looked at"
            assert "Fix: wait for it to end, or end it" in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        assert main(["evaluate", "run", stored]) == 0
        assert main(["report", "run"]) == 0
    assert main([*train, "--resume"]) == 0
    assert main(train) == 2


def test_the_memory_of_a_run_is_written_while_it_is_held(
    stored: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from streamtrain.cli import train

    real, codes = train.write_memory, []

    def beside_another(path: Path, memory: object) -> None:
        monkeypatch.setattr(train, "write_memory", real)
        codes.append(main(["train", stored, *TRAIN, "--out", "run", "--resume"]))
        real(path, memory)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "write_memory", beside_another)
    assert main(["train", stored, *TRAIN, "--out", "run", "--json"]) == 0
    assert codes == [9]
    assert json.loads(capsys.readouterr().out)["run"] == "run"


@pytest.mark.parametrize("parent", ["runs", "comparisons", "profiles"])
def test_a_name_goes_back_where_nothing_came_of_it(parent: str, stored: str) -> None:
    wrong = {
        "runs": ["train", stored, *TRAIN, "--checkpoint-every", "0"],
        "comparisons": ["compare", stored, *COMPARE, "--memory", "1KB"],
        "profiles": [*PROFILE, "--", "no-such-command"],
    }
    assert main(wrong[parent]) in (2, 5)
    assert not Path(parent).exists()
