"""Predictions on the command line and in Python: of one run the same, whatever the data comes as."""

from __future__ import annotations

import csv
import json
import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from forked_python import run_forked
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.models.factory import build_model

pytestmark = pytest.mark.usefixtures("one_thread")
N = 300
SMALL = ["--epochs", "2", "--memory", "16MB", "--batch-size", "20", "--threads", "1"]


def table(n: int = N, seed: int = 0) -> str:
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        a, c = draw.gauss(0, 1), draw.choice(["u", "v", "w", ""])
        b = draw.choice(["", f"{draw.gauss(5, 2):.3f}"])
        rows.append(f"{a:.4f},{b},{c},{'yes' if a > 0 else 'no'},2020-01-{draw.randint(1, 28):02}")
    return "\n".join(["a,b,c,y,t", *rows]) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, its dataset and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "t.csv").write_text(table())
    words = ["--label-column", "y", "--categorical", "c", "--dates", "t=days", "--na", "fill=mean", "--na-mask"]
    assert main(["ingest", str(folder / "t.csv"), str(folder / "t.zarr"), *words]) == 0
    assert main(["train", str(folder / "t.zarr"), "--model", "mlp:8", "--out", str(folder / "run"), *SMALL]) == 0
    (folder / "new.csv").write_text(table(70, seed=1))
    assert main(["ingest", str(folder / "new.csv"), str(folder / "new.zarr"), "--like", str(folder / "t.zarr")]) == 0
    return folder


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head, rows


def probabilities_in(path: Path) -> Any:
    head, rows = read_csv(path)
    places = [number for number, name in enumerate(head) if name.startswith("p_")]
    return np.array([[row[place] for place in places] for row in rows], float)


def test_one_run_four_ways(trained: Path, tmp_path: Path) -> None:
    run, out = str(trained / "run"), [str(tmp_path / name) for name in ("raw.csv", "stored.csv")]
    for source, path in zip(("new.csv", "new.zarr"), out, strict=True):
        assert main(["predict", run, str(trained / source), "--out", path, "--probabilities"]) == 0
    assert Path(out[0]).read_bytes() == Path(out[1]).read_bytes()
    told = probabilities_in(Path(out[0]))
    code = (
        "import sys, torch, streamtrain as st\n"
        f"model = st.load({run!r}, device='cpu')\n"
        f"rows = st.open({str(trained / 'new.zarr')!r})[:]\n"
        "x = [torch.from_numpy(rows[name]) for name in model.inputs]\n"
        "print(torch.softmax(model(*x), 1).tolist())"
    )
    fresh = run_forked(["-c", code], cwd=tmp_path)
    assert fresh.returncode == 0, fresh.stderr
    assert np.abs(np.array(json.loads(fresh.stdout)) - told).max() <= 1e-6
    assert main(["export", run, "--out", str(tmp_path / "m.safetensors")]) == 0
    assert np.abs(by_plain_torch(tmp_path / "m.safetensors", st.open(trained / "new.zarr")[:]) - told).max() <= 1e-6


def by_plain_torch(file: Path, rows: Any) -> Any:
    """The probabilities of the exported weights, by torch alone."""
    found = safetensors.torch.load_file(file)
    mean, std = found["normalize.x.mean"], found["normalize.x.std"]
    x = ((torch.from_numpy(rows["x"]).to(mean.dtype) - mean) / std).float()
    weights = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
    embedded = torch.nn.functional.embedding(
        torch.from_numpy(rows["cat"])[:, 0], weights["embeddings.columns.0.weight"]
    )
    whole = torch.cat([x, torch.from_numpy(rows["x_missing"]).float(), embedded], 1)
    hidden = torch.relu(whole @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    return torch.softmax(hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"], 1).numpy()


def test_an_exported_file_says_what_it_is(trained: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained / "run"), "--out", str(tmp_path / "m.safetensors")]) == 0
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert metadata["task"] == "classification"
    assert json.loads(metadata["schema"])["columns"]["x"] == ["a", "b", "t"]
    assert json.loads(metadata["streamtrain"])["classes"] == ["no", "yes"]
    assert {name.partition(".")[0] for name in names} == {"model", "normalize"}


