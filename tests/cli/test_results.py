"""Results as train and evaluate say them: units, baseline, tables, scores.json, hints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamtrain as st
from streamtrain.cli.main import main

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N = 400
FAST = ("--memory", "16MB", "--device", "cpu", "--batch-size", "50")


def table(name: str, label: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N))
    rows = [f"{x:.6f},{y:.6f},{label(x, y, i)}" for i, (x, y) in enumerate(zip(a, b, strict=True))]
    Path(f"{name}.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    assert main(["ingest", f"{name}.csv", name, "--label-column", "y"]) == 0


def train(capsys: pytest.CaptureFixture[str], data: str, *more: str) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["train", data, "--model", "linear", *FAST, *more]) == 0
    out, err = capsys.readouterr()
    return out, err


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *words, *FAST, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_quantity_is_learnt_in_units_of_its_spread(capsys: pytest.CaptureFixture[str]) -> None:
    table("q", lambda x, y, _: int(1000 * x - 300 * y + 7))
    out, _ = train(capsys, "q", "--val", "q", "--optimizer", "sgd", "--out", "run", "--epochs", "8")
    assert re.search(r"target  \(y [+-] [\d.]+\) / 1,\d{3}: loss is in these units, rmse and mae in those of y\n", out)
    assert re.search(
        r"val     rmse [\d,]+\.\d+ \(1,\d{3}\.\d by always answering -?[\d.]+\)(?: after the last epoch)?\n", out
    ), "sgd at its own rate"
    told = evaluated(capsys, "run", "q")
    y = np.array([float(line.split(",")[2]) for line in Path("q.csv").read_text().splitlines()[1:]])
    assert told["baseline"]["rmse"] == pytest.approx(y.std(), rel=1e-12)
    assert told["rmse"] < told["baseline"]["rmse"] / 2
    assert told["loss"] == pytest.approx((told["rmse"] / y.std()) ** 2, rel=1e-4)
    assert (told["task"], told["measured_on"]) == ("regression", "training data, again")
    kept = json.loads(Path("run/scores.json").read_text())
    assert {name: kept[name] for name in ("rmse", "r2")} == {name: told[name] for name in ("rmse", "r2")}
    assert (kept["epoch"], kept["measured_on"]) == (8, "val")


def test_a_run_of_an_earlier_version_goes_on_with_its_targets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table("q", lambda x, y, _: int(1000 * x - 300 * y + 7))
    words = ("--out", "run", "--resume", "--lr", "0.01")
    train(capsys, "q", *words, "--epochs", "1", "--normalize-target", "none")
    config = json.loads(Path("run/config.json").read_text())
    assert config.pop("normalize_target") == {"mean": None, "std": None}
    assert main(["train", "q", "--model", "linear", *FAST, *words, "--epochs", "2"]) == 6
    assert "normalize_target" in capsys.readouterr().err
    Path("run/config.json").write_text(json.dumps(config))
    out, _ = train(capsys, "q", *words, "--epochs", "2")
    assert "target  " not in out
    told = evaluated(capsys, "run", "q")
    assert told["loss"] == pytest.approx(told["rmse"] ** 2, rel=1e-5)


def test_classes_have_a_table_a_confusion_matrix_and_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    table("c", lambda x, _, i: "EWR" if i % 10 < 6 else ("JFK" if x > 0 else "LGA"))
    how = ("--val", "c", "--epochs", "12", "--lr", "0.05")
    train(capsys, "c", *how, "--out", "plain")
    train(capsys, "c", *how, "--out", "balanced", "--class-weight", "balanced")
    plain, even = evaluated(capsys, "plain", "c"), evaluated(capsys, "balanced", "c")
    assert plain["baseline"] == {"answer": [0], "told": "EWR", **plain["baseline"]}
    assert plain["baseline"]["accuracy"] == 0.6
    assert even["balanced_accuracy"] > plain["balanced_accuracy"]
    assert even["f1"] > even["baseline"]["f1"]
    assert [row["class"] for row in even["classes"]] == ["EWR", "JFK", "LGA"]
    assert np.sum(even["confusion"], axis=1).tolist() == [row["support"] for row in even["classes"]]
    assert np.trace(even["confusion"]) / N == even["accuracy"]
    assert evaluated(capsys, "balanced", "c", "--batch-size", "7")["confusion"] == even["confusion"]


def test_of_many_classes_the_worst_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table("k", lambda x, _, i: f"c{i % 25:02}")
    train(capsys, "k", "--epochs", "1", "--out", "run")
    capsys.readouterr()
    for more, n_rows in (((), 5), (("--per-class",), 25)):
        assert main(["evaluate", "run", "k", *FAST, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len([line for line in lines if re.match(r"c\d\d +\d", line)]) == n_rows
        assert (len([line for line in lines if "taken for" in line]) == 5) == (not more)
    told = evaluated(capsys, "run", "k")
    assert len(told["classes"]) == 25
    assert 0 <= told["top5_accuracy"] <= 1


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits"])
def test_two_classes_have_a_positive_one(capsys: pytest.CaptureFixture[str], loss: str) -> None:
    table("b", lambda x, y, i: "yes" if x + y * (i % 3) > 0 else "no")
    train(capsys, "b", "--loss", loss, "--epochs", "5", "--lr", "0.05", "--out", "run")
    yes, no = evaluated(capsys, "run", "b"), evaluated(capsys, "run", "b", "--positive", "no")
    assert yes["auc"] == pytest.approx(no["auc"], rel=1e-12)
    for told, row in ((yes, 1), (no, 0)):
        assert {name: told[name] for name in ("precision", "recall")} == {
            name: told["classes"][row][name] for name in ("precision", "recall")
        }
    capsys.readouterr()
    assert main(["evaluate", "run", "b", *FAST, "--positive", "no"]) == 0
    told = [line.partition(" again: ")[2] for line in capsys.readouterr().out.splitlines() if "again:" in line]
    names = ["accuracy", "f1 macro", "balanced_accuracy", "precision of no", "recall of no", "auc", "loss"]
    assert [line.startswith(f"{name} 0.") for line, name in zip(told, names, strict=True)] == [True] * 7
    assert main(["evaluate", "run", "b", *FAST, "--positive", "maybe"]) == 2


def test_a_run_that_is_no_better_than_its_baseline_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    table("q", lambda x, y, _: int(1000 * x - 300 * y + 7))
    _, err = train(capsys, "q", "--val", "q", "--epochs", "1", "--lr", "1e-9", "--normalize-target", "none")
    (hint,) = [line for line in err.splitlines() if line.startswith("hint:")]
    for part in ("every prediction is the same; try --normalize-target auto or more --epochs", "than 8 steps"):
        assert part in hint
    _, err = train(capsys, "q", "--val", "q", "--epochs", "9", "--optimizer", "sgd")
    assert "hint:" not in err


def test_rare_classes_get_a_hint_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    table("r", lambda x, y, i: "no" if i % 12 else "yes")
    _, err = train(capsys, "r", "--val", "r", "--epochs", "3", "--out", "plain")
    assert "try --class-weight balanced, where the rare classes matter or" in err
    _, err = train(capsys, "r", "--val", "r", "--epochs", "3", "--class-weight", "balanced", "--out", "weighted")
    assert "hint:" not in err
    # That a rare class is predicted more often is what weights are for.
    assert main(["predict", "weighted", "r", *FAST, "--out", "p.csv"]) == 0
    assert "hint:" not in capsys.readouterr().err


def test_a_loss_that_rises_gets_a_lower_rate(capsys: pytest.CaptureFixture[str]) -> None:
    table("q", lambda x, y, _: int(1000 * x - 300 * y + 7))
    _, err = train(capsys, "q", "--val", "q", "--epochs", "4", "--optimizer", "sgd", "--lr", "2")
    assert "try a lower --lr than 2, since the loss rises" in err


@pytest.mark.parametrize("rule", ["batch", "sample", "epoch"])
def test_the_loss_of_a_module_is_left_out_and_the_scores_stand(capsys: pytest.CaptureFixture[str], rule: str) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    data = st.ingest({"x": x, "y": x[:, 0] * 3 + 1}, "d.zarr")

    def own(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output.squeeze(1) - target) ** 2).mean()

    losses = {"HuberLoss": torch.nn.HuberLoss(delta=0.5), "SmoothL1Loss": torch.nn.SmoothL1Loss(), "own": own}
    for name, loss in losses.items():
        trainer = st.Trainer("mlp:4", loss=loss, update=rule, optimizer="sgd", lr=0.01, normalize="auto", device="cpu")
        trainer.fit(data, max_epochs=1, checkpoint=name, progress=False, memory="16MB")
        capsys.readouterr()
        assert main(["evaluate", name, "d.zarr", "--json"]) == 0
        told = capsys.readouterr()
        assert told.err.count("was made in Python, so it is not among the scores") == 1
        found, expected = json.loads(told.out), trainer.evaluate(data)
        assert found["loss"] is None
        assert found["rmse"] == pytest.approx(expected.scores.get("rmse", found["rmse"]), rel=1e-6)
        assert main(["evaluate", name, "d.zarr"]) == 0
        assert "loss" not in capsys.readouterr().out


def test_labels_of_raw_arrays_may_be_files_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.uint8)
    np.save("x.npy", x)
    np.save("y.npy", y)
    Path("y-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + len(y).to_bytes(4, "big") + y.tobytes())
    assert main(["ingest", "x.npy", "d", "--labels", "y.npy"]) == 0
    assert main(["train", "d", "--model", "mlp:4", *FAST, "--epochs", "1", "--out", "run"]) == 0
    expected = evaluated(capsys, "run", "d")
    for labels in ("y.npy", "y-idx1-ubyte"):
        told = evaluated(capsys, "run", "x.npy", "--labels", labels)
        assert {name: told[name] for name in ("loss", "auc", "confusion")} == {
            name: expected[name] for name in ("loss", "auc", "confusion")
        }


def test_a_lone_target_has_the_name_of_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    table("q", lambda x, y, _: round(1000 * x - 300 * y) + 0.5)
    train(capsys, "q", "--out", "run", "--epochs", "1")
    for source in ("q", "q.csv"):
        assert [row["target"] for row in evaluated(capsys, "run", source)["targets"]] == ["y"]
