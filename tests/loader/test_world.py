"""Processes that train together: the rank that torch.distributed gives, and the warning where nothing does."""

import sys
import types
import warnings

import numpy as np
import pytest

import streamtrain
from streamtrain import StreamLoader
from streamtrain.loader import world
from streamtrain.shuffle.share import Rank


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return streamtrain.ingest({"y": np.arange(9)}, tmp_path_factory.mktemp("world") / "d.zarr")


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.setattr(world, "_told", [])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "0")


def told(dataset, **how):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with StreamLoader(dataset, batch_size=8, memory="16MB", **how) as loader:
                for _ in range(2):
                    list(loader)
    return [(str(warning.message), warning.filename) for warning in caught]


def group(n_ranks, *, is_available=True):
    return types.SimpleNamespace(
        is_available=lambda: is_available,
        is_initialized=lambda: n_ranks > 0,
        get_world_size=lambda: n_ranks,
        get_rank=lambda: n_ranks - 1,
    )


@pytest.mark.parametrize("value", [None, "", "1", "0", "many"])
def test_one_process_is_told_nothing(dataset, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("WORLD_SIZE", value)
    assert told(dataset) == []


def test_a_number_of_processes_alone_is_none_of_ours(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK")
    assert told(dataset) == []


def test_under_a_launcher_without_a_group_it_is_said_once_and_where_the_loader_is_iterated(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    [(message, file)] = told(dataset)
    assert message.startswith("RANK and WORLD_SIZE name 4 processes, but torch.distributed has no process group")
    assert "torch.distributed.init_process_group() before the first epoch" in message
    assert file == __file__


def test_a_loader_that_was_given_its_rank_is_told_nothing(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert told(dataset, rank=0, world_size=1) == []


@pytest.mark.parametrize(
    ("distributed", "expected"),
    [
        (group(2), Rank(rank=1, world_size=2)),
        (group(1), Rank()),
        (group(0), Rank()),
        (group(8, is_available=False), Rank()),
    ],
)
def test_a_process_group_gives_the_rank(dataset, monkeypatch, distributed, expected):
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    assert world.present_rank() == expected
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert len(told(dataset)) == (expected == Rank())