@pytest.mark.parametrize("seed", range(8))
def test_permuted_columns_and_further_ones_change_no_bit(trained: Path, tmp_path: Path, seed: int) -> None:
    model = st.load(trained / "run", device="cpu")
    expected = model.predict(str(trained / "new.zarr"), probabilities=True)
    lines = [line.split(",") for line in (trained / "new.csv").read_text().splitlines()]
    lines = [[*line, "further" if not number else str(number)] for number, line in enumerate(lines)]
    order = list(range(6))
    random.Random(seed).shuffle(order)
    if seed % 2:
        order.remove(3)  # no label
    (tmp_path / "p.csv").write_text("\n".join(",".join(line[place] for place in order) for line in lines) + "\n")
    told: list[str] = []
    found = model.predict(st.rows(tmp_path / "p.csv", like=model, say=told.append), probabilities=True)
    assert np.array_equal(found, expected)
    assert len(told) == 1
    assert told[0].endswith("'further'")


def test_a_stored_dataset_of_other_order_is_put_in_order(tmp_path: Path) -> None:
    text = "a,b,y\n" + "".join(f"{n},{n * n % 7},{'no' if n % 2 else 'yes'}\n" for n in range(40))
    lines = [line.split(",") for line in text.splitlines()]
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "p.csv").write_text("\n".join(f"{b},9,{y},{a}" if a != "a" else "b,z,y,a" for a, b, y in lines) + "\n")
    for name in "tp":
        st.ingest(tmp_path / f"{name}.csv", tmp_path / f"{name}.zarr", label_column="y", progress=False)
    assert main(["train", str(tmp_path / "t.zarr"), "--model", "linear", "--out", str(tmp_path / "run"), *SMALL]) == 0
    model = st.load(tmp_path / "run", device="cpu")
    expected = model.predict(tmp_path / "t.zarr", probabilities=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert np.array_equal(model.predict(tmp_path / "p.zarr", probabilities=True), expected)
    assert [str(each.message).partition(": ")[2][:7] for each in told] == ["the col", "ignored"]
    for source in ("t.zarr", "p.zarr", "t.csv", "p.csv"):
        assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / source), "--json"]) == 0


def test_evaluations_of_raw_files_are_those_of_the_dataset(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, named = [], []
    for source in ("new.csv", "new.zarr"):
        assert main(["evaluate", str(trained / "run"), str(trained / source), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        named.append(found["measured_on"])
        figures.append({name: value for name, value in found.items() if name not in ("dataset", "measured_on")})
    assert figures[0] == figures[1]
    assert named == ["new.csv", "test"]
    assert figures[0]["samples"] == 70


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("a,bb,c,t\n1,2,u,2020-01-01\n", 2, "'b' is 'bb' there"),
        ("a,b,b,c,t\n1,2,2,u,2020-01-01\n", 2, "twice"),
        ("a,b,c,t\n1,two,u,2020-01-01\n", 3, ":2: column 'b' holds 'two'"),
        ("a,b,c,t\n1,2,never,2020-01-01\n", 0, "column 'c': 1 value is 'other'"),
        ("a,b,c,t,y\n1,2,u,2020-01-01,maybe\n1,2,u,2020-01-01,maybe\n", 3, "2 in all: 'maybe'"),
        ("a,b,c,t,y\n1,2,u,2020-01-01,\n", 0, "weights of epoch 2"),
        ("a,b,c,t\n", 0, "weights of epoch 2"),
    ],
)
def test_raw_files_that_do_and_do_not_fit(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, says: str
) -> None:
    (tmp_path / "p.csv").write_text(text)
    out = tmp_path / "out.csv"
    assert main(["predict", str(trained / "run"), str(tmp_path / "p.csv"), "--out", str(out)]) == code
    assert says in capsys.readouterr().err
    assert out.exists() == (code == 0)
    if out.exists():
        head, rows = read_csv(out)
        assert head == ["row", "prediction", "probability"]
        assert len(rows) == len(text.splitlines()) - 1


def test_classes_numbered_otherwise_are_refused_with_the_command_that_mends_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--categorical", "c", "--dates", "t=days", "--na", "fill=mean", "--na-mask", "--classes", "yes,no"]
    (tmp_path / "p.csv").write_text((trained / "t.csv").read_text())
    source = [str(tmp_path / "p.csv"), str(tmp_path / "p.zarr"), "--label-column", "y"]
    assert main(["ingest", *source, *words]) == 0
    capsys.readouterr()
    assert main(["predict", str(trained / "run"), str(tmp_path / "p.zarr")]) == 2
    assert "--classes no,yes" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [(0, 10), (30, 55), (64, 70), (0, 70), (5, 5)])
