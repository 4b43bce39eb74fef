"""A batch: named tuple, items by name, and what a type checker sees of it."""

from __future__ import annotations

import copy
import keyword
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

import streamtrain
from streamtrain.errors import UnknownName
from streamtrain.loader.batch import Batch, batch_type

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def batch() -> Any:
    return batch_type(["x", "class", "None"])(torch.ones(2, 3), torch.tensor([4, 5]), torch.zeros(2))


def test_a_field_is_an_attribute_and_an_item_and_has_its_place(batch: Any) -> None:
    x, labels, _ = batch
    assert x is batch.x is batch["x"] is batch[0] is batch[-3] is batch[:1][0]
    assert labels is batch["class"] is batch[1]
    assert list(batch._asdict()) == ["x", "class", "None"]
    assert isinstance(batch, Batch)
    assert isinstance(batch, tuple)
    assert repr(batch).startswith("Batch(x=tensor([[1., 1., 1.]")
    assert "class=tensor([4, 5]), None=tensor([0., 0.])" in repr(batch)


def test_fields_are_replaced_by_name_and_the_others_stay(batch: Any) -> None:
    other = batch._replace(**{"class": torch.tensor([6, 7]), "x": batch.x + 1})
    assert type(other) is type(batch)
    assert (other["class"].tolist(), other.x[0].tolist()) == ([6, 7], [2, 2, 2])
    assert other["None"] is batch["None"]
    assert batch["class"].tolist() == [4, 5]


def test_a_batch_goes_through_pickle_as_it_is(batch: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert isinstance(twin, Batch)
        assert list(twin._asdict()) == ["x", "class", "None"]
        assert all(torch.equal(twin[name], batch[name]) for name in twin._asdict())
        assert twin._replace(**{"class": batch.x})["class"] is batch.x


def test_what_is_no_field_is_refused(batch: Any) -> None:
    for ask in (lambda: batch["labels"], lambda: batch._replace(labels=batch.x)):
        with pytest.raises(UnknownName, match=r"unknown field 'labels'. Known: None, class, x"):
            ask()
    with pytest.raises(AttributeError, match="no attribute 'labels'"):
        batch.labels  # noqa: B018
    with pytest.raises(AttributeError):
        batch.x = torch.zeros(2, 3)
    with pytest.raises(IndexError):
        batch[3]


def test_torch_takes_it_for_a_named_tuple(batch: Any) -> None:
    doubled = pytree.tree_map(lambda tensor: 2 * tensor, batch)
    assert doubled["class"].tolist() == [8, 10]
    assert default_collate([batch, batch])["class"].shape == (2, 2)
    assert [copied["class"].tolist() for copied in (copy.copy(batch), copy.deepcopy(batch))] == [[4, 5]] * 2


@pytest.mark.parametrize("word", keyword.kwlist)
def test_a_word_of_the_language_names_a_field(word: str) -> None:
    batch = batch_type([word, "y"])(torch.zeros(1), torch.ones(1))
    assert (batch[word].item(), batch.y.item()) == (0, 1)


def test_a_model_is_trained_on_fields_that_are_words_of_the_language(tmp_path: Path) -> None:
    y = np.arange(60) % 3
    fields = {"lambda": np.eye(3, dtype=np.float32)[y], "class": y, "None": np.ones(60, np.float32)}
    dataset = streamtrain.ingest(fields, tmp_path / "d.zarr", progress=False)
    fields_of_model: dict[str, Any] = {"inputs": ("lambda",), "target": "class", "weight": "None"}
    model = torch.nn.Linear(3, 3)
    trainer = streamtrain.Trainer(model, loss="cross_entropy", lr=0.1, device="cpu", **fields_of_model)
    with streamtrain.StreamLoader(dataset, batch_size=20, memory="16MB", seed=0) as loader:
        assert all(torch.equal(batch["lambda"].argmax(1), batch["class"]) for batch in loader)
        history = trainer.fit(loader, max_epochs=20, progress=False)
    assert history.last is not None
    assert history.last.train.score == 1


SNIPPET = """
import streamtrain as st
from torch import Tensor

def scaled(batch: st.Batch, keys: Tensor) -> st.Batch:
    return batch._replace(x=batch.x + st.uniform(keys, (3,)))

loader = st.StreamLoader(st.open("d.zarr"), batch_size=4, transform=scaled)
for batch in loader:
    reveal_type(batch)
    reveal_type(batch.x)
    reveal_type(batch["class"])
    reveal_type(batch[0])
    reveal_type(batch._replace(x=batch.x))
    reveal_type(batch._asdict())
for x, y in loader:
    reveal_type(x)
    reveal_type(y)
"""


def test_a_type_checker_sees_tensors(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET)
    # In this folder mypy has the settings of `scripts/test`, and its cache: without one it takes several times as long.
    command = [sys.executable, "-m", "mypy", str(tmp_path / "snippet.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r'Revealed type is "(.+)"', done.stdout)
    tensor, batch = "torch._tensor.Tensor", "streamtrain.loader.batch.Batch"
    assert found == [batch, tensor, tensor, tensor, batch, f"dict[str, {tensor}]", tensor, tensor]
