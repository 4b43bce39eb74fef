"""A folder of JPEGs from the command line: ingested, trained on, evaluated, predicted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import safetensors

import streamtrain as st
from streamtrain.cli.main import main
from tests.support.images import class_folders


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    class_folders(root / "in", 20)
    st.ingest(root / "in", root / "d", split={"val": 0.3}, say=lambda text: None)
    return root / "d"


@pytest.fixture(scope="module")
def run(stored: Path) -> Path:
    out = stored.parent / "run"
    assert (
        _main("train", stored, "--model", "cnn", "--images", "16", "--epochs", "3", "--batch-size", "8", "--out", out)
        == 0
    )
    return out


def _main(*words: object) -> int:
    return main([str(word) for word in words])


def _json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert _main(*words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_remembers_how_its_images_were_decoded(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["decode"]["image"] == st.Images(16).as_json()
    assert config["input_shape"] == [3, 16, 16]
    assert config["pillow"]
    assert config["normalize"] == ["image"]


def test_evaluate_and_predict_take_the_middle(run: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = _json(capsys, "evaluate", run, stored)
    assert measured["split"] == "val"
    assert measured["accuracy"] > 0.9
    val = st.open(stored, split="val")
    model = st.load(run, device="cpu")
    predicted = model.predict(val)
    assert np.mean(predicted == val[:]["y"]) == pytest.approx(measured["accuracy"])
    assert val.classes is not None
    named = [val.classes[number] for number in predicted[:10]]
    shown = _json(capsys, "predict", run, stored, "--split", "val")
    assert [row["prediction"] for row in shown["predictions"]] == named
    smaller = _json(capsys, "predict", run, stored, "--split", "val", "--batch-size", "3", "--memory", "64MB")
    assert [row["prediction"] for row in smaller["predictions"]] == named
    other = _json(capsys, "evaluate", run, stored, "--images", "none:16")
    assert other["loss"] != measured["loss"]


def test_the_scale_of_random_crops_is_an_option(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", stored, "--model", "cnn", "--epochs", "1", "--batch-size", "8"]
    assert _main(*words, "--images", "16", "--image-scale", "0.5,0.9", "--out", tmp_path / "r") == 0
    assert _main("export", tmp_path / "r", "--out", tmp_path / "m.safetensors") == 0
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        told = json.loads(file.metadata()["streamtrain"])
    assert st.Images(**told["decode"]["image"]) == st.Images(16, scale=(0.5, 0.9))
    capsys.readouterr()
    wrong = ["0", "0.9,0.5", "1.5", "much"]
    for size, scale, told in (
        *(("16", each, "is not a least share of an image's area") for each in wrong),
        ("center:16", "0.5", "crops nothing at random. Fix: --images 16."),
    ):
        assert _main(*words, "--images", size, "--image-scale", scale, "--out", tmp_path / "w") == 2
        assert told in capsys.readouterr().err


def test_an_exported_file_says_how_its_images_are_cropped(run: Path, tmp_path: Path) -> None:
    assert _main("export", run, "--out", tmp_path / "m.safetensors") == 0
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        told = json.loads(file.metadata()["streamtrain"])
    for name, how in (("decode", st.Images(16)), ("decode_to_measure", st.Images(16, crop="center"))):
        assert st.Images(**told[name]["image"]) == how


def test_its_report_measures_the_shuffle_and_tells_decoding_from_gathering(run: Path) -> None:
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in told if line.get("kind") == "epoch"]
    decode, gather = (sum(line[f"{name}_thread_seconds"] for line in epochs) for name in ("decode", "gather"))
    assert decode > gather
    assert _main("report", run, "--out", run / "page.html") == 0
    page = (run / "page.html").read_text()
    assert "Not measured" not in page
    assert "times a full reshuffle" in page


def test_a_resumed_run_must_decode_alike(run: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", stored, "--model", "cnn", "--batch-size", "8", "--out", run, "--resume", "--epochs", "4"]
    assert _main(*words, "--images", "center:16") == 6
    assert "crop" in capsys.readouterr().err
    assert _main(*words, "--images", "16") == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--images 224"),
        (("--images", "big"), "is not a size"),
        (("--images", "left:16"), "is not a size"),
        (("--images", "0"), "size is 0"),
    ],
)
def test_images_need_a_size(
    words: tuple[str, ...], told: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("train", stored, "--model", "cnn", "--out", tmp_path / "r", *words) == 2
    assert told in capsys.readouterr().err
    assert _main("plan", stored, *words) == 2


def test_a_size_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest({"x": np.zeros((20, 3)), "y": np.arange(20) % 2}, tmp_path / "d")
    assert _main("train", tmp_path / "d", "--model", "linear", "--images", "16", "--out", tmp_path / "r") == 2
    assert "has no images" in capsys.readouterr().err


def test_images_that_were_not_decoded_have_no_statistics(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("ingest", stored.parent / "in", tmp_path / "d", "--check", "header") == 0
    words = ["train", tmp_path / "d", "--model", "cnn", "--images", "16", "--epochs", "1", "--batch-size", "8"]
    assert _main(*words, "--out", tmp_path / "a") == 2
    told = capsys.readouterr().err
    assert "--normalize imagenet" in told
    assert "--normalize none" in told
    assert _main(*words, "--out", tmp_path / "b", "--normalize", "imagenet") == 0


def test_plan_and_info_know_images(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _json(capsys, "plan", stored, "--images", "16", "--batch-size", "8")
    terms = plan["memory"]["terms"]
    assert terms["decoding"] > 0
    assert terms["batches"] < 2**20
    assert _main("info", stored) == 0
    told = capsys.readouterr().out
    assert "JPEG" in told
    assert "image_bytes" not in told
    found = _json(capsys, "info", stored / "train")
    assert found["fields"]["image"]["encoded"]["media"]["image/jpeg"] > 0


def test_compare_takes_images(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", stored, "--model", "cnn", "--images", "16", "--rules", "batch", "--optimizers", "adam"]
    assert _main(*words, "--epochs", "1", "--batch-size", "8", "--out", tmp_path / "c") == 0
    assert _main(*words, "--normalize", "imagenet", "--out", tmp_path / "e") == 2


def test_images_in_files_are_predicted_as_those_of_the_dataset(
    run: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored.parent / "in"
    whole, model = st.ingest(folder, tmp_path / "d", say=lambda text: None), st.load(run, device="cpu")
    files = sorted(folder.glob("*/*"))
    for data in (folder, str(folder), files, folder / "cat"):
        predicted = model.predict(data, probabilities=True)
        assert np.array_equal(predicted, model.predict(whole, probabilities=True)[: len(predicted)])
    (part,) = model.iter_predict(folder, rows="19:21")
    assert part["file"].tolist() == ["cat/019.png", "dog/000.jpg"]
    for out in ("a.csv", "a.parquet"):
        assert _main("predict", run, folder, "--out", tmp_path / out, "--batch-size", "7", "--memory", "64MB") == 0
    assert re.search(r"memory  budget 64.0 MB, measured [\d.]+ [KM]B", capsys.readouterr().out)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "row,file,prediction,probability"
    assert [line.split(",")[1] for line in lines[1:]] == [str(file.relative_to(folder)) for file in files]
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["file"].to_pylist()[20] == "dog/000.jpg"
    shown = _json(capsys, "predict", run, files[3], files[0])
    assert [row["file"] for row in shown["predictions"]] == [str(files[3]), str(files[0])]
    assert _json(capsys, "predict", run, files[0], "--images", "none:16")["predictions"] != shown["predictions"][1:]


def test_images_in_folders_of_their_classes_are_measured(
    run: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored.parent / "in"
    st.ingest(folder, tmp_path / "d", say=lambda text: None)
    raw, of_stored = (_json(capsys, "evaluate", run, each, "--batch-size", "7") for each in (folder, tmp_path / "d"))
    assert (raw["accuracy"], raw["samples"]) == (of_stored["accuracy"], of_stored["samples"])
    assert raw["loss"] == pytest.approx(of_stored["loss"])
    shutil.copytree(folder / "cat", tmp_path / "two" / "lynx")
    assert _main("evaluate", run, tmp_path / "two") == 3
    assert "the folder lynx is none of the classes" in capsys.readouterr().err
    assert _main("evaluate", run, folder, "--labels", "x.npy") == 2


def test_a_file_that_is_no_image_is_named(
    run: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, file in enumerate(sorted((stored.parent / "in" / "cat").iterdir())[:3]):
        shutil.copy(file, tmp_path / f"{n}.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:300])
    assert _main("predict", run, tmp_path) == 3
    assert f"{tmp_path / '2.jpg'}" in capsys.readouterr().err
    with pytest.raises(st.BudgetError, match="while it is decoded"):
        st.load(run).predict(tmp_path, memory="20kB", batch_size=1)


def test_images_for_a_run_that_decodes_none_are_refused(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    st.ingest({"x": np.zeros((20, 3)), "y": np.arange(20) % 2}, tmp_path / "d")
    words = ("--model", "linear", "--epochs", "1", "--batch-size", "8", "--out", tmp_path / "r")
    assert _main("train", tmp_path / "d", *words) == 0
    for command in ("predict", "evaluate"):
        assert _main(command, tmp_path / "r", stored.parent / "in") in (2, 3)
        assert "Fix:" in capsys.readouterr().err


def test_tables_are_ingested_without_pillow(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n2,1\n")
    code = (
        "import sys, streamtrain as st; "
        f"st.ingest({str(tmp_path / 'a.csv')!r}, {str(tmp_path / 'd')!r}, label_column='y'); "
        "print(sorted({'PIL', 'h5py', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