def test_parts_by_rows_are_those_of_the_whole(trained: Path, rows: tuple[int, int]) -> None:
    model = st.load(trained / "run", device="cpu")
    options: dict[str, Any] = {"probabilities": True, "batch_size": 16}
    whole = model.predict(trained / "new.zarr", **options)
    stored = st.open(trained / "new.zarr")
    for data in (stored, stored[:], st.rows(trained / "new.csv", like=model, say=str)):
        assert np.array_equal(model.predict(data, rows=rows, **options), whole[slice(*rows)])
    parts = list(model.iter_predict(stored, rows=rows, batch_size=16))
    assert np.concatenate([part["row"] for part in parts]).tolist() == list(range(*rows))
    with pytest.raises(st.OutOfRange):
        model.predict(trained / "new.zarr", rows=(0, 71))
    with pytest.raises(st.OutOfRange):
        model.predict(st.rows(trained / "new.csv", like=model, say=str), rows=(0, 71))


def test_one_pass_keeps_no_block_for_the_next(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(trained / "run"), str(trained / "t.zarr"), "--memory", "64MB", "--json"]
    assert main([*words, "--out", str(trained / "once.npy")]) == 0
    terms = json.loads(capsys.readouterr().out)["memory"]["terms"]
    assert terms["prefetch"] > 0
    assert terms["cache"] == 0


def test_what_a_model_knows(trained: Path) -> None:
    model = st.load(trained / "run", device="cpu")
    assert isinstance(model, nn.Module)
    assert not model.training
    assert (model.task, model.classes, model.columns, model.targets) == (
        "classification",
        ("no", "yes"),
        ("a", "b", "t"),
        None,
    )
    assert model.best["epoch"] == 2
    assert model.config["labels"]["counts"] == st.open(trained / "t.zarr").label_histogram.counts.tolist()
    assert {type(part).__name__ for part in model.module.modules()} >= {"TableModel", "Linear"}


def test_a_run_needs_no_dataset(trained: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    model = st.load(tmp_path / "run", device="cpu")
    frame = pa.table({"t": ["2020-01-02"], "c": ["u"], "b": [1.5], "a": [0.5]})
    assert model.predict(st.rows(frame, like=model)).shape == (1,)


def test_the_first_ten_rows_and_the_line_that_keeps_all(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(trained / "new.csv")
    assert main(["predict", str(trained / "run"), source]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["row", "prediction", "probability"]
    assert [row.split()[0] for row in rows] == [str(n) for n in range(10)]
    assert last == f"all of them: streamtrain predict {trained / 'run'} {source} --out predictions.csv"
    assert main(["predict", str(trained / "run"), source, "--rows", "3:5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("as a file: streamtrain predict")
    assert main(["predict", str(trained / "run"), source, "--json", "--rows", "3:5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["predictions"]] == [3, 4]
    assert found["rows"] == 2


def test_quiet_predictions_tell_neither_time_nor_memory(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "-q", str(trained / "run"), str(trained / "t.csv"), "--out", str(trained / "q.csv")]) == 0
    rows, share, out = capsys.readouterr().out.splitlines()
    assert (rows, share[:8], out) == (f"rows    {N}", "share   ", f"out     {trained / 'q.csv'}")


def test_stdout_is_csv_alone(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["predict", str(trained / "run"), str(trained / "new.csv"), "--out"]
    assert main([*words, str(tmp_path / "p.csv")]) == 0
    capsys.readouterr()
    assert main([*words, "-"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (tmp_path / "p.csv").read_text()
    assert "rows    70 in" in captured.err


LABELS = {
    "classes": (np.arange(60) % 3, "cross_entropy", 3),
    "two by one output": ((np.arange(60) % 2).astype(np.float32), "bce_with_logits", 1),
    "labels": (np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], 1).astype(np.float32), "bce_with_logits", 2),
    "a quantity": (np.linspace(0, 9, 60), "mse", 1),
    "two quantities": (np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32), "mse", 2),
}


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
@pytest.mark.parametrize("kind", LABELS)
def test_a_trainer_and_its_run_predict_alike(tmp_path: Path, kind: str, update: str) -> None:
    y, loss, width = LABELS[kind]
    x = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    dataset = st.ingest({"x": x, "y": y}, tmp_path / "d.zarr", progress=False)
    torch.manual_seed(0)
    trainer = st.Trainer(
        nn.Linear(4, width), loss=loss, update=update, optimizer="sgd", lr=0.01, normalize="auto", device="cpu"
    )
    trainer.fit(dataset, max_epochs=1, memory="16MB", checkpoint=tmp_path / "run", progress=False)
    model = st.load(tmp_path / "run", device="cpu", model=nn.Linear(4, width))
    with torch.no_grad():
        output = model(torch.from_numpy(x)).numpy()
    found = trainer.predict(x)
    assert trainer.model.training
    for other in (trainer.predict(dataset), model.predict(dataset), model.predict({"x": x.astype(np.float64)})):
        assert np.array_equal(found, other)
    if kind == "classes":
        assert found.tolist() == output.argmax(1).tolist()
        assert model.task == "classification"
    elif kind in ("two by one output", "labels"):
        expected = (output > 0).astype(int)
        assert np.array_equal(found, expected[:, 0] if kind != "labels" else expected)
        told = model.predict(x, probabilities=True)
        ones = 1 / (1 + np.exp(-output.astype(float)))
        assert np.abs(told - (ones if kind == "labels" else np.concatenate([1 - ones, ones], 1))).max() < 1e-6
    else:
        assert np.allclose(found, output[:, 0] if width == 1 else output, atol=1e-6)
        assert model.task == "regression"
        with pytest.raises(st.UsageError):
            model.predict(x, probabilities=True)


def test_numbers_of_a_column_that_are_classes_come_back_as_they_are(tmp_path: Path) -> None:
    text = "a,y\n" + "".join(f"{n},{3 + n // 10}\n" for n in range(40))
    (tmp_path / "t.csv").write_text(text)
    words = ["--label-column", "y", "--task", "classification"]
    assert main(["ingest", str(tmp_path / "t.csv"), str(tmp_path / "t.zarr"), *words]) == 0
    assert main(["train", str(tmp_path / "t.zarr"), "--model", "linear", "--out", str(tmp_path / "run"), *SMALL]) == 0
    model = st.load(tmp_path / "run", device="cpu")
    assert model.classes == ("3", "4", "5", "6")
    assert set(model.predict(tmp_path / "t.zarr").tolist()) <= {3, 4, 5, 6}
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "t.csv"), "--out", str(tmp_path / "p.csv")]) == 0
    assert {row[1] for row in read_csv(tmp_path / "p.csv")[1]} <= {"3", "4", "5", "6"}
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "t.csv")]) == 0
    (tmp_path / "w.csv").write_text("a,y\n1,3\n2,9\n")
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "w.csv")]) == 3


