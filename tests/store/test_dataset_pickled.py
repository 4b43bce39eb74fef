"""A dataset handed to another process: by its place and id; what cannot be handed over says so."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import streamtrain as st

HAND_OVER: tuple[Callable[[object], object], ...] = (pickle.dumps, copy.copy, copy.deepcopy)


def first_row(dataset: st.Dataset) -> list[float]:
    values: list[float] = dataset[0]["x"].tolist()
    return values


def test_a_spawned_process_opens_it_again(whole_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole_dataset.parent)
    dataset = st.open(whole_dataset.name)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(first_row, dataset).result() == first_row(dataset)
    monkeypatch.chdir("/")
    assert pickle.loads(data).id == dataset.id


def test_another_dataset_under_its_name_is_refused(dataset_to_harm: Path) -> None:
    data = pickle.dumps(st.open(dataset_to_harm))
    st.ingest({"x": np.zeros((5, 3))}, dataset_to_harm, overwrite=True)
    with pytest.raises(st.DatasetError, match="the dataset is not the one that was passed on"):
        pickle.loads(data)


def test_a_copy_is_the_dataset(whole_dataset: Path) -> None:
    dataset = st.open(whole_dataset)
    assert copy.copy(dataset) is copy.deepcopy(dataset) is dataset


def test_a_batch_comes_back(whole_dataset: Path) -> None:
    with st.StreamLoader(st.open(whole_dataset), batch_size=10, memory="8MB") as loader:
        batch = next(iter(loader))
        for other in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
            assert other._fields == batch._fields == ("x", "y")
            assert other.x.equal(batch.x)


@pytest.mark.parametrize("hand_over", HAND_OVER, ids=lambda each: each.__name__)
def test_a_loader_and_a_trainer_are_refused(hand_over: Callable[[object], object], whole_dataset: Path) -> None:
    trainer = st.Trainer(nn.Linear(3, 3), loss="cross_entropy", device="cpu")
    with st.StreamLoader(st.open(whole_dataset), batch_size=10, memory="8MB") as loader:
        for each, fix in ((loader, "pass the dataset"), (trainer, "pass its model")):
            with pytest.raises(st.UsageError, match=f"cannot be pickled or copied.*{fix}"):
                hand_over(each)


def test_errors_come_back_from_another_process() -> None:
    fix = st.errors.Fix("with ", st.errors.Argument("memory", n_bytes=5))
    error = st.DamagedBlock("is wrong", where="f", why="so", fix=fix, field="x", block=3, samples=(1, 2))
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.fix.parts, other.samples) == (str(error), fix.parts, (1, 2))
