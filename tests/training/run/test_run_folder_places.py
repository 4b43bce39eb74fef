"""Places where no run can be kept: refused before the first step, by every command that writes, with nothing left."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import ResourceError, StreamtrainError, UsageError
from streamtrain.system.syscalls import Syscalls
from streamtrain.training.run.run_folder import check_run, check_writable

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

LONG = "a" * 300
DEEP = "/".join(["b" * 200] * 22)


@pytest.fixture
def data(tmp_path: Path) -> st.Dataset:
    source = {"x": np.zeros((100, 100), "f4"), "y": np.arange(100)}
    (tmp_path / "file").write_text("")
    return st.ingest(source, tmp_path / "d.zarr", progress=False)


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


PLACES = [
    ("file/run", ResourceError, "something else is in its place"),
    ("file", UsageError, "the run folder is taken"),
    ("d.zarr", UsageError, "the run folder is taken"),
    ("d.zarr/run", UsageError, "the run folder lies in a dataset"),
    ("d.zarr/x/deep/run", UsageError, "the run folder lies in a dataset"),
    (LONG, ResourceError, "File name too long. Fix: a shorter path"),
    (f"new/{LONG}", ResourceError, "File name too long. Fix: a shorter path"),
    (DEEP, ResourceError, "File name too long. Fix: a shorter path"),
    ("/proc/run", ResourceError, "cannot create directory"),
]


@pytest.mark.parametrize(("place", "kind", "message"), PLACES)
def test_no_step_is_taken_for_a_run_that_cannot_be_kept(
    data: st.Dataset, tmp_path: Path, place: str, kind: type[StreamtrainError], message: str
) -> None:
    before = tree(tmp_path)
    trainer = st.Trainer(nn.Linear(100, 100), loss="cross_entropy", device="cpu")
    with pytest.raises(kind, match=message):
        trainer.fit(data, max_epochs=1, memory="16MB", progress=False, checkpoint=place)
    assert trainer.counts.n_steps == 0
    told: list[object] = []
    with pytest.raises(kind, match=message):
        st.compare(nn.Linear(100, 100), data, max_epochs=1, out=place, on_point=lambda *_: told.append(1))
    assert told == []
    for command in (["train", "--epochs", "1"], ["compare", "--epochs", "1"]):
        words = [command[0], "d.zarr", *command[1:], "--model", "linear", "--memory", "16MB"]
        assert main([*words, "--out", place]) == kind.exit_code
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["file/p", LONG, f"new/{LONG}"])
def test_profiles_and_reports_have_places_too(data: st.Dataset, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "d.zarr", "--model", "linear", "--epochs", "1", "--memory", "16MB", "--out", "r"]) == 0
    assert main(["profile", "--no-png", "--out", place, "--", "touch", "ran"]) == 2
    assert not Path("ran").exists(), "nothing is run whose profile has no place"
    assert main(["report", "r", "--out", place]) == 5
    assert main(["report", "r", "--out", ""]) == 2
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize("out", ["d.zarr/o", "d.zarr/deep/er/o", "link/o", "d.zarr"])
def test_nothing_is_put_into_a_dataset(data: st.Dataset, tmp_path: Path, out: str) -> None:
    assert main(["train", "d.zarr", "--model", "linear", "--epochs", "1", "--memory", "16MB", "--out", "r"]) == 0
    Path("link").symlink_to("d.zarr")
    before = tree(tmp_path)
    model = ["--model", "linear", "--epochs", "1", "--memory", "16MB"]
    assert main(["train", "d.zarr", *model, "--out", out]) == 2
    assert main(["compare", "d.zarr", *model, "--out", out]) == 2
    assert main(["profile", "--no-png", "--out", out, "--", "touch", "ran"]) == 2
    assert main(["report", "r", "--out", out]) == 2
    assert tree(tmp_path) == before


def test_a_numbered_profile_is_not_put_there_either(data: st.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(data.path)
    monkeypatch.chdir(data.path / "x")
    assert main(["profile", "--no-png", "--", "touch", "ran"]) == 2
    assert tree(data.path) == before


def test_a_name_with_a_zero_byte_is_none(data: st.Dataset) -> None:
    trainer = st.Trainer(nn.Linear(100, 100), loss="cross_entropy", device="cpu")
    with pytest.raises(UsageError, match="with a zero byte in it, which no file name can have"):
        trainer.fit(data, max_epochs=1, memory="16MB", checkpoint="a\0b")


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "a" / "b", Path("c")):
        check_run(place)
        check_writable(place)
    assert tree(tmp_path) == []


def test_a_place_whose_folder_goes_meanwhile_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command that wrote nothing removes the folder that the run's would be in."""
    runs, mkdir, made = tmp_path / "runs", Syscalls.mkdir, []

    def late(self: Syscalls, path: Path) -> None:
        made.append(path.parent)
        if runs.exists():
            runs.rmdir()
        mkdir(self, path)

    runs.mkdir()
    monkeypatch.setattr(Syscalls, "mkdir", late)
    check_writable(runs / "1")
    assert made == [runs, tmp_path]
    assert tree(tmp_path) == []


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_numbered_run_has_a_place_too(
    data: st.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, inside: bool
) -> None:
    if inside:
        monkeypatch.chdir(data.path)
    else:
        Path({"train": "runs", "compare": "comparisons"}[command]).touch()
    before = tree(tmp_path)
    words = [command, str(data.path), "--epochs", "1", "--model", "linear", "--memory", "16MB"]
    assert main(words) == (UsageError if inside else ResourceError).exit_code
    assert tree(tmp_path) == before


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The bytes that are free on the disk, by a list of one that a test may change."""
    found: list[int | None] = [10**12]
    monkeypatch.setattr(Syscalls, "free", lambda self, path: (found[0], None))
    return found


ONE = 101 * 100 * 4  # bytes of the weights


@pytest.mark.parametrize(("optimizer", "n_tensors"), [("sgd", 1), ("adam", 3), ("adamw", 3), ("rmsprop", 2)])
def test_a_run_whose_checkpoint_has_no_room_is_refused_before_the_first_step(
    data: st.Dataset, tmp_path: Path, free: list[int | None], optimizer: str, n_tensors: int
) -> None:
    def fit(out: str, **how: Any) -> st.Trainer:
        trainer = st.Trainer(nn.Linear(100, 100), loss="cross_entropy", optimizer=optimizer, device="cpu")
        trainer.fit(data, max_epochs=1, memory="16MB", progress=False, checkpoint=out, **how)
        return trainer

    free[0] = n_tensors * ONE - 1
    with pytest.raises(
        ResourceError, match=r"a checkpoint takes .* are free\. Fix: free some space, or another checkp"
    ):
        fit("r")
    assert not Path("r").exists()
    with pytest.warns(UserWarning, match="enough for 0"):
        fit("warned", on_checkpoint_failure="warn")
    free[0] = 2 * n_tensors * ONE
    with pytest.warns(UserWarning, match="enough for 2. A run keeps 2, and writes the next before the oldest goes"):
        fit("two")
    written = sum(file.stat().st_size for file in Path("two/checkpoints").rglob("*.safetensors"))
    assert n_tensors * ONE <= written < 1.2 * n_tensors * ONE, "the estimate is what is written"
    free[0] = 3 * n_tensors * ONE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit("three")
        free[0] = None
        fit("on a disk that does not say")


def test_a_run_that_resumes_needs_room_for_what_it_still_writes(data: st.Dataset, free: list[int | None]) -> None:
    def fit(max_epochs: int, **how: Any) -> int:
        trainer = st.Trainer(nn.Linear(100, 100), loss="cross_entropy", optimizer="sgd", device="cpu")
        trainer.fit(data, max_epochs=max_epochs, memory="16MB", progress=False, checkpoint="r", **how)
        return trainer.counts.n_epochs

    assert fit(2) == 2
    free[0] = 0
    assert fit(2, resume="auto") == 2, "nothing is left to write"
    with pytest.raises(ResourceError, match=r"a checkpoint takes .*, and 0 B are free"):
        fit(3, resume="auto")
    free[0] = ONE
    assert fit(3, resume="auto") == 3


def test_a_comparison_has_room_for_all_its_runs(data: st.Dataset, free: list[int | None]) -> None:
    how: dict[str, Any] = {"max_epochs": 1, "rules": ("batch", "epoch"), "optimizers": ("sgd",), "memory": "16MB"}
    free[0] = 2 * ONE - 1
    with pytest.raises(ResourceError, match=r"the checkpoints of all runs take .* or another out="):
        st.compare(nn.Linear(100, 100), data, out="c", **how)
    assert not Path("c").exists()
    assert len(st.compare(nn.Linear(100, 100), data, **how)) == 2, "without a folder, nothing is written"


def test_the_command_line_has_an_exit_code_for_a_full_disk(
    data: st.Dataset, free: list[int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    free[0] = 1000
    assert main(["train", "d.zarr", "--model", "linear", "--epochs", "1", "--memory", "16MB", "--out", "r"]) == 5
    assert "are free. Fix: free some space, or another --out" in capsys.readouterr().err
    assert not Path("r").exists()
