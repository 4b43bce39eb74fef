"""A dataset that takes another's place while it is opened is the one that opens; while it is read, nothing of it is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import DatasetError
from streamtrain.loader.block_reader import BlockReader
from streamtrain.store import dataset
from streamtrain.store.shard import ShardReader


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
@pytest.mark.parametrize("function", ["_read_manifest", "file_damage", "read_checksums"])
def test_it_is_the_new_one(
    dataset_to_harm: Path, tmp_path: Path, function: str, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = streamtrain.ingest({"x": np.arange(12)}, tmp_path / "other.zarr")
    if damaged:
        other.shard_path("x", 0).unlink()
    real, waiting = getattr(dataset, function), [dataset_to_harm]

    def swapping(*args: Any) -> Any:
        while waiting:
            path = waiting.pop()
            path.rename(tmp_path / "aside")
            other.path.rename(path)
        return real(*args)

    monkeypatch.setattr(dataset, function, swapping)
    if damaged:
        with pytest.raises(DatasetError, match=r"x/c/0: a stored file is missing"):
            streamtrain.open(dataset_to_harm)
    else:
        assert streamtrain.open(dataset_to_harm).id == other.id
    assert not waiting


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("reader", ["dataset", "loader"])
@pytest.mark.parametrize("function", ["fetch", "fetch_stored", "check", "check_header"])
def test_the_bytes_that_were_checked_are_those_that_are_used(
    tmp_path: Path, function: str, reader: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = streamtrain.ingest({"x": np.zeros((999, 4), "f4")}, tmp_path / "d.zarr", codec=codec, block="1KB")
    other = streamtrain.ingest({"x": np.ones((999, 4), "f4")}, tmp_path / "e.zarr", codec=codec, block="1KB")
    real, waiting = getattr(ShardReader, function), [first.path]

    def replaced(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        while waiting:
            path = waiting.pop()
            path.rename(tmp_path / "aside")
            other.path.rename(path)
        return found

    monkeypatch.setattr(ShardReader, function, replaced)
    if reader == "dataset":
        rows = first[0:5]["x"]
    else:
        rows = np.ones((first.layout.block_rows, 4), "f4")
        BlockReader(first).read(0, [memoryview(rows).cast("B")])
    assert not rows.any()
    # What is opened from now on is not what the open dataset knows.
    with pytest.raises(DatasetError, match=r"block 1 of field x .* is damaged") if not waiting else nullcontext():
        first.read_block("x", 1)
