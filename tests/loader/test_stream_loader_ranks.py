"""Ranks that train together: the warning that each reads all samples, once and only then."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain import StreamLoader, Trainer
from streamtrain.loader import stream_loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return streamtrain.ingest({"y": np.arange(9)}, tmp_path_factory.mktemp("world") / "d.zarr")


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.setattr(stream_loader, "_told_ranks", [])
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def told(dataset):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with StreamLoader(dataset, memory="16MB") as loader:
                for _ in range(2):
                    list(loader)
    return [(str(warning.message), warning.filename) for warning in caught]


def fitted(dataset, loader):
    Trainer(torch.nn.Linear(1, 1), loss="mse", device="cpu").fit(dataset if loader is None else loader, max_epochs=2)


def in_epochs(_, loader):
    for epoch in range(2):
        loader.set_epoch(epoch)
        list(loader)


@pytest.mark.parametrize("use", [fitted, in_epochs, lambda dataset, _: fitted(dataset, None)])
def test_training_says_it_too(tmp_path, monkeypatch, use):
    monkeypatch.setenv("WORLD_SIZE", "4")
    x = np.ones((9, 1), np.float32)
    dataset = streamtrain.ingest({"x": x, "y": x}, tmp_path / "d.zarr")
    with StreamLoader(dataset, memory="16MB") as loader, pytest.warns(UserWarning, match="4 processes") as caught:
        use(dataset, loader)
    assert sum("processes train together" in str(each.message) for each in caught) == 1


def group(n_ranks, *, is_available=True):
    return types.SimpleNamespace(
        is_available=lambda: is_available, is_initialized=lambda: n_ranks > 0, get_world_size=lambda: n_ranks
    )


@pytest.mark.parametrize("value", [None, "", "1", "0", "many"])
def test_one_process_is_told_nothing(dataset, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("WORLD_SIZE", value)
    assert told(dataset) == []


def test_under_a_launcher_it_is_said_once_and_where_the_loader_is_iterated(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    [(message, file)] = told(dataset)
    assert message.startswith("4 processes train together, and each reads all samples in the same order")
    assert "Train in one process, or ingest a dataset of its own for each rank" in message
    assert file == __file__


@pytest.mark.parametrize(("distributed", "expected"), [(group(2), 1), (group(1), 0), (group(0), 0)])
def test_a_process_group_tells_before_the_launcher(dataset, monkeypatch, distributed, expected):
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    assert len(told(dataset)) == expected


def test_a_torch_without_process_groups_is_one_process(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", group(8, is_available=False))
    assert stream_loader.world_size() == 1
