"""The report of a run: whole, escaped, looked at in a browser, and refused where the folder is damaged."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.diagnostics.charts import LineChart
from streamtrain.diagnostics.run.configuration import configuration
from streamtrain.diagnostics.run.curves import _charts
from streamtrain.diagnostics.run_reader import read_run
from streamtrain.diagnostics.run_report import _sampled_histogram, run_page, write_report
from streamtrain.errors import CheckpointError
from streamtrain.training.best.chosen_checkpoint import ChosenCheckpoint
from streamtrain.training.best.monitor import BestEpoch
from streamtrain.training.run.checkpoint import Checkpoint

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAYLOAD = "</title><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels with hostile names."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 4))
    x[np.arange(300), y] += 2
    names = ["shirt", PAYLOAD, "shoe & sock"]
    with (folder / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["a", "b", "c", "d", "label"], *([*row, names[i]] for row, i in zip(x, y, strict=True))]
        )
    st.ingest(folder / "d.csv", folder / "d.zarr", label_column="label", progress=False)
    return folder / "d.zarr"


@pytest.fixture(scope="module")
def trained(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs by the command, with validation."""
    run = tmp_path_factory.mktemp("runs") / "a"
    before = torch.get_num_threads()
    args = ["train", stored, "--model", "linear", "--epochs", "2", "--batch-size", "20", "--memory", "16MB"]
    args += ["--val", stored, "--log-every", "4", "--threads", "1", "--json", "--out", run]
    try:
        assert main(list(map(str, args))) == 0
    finally:
        torch.set_num_threads(before)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed at will."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_report_has_all_its_parts(run: Path) -> None:
    file, told = write_report(run)
    text = file.read_text()
    assert file == run / "report.html"
    assert (len(told.epochs), len(told.batches)) == (2, 7)
    for part in ("Curves", "Memory", "Where the time went", "Shuffle", "Dataset", "Configuration"):
        assert f"<h2>{part}</h2>" in text, part
    for fact in ("validation", "16.0 MB", "waiting", "times a full reshuffle", "Samples by label", "optimizer.lr"):
        assert fact in text, fact
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"]*", text)) == names, "of the drawings' elements; nothing is loaded"


def test_the_configuration_is_what_was_chosen_and_the_rest_is_folded(run: Path) -> None:
    chosen, rest = configuration(json.loads((run / "config.json").read_text()))
    names = {name for name, _ in chosen}
    assert {"model", "optimizer.name", "optimizer.lr", "batch_size", "memory", "loss"} <= names
    assert not names & {
        "optimizer.betas",
        "optimizer.eps",
        "n_samples",
        "seed",
        "shuffle",
        "inputs",
        "weight",
        "compile",
    }
    assert {"optimizer.betas", "n_samples", "seed", "lanes"} <= {name for name, _ in rest}
    text = write_report(run)[0].read_text()
    shown, folded = text.split("<h2>Configuration</h2>")[1].split("<details>")
    assert "<td>batch_size</td><td>20</td>" in shown
    assert "<td>optimizer.betas</td>" in folded.split("</details>")[0]


@pytest.mark.parametrize("name", ["Adam", "NoOptimizer", "__doc__", "Optimizer", ["Adam"], None])
def test_an_optimizer_without_known_defaults_has_a_configuration(name: object) -> None:
    chosen, rest = configuration({"optimizer": {"name": name, "lr": 1.0, "eps": 1e-08}, "batch_size": 256, "seed": 1})
    assert ("seed", "1") in chosen
    assert ("batch_size", "256") in rest
    assert (("optimizer.eps", "1e-08") in rest) == (name == "Adam")


def test_what_a_run_took_is_kept_beside_it(run: Path) -> None:
    memory = read_run(run).memory
    assert memory["budget"] == 16_000_000
    assert 0 < memory["projected"] <= memory["budget"]
    assert (
        sum(memory["terms"]["training"].values()) + sum(memory["terms"]["validation"].values()) == memory["projected"]
    )


