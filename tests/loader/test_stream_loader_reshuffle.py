"""Batches formed anew every epoch, or never; and the samples of a batch."""

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain import StreamLoader
from streamtrain.errors import UnknownName, UsageError

N = 1000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("reshuffle") / "d.zarr"
    return streamtrain.ingest({"y": np.arange(N)}, path, block=8 * 16, codec="none")


def batches(loader):
    return [batch.y.tolist() for batch in loader]


def known_and_held(loader):
    return [(loader.last_samples().tolist(), batch.y.tolist()) for batch in loader]


def loader_of(dataset, **options):
    return StreamLoader(dataset, batch_size=64, memory="8MB", seed=3, **options)


def test_batches_stay_the_same_where_nothing_reshuffles(dataset):
    with loader_of(dataset, reshuffle="never") as fixed, loader_of(dataset) as anew:
        first = batches(fixed)
        assert first == batches(anew), "the order of epoch 0"
        assert sorted(chain.from_iterable(first)) == list(range(N))
        assert batches(fixed) == first
        fixed.set_epoch(7)
        assert batches(fixed) == first
        assert batches(anew) != first


def test_fixed_batches_resume_inside_an_epoch(dataset):
    with loader_of(dataset, reshuffle="never") as loader:
        first = batches(loader)
        part = list(islice(loader, 5))
        state = loader.state_dict()
    assert len(part) == state["batch"] == 5
    assert state["epoch"] == 1
    with loader_of(dataset, reshuffle="never") as loader:
        loader.load_state_dict(state)
        assert batches(loader) == first[5:]


def test_a_state_knows_whether_batches_were_reshuffled(dataset):
    with loader_of(dataset, reshuffle="never") as fixed, loader_of(dataset) as anew:
        with pytest.raises(UsageError, match="reshuffle: 'never' there, 'epoch' here"):
            anew.load_state_dict(fixed.state_dict())
        old = {name: value for name, value in anew.state_dict().items() if name not in ("reshuffle", "order")}
        old["version"] = 1
        anew.load_state_dict(old)
        with pytest.raises(UsageError, match="reshuffle: 'epoch' there, 'never' here"):
            fixed.load_state_dict(old)


def test_an_unknown_time_to_reshuffle_is_refused(dataset):
    with pytest.raises(UnknownName, match="unknown reshuffle 'nevr'"):
        loader_of(dataset, reshuffle="nevr")


@given(batch_size=st.integers(1, 90), n_taken=st.integers(1, 11), shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_the_samples_of_the_last_batch_are_known(dataset, batch_size, n_taken, shuffle, epoch):
    with StreamLoader(dataset, batch_size=batch_size, memory="8MB", shuffle=shuffle) as loader:
        loader.set_epoch(epoch)
        for batch in islice(loader, n_taken):
            assert loader.last_samples().tolist() == batch.y.tolist()


def test_the_samples_of_a_short_last_batch_are_known(dataset):
    with loader_of(dataset) as loader:
        found = known_and_held(loader)
    assert len(found[-1][0]) == N % 64
    assert all(known == held for known, held in found)


def test_after_an_epoch_its_last_batch_is_still_the_last(dataset):
    with loader_of(dataset) as loader:
        *_, last = [batch.y.tolist() for batch in loader]
        assert loader.last_samples().tolist() == last
        next(iter(loader))
        assert loader.last_samples().tolist() != last
        loader.set_epoch(4)
        assert not len(loader.last_samples()), "there is none any more"


def test_samples_that_are_left_out_are_not_among_them(tmp_path):
    path = tmp_path / "d.zarr"
    streamtrain.ingest({"y": np.arange(N)}, path, block=8 * 16, codec="none")
    (shard,) = (file for file in (path / "y" / "c").rglob("*") if file.is_file())
    content = bytearray(shard.read_bytes())
    content[8 * 40] ^= 1
    shard.write_bytes(content)
    options = {"batch_size": 64, "memory": "8MB", "on_bad_block": "quarantine"}
    with StreamLoader(streamtrain.open(path), **options) as loader:
        with pytest.warns(UserWarning, match="left out: block 2 of field y"):
            pairs = known_and_held(loader)
        assert all(known == held for known, held in pairs + known_and_held(loader))
        assert sum(len(held) for _, held in pairs) == N - 16
