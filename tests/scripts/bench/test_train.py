"""The training benchmark at small size: three ways of training on the same batches end with the same weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from run_script import is_ratio_of_rounded, results_of, run_script
from torch import nn

import streamtrain as st
from scripts.bench import train as bench


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    # One thread: on a busy machine PyTorch's threads wait for one another at each of these tiny steps.
    small = ["--samples", "150", "--repeats", "1", "--epochs", "1", "--threads", "1", "--folder", str(tmp_path)]
    done = run_script("bench/train.py", *small)
    results = results_of(done)
    assert [result["model"] for result in results] == ["linear", "mlp:256,128", "cnn"]
    for result in results:
        assert 0 <= result["stall_fraction"] < 1
        for other in ("ideal", "ready"):
            ratio, seconds = result[f"ratio_to_{other}"], (result["store_epoch_s"], result[f"{other}_epoch_s"])
            assert is_ratio_of_rounded(ratio, *seconds, digits=4)
        assert (result["samples"], result["rounds"], result["torch_threads"]) == (150, 1, 1)
    assert [bool(result["bars"]) for result in results] == [False, True, True]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def data(tmp_path: Path) -> tuple[st.Dataset, argparse.Namespace]:
    recipe = bench.Recipe(n_samples=200, shape=bench.SHAPE, compressibility=2.0)
    dataset = st.ingest(bench.arrays_of(recipe), tmp_path / "d.zarr", progress=False)
    return dataset, argparse.Namespace(batch_size=64, memory="16MB")


def test_ready_batches_are_the_loaders_in_memory_of_their_own(data: Any) -> None:
    dataset, arguments = data
    ready = bench.ReadyBatches(dataset, arguments, range(3, 5))
    with bench.new_loader(dataset, arguments) as loader:
        for epoch in (3, 4):
            ready.set_epoch(epoch)
            loader.set_epoch(epoch)
            assert len(ready) == len(loader) == 4
            for one, other in zip(ready, loader, strict=True):
                assert torch.equal(one.x, other.x)
                assert torch.equal(one.y, other.y)
                assert one.x.data_ptr() != other.x.data_ptr()
    batches = list(ready.all_batches())
    assert len(batches) == 8
    assert len({batch.x.data_ptr() for batch in batches}) == 8
    assert not torch.equal(batches[0].y, batches[4].y), "each epoch has its own order"


def test_the_loop_by_hand_takes_the_trainers_steps(data: Any) -> None:
    dataset, arguments = data
    ready = bench.ReadyBatches(dataset, arguments, range(2))
    trainer, plain = bench.new_trainer("mlp"), bench.PlainLoop("mlp", dataset)
    bench.check_same([trainer.model, plain.model])
    plain.run(ready)
    with pytest.raises(SystemExit, match="after the same batches the models differ in"):
        bench.check_same([trainer.model, plain.model])
    bench.fit(trainer, ready, 2)
    bench.check_same([trainer.model, plain.model])


def test_weights_that_differ_are_named() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    bench.check_same([one, other, one])
    with torch.no_grad():
        other.bias += 1
    with pytest.raises(SystemExit, match="the models differ in bias"):
        bench.check_same([one, one, other])
