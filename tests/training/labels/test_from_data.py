"""A trainer whose loss, task or model follow from its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main

TABLES = {
    "text": ("a,y\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(40)), {"label_column": "y"}),
    "quantity": ("a,y\n" + "".join(f"{n},{n * 17 - 9}\n" for n in range(40)), {"label_column": "y"}),
    "undecided": ("a,y\n" + "".join(f"{n},{n % 7 + 3}\n" for n in range(70)), {"label_column": "y"}),
    "flags": ("a,p,q\n" + "".join(f"{n},{n % 2},{n // 3 % 2}\n" for n in range(40)), {"label_column": ["p", "q"]}),
}
FIT: dict[str, Any] = {"max_epochs": 1, "batch_size": 8, "memory": "8MB"}


def table(folder: Path, kind: str, **more: Any) -> st.Dataset:
    text, options = TABLES[kind]
    (folder / f"{kind}.csv").write_text(text)
    return st.ingest(folder / f"{kind}.csv", folder / f"{kind}.zarr", **options, **more)


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
@pytest.mark.parametrize(
    ("kind", "loss", "n_outputs"),
    [("text", "cross_entropy", 2), ("quantity", "mse", 1), ("flags", "bce_with_logits", 2)],
)
def test_the_loss_is_that_of_the_task(tmp_path: Path, kind: str, loss: str, n_outputs: int, update: str) -> None:
    data = table(tmp_path, kind)
    trainer = st.Trainer(nn.Linear(1, n_outputs).double(), update=update, lr=1e-5, normalize="auto", device="cpu")
    assert "built when its data is there" in repr(trainer)
    trainer = st.Trainer("linear", update=update, lr=1e-5, normalize="auto", device="cpu")
    trainer.fit(data, **FIT)
    assert trainer.loss.name == loss
    assert trainer.model(torch.zeros(1, 1)).shape == (1, n_outputs)
    assert np.isfinite(trainer.evaluate(data).loss)


def test_a_ready_model_gets_the_loss_of_the_task(tmp_path: Path) -> None:
    data = table(tmp_path, "quantity")
    trainer = st.Trainer(nn.Linear(1, 1), normalize="auto", device="cpu")
    with pytest.raises(AttributeError, match="no loss yet"):
        _ = trainer.loss
    trainer.fit(data, **FIT)
    assert trainer.loss.name == "mse"
    floats = st.ingest({"x": np.ones((8, 1), "f4"), "y": np.arange(8) + 0.5}, tmp_path / "d.zarr")
    measured = st.Trainer(nn.Linear(1, 1), device="cpu")
    with st.StreamLoader(floats, batch_size=8, shuffle=False) as loader:
        assert measured.evaluate(loader).n_samples == 8
    assert measured.loss.name == "mse"


def test_undecided_labels_are_asked_about_with_both_ways(tmp_path: Path) -> None:
    data = table(tmp_path, "undecided")
    trainer = st.Trainer("mlp:4", normalize="auto", device="cpu")
    with pytest.raises(st.UsageError, match="undecided: y: 7 whole numbers from 3 to 9") as caught:
        trainer.fit(data, **FIT)
    assert "task='classification', or task='regression'" in str(caught.value)
    with pytest.raises(st.UsageError, match="undecided"):
        st.Trainer(nn.Linear(1, 7), device="cpu").evaluate(data)
    for task, loss, width in (("classification", "cross_entropy", 7), ("regression", "mse", 1)):
        trainer = st.Trainer("mlp:4", task=task, normalize="auto", device="cpu")
        trainer.fit(data, **FIT)
        assert (trainer.loss.name, trainer.model(torch.zeros(1, 1)).shape[1]) == (loss, width)


def test_the_same_model_as_on_the_command_line(tmp_path: Path) -> None:
    data = table(tmp_path, "text")
    words = ["train", str(data.path), "--model", "mlp:4", "--epochs", "1", "--batch-size", "8", "--memory", "8MB"]
    assert main([*words, "--out", str(tmp_path / "cli"), "--device", "cpu", "--seed", "3"]) == 0
    trainer = st.Trainer("mlp:4", normalize="auto", device="cpu")
    trainer.fit(data, **FIT, seed=3, checkpoint=tmp_path / "python")
    again = st.Trainer("mlp:4", normalize="auto", device="cpu")
    with st.StreamLoader(data, batch_size=8, seed=3, memory="8MB") as loader:
        again.fit(loader, max_epochs=1)
    weights = [each.state_dict() for each in (trainer.model, again.model)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for run in ("cli", "python"):
        assert main(["evaluate", str(tmp_path / run), str(data.path), "--json"]) == 0


def test_a_run_of_a_model_by_name_is_resumed_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path, "undecided")
    run = tmp_path / "run"
    for epochs in (1, 2):
        trainer = st.Trainer("mlp", task="classification", normalize="auto", device="cpu")
        trainer.fit(data, **(FIT | {"max_epochs": epochs}), checkpoint=run, resume="auto")
    assert trainer.counts.n_epochs == 2
    assert main(["evaluate", str(run), str(data.path)]) == 0
    told = capsys.readouterr().out
    assert f" loss {trainer.evaluate(data).loss:.4f}" in told


def test_fields_of_a_table_are_what_a_model_by_name_takes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,c,y\n" + "".join(f"{n},{'uvw'[n % 3]},{n % 2}\n" for n in range(40)))
    data = st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", label_column="y", categorical="c")
    trainer = st.Trainer("mlp:4", device="cpu", normalize="auto")
    trainer.fit(data, **FIT)
    assert trainer.inputs == ("x", "cat")


def test_code_of_ones_own_is_called_with_model_args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = "nn.Sequential(nn.Linear(1, width), nn.Linear(width, n_outputs))"
    Path("net.py").write_text(f"from torch import nn\ndef make(n_outputs, width):\n    return {made}\n")
    trainer = st.Trainer("net.py:make", model_args={"width": 5}, normalize="auto", device="cpu")
    trainer.fit(table(tmp_path, "text"), **FIT)
    assert trainer.model[0].out_features == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "mpl"}, "did you mean 'mlp'"),
        ({"model": 3}, "model"),
        ({"model": nn.Linear(1, 1), "model_args": {"a": 1}}, "together with a ready model"),
        ({"model": "mlp", "task": "regresion"}, "did you mean 'regression'"),
        ({"model": "mlp", "loss": "msee"}, "did you mean 'mse'"),
        ({"model": "mlp", "loss": "mse", "ignore_label": 3}, "ignore_label is 3 with the loss mse"),
        ({"model": "mlp", "loss": nn.CrossEntropyLoss(ignore_index=4), "ignore_label": 3}, "It ignores 4"),
    ],
)
def test_wrong_arguments_are_refused_at_once(given: dict[str, Any], told: str) -> None:
    with pytest.raises(st.UsageError, match=told):
        st.Trainer(**given)


def test_what_contradicts_the_data_is_refused_and_the_trainer_stays_as_it_was(tmp_path: Path) -> None:
    text, quantity = table(tmp_path, "text"), table(tmp_path, "quantity")
    for given, told in (
        ({"task": "regression"}, "regression of y"),
        ({"loss": "mse"}, "regression of y"),
        ({"loss": "mse", "task": "classification"}, "loss mse is one of regression"),
        ({"ignore_label": 3, "task": "multilabel"}, "multilabel of y"),
    ):
        trainer = st.Trainer("mlp", device="cpu", **given)
        with pytest.raises(st.UsageError, match=told):
            trainer.fit(text, **FIT)
        assert "built when" in repr(trainer)
    trainer = st.Trainer("mlp", task="regression", ignore_label=3, device="cpu")
    with pytest.raises(st.UsageError, match="ignore_label is 3 with the loss mse"):
        trainer.fit(quantity, **FIT)
    with pytest.raises(st.UsageError, match="made for its training data"):
        st.Trainer("mlp", device="cpu").evaluate(text)


@pytest.mark.parametrize("ignored", [-1, 255, 1])
def test_an_ignored_label_is_no_class(tmp_path: Path, ignored: int, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.arange(60) % 3
    kept = np.array([0, 1, 2] if ignored != 1 else [0, 2, 3])[y]
    labels = np.where(np.arange(60) % 5 == 0, ignored, kept)
    data = st.ingest({"x": np.eye(4, dtype="f4")[kept], "y": labels}, tmp_path / "d.zarr")
    trainer = st.Trainer("linear", ignore_label=ignored, device="cpu")
    trainer.fit(data, **FIT)
    assert trainer.evaluate(data).n_samples == 60
    words = ["train", str(data.path), "--model", "linear", "--ignore-label", str(ignored), "--epochs", "1"]
    assert main([*words, "--batch-size", "8", "--memory", "8MB", "--out", str(tmp_path / "run")]) == 0
    assert f"12 of them {ignored}, which is not a class" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), str(data.path)]) == 0


def test_a_hole_below_0_is_refused_with_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = st.ingest({"x": np.eye(4, dtype="f4"), "y": np.array([-1, 0, 1, 2])}, tmp_path / "d.zarr")
    words = ["train", str(data.path), "--model", "linear", "--task", "classification"]
    assert main(words) == 2
    assert "--ignore-label -1" in capsys.readouterr().err