def test_code_of_the_users_own_runs_only_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    st.ingest({"x": np.eye(4, dtype=np.float32), "y": np.arange(4) % 2}, "d.zarr", progress=False)
    Path("net.py").write_text(
        "from torch import nn\nprint('RAN')\ndef net(data): return nn.Linear(data.layout.fields[0].shape[0], 2)\n"
    )
    assert main(["train", "d.zarr", "--model", "net.py:net", "--out", "run", *SMALL]) == 0
    capsys.readouterr()
    for words in (["predict", "run", "d.zarr"], ["evaluate", "run", "d.zarr"]):
        assert main(words) == 6
        captured = capsys.readouterr()
        assert "--model net.py:net" in captured.err
        assert "RAN" not in captured.out
        assert main([*words, "--model", "net.py:net"]) == 0
        capsys.readouterr()
    with pytest.raises(st.CheckpointError, match=r"model='net.py:net'"):
        st.load("run")
    capsys.readouterr()
    assert main(["export", "run", "--out", "m.safetensors"]) == 0
    assert "RAN" not in capsys.readouterr().out
    Path("net.py").write_text(Path("net.py").read_text() + "# changed\n")
    with pytest.warns(st.StreamtrainWarning, match="not the file"):
        st.load("run", model="net.py:net", device="cpu")


def test_of_one_class_that_class_is_predicted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    st.ingest({"x": x, "y": np.zeros(50, np.int64)}, tmp_path / "d")
    assert main(["train", str(tmp_path / "d"), "--model", "linear", "--out", str(tmp_path / "r"), *SMALL]) == 0
    model = st.load(tmp_path / "r", device="cpu")
    np.testing.assert_array_equal(model.predict(x), np.zeros(50))
    np.testing.assert_array_equal(model.predict(x, probabilities=True), np.ones((50, 1)))
    capfd.readouterr()


