"""``train`` and ``evaluate`` on small stored datasets: what they print, what they keep, how they fail."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import streamtrain as st
from streamtrain.cli.main import main

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N = 600


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets in one folder: images, a float64 table with a float64 target, and the like for validation."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, n in (("images", N), ("val-images", 100)):
        y = rng.integers(0, 3, n)
        x = rng.integers(0, 60, (n, 8, 8)).astype(np.uint8)
        x[np.arange(n), y] += 150
        st.ingest({"x": x, "y": y}, folder / f"{name}.zarr")
    table = rng.normal(size=(N, 4)) * [1, 100, 1, 0] + [0, 300, 3, 9]
    st.ingest({"x": table, "y": table @ [1.0, 0.01, -1, 0]}, folder / "table.zarr")
    return folder


def train_json(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["train", *map(str, args), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def weights(run: Path) -> dict[str, Any]:
    return safetensors.numpy.load_file(max(run.glob("checkpoints/*/model.safetensors")))


def test_train_and_evaluate_in_text(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", f"{stored}/images.zarr", "--model", "mlp:16", "--val", f"{stored}/val-images.zarr"]
    assert main([*args, "--epochs", "3", "--batch-size", "32", "--memory", "64MB", "-v"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("data    ")
    assert lines.pop(1) == "label   y: 3 classes, 0 to 2 (--task regression if they are quantities)"
    assert re.fullmatch(r"order   \d+ lanes in \d+ groups?", lines[3])
    assert (
        lines[4]
        == "        blocks read ÷ blocks stored 1.000 in the first epoch, 0 (all of it stays in memory) in a later one"
    )
    assert lines[5].startswith("        against a full reshuffle batches vary at most 1 times, drift at most ")
    assert all(re.fullmatch(r"loader  .+ \+ .+ = [\d.]+ .B of [\d.]+ MB", line) for line in lines[6:8])
    del lines[3:8]
    assert " ".join(lines[3].split()) == "epoch steps loss accuracy val loss val accuracy samples/s stall"
    assert [line.split()[:2] for line in lines[4:7]] == [["1", "19"], ["2", "38"], ["3", "57"]]
    assert re.fullmatch(
        r"val     accuracy [01]\.\d{4} \(0\.\d{4} by always answering [012]\)(?: after the last epoch)?", lines.pop(7)
    )
    assert lines[7].startswith("memory  budget 64.0 MB, projected ")
    assert "samples/s, stall fraction 0." in lines[8]
    assert [line.split()[0] for line in lines[9:]] == ["time", "threads", "run", "best"]
    assert "compute " in lines[9]
    assert "gather " in lines[10]
    assert lines[11] == "run     runs/1"
    then = [line.removeprefix("next").split()[:3] for line in err.splitlines()]
    assert then == [["streamtrain", command, "runs/1"] for command in ("evaluate", "predict", "report")]
    assert main(["evaluate", "runs/1", f"{stored}/val-images.zarr"]) == 0
    weights, head, *rows, accuracy, f1, balanced, loss = capsys.readouterr().out.splitlines()
    assert weights.startswith("weights of epoch ")
    assert head.split() == ["class", "precision", "recall", "f1", "support"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert loss.startswith("test loss 0.")
    assert f1.startswith("test f1 macro ")
    assert balanced.startswith("test balanced_accuracy ")
    assert accuracy.startswith(f"test accuracy {float(lines[6].split()[5]):.4f} (0.")


def test_the_time_of_a_run_adds_up_to_that_of_the_command(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "linear", "--epochs", "2", "--val", f"{stored}/val-images.zarr", "--memory", "16MB"]
    began = time.perf_counter()
    found = train_json(capsys, f"{stored}/images.zarr", *words, "--checkpoint-every", "1")
    took = time.perf_counter() - began
    seconds = found["seconds"]
    names = ["start", "compute", "transfer", "wait", "validation", "saving", "other"]
    assert [name for name, value in seconds.items() if value >= 0] == names
    assert all(seconds[name] > 0 for name in ("start", "compute", "validation", "saving"))
    # What is left is the printing of the result; saving in the middle of an epoch is no part of its speed.
    assert took - 0.5 < sum(seconds.values()) <= took
    assert sum(epoch["seconds"] for epoch in found["epochs"]) + seconds["saving"] <= sum(seconds.values())


@pytest.mark.parametrize(
    ("monitor", "head"),
    [("val_balanced_accuracy", "val balanced_accuracy (max)"), ("val_accuracy", "val accuracy (max)"), ("loss", None)],
)
def test_the_table_of_epochs_shows_the_monitor_and_its_direction(
    monitor: str, head: str | None, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "linear", "--epochs", "2", "--val", f"{stored}/val-images.zarr", "--memory", "16MB"]
    assert main(["train", f"{stored}/images.zarr", *words, "--monitor", monitor]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("epoch "))
    heads = [name.strip() for name in re.split("  +", lines[place])]
    assert [name for name in heads if "(" in name] == ([head] if head else [])
    if head:
        best = re.search(rf"{monitor} (\S+?),", lines[-1])
        column = [line.split()[heads.index(head)] for line in lines[place + 1 : place + 3]]
        assert best
        assert max(column, key=float) == best[1]


def test_quiet_train_prints_its_result_alone(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "linear", "--epochs", "1", "--val", f"{stored}/val-images.zarr", "--memory", "16MB", "--quiet"]
    assert main(["train", f"{stored}/images.zarr", *words]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["val", "run", "best"]
    assert not [line for line in err.splitlines() if not line.startswith("warning:")]


def test_train_json(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_json(capsys, stored / "images.zarr", "--model", "linear", "--epochs", 2, "--batch-size", 64)
    assert (result["steps"], result["samples"], result["resumed_from_batch"]) == (20, 2 * N, 0)
    assert result["accuracy"] == result["epochs"][-1]["accuracy"]
    assert 0 <= result["accuracy"] <= 1
    assert result["memory"]["budget"] == 512_000_000
    assert 0 < result["memory"]["projected"] <= 512_000_000
    assert set(result["memory"]) == {"budget", "projected", "measured", "step", "process"}
    assert 0 <= result["memory"]["measured"] < result["memory"]["process"]
    assert (result["run"], result["val"]) == ("runs/1", None)
    assert set(result["stall"]["thread_seconds"]) == {"disk", "decode", "gather", "index", "transfer"}
    assert sum(result["stall"]["wall_seconds"].values()) > 0
    assert result["headspace"] is None
    assert main(["evaluate", "runs/1", f"{stored}/images.zarr", "--json"]) == 0
    assert {"loss", "accuracy", "samples"} <= json.loads(capsys.readouterr().out).keys()


@pytest.mark.parametrize(("update", "steps"), [("batch", 10), ("sample", N), ("epoch", 1)])
def test_every_update_rule(update: str, steps: int, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [stored / "images.zarr", "--model", "linear", "--update", update, "--optimizer", "sgd"]
    assert train_json(capsys, *args, "--epochs", 1, "--batch-size", 64)["steps"] == steps


def test_the_same_seed_gives_the_same_weights(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [stored / "images.zarr", "--model", "mlp:8", "--epochs", 2, "--batch-size", 50, "--threads", 1]
    for out, seed in (("a", 4), ("b", 4), ("c", 5)):
        train_json(capsys, *args, "--seed", seed, "--out", out)
    a, b, c = (weights(Path(name)) for name in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not all(np.array_equal(a[name], c[name]) for name in a)


def test_regression_has_its_own_score(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [stored / "table.zarr", "--model", "linear", "--lr", "0.05", "--epochs", "30", "--batch-size", "32"]
    result = train_json(capsys, *args, "--normalize-target", "none")
    assert result["accuracy"] is None
    assert result["rmse"] == pytest.approx(result["loss"] ** 0.5)
    assert result["rmse"] < 0.1
    assert main(["evaluate", "runs/1", f"{stored}/table.zarr"]) == 0
    assert any(line.startswith("training data, again: rmse ") for line in capsys.readouterr().out.splitlines())


def test_a_model_from_a_file_is_built_again_where_it_is_named(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    Path("net.py").write_text(net)
    train_json(capsys, stored / "images.zarr", "--model", "net.py:build", "--epochs", 1)
    Path("net.py").write_text(f"{net}\n")
    assert main(["evaluate", "runs/1", f"{stored}/images.zarr"]) == 6
    assert "Fix: --model net.py:build, if you know what is in it." in capsys.readouterr().err
    with pytest.warns(st.StreamtrainWarning, match=r"net\.py is not the file that runs/1 was trained with"):
        assert main(["evaluate", "runs/1", f"{stored}/images.zarr", "--model", "net.py:build"]) == 0
    Path("net.py").rename("moved.py")
    assert main(["evaluate", "runs/1", f"{stored}/images.zarr"]) == 6
    assert "no such file is here. Fix: --model FILE.py:NAME, if you know" in capsys.readouterr().err
    with pytest.warns(st.StreamtrainWarning, match=r"moved\.py is not the file"):
        assert main(["evaluate", "runs/1", f"{stored}/images.zarr", "--model", "moved.py:build"]) == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--model", "lineal"], 2, "did you mean 'linear'"),
        (["--model", "linear", "--optimizer", "adma"], 2, "unknown optimizer 'adma'"),
        (["--model", "linear", "--loss", "mze"], 2, "did you mean 'mse'"),
        (["--model", "linear", "--update", "bach"], 2, "did you mean 'batch'"),
        (["--model", "linear", "--lr", "nan"], 2, "lr is nan"),
        (["--model", "linear", "--lr", "-1"], 2, "lr is -1.0"),
        (["--model", "linear", "--betas", "0.9,1"], 2, "betas is"),
        (["--model", "linear", "--betas", "a,b"], 2, "not numbers"),
        (["--model", "linear", "--momentum", "0.9"], 2, "adam takes no 'momentum'"),
        (["--model", "linear", "--epochs", "-1"], 2, "max_epochs is -1"),
        (["--model", "linear", "--batch-size", "0"], 2, "batch_size is 0"),
        (["--model", "linear", "--batch-size", "601", "--drop-last"], 2, "drop_last"),
        (["--model", "linear", "--update", "epoch", "--drop-last"], 2, "update='epoch' with drop_last"),
        (
            ["--model", "linear", "--loss", "mse", "--task", "multilabel"],
            2,
            "mse is one of regression, and the task multilabel",
        ),
        (["--model", "linear", "--normalize", "none"], 2, "--normalize auto"),
        (["--model", "linear", "--memory", "4X"], 2, "memory '4X' is not a size"),
        (["--model", "linear", "--memory", "10KB"], 5, "the smallest that works"),
        (["--model", "linear", "--device", "cuda:9"], 5, "there is no device"),
        (["--model", "linear", "--device", "mps"], 5, "there is no device 'mps'"),
        (["--model", "linear", "--device", "xpu"], 5, "there is no device 'xpu'"),
        (["--model", "linear", "--device", "meta"], 2, "device 'meta' holds no data"),
        (["--model", "linear", "--seed", "-1"], 2, "seed is -1"),
        (["--model", "mlp:65536,16777216"], 5, "Fix: a smaller --model or --batch-size"),
        (["--model", "linear", "--memory", "900TB"], 5, "memory is 900.00 TB; "),
        (["--model", "linear", "--max-memory", "900TB"], 5, "max_memory is 900.00 TB; "),
        (["--model", "linear", "--threads", "0"], 2, "threads is 0"),
        (["--model", "linear", "--log-every", "0"], 2, "log_every is 0"),
        (["--model", "none.py:build"], 2, "model file none.py does not exist"),
        ([], 2, "Missing option '--model'"),
    ],
)
def test_what_is_refused_leaves_nothing(
    args: list[str], code: int, message: str, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"{stored}/images.zarr", *args]) == code
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_remedy_is_spelled_as_it_is_typed(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", f"{stored}/images.zarr", "--model", "linear", "--epochs", "1"]
    assert main([*args, "--memory", "100KB"]) == 5
    found = re.search(r"Fix: --memory (\d+MB)\.$", capsys.readouterr().err.strip())
    assert found is not None
    assert main([*args, "--memory", found[1]]) == 0


def test_the_runs_configuration_has_what_was_solved(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_json(capsys, stored / "images.zarr", "--model", "linear", "--epochs", 0, "--memory", "8MB", "--lanes", 6)
    config = json.loads(Path("runs/1/config.json").read_text())
    assert (config["memory"], config["lanes"], config["groups"], config["max_memory"]) == (8_000_000, 6, 1, None)
    assert config["order"] == 3


def test_a_model_that_does_not_fit_is_reported_before_the_first_epoch(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.py").write_text("from torch import nn\ndef build(): return nn.Linear(7, 3)\n")
    assert main(["train", f"{stored}/images.zarr", "--model", "net.py:build"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: the model does not fit the data\n  data   x uint8 (8, 8), y int64 ()\n" in err
    assert not Path("runs").exists()


def test_validation_data_of_another_shape_is_refused(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", f"{stored}/images.zarr", "--model", "linear", "--val", f"{stored}/table.zarr"]
    assert main(args) == 2
    assert "field x is float64 (4,); in the training data uint8 (8, 8)" in capsys.readouterr().err


def test_a_budget_too_small_for_two_loaders_says_whose(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", f"{stored}/images.zarr", "--model", "linear", "--val", f"{stored}/val-images.zarr"]
    assert main([*args, "--memory", "6MB"]) == 5
    err = capsys.readouterr().err
    assert "memory is 6.0 MB, and the smallest that works is" in err
    assert "Validation data gets 1/4 of it" in err
    assert main([*args, "--epochs", "0", "--memory", err.rpartition("--memory ")[2].strip(" .\n")]) == 0


def test_divergence_has_its_exit_code(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", f"{stored}/table.zarr", "--model", "linear", "--optimizer", "sgd", "--lr", "1e30"]
    assert main([*args, "--batch-size", "16", "--log-every", "1"]) == 8
    assert "epoch 1, step" in capsys.readouterr().err
    assert main(["evaluate", "runs/1", f"{stored}/table.zarr"]) == 6
    assert "stopped before its first" in capsys.readouterr().err


def test_what_evaluate_refuses(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = f"{stored}/images.zarr"
    assert main(["evaluate", "runs/1", images]) == 6
    assert "runs/1: no such folder" in capsys.readouterr().err
    train_json(capsys, images, "--model", "linear", "--epochs", 0)
    assert main(["evaluate", "runs/1", f"{stored}/none.zarr"]) == 4
    assert main(["evaluate", "runs/1", f"{stored}/table.zarr"]) == 2
    (checkpoint,) = Path("runs/1/checkpoints").iterdir()
    shutil.move(checkpoint / "normalize.safetensors", "away")
    assert main(["evaluate", "runs/1", images]) == 6
    shutil.move("away", checkpoint / "normalize.safetensors")
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(b"\0" * 30)
    assert main(["evaluate", "runs/1", images]) == 6
    (checkpoint / "model.safetensors").write_bytes(whole)
    Path("runs/1/config.json").write_text("{}")
    assert main(["evaluate", "runs/1", images]) == 6
    assert "config.json: is not complete" in capsys.readouterr().err


def test_a_taken_run_folder_is_refused(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [stored / "images.zarr", "--model", "linear", "--epochs", 0, "--out", "mine"]
    train_json(capsys, *args)
    assert main(["train", *map(str, args)]) == 2
    assert "mine: the run folder is taken" in capsys.readouterr().err


def test_a_stopped_run_goes_on_and_says_where(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [stored / "images.zarr", "--model", "mlp:8", "--batch-size", 50, "--threads", 1, "--resume"]
    whole = train_json(capsys, *args, "--epochs", 3, "--out", "whole")
    assert whole["resumed_from_batch"] == 0
    first = train_json(capsys, *args, "--epochs", 1, "--out", "parts", "--checkpoint-every", 2)
    again = train_json(capsys, *args, "--epochs", 3, "--out", "parts", "--memory", "300MB")
    assert again["resumed_from_batch"] * 50 >= first["samples"]
    assert {name: again[name] for name in ("steps", "samples", "loss", "accuracy")} == {
        name: whole[name] for name in ("steps", "samples", "loss", "accuracy")
    }
    a, b = weights(Path("whole")), weights(Path("parts"))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    done = train_json(capsys, *args, "--epochs", 3, "--out", "parts")
    assert (done["loss"], done["accuracy"], done["epochs"]) == (whole["loss"], whole["accuracy"], [])
    assert main(["train", *map(str, args), "--epochs", "3", "--out", "parts"]) == 0
    assert "parts: resumes after batch" in capsys.readouterr().err


def test_what_resume_refuses(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", f"{stored}/images.zarr", "--model", "mlp:8", "--epochs", "1", "--resume"]
    assert main(args) == 2
    assert "--resume without --out. Fix: --out RUN" in capsys.readouterr().err
    assert main([*args, "--out", "a"]) == 0
    assert "a: no checkpoint; starts afresh" in capsys.readouterr().err
    for other in (["--batch-size", "32"], ["--seed", "1"], ["--optimizer", "sgd"], ["--model", "mlp:9"]):
        assert main([*args, "--out", "a", *other]) == 6
        assert " there, " in capsys.readouterr().err
    assert main([*args, "--out", str(stored)]) == 2
    assert "the run folder is taken" in capsys.readouterr().err
