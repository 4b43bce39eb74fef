"""The best epoch on the command line: `train` ends with it, `evaluate` and `report` take it and say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.training.best.chosen_checkpoint import checkpoint_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data to train on, data that is its opposite, and a run on both: the more it learns the worse it gets."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    st.ingest({"x": x, "y": y}, folder / "d", progress=False)
    st.ingest({"x": x, "y": 1 - y}, folder / "v", progress=False)
    assert main(words(folder, "--val", folder / "v", "--out", folder / "run")) == 0
    assert main(words(folder, "--out", folder / "plain")) == 0
    return folder


def words(folder: Path, *more: object) -> list[str]:
    how = ("--model", "mlp:4", "--epochs", 4, "--batch-size", 20, "--memory", "16MB", "--lr", 0.05)
    return [str(word) for word in ("train", folder / "d", *how, *more)]


def out_of(capsys: pytest.CaptureFixture[str], *line: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in line]) == 0
    return capsys.readouterr().out


def json_of(capsys: pytest.CaptureFixture[str], *line: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out_of(capsys, *line, "--json"))
    return found


def epochs(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


def test_train_ends_with_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = out_of(capsys, *words(data, "--val", data / "v", "--out", tmp_path / "a"))
    first = epochs(tmp_path / "a")[0]
    told = f"best    epoch 1 of 4: val_loss {first['val_loss']:.4f}, val_accuracy {first['val_accuracy']:.4f}"
    assert out.splitlines()[-1] == told
    # A run that has nothing left says it again.
    assert out_of(capsys, *words(data, "--val", data / "v", "--out", tmp_path / "a", "--resume")).endswith(f"{told}\n")
    assert "best" not in out_of(capsys, *words(data, "--out", tmp_path / "b"))


def test_json_has_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, *words(data, "--monitor", "accuracy", "--out", tmp_path / "a"))
    best = found["best"]
    accuracies = [line["accuracy"] for line in epochs(tmp_path / "a")]
    assert (best["monitor"], best["value"]) == ("accuracy", max(accuracies))
    assert best["epoch"] == 1 + accuracies.index(max(accuracies))
    assert best["step"] == best["n_batches"] == 6 * best["epoch"]
    assert Path(best["checkpoint"]) == tmp_path / "a" / "checkpoints" / f"{best['n_batches']:08d}"
    assert json_of(capsys, *words(data, "--out", tmp_path / "b"))["best"] is None


def test_evaluate_takes_it_to_the_last_bit(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, evaluate = epochs(data / "run"), ("evaluate", data / "run", data / "v", "--batch-size", 20)
    assert json_of(capsys, *evaluate)["loss"] == lines[0]["val_loss"]
    assert json_of(capsys, *evaluate, "--checkpoint", "best")["loss"] == lines[0]["val_loss"]
    assert json_of(capsys, *evaluate, "--checkpoint", "last")["loss"] == lines[-1]["val_loss"]
    assert json_of(capsys, *evaluate, "--checkpoint", 18)["loss"] == lines[2]["val_loss"]
    weights = json_of(capsys, *evaluate)["weights"]
    assert (weights["epoch"], weights["is_best"], weights["is_last"]) == (1, True, False)
    value = f"{lines[0]['val_loss']:.4g}"
    for which, told in (
        ("best", f"weights of epoch 1, the best by val_loss ({value}); --checkpoint last for epoch 4"),
        ("last", f"weights of epoch 4, the last; --checkpoint best for epoch 1, the best by val_loss ({value})"),
        ("18", f"weights of epoch 3; --checkpoint best for epoch 1, the best by val_loss ({value})"),
        ("00000006", f"weights of epoch 1, the best by val_loss ({value}); --checkpoint last for epoch 4"),
    ):
        assert out_of(capsys, *evaluate, "--checkpoint", which).splitlines()[0] == told


def test_a_run_that_names_none_is_read_at_its_last(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint_of(data / "plain").is_last
    out = out_of(capsys, "evaluate", data / "plain", data / "d")
    assert out.splitlines()[0] == "weights of epoch 4, the last: the run names no best"
    assert out_of(capsys, "report", data / "plain").splitlines()[0] == out.splitlines()[0]


def test_a_best_that_is_gone_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000006")
    assert main(["evaluate", str(tmp_path / "run"), str(data / "v")]) == 0
    out, err = capsys.readouterr()
    assert "warning: " in err
    assert "00000006" in err
    assert out.splitlines()[0] == "weights of epoch 4, the last: the best, epoch 1, cannot be read"


@pytest.mark.parametrize("which", ["first", "-1", "1.5", "²", ""])
def test_what_names_no_checkpoint_is_refused(data: Path, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", str(data / "run"), str(data / "v")], ["report", str(data / "run")]):
        assert main([*command, f"--checkpoint={which}"]) == 2
        assert "best, last, or the batches" in capsys.readouterr().err


def test_a_number_that_is_not_there_names_those_that_are(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(data / "run"), str(data / "v"), "--checkpoint", "7"]) == 2
    assert "It has those after 6, 18, 24. Fix: --checkpoint last" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("which", "told"), [("best", "over epoch 1"), ("18", "over epoch 3"), ("last", "the last epoch")]
)
def test_the_report_has_the_figures_of_that_epoch(
    data: Path, tmp_path: Path, which: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    found = json_of(capsys, "report", data / "run", "--checkpoint", which, "--out", page)
    assert found["weights"]["is_best"] is (which == "best")
    assert told in page.read_text()
    assert ("epoch 1 of 4: val_loss" in page.read_text()) is (which == "best")


def test_a_report_needs_no_checkpoint(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert json_of(capsys, "report", tmp_path / "run")["weights"] is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--patience", "2"), "patience without validation data or a monitor"),
        (("--monitor-mode", "max"), "monitor_mode without validation data or a monitor"),
        (("--monitor", "val_loss"), "Fix: --monitor loss"),
        (("--monitor", "f"), "unknown monitor 'f'"),
        (("--monitor", "loss", "--patience", "2", "--min-delta", "-1"), "min_delta is -1.0"),
        (("--monitor", "loss", "--min-delta", "nan"), "min_delta is nan"),
    ],
)
def test_a_monitor_that_says_nothing_is_refused(
    data: Path, tmp_path: Path, options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(data, *options, "--out", tmp_path / "run")) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert (out, (tmp_path / "run").exists()) == ("", False)
