"""Labels and orders that are no use for training, though nothing is wrong with the data: rows 16, 81, 85 and 99."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.main import main

X = np.arange(60, dtype=np.float32).reshape(20, 3)


def make(path: Path, labels: Any) -> str:
    streamtrain.ingest({"x": X, "y": labels}, path, codec="none")
    return str(path)


def write_table(path: Path, names: list[str]) -> Path:
    rows = [f"{number},{number % 3},{names[number % len(names)]}" for number in range(12)]
    path.write_text("\n".join(["a,b,kind", *rows]) + "\n")
    return path


def train(folder: Path, *words: str) -> int:
    return main(["train", *words, "--model", "linear", "--epochs", "1", "--memory", "16MB", "--out", f"{folder}/run"])


def test_99_a_class_that_only_the_validation_data_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "d.zarr", np.arange(20) % 2 * 2)
    for labels, listed in ((np.arange(20) % 3, "7 samples .* lacks: 1"), (np.arange(20) % 5, "12 samples .*: 1, 3, 4")):
        val = make(tmp_path / f"{labels.max()}.zarr", labels)
        assert train(tmp_path, data, "--val", val) == 3
        err = capsys.readouterr().err
        assert re.search(rf"--val {val}: {listed}. Fix: divide the samples", err), err
    assert not (tmp_path / "run").exists()
    assert train(tmp_path, make(tmp_path / "three.zarr", np.arange(20) % 3), "--val", data) == 0
    assert main(["train", data, "--val", str(tmp_path / "no.zarr"), "--model", "linear"]) == 4
    assert "no.zarr: no such dataset" in capsys.readouterr().err


def test_99_the_same_number_for_another_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kinds in (("d", ["cat", "dog"]), ("val", ["ant", "cat"])):
        source = write_table(tmp_path / f"{name}.csv", kinds)
        streamtrain.ingest(source, tmp_path / f"{name}.zarr", label_column="kind")
    assert train(tmp_path, f"{tmp_path}/d.zarr", "--val", f"{tmp_path}/val.zarr") == 2
    err = capsys.readouterr().err
    assert "its labels 0, 1, ... are 'ant', 'cat'; in the training data they are 'cat', 'dog'" in err


def test_16_a_single_class_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, make(tmp_path / "d.zarr", np.full(20, 1)), "--batch-size", "10") == 0
    warning, *others = capsys.readouterr().err.splitlines()
    assert warning == "warning: every label is 1: nothing can be learned from one class"
    assert not [line for line in others if line.startswith("warning")]


def test_81_a_batch_of_all_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "d.zarr", np.arange(20) % 3)
    assert train(tmp_path, data, "--batch-size", "21") == 0
    assert "warning: batch_size is 21, and there are 20 samples: each epoch is one batch\n" in capsys.readouterr().err


def test_85_so_few_lanes_that_batches_are_of_few_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "sorted.zarr")
    samples = {"x": np.zeros((400, 3), np.float32), "y": np.repeat(np.arange(10), 40)}
    streamtrain.ingest(samples, path, codec="none", block=20 * 5)
    assert train(tmp_path, path, "--batch-size", "40", "--lanes", "2") == 0
    # 20 samples of a block in a batch, all of one class: 1 + 19 * 1.
    assert "warning: with 2 lanes the labels of a batch vary up to 20.0 times" in capsys.readouterr().err
    words = ["train", path, "--model", "linear", "--batch-size", "40", "--lanes", "20"]
    assert main([*words, "--out", f"{tmp_path}/many"]) == 0
    assert "warning" not in capsys.readouterr().err
