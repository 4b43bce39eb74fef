"""Quarantine: the samples left out, and everything else as it would have been."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain.cli.main import main
from streamtrain.errors import DamagedBlock, UnknownName, UsageError
from streamtrain.loader.augmentation import sample_keys
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.store.dataset import Dataset

N = 1000
BATCH = 32


@pytest.fixture(params=["none", "lz4"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    source = {"x": np.arange(N) * 3, "y": np.arange(N) % 5}
    return streamtrain.ingest(source, tmp_path / "d.zarr", block=16 * 20, shard=8 * 100, codec=request.param)


def harm(dataset: Dataset, field: str, shard: int, at: int = 20) -> None:
    path = dataset.shard_path(field, shard)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def harmed(dataset: Dataset) -> Dataset:
    """Blocks 0 (in x) and 10 (in y) are damaged: samples 0 to 19, and 200 to 219."""
    harm(dataset, "x", 0)
    harm(dataset, "y", 2)
    return dataset


OUT = {*range(20), *range(200, 220)}


def loader_of(dataset: Dataset, **options: Any) -> StreamLoader:
    return StreamLoader(
        dataset, **{"batch_size": BATCH, "memory": "16MB", "lanes": 8, "on_bad_block": "quarantine", **options}
    )


def rows(batches: Iterator[Any] | StreamLoader) -> list[list[int]]:
    found = []
    for x, y in batches:
        samples = x.numpy() // 3
        np.testing.assert_array_equal(y.numpy(), samples % 5)
        found.append(samples.tolist())
    return found


def warned(loader: StreamLoader) -> list[list[int]]:
    with pytest.warns(UserWarning, match="left out"):
        return rows(loader)


@pytest.fixture
def whole_epochs(dataset: Dataset) -> list[list[list[int]]]:
    """Two epochs before there is any damage."""
    with loader_of(dataset) as loader:
        epochs = [rows(loader), rows(loader)]
        assert loader.quarantined == ()
    return epochs


def without(epoch: list[list[int]]) -> list[list[int]]:
    return [[sample for sample in batch if sample not in OUT] for batch in epoch]


def test_the_others_stay_as_they_were(whole_epochs: list[list[list[int]]], harmed: Dataset) -> None:
    with loader_of(harmed) as loader:
        with pytest.warns(
            UserWarning, match=r"left out: block \d+ of field [xy] \(samples \d+ to \d+\), /.*: crc32c is"
        ):
            first = rows(loader)
        assert [first, rows(loader)] == [without(epoch) for epoch in whole_epochs]
        assert len(first) == len(loader)
        found = sorted(loader.quarantined, key=lambda out: out.block)
    assert [(out.field, out.block, out.samples) for out in found] == [("x", 0, (0, 20)), ("y", 10, (200, 220))]
    assert [out.file for out in found] == [str(harmed.shard_path("x", 0)), str(harmed.shard_path("y", 2))]
    assert all("crc32c is" in out.why for out in found)


def test_an_error_is_the_default(harmed: Dataset) -> None:
    with StreamLoader(harmed, batch_size=BATCH, memory="16MB") as loader:
        with pytest.raises(DamagedBlock, match=r"block \d+ of field [xy] \(samples "):
            list(loader)
        assert loader.quarantined == ()


def test_a_batch_of_which_nothing_is_left_is_passed_over(harmed: Dataset) -> None:
    with loader_of(harmed, batch_size=10, shuffle=False, lanes=None) as loader:
        found = warned(loader)
        assert len(found) == len(loader) - 4
    assert found == [batch for batch in without([list(range(i, i + 10)) for i in range(0, N, 10)]) if batch]


def test_a_run_goes_on_where_it_stood(whole_epochs: list[list[list[int]]], harmed: Dataset) -> None:
    expected = without(whole_epochs[0])
    for stop in (1, 7, 30):
        # Neither part of the epoch need read both blocks.
        with loader_of(harmed) as loader, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batches = iter(loader)
            before = rows(next(batches) for _ in range(stop))
            state = loader.state_dict()
            batches.close()
        with loader_of(harmed) as loader, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader.load_state_dict(state)
            assert before + rows(loader) == expected


def test_keys_and_transforms_go_with_the_samples(harmed: Dataset) -> None:
    def keep(batch: Any, keys: torch.Tensor) -> Any:
        return *batch, keys

    with loader_of(harmed, transform=keep, seed=4) as loader, pytest.warns(UserWarning, match="left out"):
        taken = list(loader)
    assert all(torch.equal(keys, sample_keys(4, 0, x.numpy() // 3)) for x, _, keys in taken)
    assert sum(len(keys) for _, _, keys in taken) == N - len(OUT)


def test_the_loader_in_stored_order_leaves_out_the_same(harmed: Dataset) -> None:
    with loader_of(harmed) as loader, loader.sequential() as ordered:
        assert [*chain(*warned(ordered))] == [sample for sample in range(N) if sample not in OUT]
        assert {out.block for out in loader.quarantined} == {0, 10}


def test_a_lost_index_leaves_out_its_shard(dataset: Dataset) -> None:
    layout = dataset.layout
    path = dataset.shard_path("x", 1)
    os.truncate(path, 40)
    with loader_of(dataset) as loader:
        found = [*chain(*warned(loader))]
        assert {out.block for out in loader.quarantined} == set(range(*layout.shard_blocks_range(1)))
    first, end = layout.shard_blocks_range(1)
    out = range(first * layout.block_rows, end * layout.block_rows)
    assert sorted(found) == [sample for sample in range(N) if sample not in out]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"on_bad_block": "quarantin"}, UnknownName, "did you mean 'quarantine'"),
        ({"timeout": 0}, UsageError, "timeout is 0; it must be a positive number of seconds"),
        ({"timeout": float("nan")}, UsageError, "timeout is nan"),
        ({"timeout": "5"}, UsageError, "timeout is '5'"),
    ],
)
def test_wrong_arguments(dataset: Dataset, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        loader_of(dataset, **options)


def test_train_says_what_it_left_out(harmed: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(harmed.path), "--model", "linear", "--epochs", "1", "--memory", "16MB"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 4
    said = capsys.readouterr().err
    assert "block 0 of field x (samples 0 to 19) is damaged" in said
    assert "or train with --on-bad-block quarantine" in said
    assert main(["train", "--help-all"]) == 0
    assert "--on-bad-block error|quarantine" in capsys.readouterr().out
    words += ["--on-bad-block", "quarantine", "--batch-size", str(BATCH)]
    with pytest.warns(UserWarning, match="left out"):
        assert main([*words, "--out", str(tmp_path / "b"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["samples"], result["steps"]) == (N - len(OUT), -(-N // BATCH))
    found = sorted((out["field"], out["block"], tuple(out["samples"])) for out in result["quarantined"])
    assert found == [("x", 0, (0, 20)), ("y", 10, (200, 220))]
    with pytest.warns(UserWarning, match="left out"):
        assert main([*words, "--out", str(tmp_path / "c"), "--update", "epoch"]) == 0
    assert "left out block 10 of field y (samples 200 to 219), " in capsys.readouterr().out
    assert main(["info", str(tmp_path / "b")]) == 0
    assert f"left out {len(OUT)} samples of {N:,} in the last epoch" in capsys.readouterr().out


def test_a_training_names_the_quarantine_and_a_comparison_does_not(harmed: Dataset) -> None:
    with pytest.raises(DamagedBlock, match="or train with on_bad_block='quarantine'"):
        streamtrain.Trainer("linear", loss="cross_entropy", device="cpu").fit(harmed, max_epochs=1, memory="16MB")
    with pytest.raises(DamagedBlock) as caught:
        streamtrain.compare(
            torch.nn.Linear(1, 5), harmed, rules=("batch",), optimizers=("sgd",), max_epochs=1, batch_size=BATCH
        )
    assert "quarantine" not in str(caught.value)


def test_what_is_measured_on_leaves_its_damage_out_too(
    harmed: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_val = 300
    source = {"x": np.arange(n_val) * 3, "y": np.arange(n_val) % 5}
    val = streamtrain.ingest(source, tmp_path / "v.zarr", block=16 * 20, shard=8 * 100, codec="none")
    harm(val, "x", 1)
    words = ["train", str(harmed.path), "--val", str(val.path), "--model", "linear", "--epochs", "2"]
    words += ["--memory", "32MB", "--batch-size", str(BATCH)]
    quarantine = ["--on-bad-block", "quarantine"]
    with pytest.warns(UserWarning, match="left out"):
        assert main([*words, *quarantine, "--out", str(tmp_path / "a"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["val"].keys() >= {"loss", "accuracy"}
    assert {(out["field"], out["block"]) for out in result["quarantined"]} == {("x", 0), ("y", 10)}
    (out,) = result["val_quarantined"]
    assert (out["field"], out["block"], out["samples"]) == ("x", 5, [100, 120])
    assert out["file"] == str(val.shard_path("x", 1))
    with pytest.warns(UserWarning, match="left out"):
        assert main([*words, *quarantine, "--out", str(tmp_path / "b")]) == 0
    assert "left out of --val block 5 of field x (samples 100 to 119), " in capsys.readouterr().out
    # Without being told to, it ends at the first damage there, though the training data is whole.
    whole = tmp_path / "w.zarr"
    streamtrain.ingest(source, whole)
    assert main(["train", str(whole), *words[2:], "--out", str(tmp_path / "c")]) == 4
    assert "v.zarr" in capsys.readouterr().err


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_rank_that_loses_all_of_a_batch_takes_the_step_all_the_same(harmed: Dataset, shuffle: bool) -> None:
    how: dict[str, Any] = {"batch_size": 8, "shuffle": shuffle, "world_size": 4}
    how |= {"lanes": 8, "groups": 4} if shuffle else {"lanes": None}
    found: list[list[list[int]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rank in range(4):
            with loader_of(harmed, rank=rank, **how) as loader:
                found.append([y.tolist() for _, y in loader])
    assert {len(batches) for batches in found} == {N // 8}
    assert sum(len(y) for batches in found for y in batches) == N - len(OUT)
