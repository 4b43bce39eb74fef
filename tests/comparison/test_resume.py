"""A comparison that is ended, and resumed: the same values bit for bit, wherever it ended."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_cases import ingested, line
from torch import nn

import streamtrain as st
from streamtrain.comparison.compare import compare
from streamtrain.comparison.report import COMPARISON_HTML, COMPARISON_JSON
from streamtrain.comparison.run import ObservedRunFolder, log_point
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.system.signals import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

OF_TIME = {"seconds", "seconds_per_epoch", "seconds_to_target", "memory"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    return ingested(tmp_path_factory.mktemp("data"))


def setting(**given: object) -> dict[str, Any]:
    few = {"max_epochs": 3, "batch_size": 20, "memory": "16MB", "optimizers": ("sgd",), "loss": "mse"}
    return {**few, "lr": 0.01, **given}


def timeless(value: object) -> object:
    """Leave out what differs from one run to the next: durations and memory."""
    if isinstance(value, dict):
        return {name: timeless(part) for name, part in value.items() if name not in OF_TIME}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def figures(out: Path) -> Any:
    found: Any = timeless(json.loads((out / COMPARISON_JSON).read_text()))
    for run in found["runs"]:
        run["run"] = Path(run["run"]).name
    return found


class Killed(BaseException):
    """The process is gone: nothing is saved or cleaned up, but for the locks that die with it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, when: str, n: int) -> None:
    """End the process at the n-th save of a checkpoint, before or after it, or at the n-th line of what is measured."""
    count = 0

    def counted(method: Any, *, before: bool) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == n and before:
                raise Killed
            found = method(*given, **named)
            if count == n:
                raise Killed
            return found

        return call

    if when == "measured":
        monkeypatch.setattr("streamtrain.comparison.run.log_point", counted(log_point, before=True))
    else:
        method = counted(ObservedRunFolder.save, before=when == "before a save")
        monkeypatch.setattr(ObservedRunFolder, "save", method)


@pytest.fixture(scope="module")
def whole(data: st.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "c"
    compare(line(), data, **setting(grid=2), val=data, out=out)
    return out


@pytest.mark.parametrize(
    ("when", "n"),
    [("before a save", 1), ("after a save", 5), ("before a save", 8), ("measured", 7)],
)
def test_a_comparison_that_was_killed_resumes_bit_for_bit(
    data: st.Dataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, n: int
) -> None:
    out = tmp_path / "c"
    with monkeypatch.context() as patched:
        killed_at(patched, when, n)
        with pytest.raises(Killed):
            compare(line(), data, **setting(grid=2), val=data, out=out)
    n_done = len(json.loads((out / COMPARISON_JSON).read_text())["runs"])
    said: list[str] = []
    found = compare(line(), data, **setting(grid=2), val=data, out=out, resume="auto", say=said.append)
    assert figures(out) == figures(whole)
    assert [len(run.points) for run in found] == 3 * [4]
    assert [text.endswith("finished, and read back") for text in said[:n_done]] == n_done * [True]
    assert (out / COMPARISON_HTML).is_file()
    lines = [(of / "metrics.jsonl").read_text().splitlines() for of in sorted(out.glob("*-sgd"))]
    assert [sum('"measured"' in text for text in of) for of in lines] == [4, 4, 4], "each point once"


class Signalling(nn.Linear):
    """A line that sends its process SIGTERM in the n-th forward pass of training."""

    n_left = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            Signalling.n_left -= 1
            if Signalling.n_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)


def signalling(n: int) -> Signalling:
    Signalling.n_left = n
    model = Signalling(2, 1, bias=False, dtype=torch.float64)
    model.load_state_dict(line().state_dict())
    return model


def test_a_signal_ends_a_comparison_which_is_written_and_resumes(data: st.Dataset, tmp_path: Path) -> None:
    how = setting(rules=("batch", "epoch"), grid=2, lr={"batch:sgd": (0.01, 0.03)})
    compare(signalling(0), data, **how, out=tmp_path / "whole")
    out, n = tmp_path / "c", 33
    with pytest.raises(Interrupted, match="interrupted by SIGTERM; saved "):
        compare(signalling(n), data, **how, out=out)
    written = json.loads((out / COMPARISON_JSON).read_text())["runs"]
    assert [run["finished"] for run in written] == [True, False], "the second run was inside an epoch"
    state = json.loads(max((out / "batch-sgd-0.03" / "checkpoints").glob("*/state.json")).read_text())
    assert state["stream"]["batch"] > 0
    assert "batch, sgd, lr 0.03 is not finished" in (out / COMPARISON_HTML).read_text()
    compare(signalling(0), data, **how, out=out, resume="auto")
    assert figures(out) == figures(tmp_path / "whole")


def test_what_a_comparison_may_not_change_is_named(data: st.Dataset, tmp_path: Path) -> None:
    few = setting(rules=("batch",), max_epochs=1)
    out = tmp_path / "c"
    compare(line(), data, **few, out=out, resume="auto")
    page = (out / COMPARISON_HTML).read_bytes()
    other = {"lr": 0.02, "max_epochs": 2, "seed": 1, "normalize_target": "auto"}
    with pytest.raises(CheckpointError, match="the comparison has other settings") as refused:
        compare(nn.Linear(2, 1, dtype=torch.float64), data, **few | other, val=data, out=out, resume="auto")
    named = {text.split(":")[0].strip() for text in (refused.value.why or "").splitlines()[1:-1]}
    assert named == {"lr", "max_epochs", "seed", "normalize_target", "initial weights", "val"}
    assert (out / COMPARISON_HTML).read_bytes() == page
    with pytest.raises(CheckpointError, match="keeps its number of epochs") as refused:
        compare(line(), data, **few | {"max_epochs": 2}, out=out, resume="auto")
    assert str(refused.value).endswith("Fix: max_epochs=1, or another out=.")
    said: list[str] = []
    compare(line(), data, **few, out=out, resume="auto", say=lambda text: said.append(str(text)))
    assert said[-1] == "every run is finished: nothing is trained"
    free = {"memory": "20MB", "target_loss": 0.5}
    assert compare(line(), data, **few | free, out=out, resume="auto").target_loss == 0.5
    with pytest.raises(UsageError, match=r"Fix: another out=, resume='auto' to resume it, or remove it"):
        compare(line(), data, **few, out=out)
    with pytest.raises(UsageError, match="resume without out"):
        compare(line(), data, **few, resume="auto")
    with pytest.raises(UsageError, match="resume is True"):
        compare(line(), data, **few, out=out, resume=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {"lanes": 0}, "runs": []}', '{"settings": {"a": 1}}'])
def test_a_record_that_cannot_be_read_is_refused(data: st.Dataset, tmp_path: Path, text: str) -> None:
    (tmp_path / COMPARISON_JSON).write_text(text)
    with pytest.raises(CheckpointError, match="is not the record of a comparison that can resume"):
        compare(line(), data, **setting(), out=tmp_path, resume="auto")


def test_a_run_that_diverged_is_finished(data: st.Dataset, tmp_path: Path) -> None:
    how = setting(rules=("batch",), lr=[1e200, 0.01], out=tmp_path / "c")
    first = compare(line(), data, **how)
    again = compare(line(), data, **how, resume="auto")
    assert first.runs[0].diverged is not None
    assert str(again.runs[0].diverged) == str(first.runs[0].diverged)
    assert "Fix: a lower learning rate: lr=0.1." in first.runs[0].diverged
    assert [run.label for run in again] == ["batch, sgd, lr 1e+200", "batch, sgd, lr 0.01"]
    assert [run.named(0.0) for run in again] == [run.named(0.0) for run in first]
