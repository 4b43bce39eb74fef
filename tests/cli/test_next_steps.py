"""The next steps that are printed, which work as they are printed, and the names of figures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.training.run.checkpoint import newest_checkpoint

Arrays = dict[str, npt.NDArray[Any]]
N = 400
FAST = ("--model", "linear", "--batch-size", "8", "--memory", "16MB", "--threads", "1", "--out", "run")


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    return {"x": x, "y": x[:, 0]}


def _main(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("split", [{"val": 0.2}, {"val": 0.2, "test": 0.2}, None])
def test_the_next_steps_of_a_training_work(
    arrays: Arrays, split: dict[str, float] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    st.ingest(arrays, "d.zarr", split=split)
    assert _main("train", "d.zarr", *FAST, "--epochs", 1) == 0
    said = capsys.readouterr()
    lines = [line.removeprefix("next").strip() for line in (said.err + said.out).splitlines()]
    steps = [shlex.split(line)[1:] for line in lines if line.startswith("streamtrain ")]
    assert [words[0] for words in steps] == ["evaluate", "predict", "report"]
    assert [main(words) for words in steps] == [0, 0, 0]
    capsys.readouterr()
    assert _main("info", "run") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    found = shlex.split(line)[2:]
    assert [Path(word).name for word in found] == [Path(word).name for word in steps[0]], "that of the training itself"
    assert main(found) == 0
    assert ("training data, again" in capsys.readouterr().out) == (split is None)


def test_the_report_of_a_resumed_run_repeats_all_of_it(arrays: Arrays) -> None:
    st.ingest(arrays, "d.zarr")
    assert _main("train", "d.zarr", *FAST, "--epochs", 1) == 0
    assert _main("train", "d.zarr", *FAST, "--epochs", 3, "--resume") == 0
    assert _main("report", "run") == 0
    page = Path("run/report.html").read_text()
    again = shlex.split(page.partition("<h2>How to repeat it</h2>")[2].partition("<pre>")[2].partition("</pre>")[0])
    assert again[1:] == ["train", "d.zarr", *FAST[:-2], "--epochs", "3"]
    assert main(again[1:]) == 0
    weights = [newest_checkpoint(run).tensors("model") for run in (Path("run"), Path("runs/1"))]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_predict_says_which_split_to_give(arrays: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest(arrays, "d.zarr", split={"val": 0.2})
    assert _main("train", "d.zarr", *FAST, "--epochs", 1) == 0
    assert _main("predict", "run", "d.zarr") == 2
    assert "Fix: --split val, say" in capsys.readouterr().err


def test_scores_of_raw_files_bear_their_name(arrays: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest(arrays, "d.zarr")
    assert _main("train", "d.zarr", *FAST, "--epochs", 1) == 0
    np.savez("new.npz", x=arrays["x"], y=arrays["y"])
    capsys.readouterr()
    assert _main("evaluate", "run", "new.npz") == 0
    assert "new.npz rmse " in capsys.readouterr().out
    np.savez("more.npz", x=arrays["x"], y=arrays["y"])
    assert _main("evaluate", "run", "new.npz", "more.npz") == 0
    assert "data rmse " in capsys.readouterr().out