def test_names_from_data_and_configuration_are_escaped(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config |= {"model": PAYLOAD, PAYLOAD: PAYLOAD, "optimizer": {"name": PAYLOAD, PAYLOAD: 1}, "update": PAYLOAD}
    (run / "config.json").write_text(json.dumps(config))
    file, _ = write_report(run)
    text = file.read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;") > 6
    (run / "config.json").write_text(json.dumps(config | {"dataset": PAYLOAD, "batch_size": [PAYLOAD], "seed": "x"}))
    assert "<script" not in run_page(read_run(run))


@pytest.mark.parametrize(
    "odd", [{"versions": [PAYLOAD]}, {"command": [PAYLOAD], "fit": PAYLOAD}, {"fit": {PAYLOAD: PAYLOAD}}]
)
def test_odd_versions_and_commands_have_a_page(run: Path, odd: dict[str, object]) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["command"]
    (run / "config.json").write_text(json.dumps(config | odd))
    page = run_page(read_run(run))
    assert "<script" not in page
    assert "<h2>How to repeat it</h2>" in page or "versions" in odd


def test_a_report_does_without_the_dataset(run: Path, stored: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dataset": str(tmp_path / "gone.zarr")}))
    told = read_run(run)
    assert "Not known: " in run_page(told)
    assert "Samples by label" in run_page(told, dataset=stored), "it may lie elsewhere"
    (run / "config.json").write_text(json.dumps(config | {"dataset_id": "other"}))
    assert "another one than the run was trained on" in run_page(read_run(run))


@pytest.mark.parametrize("harm", ["gone", "damaged", "a file", "no path"])
def test_a_report_without_its_dataset_says_so(
    run: Path, stored: Path, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(stored, tmp_path / "copy.zarr"))
    if harm == "gone":
        shutil.rmtree(place)
    elif harm == "damaged":
        (place / "zarr.json").write_text("{")
    elif harm == "a file":
        place = place / "zarr.json"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dataset": [1] if harm == "no path" else str(place)}))
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr().err
    assert told.startswith("warning: the report is without the shuffle and the dataset: ")
    assert "Fix: --dataset where it lies now" in told
    assert main(["report", str(run), "--dataset", str(stored)]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_run_that_was_stopped_early_has_a_report(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    (run / "memory.json").unlink()
    page = run_page(read_run(run))
    assert "none finished" in page
    assert "the run did not finish" in page


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "metrics.jsonl: is missing"),
        (b"", "metrics.jsonl: the file is empty"),
        (b'{"kind": "epoch"', "metrics.jsonl:1: is damaged"),
        (b'{"kind": "epoch", "loss": "<b>"}\n', "metrics.jsonl:1: is damaged: loss is '<b>'"),
        (b"[1]\n", "metrics.jsonl:1: is damaged: no line of metrics"),
        (b'{"kind": "epoch", "loss": 1}\n\x00\n', "metrics.jsonl:2: is damaged"),
        (b"\xff\xfe", "metrics.jsonl: cannot be read"),
        (b"[" * 100_000, "metrics.jsonl:1: is damaged"),
    ],
    ids=["missing", "empty", "cut", "text", "list", "zeros", "bytes", "deep"],
)
def test_damaged_metrics_are_refused(
    run: Path, damage: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.jsonl").unlink()
    if damage is not None:
        (run / "metrics.jsonl").write_bytes(damage)
    assert main(["report", str(run)]) == CheckpointError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", ["[]", '{"budget": "<b>"}', '{"terms": {"a": {"b": -1}}}', "{"])
def test_damaged_memory_is_refused(run: Path, text: str) -> None:
    (run / "memory.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"memory\.json"):
        read_run(run)


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["report"] == str(run / "report.html")
    assert (result["epochs"], result["last"]["epoch"]) == (2, 2)
    assert main(["report", str(run), "--out", str(tmp_path / "elsewhere" / "r.html")]) == 0
    assert (tmp_path / "elsewhere" / "r.html").exists()
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 6
    assert f"no run: config.json is missing. Fix: give {run}" in capsys.readouterr().err


def write_lines(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def charts_of(run: Path) -> list[LineChart]:
    return [chart for chart in _charts(read_run(run), "arr_delay", None) if chart.has_a_line]


def test_curves_are_over_epochs_from_1_and_say_what_is_drawn(run: Path) -> None:
    text = write_report(run)[0].read_text()
    for title in ("Training and validation loss of label", "Training and validation accuracy of label"):
        assert f"<h3>{title}</h3>" in text
    loss, accuracy, speed = charts_of(run)
    assert [curve.label for curve in loss.curves] == ["training, inside an epoch", "training", "validation"]
    inside, training, validation = (dict(curve.points) for curve in loss.curves)
    assert list(training) == list(validation) == [1, 2]
    assert all(0 < at <= 2 for at in inside)
    assert inside.keys() - {1, 2} == inside.keys(), "none of them at the end of an epoch"
    assert [axis.x.label for axis in (loss, accuracy, speed)] == ["epoch"] * 3


@pytest.mark.parametrize("is_whole", [True, False], ids=["one epoch", "cut short"])
def test_a_run_of_one_epoch_has_no_empty_chart(run: Path, is_whole: bool) -> None:
    line = {"kind": "epoch", "epoch": 1, "steps": 3, "samples": 60, "loss": 0.5, "val_loss": 0.4, "seconds": 1.0}
    write_lines(run, [line | ({} if is_whole else {"partial": True})])
    assert charts_of(run) == []
    text = write_report(run)[0].read_text()
    assert "<h2>Curves</h2>" not in text
    assert "nothing to show" not in text


def test_a_line_search_is_one_point_a_step_and_its_trials_are_ticks(run: Path) -> None:
    taken = [{"kind": "epoch", "epoch": i, "steps": i, "samples": 300 * i, "loss": 10.0 / i**2} for i in (1, 2, 4)]
    trial = {"kind": "epoch", "epoch": 3, "steps": 2, "samples": 900, "loss": 2.5, "trial_loss": 77.0}
    write_lines(run, [*taken[:2], trial, taken[2]])
    (loss,) = charts_of(run)
    assert [curve.points for curve in loss.curves] == [[(1, 10.0), (2, 2.5), (4, 0.625)]]
    assert loss.ticks == {"trial of a line search": [3]}
    assert loss.y.is_log, "it spans a decade"
    assert loss.x.label == "pass over the data"
    assert "trial of a line search" in run_page(read_run(run))


def test_classes_and_their_confusion_are_tables(run: Path) -> None:
    text = write_report(run)[0].read_text()
    scores = json.loads((run / "scores.json").read_text())
    assert "<h2>Scores by class on the validation data, epoch 2</h2>" in text
    assert re.search(r"<td>baseline</td><td>accuracy 0\.\d{4} by always answering ", text)
    assert "<h2>Confusion on the validation data, epoch 2</h2>" in text
    row = scores["confusion"][0]
    assert f'title="{row[0]} of {sum(row)} ' in text.replace(".0 of", " of").replace(".0 ", " ")
    assert "shoe &amp; sock" in text


def test_errors_of_a_regression_are_bars(run: Path) -> None:
    errors = {"edges": [float(edge) for edge in range(-11, 12)], "counts": [1.0] * 22}
    (run / "scores.json").write_text(json.dumps({"epoch": 2, "measured_on": "val", "errors": [errors]}))
    text = run_page(read_run(run))
    assert "<h3>Errors of label by their size</h3>" in text
    assert "-2 to 0" in text, "two bins are one, and zero is an edge"


def test_the_scores_shown_are_those_of_the_best_epoch(run: Path) -> None:
    kept = [{"epoch": i, "batches": 30 * i, "measured_on": "val", "classes": [{"class": "a", "f1": i}]} for i in (1, 2)]
    (run / "scores.json").write_text(json.dumps(kept[1] | {"best": kept[0]}))
    checkpoint = Checkpoint(path=run / "a", state={"counts": {"n_epochs": 1}})
    best = BestEpoch(epoch=1, step=30, n_batches=30, monitor="val_loss", value=0.5)
    chosen = ChosenCheckpoint(checkpoint=checkpoint, is_last=False, is_best=True, best=best, last=checkpoint)
    assert "Scores by class on the validation data, epoch 1</h2>" in write_report(run, chosen=chosen)[0].read_text()
    assert "Scores by class on the validation data, epoch 2</h2>" in write_report(run)[0].read_text()


def test_quantities_are_in_bins_and_a_table_has_its_columns_apart(tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{1000 + i},{i % 60 - 20}\n" for i in range(300))
    (tmp_path / "d.csv").write_text(f"hour,distance,delay\n{rows}")
    data = st.ingest(tmp_path / "d.csv", tmp_path / "d.zarr", label_column="delay", task="regression")
    with st.StreamLoader(data, batch_size=50, memory="16MB") as loader:
        trainer = st.Trainer("linear", normalize="auto", device="cpu")
        trainer.fit(loader, max_epochs=2, checkpoint=tmp_path / "run", progress=False)
    told = read_run(tmp_path / "run")
    text = run_page(told)
    assert "<h3>Samples by delay</h3>" in text, "a run of Python knows its data, too"
    assert "-20 to -16.3" in text
    assert re.search(r"<td>x</td><td>\w+</td><td>\(2,\)</td>(<td></td>){4}<td>0</td>", text)
    assert "<td>distance</td><td>x</td><td>0</td><td>1150</td>" in text
    assert told.config["lanes"] > 0


def test_a_regression_has_predictions_by_what_was_true_its_labels_in_bins_and_its_calls(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {"x": rng.normal(size=(400, 2)).astype("float32"), "y": rng.normal(1e5, 2e4, 400)}
    data = st.ingest(rows, tmp_path / "d.zarr")
    trainer = st.Trainer("linear", optimizer="sgd", lr=0.05, normalize_target="auto", device="cpu")
    how: dict[str, Any] = {"batch_size": 50, "seed": 3, "memory": "16MB"}
    trainer.fit(data, max_epochs=2, patience=4, val=data, checkpoint=tmp_path / "run", progress=False, **how)
    text = run_page(read_run(tmp_path / "run"))
    assert "<h3>Predicted y by what was true</h3>" in text
    assert "<h2>Largest losses on the validation data, epoch 2</h2>" in text
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    first = scores["mistakes"][0]
    assert first["true"] == rows["y"][first["row"]]
    assert f"<tr><td>{first['row']}</td><td>{first['true']:,.1f}</td><td>{first['predicted']:,.1f}</td>" in text
    assert sum(count for _, _, count in scores["pairs"][0]["cells"]) == 400
    assert "<h3>Samples by y</h3>" in text, "fractions have no counts of each, and are in bins all the same"
    shares = re.search(r'aria-label="Samples by y: ([^"]*)"', text)
    assert shares is not None
    assert sum(float(share) for share in re.findall(r"([\d.]+)%", shares[1])) > 85, "of twelve of sixteen bins"
    calls = text.partition("<h2>How to repeat it</h2>")[2].partition("<pre>")[2].partition("</pre>")[0]
    told = "&#39;linear&#39;, loss=&#39;mse&#39;, optimizer=&#39;sgd&#39;, lr=0.05, normalize_target=&#39;auto&#39;"
    assert f"trainer = st.Trainer({told})" in calls
    assert "batch_size=50, seed=3, memory=" in calls
    assert calls.strip().endswith("trainer.fit(loader, max_epochs=2, monitor=&#39;val_loss&#39;, patience=4)")
    assert len(text) < 120_000


def test_labels_of_many_blocks_are_sampled_and_the_page_says_so(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=(3000, 2))
    data = st.ingest({"x": np.zeros((3000, 1)), "y": y}, tmp_path / "d.zarr", block=80)
    drawings, notes = _sampled_histogram(data, "y")
    assert [drawing.title for drawing in drawings] == ["Samples by y", "Samples by y"]
    n_read = re.fullmatch(r"The bins are of ([\d,]+) samples, in 64 of the ([\d,]+) blocks\.", notes[0])
    assert n_read is not None
    assert int(n_read[2].replace(",", "")) == data.layout.n_blocks > 64
    assert int(n_read[1].replace(",", "")) == 64 * data.layout.block_rows


def test_a_run_of_two_classes_has_its_roc_curve_and_the_command_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = rng.normal(size=(300, 2)) + y[:, None]
    st.ingest({"x": x, "y": y}, tmp_path / "d.zarr")
    monkeypatch.chdir(tmp_path)
    args = ["train", "d.zarr", "--val", "d.zarr", "--model", "linear", "--epochs", "1", "--json"]
    assert main([*args, "--out", "a b"]) == 0
    text = run_page(read_run(tmp_path / "a b"))
    auc = json.loads((tmp_path / "a b" / "scores.json").read_text())["auc"]
    assert f"auc {auc:.4f}</text>" in text
    assert "From the scores of all samples: every point that is drawn is exact." in text
    again = "streamtrain train d.zarr --val d.zarr --model linear --epochs 1"
    assert f"<pre>{again}</pre>" in text
    assert f"<td>torch</td><td>{torch.__version__}</td>" in text
    assert main(shlex.split(again)[1:]) == 0, "pasted, it runs"
    scores = json.loads((tmp_path / "a b" / "scores.json").read_text())
    binned = scores | {"auc_bound": 3e-6, "roc": scores["roc"] | {"exact": False}}
    (tmp_path / "a b" / "scores.json").write_text(json.dumps(binned))
    assert "from 1,048,576 bins of them. The area is wrong by at most 3e-06." in run_page(read_run(tmp_path / "a b"))


def test_a_legend_names_no_curve_that_is_a_point(run: Path) -> None:
    epochs = [{"kind": "epoch", "epoch": i, "samples": 300 * i, "loss": 1 / i, "val_loss": 1 / i} for i in (1, 2)]
    write_lines(run, [{"kind": "batch", "steps": 5, "samples": 100, "loss": 2.0}, *epochs])
    assert [curve.label for curve in charts_of(run)[0].curves] == ["training", "validation"]


@pytest.mark.parametrize(
    "scores",
    [
        "[]",
        '{"best": {"errors": "x"}}',
        "{",
        '{"classes": 3}',
        '{"confusion": [["<b>"]]}',
        '{"errors": "x"}',
        '{"classes": [[[]]]}',
    ],
)
def test_damaged_scores_are_refused(run: Path, scores: str) -> None:
    (run / "scores.json").write_text(scores)
    with pytest.raises(CheckpointError, match=r"scores\.json"):
        read_run(run)


@pytest.mark.parametrize(
    "scores",
    [
        {"classes": [{"class": PAYLOAD, "f1": None}, {"class": 1}], "confusion": [[1, 2], [3]], "epoch": PAYLOAD},
        {"errors": [{"edges": [1], "counts": [1]}, {"edges": [0, 1e308], "counts": ["x"]}, [1]], "task": PAYLOAD},
        {"errors": [{"edges": [0, 0] * 20, "counts": [0] * 39}], "targets": [{PAYLOAD: 1}, {}], "labels": [{}, [1]]},
        {"confusion": [[0, 0], [0, 0]], "measured_on": [PAYLOAD]},
        {"roc": {"exact": PAYLOAD, "false_positive_rate": [0, 1, 2], "true_positive_rate": [0, "x"]}, "auc": PAYLOAD},
        {"roc": [PAYLOAD], "pairs": [{}, {"low": 0.0, "width": 1.0, "bins": 10**9, "cells": [[0, 0, 1]]}]},
        {"pairs": [{"low": 1e308, "width": 1e308, "bins": 40, "cells": [[0, 0, 1]]}, {"low": PAYLOAD}]},
        {"pairs": [{"low": 0.0, "width": 1.0, "bins": 3, "cells": [[0, 0, 1], [9, 0, 1], [-1, 0, 1], ["x"], 3]}]},
        {"mistakes": [{"row": PAYLOAD, "true": [PAYLOAD, 10**400], "loss": None}, {}, {"row": 1, "predicted": []}]},
    ],
)
def test_odd_scores_have_a_page(run: Path, scores: dict[str, object]) -> None:
    (run / "scores.json").write_text(json.dumps(scores))
    page = run_page(read_run(run))
    assert "<script" not in page
    assert "<h2>Epochs</h2>" in page


def test_a_page_is_for_light_and_dark_screens_and_for_paper(run: Path) -> None:
    text = write_report(run)[0].read_text()
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "@media print" in text
    levels = [int(level) for level in re.findall(r"<h([1-6])>", text)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels)), "no level is skipped"
    assert text.count('role="img" aria-label="') == text.count("<svg")
    assert len(text) < 2_000_000
    widths = [float(width) for width in re.findall(r'<svg[^>]*viewBox="0 0 ([\d.]+)', text)]
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", text.partition("<body>")[2])]
    assert min(sizes) * 376 / max(widths) >= 12, "where the page is 400 pixels wide"


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and decompressed rows of a PNG."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(png):
        n = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + n]
        at += 12 + n
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24]), zlib.decompress(data)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the pages were NOT looked at in a browser")
def test_in_a_browser_the_report_is_seen_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"model": PAYLOAD, PAYLOAD: PAYLOAD}))
    file, _ = write_report(run)
    assert CHROMIUM is not None
    shot = tmp_path / "report.png"
    common = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    common += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1600"]
    for more in (["--dump-dom"], [f"--screenshot={shot}"]):
        done = subprocess.run([*common, *more, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)
        if "--dump-dom" in more:
            assert "<h2>Curves</h2>" in done.stdout
            title = done.stdout.split("<title>")[1].split("</title>")[0]
            assert "owned" not in title.replace("document.title='owned'", "")
            assert "<script" not in done.stdout
    width, height, rows = pixels(shot.read_bytes())
    assert (width, height) == (1200, 1600)
    assert len(set(rows)) > 100, "the picture has many colours: something was drawn"
