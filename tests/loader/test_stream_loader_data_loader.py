"""A StreamLoader where torch's DataLoader and other people's code take it for a dataset, and batches as dicts."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import streamtrain as st
from streamtrain.errors import NotASequence, UsageError

N = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    source = {"x": np.arange(4 * N, dtype="f4").reshape(N, 4), "y": np.arange(N)}
    return st.ingest(source, tmp_path_factory.mktemp("engines") / "d.zarr", progress=False)


def loader_of(data: st.Dataset, **how: Any) -> st.StreamLoader:
    return st.StreamLoader(data, **{"batch_size": 20, "memory": "16MB", "seed": 0, **how})


def test_a_data_loader_gives_its_batches_as_they_are(data: st.Dataset) -> None:
    with loader_of(data) as loader, loader_of(data) as alone:
        assert isinstance(loader, IterableDataset)
        around = DataLoader(loader, batch_size=None)
        assert len(around) == 3
        for _ in range(2):
            pairs = list(zip(around, alone, strict=True))
            assert all(torch.equal(one.x, other.x) and torch.equal(one["y"], other["y"]) for one, other in pairs)
            assert sorted(sample for one, _ in pairs for sample in one.y.tolist()) == list(range(N))


def test_workers_are_refused(data: st.Dataset) -> None:
    with loader_of(data) as loader:
        workers = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork")
        with pytest.raises(UsageError, match=r"in worker 0 of 2 of a DataLoader") as caught:
            list(workers)
        # The frames hold torch's iterator. Collected with them, after its queues, it would wait for each worker.
        traceback.clear_frames(caught.tb)
        assert len(list(loader)) == 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_are_not_put_together_once_more(data: st.Dataset, batch_size: int) -> None:
    with loader_of(data) as loader:
        with pytest.raises(UsageError, match=r"together.*\n?.*DataLoader\(loader, batch_size=None\)"):
            next(iter(DataLoader(loader, batch_size=batch_size)))
        assert len(list(loader)) == 3, "nothing has begun"


def test_it_has_nothing_to_draw_samples_by(data: st.Dataset) -> None:
    with loader_of(data) as loader:
        assert not hasattr(loader, "sampler")
        assert not hasattr(loader, "batch_sampler")
        with pytest.raises(NotASequence, match="is a stream"):
            loader[0]


def test_batches_go_through_pickle(data: st.Dataset) -> None:
    with loader_of(data) as loader:
        for batch in loader:
            twin = pickle.loads(pickle.dumps(batch))
            assert isinstance(twin, st.Batch)
            assert torch.equal(twin.x, batch.x)
            assert torch.equal(twin["y"], batch.y)


def test_batches_are_dicts_where_they_are_asked_for(data: st.Dataset) -> None:
    with loader_of(data, as_dict=True) as loader, loader_of(data) as plain:
        for named, batch in zip(loader, plain, strict=True):
            assert type(named) is dict
            assert list(named) == ["x", "y"]
            assert all(torch.equal(named[name], batch[name]) for name in named)
        ordered = loader.sequential()
        assert next(iter(ordered))["y"].tolist() == list(range(20))
        ordered.close()


def doubled(batch: st.Batch) -> Any:
    return batch._replace(x=2 * batch.x)


def shifted(batch: st.Batch, keys: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"inputs": batch.x + keys[:, None] * 0, "labels": batch.y}


@pytest.mark.parametrize(("transform", "names"), [(doubled, ["x", "y"]), (shifted, ["inputs", "labels"])])
def test_what_a_transform_returns_is_made_a_dict(data: st.Dataset, transform: Any, names: list[str]) -> None:
    with loader_of(data, as_dict=True, transform=transform) as loader:
        found = list(loader)
    assert [list(batch) for batch in found] == [names] * 3
    assert sorted(sample for batch in found for sample in batch[names[1]].tolist()) == list(range(N))


def test_what_has_no_names_makes_no_dict(data: st.Dataset) -> None:
    how: dict[str, Any] = {"as_dict": True, "transform": lambda batch: (batch.x, batch.y)}
    with loader_of(data, **how) as loader, pytest.raises(UsageError, match="returned a tuple, which has no names"):
        next(iter(loader))


def test_an_empty_share_is_a_dict_too(data: st.Dataset) -> None:
    how: dict[str, Any] = {"batch_size": 49, "rank": 6, "world_size": 7, "groups": 7, "as_dict": True}
    with loader_of(data, **how) as loader:
        *_, last = loader
    assert {name: tuple(tensor.shape) for name, tensor in last.items()} == {"x": (0, 4), "y": (0,)}


def test_a_trainer_takes_them(data: st.Dataset) -> None:
    trainer = st.Trainer(torch.nn.Linear(4, N), loss="cross_entropy", lr=0.1, device="cpu")
    with loader_of(data, as_dict=True) as loader:
        history = trainer.fit(loader, max_epochs=1, progress=False)
        assert trainer.evaluate(loader).n_samples == N
    assert history.counts.n_samples == N


def test_ingest_does_not_ask_for_samples_by_index(data: st.Dataset, tmp_path: Path) -> None:
    with loader_of(data, as_dict=True, shuffle=False) as loader:
        again = st.ingest(loader, tmp_path / "d.zarr", progress=False)
    assert np.array_equal(again[0:N]["y"], np.arange(N))
