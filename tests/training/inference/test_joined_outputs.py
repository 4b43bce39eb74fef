"""Outputs of several batches become predictions together where they are written, and are what they are one by one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import UsageError
from streamtrain.models.target_normalization import TargetNormalization, in_units_of_data
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import Schema
from streamtrain.training.inference.predicting import PredictOptions, Predictor, iterate, write
from streamtrain.training.inference.predictions import PredictionForm

N, BATCH = 1000, 16
WIDE: dict[str, Any] = {"task": "classification", "has_output_per_class": True}
FORMS = {
    "classes": (PredictionForm(classes=("a", "b", "c"), **WIDE), 3),
    "values of classes": (PredictionForm(values=(3, 5, 9, 11), **WIDE), 4),
    "one output of two classes": (PredictionForm(task="classification"), 1),
    "labels": (PredictionForm(task="multilabel"), 5),
    "one target": (PredictionForm(task="regression", has_one_target=True), 1),
    "targets": (PredictionForm(task="regression"), 2),
}


def predictor(kind: str, *, log: bool = False) -> Predictor:
    form, width = FORMS[kind]
    torch.manual_seed(0)
    spread = TargetNormalization(mean=np.array([3.0]), std=np.array([0.7]))
    return Predictor(
        model=nn.Linear(4, width),
        inputs=("x",),
        schema=Schema(fields=(Field(name="x", dtype=np.dtype(np.float32), shape=(4,)),)),
        form=form,
        device=torch.device("cpu"),
        in_units=(lambda y: in_units_of_data(y, None if log else spread, is_log=log)) if "target" in kind else None,
    )


def data(n: int = N) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32), "id": np.arange(n) * 3}


def one_by_one(which: Predictor, *, tells: bool = True, n: int = N) -> dict[str, np.ndarray[Any, Any]]:
    options = PredictOptions(batch_size=BATCH, memory=64_000_000, tells=tells)
    parts = list(iterate(which, data(n), options))
    assert len(parts) == -(-n // BATCH)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_files_hold_what_batches_give_one_by_one(kind: str, log: bool, tmp_path: Path) -> None:
    which = predictor(kind, log=log)
    wanted = one_by_one(which)
    # Of so little memory an eighth of an eighth is a row group, and outputs are joined in some kilobytes.
    options = PredictOptions(batch_size=BATCH, memory=400_000)
    for suffix in (".npy", ".parquet", ".zarr"):
        write(which, data(), options, tmp_path / f"p{suffix}", overwrite=False)
    assert np.array_equal(np.load(tmp_path / "p.npy"), wanted["prediction"])
    file = pyarrow.parquet.ParquetFile(tmp_path / "p.parquet")
    assert file.num_row_groups > 1
    table = file.read()
    assert table["row"].to_pylist() == list(range(N))
    assert table["id"].to_pylist() == data()["id"].tolist()
    told = [name for name in table.column_names if name.startswith("prediction")]
    columns = np.stack([np.asarray(table[name]) for name in told], axis=-1)
    names = which.form.classes
    expected = wanted["prediction"] if names is None else np.array(names)[wanted["prediction"]]
    assert np.array_equal(columns.reshape(expected.shape), expected)
    if "probability" in wanted:
        assert np.array_equal(np.asarray(table["probability"]), wanted["probability"])
    stored = st.open(tmp_path / "p.zarr")[:]
    assert np.array_equal(stored["prediction"], wanted["prediction"])


@pytest.mark.parametrize("kind", ["classes", "labels", "one output of two classes"])
def test_predictions_are_the_same_without_probabilities(kind: str) -> None:
    which = predictor(kind)
    assert np.array_equal(one_by_one(which)["prediction"], one_by_one(which, tells=False)["prediction"])


def test_of_equal_probabilities_the_larger_output_is_predicted() -> None:
    form = FORMS["classes"][0]
    output = torch.tensor([[0.0, 2**-26, -9.0], [1.0, 1.0, 0.0], [-1.0, float("inf"), 0.0]])
    assert torch.softmax(output[:1], 1)[0, :2].unique().numel() == 1
    for probabilities in (True, False):
        part = form.part(output, 0, None, probabilities=probabilities)
        assert part.prediction.tolist() == output.argmax(1).tolist() == [1, 0, 1]


def test_rows_of_changing_width_are_refused_and_small_last_batches_are_not() -> None:
    which = predictor("targets")
    widths = iter([2, 2, 3])

    class Ragged(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(len(x), next(widths))

    ragged = dataclasses.replace(which, model=Ragged())
    with pytest.raises(UsageError, match=r"rows of shape \(2,\) and \(3,\)"):
        list(iterate(ragged, data(3 * BATCH), PredictOptions(batch_size=BATCH, memory=10**6)))
    assert len(one_by_one(which, n=BATCH + 1)["prediction"]) == BATCH + 1


def test_no_rows_leave_the_columns(tmp_path: Path) -> None:
    options = PredictOptions(batch_size=BATCH, memory=400_000, rows=(5, 5))
    write(predictor("classes"), data(), options, tmp_path / "p.parquet", overwrite=False)
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["row", "id", "prediction", "probability"]
    assert table.num_rows == 0


CODE = """
import sys, numpy as np
from pathlib import Path
from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.target import check_target, open_target

path = check_target(sys.argv[1], overwrite=False)
form = PredictionForm(task="classification", classes=("a", "b"))
with open_target(path, form, probabilities=True, n_rows=2, memory=10**6, source="d") as writer:
    told = np.array([[0.25, 0.75], [1, 0]], np.float32)
    numbers = told.argmax(1)
    writer.add(Part(first_row=0, prediction=numbers, probabilities=told, class_numbers=numbers))
print("pandas" in sys.modules)
"""


def test_parquet_is_written_without_pandas(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "p.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert pyarrow.parquet.read_table(tmp_path / "p.parquet")["prediction"].to_pylist() == ["b", "a"]
