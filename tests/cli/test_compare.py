"""``streamtrain compare``: what it prints, what it leaves, how it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.system.signals import Interrupted

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread", "undrawn")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    x[np.arange(120), y] += 2
    path = tmp_path_factory.mktemp("data") / "d.zarr"
    st.ingest({"x": x, "y": y}, path, progress=False)
    return path


SMALL = ["--model", "linear", "--batch-size", "30", "--memory", "16MB", "--epochs", "1"]


def test_compare_in_text(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(stored), *SMALL, "--val", str(stored), "--out", "c"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines.pop(1) == "label   y: 3 classes, 0 to 2 (--task regression if they are quantities)"
    assert lines[1] == "model   linear, 15 weights, cross_entropy"
    assert (
        lines.pop(2) == "rates   sgd 0.01 (default) with sample, 0.1 (default) with batch, epoch; adam 0.001 (default)"
    )
    assert lines[2].split()[:4] == ["rule", "optimizer", "epoch", "updates"]
    ends = [line.split()[:4] for line in lines[3:15] if line.split()[2] == "1"]
    assert ends[:3] == [["sample", "sgd", "1", "120"], ["batch", "sgd", "1", "4"], ["epoch", "sgd", "1", "1"]]
    table = [line.split() for line in lines[16:23]]
    assert [cells[0] for cells in table[:1]] == ["run"]
    assert sorted(cells[0] for cells in table[1:]) == sorted(2 * ["sample,", "batch,", "epoch,"])
    of_val = [float(cells[8]) for cells in table[1:]]
    assert of_val == sorted(of_val), "the best first"
    assert lines[-1] == "report  c/comparison.html"
    assert err == ""
    names = sorted(entry.name for entry in Path("c").iterdir())
    runs = [f"{rule}-{optimizer}" for rule in ("batch", "epoch", "sample") for optimizer in ("adam", "sgd")]
    assert names == sorted([*runs, "comparison.html", "comparison.json"])
    for name in runs:
        assert main(["report", f"c/{name}"]) == 0, "each is a run like any other"
        assert main(["evaluate", f"c/{name}", str(stored), "--memory", "16MB"]) == 0


def test_compare_json_with_a_surface(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--rules", "batch,epoch", "--optimizers", "sgd", "--lr", "0.5,epoch:sgd=1", "--surface", "--grid", "3"]
    assert main(["compare", str(stored), *SMALL, *args, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err.startswith("surface: 9 passes over 120 samples, about ")
    assert [(run["rule"], run["lr"], run["updates"]) for run in result["runs"]] == [
        ("batch", 0.5, 4),
        ("epoch", 1.0, 1),
    ]
    assert {"loss", "accuracy", "seconds_per_epoch", "epochs_to_target", "seconds_to_target"} <= result["runs"][
        0
    ].keys()
    assert len(result["runs"][0]["epochs"]) == 2
    assert np.shape(result["surface"]["loss"]) == (3, 3)
    assert result["out"] == "comparisons/1"
    assert Path(result["report"]).is_file()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--rules", "bach"], 2, "unknown update rule 'bach'"),
        (["--optimizers", "adm"], 2, "unknown optimizer 'adm'"),
        (["--rules", "batch", "--optimizers", "lbfgs"], 2, "lbfgs with the rule 'batch'"),
        (["--lr", "sgd=fast"], 2, "--lr sgd=fast: 'fast' is not a learning rate"),
        (["--class-weight", "7=2"], 2, "unknown class '7'"),
        (["--lr", "rmsprop=1"], 2, "unknown optimizer to give a learning rate 'rmsprop'"),
        (["--epochs", "-1"], 2, "max_epochs is -1"),
        (["--seconds", "0"], 2, "seconds is 0.0; it must be positive"),
        (["--surface", "--grid", "0"], 2, "the grid is 0"),
        (["--threads", "0"], 2, "threads is 0"),
        (["--memory", "10KB"], 5, "memory"),
    ],
)
def test_compare_refuses_before_it_trains(
    stored: Path, args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(stored), *SMALL, *args, "--out", "c"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not Path("c").exists()


def test_compare_has_its_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "none.zarr"]) == 4
    assert "none.zarr" in capsys.readouterr().err


def test_the_runs_of_a_comparison_know_their_classes(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    rows = "\n".join(f"{value:.3f},{1 + (value > 0) + (value > 1)}" for value in draw.normal(size=90))
    Path("t.csv").write_text(f"a,y\n{rows}\n")
    assert main(["ingest", "t.csv", "d", "--label-column", "y", "--split", "val=0.3"]) == 0
    words = ["--rules", "batch", "--optimizers", "sgd", "--lr", "sgd=1", "--task", "classification", "--out", "c"]
    assert main(["compare", "d", *SMALL, *words]) == 0
    result = json.loads(Path("c/comparison.json").read_text())["runs"][0]
    capsys.readouterr()
    assert main(["evaluate", "c/batch-sgd", "d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["epochs"][-1]["val_accuracy"]
    model = st.load("c/batch-sgd", device="cpu")
    assert model.classes == ("1", "2", "3")
    assert set(model.predict("d/val")) <= {1, 2, 3}


def test_several_rates_are_several_runs_and_what_diverges_names_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    st.ingest({"x": x, "y": x @ np.float32([100.0, -50.0])}, "d", progress=False)
    words = ["compare", "d", *SMALL, "--rules", "batch", "--optimizers", "sgd", "--lr", "1e30,0.1,0.03", "--out", "c"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert {run.name for run in Path("c").glob("batch-*")} == {f"batch-sgd-{lr}" for lr in ("1e+30", "0.1", "0.03")}
    assert "Fix: a lower learning rate: --lr 0.1." in out
    runs = json.loads(Path("c/comparison.json").read_text())["runs"]
    assert [(run["lr"], run["diverged"] is None) for run in runs] == [(1e30, False), (0.1, True), (0.03, True)]
    assert runs[1]["epochs"][0]["loss"] < 10, "targets are in units of their spread, as in train"
    assert main([*words[:-2], "--normalize-target", "none", "--lr", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["epochs"][0]["loss"] > 100


def test_a_comparison_resumes(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(stored), *SMALL, "--optimizers", "sgd", "--class-weight", "balanced", "--out"]
    assert main([*words, "whole"]) == 0
    assert main(["compare", str(stored), *SMALL, "--resume"]) == 2
    assert "--resume without --out. Fix: --out FOLDER" in capsys.readouterr().err
    fit = st.Trainer.fit

    def interrupted(trainer: st.Trainer, *given: object, **how: object) -> object:
        if trainer.way == "epoch":
            raise Interrupted(15)
        return fit(trainer, *given, **how)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(st.Trainer, "fit", interrupted)
        assert main([*words, "c"]) == 128 + 15
    err = capsys.readouterr().err
    assert "interrupted by SIGTERM; saved c; " in err
    assert err.strip().endswith(f"streamtrain {' '.join(words)} c --resume")
    assert main(["compare", str(stored), *SMALL, "--resume", "--out", "c"]) == 6
    err = capsys.readouterr().err
    assert f"begun   streamtrain {' '.join(words[:-1])}\n" in err
    assert "error: c: the comparison has other settings" in err
    assert main([*words, "c", "--resume", "--seed", "1"]) == 6
    assert "seed: 0 there, 1 here" in capsys.readouterr().err
    assert main([*words, "c", "--resume"]) == 0
    assert "sample, sgd: finished, and read back" in capsys.readouterr().err
    losses = [
        [
            point["loss"]
            for run in json.loads(Path(out, "comparison.json").read_text())["runs"]
            for point in run["epochs"]
        ]
        for out in ("whole", "c")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        (["--lr", "sgd=0.2"], "sgd 0.2 (given); adam 0.001 (default)"),
        (["--lr", "0.2"], "sgd 0.2 (given); adam 0.2 (given)"),
        (["--lr", "0.2,0.1"], "sgd 0.2 (given), 0.1 (given); adam 0.2 (given), 0.1 (given)"),
        (["--lr", "batch:adam=0.5"], "sgd 0.1 (default); adam 0.5 (given) with batch, 0.001 (default) with epoch"),
    ],
)
def test_the_heading_says_which_rates_there_are(
    stored: Path, words: list[str], rates: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(stored), *SMALL, "--rules", "batch,epoch", *words, "--out", "c"]) == 0
    out = capsys.readouterr().out
    assert f"rates   {rates}\n" in out
    used = [json.loads(Path("c/comparison.json").read_text())["runs"]][0]
    assert {f"{run['lr']:g}" for run in used} == set(re.findall(r"([\d.]+) \(", rates))
