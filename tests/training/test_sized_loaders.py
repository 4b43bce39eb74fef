"""Training on datasets themselves: the same as on loaders made by hand, within a budget of the whole process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import Argument, BudgetError, DatasetError, Fix, UsageError
from streamtrain.loader.shared_budget import NonLoaderMemory, process_budget_error
from streamtrain.system.units import parse_bytes
from streamtrain.training import sized_loaders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = np.arange(900) % 3
    x = (rng.normal(size=(900, 6)) * 50 + 100 * y[:, None]).astype(np.uint8)
    folder = tmp_path_factory.mktemp("sized")
    return st.ingest({"x": x, "y": y}, folder / "d.zarr"), st.ingest({"x": x[::3], "y": y[::3]}, folder / "v.zarr")


def new_trainer(**options):
    torch.manual_seed(0)
    return st.Trainer(nn.Linear(6, 3), loss="cross_entropy", normalize="auto", device="cpu", **options)


@pytest.mark.parametrize("update", ["batch", "epoch", "sample"])
def test_a_dataset_trains_as_a_loader_of_it(data, update):
    train, val = data
    one, other = new_trainer(update=update), new_trainer(update=update)
    history = one.fit(train, val=val, max_epochs=2, batch_size=50, seed=3, progress=False)
    with st.StreamLoader(train, batch_size=50, seed=3) as loader, st.StreamLoader(val, batch_size=50) as measured:
        expected = other.fit(loader, val=measured, max_epochs=2, progress=False)
    assert torch.equal(one.model.weight, other.model.weight)
    assert history.last.val.loss == pytest.approx(expected.last.val.loss, rel=1e-12)


def test_a_budget_of_the_process_sizes_the_loaders(data):
    trainer = new_trainer()
    assert trainer.fit(data[0], max_epochs=1, max_memory="20GB", progress=False).counts.n_epochs == 1
    with pytest.raises(BudgetError, match=r"max_memory is 1\.0 MB.*Fix: max_memory='\d+MB' or more"):
        trainer.fit(data[0], max_epochs=2, max_memory="1MB", progress=False)


def test_a_loader_that_is_given_is_held_against_the_budget_alone(data):
    trainer = new_trainer()
    with st.StreamLoader(data[0], memory="64MB") as loader:
        assert trainer.fit(loader, max_epochs=1, max_memory="20GB", progress=False).counts.n_epochs == 1
        with pytest.raises(BudgetError, match=r"the process holds .* or a smaller memory="):
            trainer.fit(loader, max_epochs=2, max_memory="10MB", progress=False)


def test_what_does_not_go_together_is_refused(data):
    trainer = new_trainer()
    with st.StreamLoader(data[0], memory="64MB") as loader:
        with pytest.raises(UsageError, match="and val is a"):
            trainer.fit(loader, val=data[1], max_epochs=1)
        with pytest.raises(UsageError, match="a loader has its own batch_size, seed and memory"):
            trainer.fit(loader, batch_size=7, max_epochs=1)


def test_the_loaders_that_are_made_bring_batches_to_the_trainers_device(data, monkeypatch):
    asked = []

    def recorded(*arguments, **options):
        asked.append(options["device"])
        return st.StreamLoader(*arguments, **options)

    monkeypatch.setattr(sized_loaders, "StreamLoader", recorded)
    new_trainer().fit(data[0], max_epochs=1, progress=False)
    assert asked == ["cpu"]


def test_auto_is_what_the_machine_allows_also_for_a_loader_that_is_given(data):
    with st.StreamLoader(data[0], memory="16MB") as loader:
        assert new_trainer().fit(loader, max_epochs=1, max_memory="auto", progress=False).counts.n_epochs == 1


def test_a_dataset_is_evaluated_as_a_loader_of_it(data):
    trainer = new_trainer()
    trainer.fit(data[0], max_epochs=1, progress=False)
    with st.StreamLoader(data[1]) as loader:
        assert trainer.evaluate(data[1]) == trainer.evaluate(loader)


def test_a_refusal_without_a_size_stays_a_budget_error():
    taken = NonLoaderMemory(reserved_bytes=1, training_bytes=1, step_bytes=1)
    refused = BudgetError("too small", fix=Fix("a larger ", Argument("memory"), ", or no ", Argument("val")))
    assert process_budget_error(refused, taken).fix == "a larger max_memory=, or no val="


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_stands_for_its_dataset(data, kind):
    train, val = data
    paths = [kind(each.path) for each in data]
    one, other = new_trainer(), new_trainer()
    of_paths = one.fit(paths[0], val=paths[1], max_epochs=1, batch_size=50, progress=False)
    of_data = other.fit(train, val=val, max_epochs=1, batch_size=50, progress=False)
    assert torch.equal(one.model.weight, other.model.weight)
    assert of_paths.last.val == of_data.last.val
    assert one.evaluate(paths[1]) == other.evaluate(val)
    with st.StreamLoader(paths[0], batch_size=50) as loader, st.StreamLoader(train, batch_size=50) as expected:
        assert all(torch.equal(a.x, b.x) for a, b in zip(loader, expected, strict=True))
    assert st.plan(paths[0]).n_batches == st.plan(train).n_batches


def test_a_path_at_which_there_is_none_is_refused(tmp_path):
    gone = tmp_path / "gone.zarr"
    with pytest.raises(DatasetError, match="no such dataset"):
        new_trainer().fit(gone, max_epochs=1)
    for use in (st.StreamLoader, st.plan, st.Trainer(nn.Linear(6, 3), loss="mse", device="cpu").evaluate):
        with pytest.raises(DatasetError, match="no such dataset"):
            use(str(gone))


def test_a_budget_too_small_for_validation_names_its_share_and_what_is_enough(data):
    how = {"val": data[1], "max_epochs": 1, "batch_size": 50, "progress": False}
    with pytest.raises(
        BudgetError, match=r"Validation data gets 1/4 of it, .* training needs .* validation "
    ) as caught:
        new_trainer().fit(data[0], **how, memory="1MB")
    enough = caught.value.fix.argument("memory").value
    new_trainer().fit(data[0], **how, memory=enough)
    with pytest.raises(BudgetError):
        new_trainer().fit(data[0], **how, memory=parse_bytes(enough) - 1_000_000)
