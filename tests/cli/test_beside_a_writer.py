"""Commands beside a writer at work: who writes too is told of it by name, who reads sees the old or the new."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.loader import plan as planning
from streamtrain.store import dataset
from streamtrain.system.syscalls import Syscalls

STOPPED = """
import sys
from pathlib import Path
import numpy as np, streamtrain as st

def rows():
    yield {"x": np.zeros((100, 4), "f4"), "y": np.arange(100) % 3}
    print("writing", flush=True)
    sys.stdin.readline()
    yield {"x": np.ones((100, 4), "f4"), "y": np.arange(100) % 3}

st.ingest(rows(), sys.argv[1], progress=False)
"""


def error_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    return found


def test_a_writer_that_is_stopped_is_no_dead_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source = tmp_path / "d.zarr", tmp_path / "x.npy"
    np.save(source, np.zeros((10, 4), "f4"))
    command = [sys.executable, "-c", STOPPED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            for words in (
                ["ingest", str(source), str(path)],
                ["ingest", str(source), str(path), "--overwrite"],
                ["ingest", str(source), str(path), "--resume"],
                ["repair", str(path)],
                ["repair", str(path), "--remove"],
            ):
                assert main([*words, "--json"]) == 9
                assert f"pid {writer.pid} on host {platform.node()}" in error_of(capsys)["what"]
        finally:
            writer.send_signal(signal.SIGCONT)
        writer.communicate(b"\n")
        assert writer.returncode == 0
    assert st.open(path)[:]["x"].sum() == 400


@pytest.mark.parametrize("mode", ["create", "overwrite", "append"])
def test_repair_leaves_an_ingest_alone(tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.zarr"
    if mode != "create":
        st.ingest({"x": np.full((50, 4), 9, "f4")}, path, progress=False)
    codes = []

    def rows() -> Iterator[dict[str, Any]]:
        yield {"x": np.full((100, 4), 0, "f4")}  # looked at before the lock is taken
        for value in (1, 2):
            for more in ([], ["--remove"]):
                codes.append(main(["repair", str(path), *more, "--json"]))
                assert f"pid {os.getpid()} on host" in error_of(capsys)["what"]
            yield {"x": np.full((100, 4), value, "f4")}

    how = {} if mode == "create" else {mode: True}
    made = st.ingest(rows(), path, progress=False, block="1KB", **how)
    assert codes == [9] * 4
    kept = [9] * 50 if mode == "append" else []
    assert made[:]["x"][:, 0].tolist() == [*kept, *np.repeat([0, 1, 2], 100)]
    assert st.verify(path, full=True).damage == ()
    assert main(["repair", str(path)]) == 0


def replacement(tmp_path: Path) -> tuple[st.Dataset, st.Dataset]:
    """A dataset, and another one of other fields, sizes and labels."""
    old = st.ingest({"x": np.zeros((300, 4), "f4"), "y": np.arange(300) % 3}, tmp_path / "d.zarr", block="1KB")
    new = st.ingest({"z": np.ones(700), "y": np.arange(700) // 100}, tmp_path / "e.zarr", block="1KB")
    return old, new


@pytest.mark.parametrize("command", ["info", "plan"])
@pytest.mark.parametrize("function", ["_read_manifest", "file_damage", "read_checksums"])
def test_what_takes_its_place_as_it_is_opened_is_shown_whole(
    tmp_path: Path, command: str, function: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = replacement(tmp_path)
    expected = shown(command, new.path, capsys)
    swap_at(monkeypatch, dataset, function, old.path, new.path)
    assert shown(command, old.path, capsys) == expected


def test_a_plan_of_what_goes_as_its_labels_are_read_is_refused_as_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = replacement(tmp_path)
    expected = [shown("plan", each.path, capsys) for each in (old, new)]
    swap_at(monkeypatch, planning, "measure_quality", old.path, new.path)
    code = main(["plan", str(old.path), "--json"])
    said = capsys.readouterr()
    if code:
        assert code == 4
        assert "replaced" in json.loads(said.err.splitlines()[-1])["error"]["what"]
    else:
        assert without_path(json.loads(said.out)) in expected


@pytest.mark.parametrize("command", ["info", "plan"])
def test_at_every_rename_of_an_overwrite_there_is_the_old_or_the_new(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = replacement(tmp_path)
    expected = [shown(command, each.path, capsys) for each in (old, new)]
    found: list[dict[str, Any]] = []
    for name in ("rename", "exchange"):
        monkeypatch.setattr(Syscalls, name, looking(getattr(Syscalls, name), found, command, old.path, capsys))
    st.ingest({"z": np.ones(700), "y": np.arange(700) // 100}, old.path, block="1KB", overwrite=True, progress=False)
    assert all(each in expected for each in found)
    assert found[0] == expected[0]
    assert found[-1] == expected[1]


@pytest.mark.parametrize("command", ["info", "plan"])
def test_between_two_renames_the_writer_is_named(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where two names cannot be exchanged there is none for a moment, which a reader waits for."""
    old, new = replacement(tmp_path)
    codes = []

    def exchange(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    def rename(system: Syscalls, one: Path, other: Path) -> None:
        real(system, one, other)
        if not old.path.exists():
            codes.append(main([command, str(old.path), "--json"]))
            assert f"pid {os.getpid()} on host" in error_of(capsys)["what"]

    real = Syscalls.rename
    monkeypatch.setattr(Syscalls, "exchange", exchange)
    monkeypatch.setattr(Syscalls, "rename", rename)
    made = st.ingest({"z": np.ones(700)}, old.path, block="1KB", overwrite=True, progress=False)
    assert codes == [9]
    assert st.open(old.path).id == made.id != new.id


def looking(
    real: Callable[..., Any], found: list[dict[str, Any]], command: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        found.append(shown(command, path, capsys))
        done = real(*args)
        found.append(shown(command, path, capsys))
        return done

    return call


def swap_at(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, path: Path, other: Path) -> None:
    """Have another dataset take a path, at once as an overwrite does, as a function is first called."""
    real, waiting = getattr(module, function), [path]

    def swapping(*args: Any, **named: Any) -> Any:
        while waiting:
            waiting.pop().rename(path.with_name("aside"))
            other.rename(path)
        return real(*args, **named)

    monkeypatch.setattr(module, function, swapping)


def shown(command: str, path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([command, str(path), "--json"]) == 0
    return without_path(json.loads(capsys.readouterr().out))


def without_path(told: dict[str, Any]) -> dict[str, Any]:
    """What is told of a dataset wherever it lies, whenever it was made."""
    return {name: value for name, value in told.items() if name not in ("path", "dataset", "created")}
