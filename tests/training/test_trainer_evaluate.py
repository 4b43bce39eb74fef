"""`Trainer.evaluate` measures every sample, whatever the loader's options and wherever it stands."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import streamtrain as st

pytestmark = pytest.mark.usefixtures("one_thread")

N = 103


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("float32")
    # The last samples are others than the rest, so that leaving them out shows.
    x[-10:] += 5
    rows = {"x": x, "y": rng.integers(0, 3, N), "w": rng.integers(0, 3, N).astype("float32")}
    return st.ingest(rows, tmp_path_factory.mktemp("data") / "d.zarr", block=16 * 12)


def trainer_of(weight: str | None = None) -> st.Trainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
    return st.Trainer(model, loss="cross_entropy", weight=weight, device="cpu")


def expected(trainer: st.Trainer, rows: dict[str, Any], weight: str | None) -> tuple[float, float]:
    with torch.no_grad():
        output, y = trainer.model(torch.from_numpy(rows["x"])), torch.from_numpy(rows["y"])
        of = torch.from_numpy(rows["w"]).double() if weight else torch.ones(len(y))
        losses = F.cross_entropy(output, y, reduction="none") * of
        return float(losses.sum() / of.sum()), float(((output.argmax(1) == y) * of).sum() / of.sum())


@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize("n_taken", [0, 1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_options_and_place_of_the_loader_do_not_matter(
    dataset: st.Dataset, shuffle: bool, drop_last: bool, n_taken: int, weight: str | None
) -> None:
    trainer = trainer_of(weight)
    how: dict[str, Any] = {"batch_size": 30, "memory": "8MB", "shuffle": shuffle, "drop_last": drop_last}
    with st.StreamLoader(dataset, **how, reshuffle="never") as loader:
        under_way = iter(loader)
        seen = [batch.y for batch in islice(under_way, n_taken)] if n_taken else []
        before = loader.state_dict()
        found = trainer.evaluate(loader)
        assert (found.loss, found.score) == pytest.approx(expected(trainer, dataset[:], weight), rel=1e-6)
        assert found.n_samples == N
        if n_taken:
            assert loader.state_dict() == before
            seen += [batch.y for batch in under_way]
            assert sum(map(len, seen)) == (90 if drop_last else N), "what was under way goes on"


def test_a_state_inside_an_epoch_does_not_matter(dataset: st.Dataset) -> None:
    trainer = trainer_of()
    how: dict[str, Any] = {"batch_size": 30, "memory": "8MB", "shuffle": False}
    with st.StreamLoader(dataset, **how) as one, st.StreamLoader(dataset, **how) as other:
        list(islice(one, 2))
        other.load_state_dict(one.state_dict())
        assert trainer.evaluate(other).n_samples == N
        assert other.state_dict() == one.state_dict()
        assert sum(len(batch.y) for batch in other) == N - 60


def test_validation_on_a_loader_that_drops_its_last_batch_is_over_all(dataset: st.Dataset) -> None:
    trainer = trainer_of()
    how: dict[str, Any] = {"batch_size": 50, "memory": "8MB"}
    with st.StreamLoader(dataset, **how) as loader, st.StreamLoader(dataset, **how, drop_last=True) as val:
        last = trainer.fit(loader, max_epochs=2, val=val).last
    assert last is not None
    assert last.val is not None
    assert last.val.n_samples == N
    assert last.val.loss == pytest.approx(expected(trainer, dataset[:], None)[0], rel=1e-6)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_in_quarantine_is_told_and_left_out(
    dataset: st.Dataset, tmp_path: Path, shuffle: bool, drop_last: bool
) -> None:
    harmed = st.open(shutil.copytree(dataset.path, tmp_path / "d.zarr"))
    shard = harmed.shard_path("x", 0)
    data = bytearray(shard.read_bytes())
    data[20] ^= 255
    shard.write_bytes(data)
    trainer, rows = trainer_of(), dataset[:]
    how: dict[str, Any] = {"batch_size": 30, "memory": "8MB", "shuffle": shuffle, "drop_last": drop_last}
    with st.StreamLoader(harmed, **how, on_bad_block="quarantine") as loader:
        with pytest.warns(UserWarning, match="left out: block 0 of field x"):
            found = trainer.evaluate(loader)
        (out,) = loader.quarantined
    start, stop = out.samples
    kept = {name: np.delete(values, range(start, stop), 0) for name, values in rows.items()}
    assert found.n_samples == N - (stop - start)
    assert (found.loss, found.score) == pytest.approx(expected(trainer, kept, None), rel=1e-6)


def test_labels_that_are_no_numbers_are_refused_by_their_row(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    target = np.where(np.arange(50) == 41, np.nan, x[:, 0]).astype("float32")
    dataset = st.ingest({"x": x, "target": target}, tmp_path / "d.zarr", nan="keep", progress=False)
    trainer = st.Trainer(nn.Linear(3, 1), loss="mse", target="target", device="cpu")
    with pytest.raises(st.InputError, match=r"field target holds 1 value that are not finite in a batch.* row 41"):
        trainer.evaluate(dataset)