def test_raw_members_of_other_names_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    st.ingest({"x": x, "y": y}, tmp_path / "d")
    run, raw = str(tmp_path / "r"), str(tmp_path / "n.npz")
    assert main(["train", str(tmp_path / "d"), "--model", "linear", "--out", run, *SMALL]) == 0
    np.savez(raw, images=x, labels=y)
    capfd.readouterr()
    assert main(["evaluate", run, raw]) == 2
    assert "--fields x=NAME" in capfd.readouterr().err
    assert main(["evaluate", run, str(tmp_path / "d"), "--json"]) == 0
    stored = json.loads(capfd.readouterr().out)
    assert main(["evaluate", run, raw, "--fields", "x=images,y=labels", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["loss"] == pytest.approx(stored["loss"], rel=1e-6)
    assert main(["predict", run, raw, "--fields", "x=images"]) == 0


@pytest.mark.parametrize(
    ("loss", "normalize"),
    [
        (nn.SmoothL1Loss(), "auto"),
        (partial(nn.functional.huber_loss, delta=2.0), "auto"),
        (nn.functional.poisson_nll_loss, None),
        (partial(nn.functional.poisson_nll_loss, full=True), None),
        (nn.PoissonNLLLoss(log_input=False), None),
    ],
)
def test_losses_of_torch_predict_in_the_units_of_the_data(
    tmp_path: Path, loss: Any, normalize: Literal["auto"] | None
) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    dataset = st.ingest({"x": x, "y": (100 + 9 * x[:, 0]).astype(np.float32)}, tmp_path / "d")
    model = nn.Sequential(nn.Linear(3, 1), nn.Softplus())
    trainer = st.Trainer(model, loss=loss, normalize_target=normalize, device="cpu")
    trainer.fit(dataset, max_epochs=1, progress=False, checkpoint=tmp_path / "run")
    loaded = st.load(tmp_path / "run", model=model, device="cpu")
    np.testing.assert_array_equal(loaded.predict(dataset), trainer.predict(dataset))
    rmse = np.sqrt(np.mean((loaded.predict(dataset) - dataset[:]["y"]) ** 2))
    assert trainer.evaluate(dataset).scores["rmse"] == pytest.approx(rmse)


@pytest.mark.parametrize("is_log", [True, False])
def test_a_poisson_loss_is_measured_as_it_was_trained(
    tmp_path: Path, is_log: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    dataset = st.ingest({"x": np.abs(x), "y": np.abs(x[:, 0])}, tmp_path / "d")
    weights = build_model("linear", input_shape=(3,), n_outputs=1).state_dict()
    safetensors.torch.save_file({name: value.abs() for name, value in weights.items()}, tmp_path / "w.safetensors")
    init = tmp_path / "w.safetensors"
    trainer = st.Trainer("linear", loss=nn.PoissonNLLLoss(log_input=is_log), init=init, device="cpu")
    trainer.fit(dataset, max_epochs=0, progress=False, checkpoint=tmp_path / "run")
    capfd.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "d"), "--json"]) == 0
    rmse = np.sqrt(np.mean((trainer.predict(dataset) - dataset[:]["y"]) ** 2))
    assert json.loads(capfd.readouterr().out)["rmse"] == pytest.approx(rmse)


def test_rows_whose_prediction_is_not_finite_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    st.ingest({"x": x, "y": x[:, 0]}, "whole.zarr", progress=False)
    x[7:9, 1] = np.nan
    gaps = st.ingest({"x": x, "y": x[:, 0]}, "gaps.zarr", nan="keep", progress=False)
    assert main(["train", "whole.zarr", "--model", "linear", "--out", "run", *SMALL]) == 0
    told = "2 of 60 rows have predictions that are not finite, the first is row 7"
    assert main(["predict", "run", "gaps.zarr", "--out", "p.csv"]) == 0
    assert f"warning: {told}" in capsys.readouterr().err
    with pytest.warns(st.StreamtrainWarning, match=told):
        assert main(["evaluate", "run", "gaps.zarr"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "gaps.zarr"]) == 0
    assert "warning: 2 of 10 rows" in capsys.readouterr().err
    assert main(["predict", "run", "gaps.zarr", "--rows", "8:20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_finite"] == 1
    assert main(["predict", "run", "whole.zarr"]) == 0
    assert "warning" not in capsys.readouterr().err
    model = st.load("run")
    for call in (model.predict, lambda data: list(model.iter_predict(data))):
        with pytest.warns(st.StreamtrainWarning, match=told):
            call(gaps)
    trainer = st.Trainer(nn.Linear(4, 1), loss="mse", device="cpu")
    with pytest.warns(st.StreamtrainWarning, match=told):
        trainer.evaluate(gaps)
