"""Loaders and worker processes: what cannot work is refused with what to do, what can work does."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import streamtrain as st
from streamtrain.errors import UsageError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]

N = 60


class Batches(IterableDataset[Any]):
    """A loader handed to torch's."""

    def __init__(self, loader: st.StreamLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class MadeThere(IterableDataset[Any]):
    """A loader that every worker makes for itself."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Any]:
        with st.StreamLoader(st.open(self.path), batch_size=20, memory="16MB") as loader:
            yield from (tuple(batch) for batch in loader)


class Rows(TorchDataset[Any]):
    """Samples one by one, which workers may share out."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __len__(self) -> int:
        return N

    def __getitem__(self, at: int) -> int:
        return int(st.open(self.path)[at : at + 1]["y"][0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    source = {"x": np.arange(4 * N, dtype="f4").reshape(N, 4), "y": np.arange(N)}
    return st.ingest(source, tmp_path_factory.mktemp("processes") / "d.zarr", progress=False)


def assert_refused(workers: DataLoader[Any], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        list(workers)
    # The frames hold torch's iterator. Collected with them, after its queues, it would wait 5 seconds for each worker.
    traceback.clear_frames(caught.tb)


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("kind", [Batches, MadeThere])
def test_a_worker_of_a_data_loader_is_refused(data: st.Dataset, kind: type, n_workers: int) -> None:
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        of = kind(loader if kind is Batches else str(data.path))
        workers = DataLoader(of, batch_size=None, num_workers=n_workers, multiprocessing_context="fork")
        assert_refused(workers, rf"in worker 0 of {n_workers} of a DataLoader.*\n?.*num_workers=0")


def test_a_loader_that_was_iterated_before_is_refused_too(data: st.Dataset) -> None:
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        assert len(list(loader)) == 3
        workers = DataLoader(Batches(loader), batch_size=None, num_workers=1, multiprocessing_context="fork")
        assert_refused(workers, "in worker 0 of 1 of a DataLoader")
        assert len(list(loader)) == 3, "the parent's goes on"


@pytest.mark.parametrize("kind", [Batches, MadeThere])
def test_without_workers_a_data_loader_has_every_sample_once(data: st.Dataset, kind: type) -> None:
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        of = kind(loader if kind is Batches else str(data.path))
        seen = torch.cat([batch[1] for batch in DataLoader(of, batch_size=None, num_workers=0)])
    assert sorted(seen.tolist()) == list(range(N))


def test_rows_of_a_dataset_are_read_in_workers(data: st.Dataset) -> None:
    workers = DataLoader(Rows(str(data.path)), batch_size=20, num_workers=2, multiprocessing_context="fork")
    assert sorted(torch.cat(list(workers)).tolist()) == list(range(N))


def test_a_loader_is_not_handed_to_a_process(data: st.Dataset) -> None:
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match="Fix: pass the dataset, which can be pickled, and make a loader"):
                attempt(loader)
        spawned = multiprocessing.get_context("spawn").Process(target=list, args=(loader,))
        with pytest.raises(UsageError, match="a StreamLoader cannot be pickled"):
            spawned.start()
        workers = DataLoader(Batches(loader), batch_size=None, num_workers=1, multiprocessing_context="spawn")
        with pytest.raises(UsageError, match="a StreamLoader cannot be pickled"):
            list(workers)


def test_what_is_no_loader_is_refused_by_name() -> None:
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    for data in (DataLoader(TensorDataset(torch.zeros(4, 4), torch.zeros(4))), [1, 2], {"x": np.zeros(3)}):
        name = type(data).__name__
        with pytest.raises(UsageError, match=rf"fit is given a {name}\..*Fix: dataset = st\.ingest\("):
            trainer.fit(data, max_epochs=1)  # type: ignore[arg-type]
