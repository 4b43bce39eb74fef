"""The fields that a command learns from: --inputs and --target, kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.main import main

Y = np.arange(60) % 3
X = np.eye(3, 4, dtype="f4")[Y]
QUICK = ["--memory", "32MB", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture
def named(tmp_path: Path) -> str:
    """A dataset of an archive whose members have names of their own."""
    np.savez(tmp_path / "d.npz", images=X, labels=Y, more=X[:, :2], age=Y.astype("f4"), small=Y.astype("u1"))
    assert main(["ingest", f"{tmp_path}/d.npz", f"{tmp_path}/d.zarr"]) == 0
    return f"{tmp_path}/d.zarr"


def train(folder: Path, data: str, *words: str, model: str = "linear") -> int:
    return main(["train", data, "--model", model, "--epochs", "3", "--out", f"{folder}/run", *QUICK, *words])


def test_fields_of_other_names_train_as_x_and_y_do(
    tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = streamtrain.ingest({"x": X, "y": Y}, tmp_path / "plain.zarr", block="1KB").path
    alike = streamtrain.ingest({"images": X, "labels": Y}, tmp_path / "alike.zarr", block="1KB").path
    capsys.readouterr()
    lines = []
    for number, (data, words) in enumerate(
        ((plain, []), (alike, ["--inputs", "images", "--target", "labels"]), (plain, ["--inputs", "x"]))
    ):
        assert train(tmp_path / str(number), str(data), *words, "--json", "--val", str(data)) == 0
        lines.append(json.loads(capsys.readouterr().out))
        run = str(tmp_path / str(number) / "run")
        assert main(["evaluate", run, str(data), "--json", "--memory", "16MB", "--device", "cpu"]) == 0
        lines[-1]["evaluated"] = json.loads(capsys.readouterr().out)["loss"]
    for name in ("loss", "accuracy", "evaluated"):
        assert len({line[name] for line in lines}) == 1
    config = json.loads((tmp_path / "1/run/config.json").read_text())
    assert (config["inputs"], config["target"], config["n_outputs"]) == (["images"], "labels", 3)


def test_a_run_goes_on_with_its_fields_alone(tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--inputs", "images", "--target", "labels"]
    assert train(tmp_path, named, *words) == 0
    assert train(tmp_path, named, *words, "--resume", "--epochs", "4") == 0
    other = streamtrain.ingest({"images": X, "labels": Y, "kinds": Y}, tmp_path / "o.zarr").path
    assert train(tmp_path, str(other), "--inputs", "images", "--target", "kinds", "--resume", "--epochs", "5") == 6
    assert "target: 'labels' there, 'kinds' here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--inputs", "images"], ["--target", "labels"], ["--inputs", "image"]])
def test_without_such_fields_the_command_says_how_to_name_them(
    tmp_path: Path, named: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, named, *words) == 2
    err = capsys.readouterr().err
    assert "Known: age, images, labels, more, small" in err
    assert "--inputs and --target name the fields" in err or "did you mean 'images'?" in err


def test_a_number_that_is_to_be_predicted(tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, named, "--inputs", "images", "--target", "age", "--task", "regression", "--json") == 0
    assert "rmse" in json.loads(capsys.readouterr().out)["epochs"][0]


def test_small_integers_are_to_become_labels_first(
    tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, named, "--inputs", "images", "--target", "small") == 2
    assert "--fields x=...,y=small" in capsys.readouterr().err
    source, dest = f"{tmp_path}/d.npz", f"{tmp_path}/e.zarr"
    assert main(["ingest", source, dest, "--fields", "x=images,y=small"]) == 0
    assert train(tmp_path, dest) == 0


MODEL = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self, n_outputs):
        super().__init__()
        self.layer = nn.Linear(6, n_outputs)

    def forward(self, a, b):
        return self.layer(torch.cat([a, b], 1))
"""


def test_several_inputs_are_for_a_model_of_the_users_own(
    tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--inputs", "images, more", "--target", "labels"]
    assert train(tmp_path, named, *words) == 2
    assert "model linear takes one input, or of a table x, x_missing, cat; it is given images, more" in (
        capsys.readouterr().err
    )
    assert train(tmp_path, named, "--inputs", ",", "--target", "labels") == 2
    (tmp_path / "two.py").write_text(MODEL)
    model = f"{tmp_path}/two.py:Two"
    assert train(tmp_path, named, *words, model=model) == 0
    assert main(["evaluate", f"{tmp_path}/run", named, "--model", model, "--memory", "16MB", "--device", "cpu"]) == 0


def test_a_comparison(tmp_path: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rules", "batch", "--optimizers", "sgd", "--epochs", "1", "--out", f"{tmp_path}/c", "--val", named]
    assert main(["compare", named, "--model", "linear", *words, *QUICK]) == 2
    assert "--inputs and --target" in capsys.readouterr().err
    fields = ["--inputs", "images", "--target", "labels"]
    assert main(["compare", named, "--model", "linear", *words, *QUICK, *fields]) == 0


def test_labels_of_another_name_that_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels: Any = np.where(np.arange(60) < 20, -100, Y)
    data = streamtrain.ingest({"x": X, "labels": labels}, tmp_path / "d.zarr").path
    val = streamtrain.ingest({"x": X, "labels": Y}, tmp_path / "v.zarr").path
    for one, other in ((data, val), (val, data)):
        task = ["--task", "classification", "--target", "labels"]
        assert train(tmp_path / one.stem, str(one), *task, "--val", str(other), "--json") == 0
        assert json.loads((tmp_path / one.stem / "run/config.json").read_text())["n_outputs"] == 3
    unseen = streamtrain.ingest({"x": X, "labels": Y + 1}, tmp_path / "u.zarr").path
    capsys.readouterr()
    assert train(tmp_path, str(val), "--target", "labels", "--val", str(unseen)) == 3
    assert "20 samples have labels that the training data lacks: 3" in capsys.readouterr().err
