"""``train`` before and after the steps: a dry run, crowded cores, raw files, the next commands."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.cli.preparation.threads import CoreWatch, CpuReading, crowded, read_cpu

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N = 90
SMALL = ["--batch-size", "8", "--memory", "16MB"]


@pytest.fixture
def stored(in_own_folder: Path) -> str:
    draw = np.random.default_rng(0)
    source = {"x": draw.normal(size=(N, 2, 3)).astype(np.float32), "y": np.arange(N) % 3}
    st.ingest(source, "d", progress=False)
    return "d"


def everything() -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in Path().rglob("*")}


@pytest.mark.parametrize(
    ("rule", "n_steps"), [("batch", 12), ("sample", N), ("epoch", 1)], ids=["batch", "sample", "epoch"]
)
def test_a_dry_run_tells_what_a_training_takes_and_leaves_nothing(
    stored: str, rule: str, n_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything()
    words = ["train", stored, *SMALL, "--model", "mlp:5", "--update", rule, "--epochs", "3", "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "model   mlp:5, 53 weights, cross_entropy\n" in out
    assert [line.split()[1:] for line in out.splitlines() if line.startswith(("1 ", "3 "))] == [
        ["Linear", "5", "35"],
        ["Linear", "3", "18"],
    ]
    assert f"steps      {n_steps:,} an epoch, {3 * n_steps:,} in 3 epochs\n" in out
    assert "time       10 batches in " in out
    assert out.endswith("dry run: nothing was trained or written\n")
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == sum(layer["weights"] for layer in found["layers"]) == 53
    assert found["memory"]["model"] == 4 * 53 * 4, "weights, gradients, two of adam's"
    assert found["steps_per_epoch"] == n_steps
    assert 0 < found["timed_seconds"] <= found["seconds_per_epoch"]
    assert found["seconds"] == 3 * found["seconds_per_epoch"]
    assert everything() == before


def test_a_dry_run_and_a_refusal_name_the_same_memory(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", stored, "--model", "mlp:5", "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert main([*words, "--max-memory", "50MB"]) == 5
    err = capsys.readouterr().err
    [model] = re.findall(r"^model +([\d.]+ .?B): weights, gradients and the optimizer's state$", out, re.M)
    assert f" + model {model} (weights, gradients and the optimizer's state) + one step " in err
    # What a process holds varies a little from one look to the next.
    held = [float(size) for text in (out, err) for size in re.findall(r"libraries +([\d.]+) MB", text)]
    assert held == [pytest.approx(held[0], rel=0.1)] * 2
    assert re.search(r"(?m)^allocators [\d.]+ MB that they may keep", out)


def test_a_dry_run_refuses_what_a_training_would(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything()
    assert main(["train", stored, "--model", "linear", "--memory", "1KB", "--dry-run"]) == 5
    assert main(["train", stored, "--model", "linear", "--loss", "mse", "--task", "classification", "--dry-run"]) == 2
    assert main(["train", stored, "--model", "lineal", "--dry-run"]) == 2
    assert everything() == before


def test_the_last_lines_are_commands_that_work(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", stored, *SMALL, "--model", "linear", "--epochs", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "run     runs/1"
    hint, *commands = [line.removeprefix("next").split() for line in err.splitlines()]
    assert [words[1] for words in commands] == ["evaluate", "predict", "report"]
    for words in commands:
        assert main(words[1:]) == 0
    assert Path("predictions.csv").is_file()
    assert " ".join(hint).startswith("hint: there is no validation data")
    assert hint[-2:] == ["--split", "val=0.1"]
    config = json.loads(Path("runs/1/config.json").read_text())
    assert config["threads"] == 1
    capsys.readouterr()
    assert main(["train", stored, *SMALL, "--model", "linear", "--epochs", "1", "--val", "none"]) == 0
    assert "hint" not in capsys.readouterr().err, "who says none knows"


def test_info_of_a_run(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", stored, *SMALL, "--model", "linear", "--epochs", "2", "--val", stored, "--out", "r"]) == 0
    capsys.readouterr()
    assert main(["info", "r"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["run"] == "r: not running, 2 epochs"
    assert lines["task"] == "classification of y"
    assert lines["model"] == "linear, 21 weights, cross_entropy"
    assert lines["data"] == "d: 90 samples"
    assert lines["best"].startswith("epoch 2 of 2: val_loss ")
    assert lines["last"].startswith("2 epochs: loss ")
    assert lines["saved"] == "00000012, 00000024"
    assert lines["resume"].startswith("the command that trained it, with --out r --resume")
    assert main(["info", "r", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["best"]["epoch"], found["epochs"], found["damaged"]) == (2, 2, [])
    Path("r/config.json").write_text("{")
    assert main(["info", "r"]) == 6


def test_info_of_a_run_that_ended_inside_its_first_epoch(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", stored, *SMALL, "--model", "linear", "--epochs", "2", "--checkpoint-every", "1", "--out", "r"]
    assert main(train) == 0
    later = sorted(Path("r/checkpoints").iterdir())
    # As kill -9 leaves it, before a line was written.
    Path("r/metrics.jsonl").write_text("")
    Path("r/memory.json").unlink()
    capsys.readouterr()
    assert main(["info", "r"]) == 0
    told = capsys.readouterr().out
    assert f"r: interrupted in epoch 1, saved after {int(later[-1].name)} batches, 0 epochs" in told
    assert "with --out r --resume" in told
    assert main(["report", "r"]) == 0
    shutil.rmtree("r/checkpoints")
    capsys.readouterr()
    assert main(["info", "r"]) == 0
    told = capsys.readouterr().out
    assert "interrupted in epoch 1, nothing was saved" in told
    assert "streamtrain evaluate" not in told, "there is nothing to evaluate"


def test_info_of_a_run_whose_dataset_has_moved(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", stored, *SMALL, "--model", "linear", "--epochs", "1", "--out", "r"]) == 0
    Path(stored).rename("moved")
    capsys.readouterr()
    assert main(["info", "r"]) == 0
    assert f"next     its dataset is not at {stored} now" in capsys.readouterr().out


def test_info_of_a_run_of_a_comparison(stored: str, capsys: pytest.CaptureFixture[str]) -> None:
    compare = ["compare", stored, *SMALL, "--model", "linear", "--epochs", "1", "--out", "c"]
    assert main([*compare, "--rules", "batch", "--optimizers", "adam"]) == 0
    (run,) = [path.parent for path in Path("c").glob("*/config.json")]
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    assert "resume   the streamtrain compare that trained it, with --out c --resume" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["train", "--model", "linear"], ["info"], ["plan"], ["compare"]])
def test_a_raw_file_is_refused_with_the_command_that_ingests_it(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my flights.csv").write_text("a,b,delay\n1,2,0\n3,4,1\n")
    np.save("x.npy", np.zeros((3, 2)))
    assert main([command[0], "my flights.csv", *command[1:]]) == 2
    fix = "streamtrain ingest 'my flights.csv' 'my flights' --auto --label-column NAME."
    assert f"my flights.csv: is a raw file, not a dataset. Fix: {fix}" in capsys.readouterr().err
    assert main([command[0], "x.npy", *command[1:]]) == 2
    assert "Fix: streamtrain ingest x.npy x." in capsys.readouterr().err


def reading(seconds: float, busy: float, own: float, n_cores: int = 2) -> CpuReading:
    return CpuReading(seconds=seconds, busy_seconds=busy, own_seconds=own, n_cores=n_cores)


CROWDED = [(2, 2, 1.6), (2, 2, 0.8), (2, 2, 2.0), (4, 4, 1.0), (4, 4, 3.5), (4, 3, 2.0), (8, 8, 2.0), (8, 4, 6.0)]
CROWDED += [(16, 16, 4.0), (64, 64, 30.0)]
FREE = [(2, 1, 1.6), (2, 2, 0.0), (2, 2, 0.3), (4, 4, 0.6), (4, 2, 2.0), (8, 8, 0.9), (8, 4, 3.0), (16, 8, 8.0)]
FREE += [(64, 64, 2.0), (64, 2, 40.0)]


@pytest.mark.parametrize(("n_cores", "n_threads", "others"), CROWDED)
def test_other_programs_that_take_the_cores_are_told(n_cores: int, n_threads: int, others: float) -> None:
    now = reading(12.0, 100 + 2 * (others + 1.5), 7 + 3.0, n_cores)
    told = crowded(reading(10.0, 100, 7, n_cores), now, n_threads)
    assert told == (
        f"other programs use {others:.1f} of {n_cores} cores, and torch's threads wait for one another: "
        "--threads 1 may be several times faster"
    )


@pytest.mark.parametrize(("n_cores", "n_threads", "others"), FREE)
def test_of_cores_that_are_free_nothing_is_told(n_cores: int, n_threads: int, others: float) -> None:
    now = reading(12.0, 100 + 2 * (others + 1.5), 7 + 3.0, n_cores)
    assert crowded(reading(10.0, 100, 7, n_cores), now, n_threads) is None


def test_the_cores_are_looked_at_until_they_are_told_of_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    times = [(0.0, 0.0, 0.0), (0.5, 1.0, 0.0), (2.0, 2.1, 2.0), (4.0, 6.1, 2.5), (9.0, 16.0, 3.0)]
    watch = CoreWatch(iter([reading(*each) for each in times]).__next__)
    for _ in times:
        watch.look()
    assert capsys.readouterr().err.count("hint: other programs use 1.7 of 2 cores") == 1


def test_the_clocks_are_those_of_the_cores_that_may_be_used() -> None:
    before, now = read_cpu(), read_cpu()
    assert now.n_cores == len(os.sched_getaffinity(0))
    assert now.seconds >= before.seconds
    assert now.busy_seconds >= before.busy_seconds > 0
