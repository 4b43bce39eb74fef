"""The traps of Python where the command line has their like, and rows of messages that no other test types."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from shown import works

import streamtrain as st
from streamtrain.training.run.run_folder import RunFolder
from tests.test_messages import OF_PYTHON, TRAIN, accepted, image, refused, write

pytestmark = pytest.mark.usefixtures("one_thread", "in_own_folder")

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3


def advised(said: str) -> str:
    """The command or the line of Python that an error ends with."""
    return said.strip().partition(OF_PYTHON if OF_PYTHON in said else "Fix: ")[2].removesuffix(".")


def test_raw_files_where_a_dataset_is_expected() -> None:
    write("t.csv", "a,b,k\n" + "".join(f"{i},{i % 5},{i % 2}\n" for i in range(60)))
    np.save("x.npy", X)
    for line in ("train t.csv --model linear --epochs 1", "compare t.csv --epochs 1", "plan t.csv", "info t.csv"):
        command = advised(refused(line, 2)).removeprefix("streamtrain ")
        assert command == "ingest t.csv t --auto --label-column NAME"
    accepted(command.replace("NAME", "k"))
    accepted("train t --model linear --epochs 1 --memory 16MB")
    accepted(advised(refused("info x.npy", 2)).removeprefix("streamtrain "))


@pytest.mark.parametrize("names", [("pets/1.jpg", "pets/2.jpg"), ("pets/cat/1.jpg", "pets/dog/2.png")])
def test_a_folder_of_images_where_a_dataset_is_expected(names: tuple[str, str]) -> None:
    for name in names:
        image(name)
    for line in ("train pets --model linear --epochs 1", "info pets"):
        said = refused(line, 2)
        assert "pets: a folder of images, not a dataset" in said
        assert advised(said) == "streamtrain ingest pets pets.zarr"
    write("pets/notes.txt", "")
    assert "not a streamtrain dataset" in refused("info pets", 4)


def test_a_data_frame_saved_as_parquet() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "k": ["u", "v", "u"]}, index=[5, 6, 7])
    frame.to_parquet("f.parquet")
    assert "left out __index_level_0__" in accepted("ingest f.parquet f.zarr --label-column k")
    assert st.open("f.zarr").id == st.ingest(frame.reset_index(drop=True), "g.zarr", label_column="k").id


def test_labels_of_text_in_an_array() -> None:
    np.save("x.npy", X[:3])
    np.save("l.npy", np.array(["b", "a", "b"]))
    said = refused("ingest x.npy d.zarr --labels l.npy")
    assert "it holds text" in said
    [option] = re.findall(r"labels=numpy.load\(\.\.\.\)", said)
    given = option.replace("...", "'l.npy'")
    assert works(f"import numpy, streamtrain as st; d = st.ingest('x.npy', 'd.zarr', {given})")["d"].classes == (
        "a",
        "b",
    )


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "coo_matrix"])
def test_a_sparse_matrix_in_a_file(form: str) -> None:
    sparse.save_npz("s.npz", getattr(sparse, form)(X))
    said = refused("ingest s.npz d.zarr")
    assert "a sparse matrix that scipy saved" in said
    works(advised(said))
    np.testing.assert_array_equal(st.open("data.zarr")[:]["x"], X)


def test_a_stored_dataset_is_a_source() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    accepted("ingest d.zarr e.zarr --block 400B --codec zstd")
    again = st.open("e.zarr")
    assert (again.layout.codec, again.layout.n_blocks > 1) == ("zstd", True)
    np.testing.assert_array_equal(again[:]["x"], X)


@pytest.mark.parametrize(
    ("url", "command"),
    [("https://host/x.npy", "curl -LO https://host/x.npy"), ("s3://b/d.zarr", "aws s3 sync s3://b/d.zarr d.zarr")],
)
def test_urls_come_with_the_command_that_fetches_them(url: str, command: str) -> None:
    for line in (f"ingest {url} d.zarr", f"info {url}", f"train {url} --model linear --epochs 1"):
        assert advised(refused(line, 2)).endswith(f"; download it first: {command}")
    assert not list(Path().iterdir())


def test_fields_named_by_words_of_python() -> None:
    np.savez("w.npz", **{"class": X, "lambda": Y, "None": Y})
    accepted("ingest w.npz d.zarr")
    accepted(f"{TRAIN} --inputs class --target lambda")
    accepted("evaluate run d.zarr")


def test_a_run_of_another_seed() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    accepted(f"{TRAIN} --seed 3")
    longer = TRAIN.replace("--epochs 1", "--epochs 2")
    assert "seed: 3 there, 0 here" in refused(f"{longer} --resume", 6)
    accepted(f"{longer} --resume --seed 3")


def test_parts_in_evaluation_mode_stay_so() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    write(
        "net.py",
        "from torch import nn\ndef net(input_shape, n_outputs):\n"
        "    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, n_outputs))\n",
    )
    accepted(TRAIN.replace("--model linear", "--model net.py:net"))
    model = st.load("run", model=works(Path("net.py").read_text())["net"]((4,), 3), device="cpu")
    norm = model.module[1]
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))


def test_models_of_float64_lazy_and_compiled_ones() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    write(
        "net.py",
        "import torch\nfrom torch import nn\ndef double(input_shape, n_outputs):\n"
        "    return nn.Linear(4, n_outputs).double()\ndef lazy(n_outputs):\n    return nn.LazyLinear(n_outputs)\n"
        "def compiled(n_outputs):\n    return torch.compile(nn.Linear(4, n_outputs), backend='eager')\n",
    )
    for name in ("double", "lazy", "compiled"):
        accepted(f"train d.zarr --model net.py:{name} --epochs 1 --memory 16MB --out {name}")
        accepted(f"evaluate {name} d.zarr --model net.py:{name}")


@pytest.mark.parametrize("optimizer", ["cg", "lbfgs"])
def test_the_figures_of_a_step_are_those_that_were_taken(optimizer: str) -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    line = TRAIN.replace("--epochs 1", "--epochs 8")
    accepted(f"{line} --update epoch --optimizer {optimizer}")
    lines = [json.loads(each) for each in Path("run/metrics.jsonl").read_text().splitlines()]
    epochs = [each for each in lines if each["kind"] == "epoch"]
    losses = [each["loss"] for each in epochs]
    assert losses == sorted(losses, reverse=True), "a trial that is not taken is in a column of its own"
    assert optimizer != "cg" or any("trial_loss" in each for each in epochs)


def test_a_run_beside_its_training() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    with RunFolder(Path("new"), {}):
        said = refused("evaluate new d.zarr", 6)
    assert "Fix: wait for its first checkpoint: it is being trained." in said
    accepted(TRAIN)
    accepted(f"{TRAIN} --resume".replace("--epochs 1", "--epochs 2"))
    assert "epoch 2" in accepted("evaluate run d.zarr")


def test_numbers_of_things() -> None:
    np.savez("one.npz", x=X[:1], y=Y[:1])
    said = accepted("ingest one.npz d.zarr") + accepted("info d.zarr") + accepted("plan d.zarr --batch-size 1")
    assert not re.search(r"\b1 (samples|batches|lanes|blocks|files|shard files|values)\b", said), said


def test_fewer_blocks_are_not_what_one_batch_lacks() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    assert "come from the same block" not in accepted("plan d.zarr") + accepted(TRAIN)
