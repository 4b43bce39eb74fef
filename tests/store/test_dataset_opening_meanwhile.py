"""A dataset that takes another's place while it is opened is the one that opens; while it is read, nothing of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import streamtrain
from streamtrain.errors import DamagedBlock, DatasetError, LockedError
from streamtrain.ingestion import write_dataset
from streamtrain.loader.reading.block_reader import BlockReader
from streamtrain.store import dataset, verify
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
@pytest.mark.parametrize("function", ["fetch", "fetch_stored", "check", "check_stored", "check_header"])
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
    with refused() if not waiting else nullcontext():
        first.read_block("x", 1)


ROWS = {"x": np.arange(4000, dtype="f4").reshape(1000, 4), "y": np.arange(1000) % 3}
SMALL = {"block": "1KB", "shard": "4KB", "codec": "none"}


@contextmanager
def refused() -> Iterator[None]:
    """It was replaced, and is not damaged: a quarantine would leave it out."""
    with pytest.raises(DatasetError, match="was replaced by another one while it was read") as caught:
        yield
    assert not isinstance(caught.value, DamagedBlock)


def overwrite(path: Path) -> None:
    streamtrain.ingest({"x": ROWS["x"] + 1, "y": ROWS["y"]}, path, overwrite=True, **SMALL)


def append(path: Path) -> None:
    streamtrain.ingest({name: rows[:70] for name, rows in ROWS.items()}, path, append=True)


def load(dataset: streamtrain.Dataset, on_bad_block: str) -> None:
    with streamtrain.StreamLoader(dataset, batch_size=50, on_bad_block=on_bad_block) as loader:
        for _ in loader:
            pass


def evaluate(dataset: streamtrain.Dataset) -> None:
    streamtrain.Trainer(nn.Linear(4, 3), loss="cross_entropy").evaluate(dataset)


@pytest.mark.parametrize("replace", [overwrite, append])
@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda dataset: dataset[990:], id="slice"),
        pytest.param(lambda dataset: dataset[-1], id="sample"),
        pytest.param(list, id="iteration"),
        pytest.param(lambda dataset: dataset.stats("x"), id="statistics"),
        pytest.param(lambda dataset: load(dataset, "error"), id="loader"),
        pytest.param(lambda dataset: load(dataset, "quarantine"), id="quarantine"),
        pytest.param(evaluate, id="evaluate"),
    ],
)
def test_what_is_read_of_one_that_was_replaced_is_refused(
    tmp_path: Path, replace: Callable[[Path], None], read: Callable[[streamtrain.Dataset], Any]
) -> None:
    dataset = streamtrain.ingest(ROWS, tmp_path / "d.zarr", **SMALL)
    replace(dataset.path)
    with refused():
        read(dataset)


@pytest.mark.parametrize("replace", [overwrite, append])
@pytest.mark.parametrize(
    ("function", "full"),
    [("file_damage", False), ("checked_dataset", False), ("checked_dataset", True), ("_shards", True)],
)
def test_no_damage_is_found_in_what_was_replaced(
    tmp_path: Path, function: str, replace: Callable[[Path], None], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = streamtrain.ingest(ROWS, tmp_path / "d.zarr", **SMALL).path
    real, waiting = getattr(verify, function), [path]

    def replaced(*args: Any) -> Any:
        while waiting:
            replace(waiting.pop())
        return real(*args)

    monkeypatch.setattr(verify, function, replaced)
    with refused():
        streamtrain.verify(path, full=full)
    assert streamtrain.verify(path, full=True).damage == ()


def test_a_manifest_that_is_replaced_as_it_is_verified_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = streamtrain.ingest(ROWS, tmp_path / "d.zarr", **SMALL).path
    real, waiting = dataset._read_manifest, [path]

    def replaced(*args: Any) -> Any:
        while waiting:
            overwrite(waiting.pop())
        return real(*args)

    monkeypatch.setattr(dataset, "_read_manifest", replaced)
    assert streamtrain.verify(path).damage == ()


def test_what_an_ingest_returns_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody replaces it between the commit and the opening: the lock is held until then."""
    real, refused_as_locked = write_dataset.open_dataset, []

    def beside_another(path: Path) -> streamtrain.Dataset:
        monkeypatch.setattr(write_dataset, "open_dataset", real)
        with pytest.raises(LockedError):
            overwrite(path)
        refused_as_locked.append(path)
        return real(path)

    monkeypatch.setattr(write_dataset, "open_dataset", beside_another)
    (tmp_path / "link").symlink_to(tmp_path / "d.zarr")
    made = streamtrain.ingest(ROWS, tmp_path / "d.zarr", **SMALL)
    assert refused_as_locked == [tmp_path / "d.zarr"]
    assert made[5]["x"].tolist() == ROWS["x"][5].tolist()
    assert streamtrain.ingest(ROWS, tmp_path / "link", overwrite=True).path == tmp_path / "link"
