"""State that a checkpoint holds comes back as it was, through JSON and safetensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamtrain.errors import CheckpointError, UsageError
from streamtrain.training.run.serialization import aligned, pack, unpack

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
states = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(state=states)
def test_whatever_is_packed_comes_back(state: Any) -> None:
    tree, tensors = pack(state, "state")
    assert not tensors
    back = unpack(json.loads(json.dumps(tree)), tensors)
    assert back == state
    assert repr(back) == repr(state), "types too"


def test_names_that_read_alike_are_told_apart() -> None:
    state = {
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2), "b'": torch.tensor(3)},
        "1": torch.tensor(4),
        1: torch.tensor(5),
    }
    tree, tensors = pack(state, "state")
    assert len(tensors) == 5
    assert repr(unpack(json.loads(json.dumps(tree)), tensors)) == repr(state)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "LBFGS"])
def test_optimizers_come_back(name: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    if name == "SGD":
        optimizer.param_groups[0]["momentum"] = 0.9

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        torch.autograd.backward(loss)
        return loss.detach()

    for _ in range(3):
        optimizer.step(closure)
    tree, tensors = pack(optimizer.state_dict(), "optimizer")
    back = unpack(json.loads(json.dumps(tree)), tensors)
    fresh = getattr(torch.optim, name)(model.parameters(), lr=0.5)
    fresh.load_state_dict(back)
    assert pack(fresh.state_dict(), "optimizer")[0] == tree
    assert all(torch.equal(t, tensors[k]) for k, t in pack(fresh.state_dict(), "optimizer")[1].items())


def test_numbers_that_json_lacks() -> None:
    tree, _ = pack([math.inf, -math.inf, math.nan], "x")
    back = unpack(json.loads(json.dumps(tree, allow_nan=False)), {})
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])


def test_what_cannot_be_held_is_named() -> None:
    with pytest.raises(UsageError, match=r"state.hook.0 is function, which no checkpoint can hold"):
        pack({"hook": [lambda: 0]}, "state")


@pytest.mark.parametrize("tree", [{"tensor": "gone"}, {"float": "1e5"}, {"call": "os.system"}, {"tuple": 3}, {}])
def test_a_tree_of_another_kind_is_refused(tree: Any) -> None:
    with pytest.raises(CheckpointError, match="none that was written"):
        unpack([tree], {})


def test_tensors_of_a_file_begin_where_those_of_torch_begin(tmp_path: Path) -> None:
    # A dot product is rounded by where its vectors begin, so a run that resumes would differ from one that does not.
    tensors = {f"t{i}": torch.arange(7.0 + i) for i in range(6)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert any(tensor.data_ptr() % 64 for tensor in read.values())
    found = aligned(read)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
