"""An interrupted ingest that is resumed ends with the same bytes; one of something else is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from ingest_cases import SIZES, F, Full, X, Y, identities, interrupt, tree, write_files

import streamtrain
from streamtrain.errors import DatasetError, InputError, ResourceError, UsageError
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.system.files import Files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same rows in every kind of file."""
    return write_files(tmp_path)


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "arrays", "dask"])
def test_what_is_resumed_is_the_same_to_the_last_byte(files: Path, kind: str) -> None:
    sources: dict[str, tuple[object, object]] = {
        "npy": (str(files / "x.npy"), str(files / "y.npy")),
        "npz": (str(files / "d.npz"), None),
        "csv": (str(files / "t.csv"), None),
        "arrays": ({"x": X, "y": Y}, None),
        "dask": ({"x": da.from_array(X, chunks=(300, 24)), "y": Y}, None),
    }
    source, labels = sources[kind]
    path, said = files / "d.zarr", list[str]()
    whole = streamtrain.ingest(source, files / "whole.zarr", labels=labels, **SIZES)
    interrupt(source, path, 40, labels=labels)
    with pytest.raises(DatasetError, match=r"an incomplete dataset.*resume=True"):
        streamtrain.open(path)
    before = identities(path, "x")
    done = streamtrain.ingest(source, path, labels=labels, resume=True, say=said.append, **SIZES)
    assert tree(path) == tree(whole.path)
    assert done.id == whole.id
    after = identities(path, "x")
    (text,) = said
    n_kept = int(text.split("; ")[1].split()[0])
    assert n_kept > 5
    assert sum(after[key] == seen for key, seen in before.items()) >= n_kept
    assert sorted(entry.name for entry in files.iterdir() if entry.name.startswith(".")) == []


def test_a_shard_that_was_damaged_meanwhile_is_made_again(files: Path) -> None:
    path = files / "d.zarr"
    whole = streamtrain.ingest(str(files / "x.npy"), files / "whole.zarr", **SIZES)
    interrupt(str(files / "x.npy"), path, 12)
    kept = sorted(path.glob("x/c/*/0"))
    data = bytearray(kept[2].read_bytes())
    data[100] ^= 1
    kept[2].write_bytes(data)
    kept[4].unlink()
    streamtrain.ingest(str(files / "x.npy"), path, resume=True, **SIZES)
    assert tree(path) == tree(whole.path)


def test_resuming_something_else_is_refused_with_the_differences(files: Path) -> None:
    path, source = files / "d.zarr", str(files / "x.npy")
    interrupt(source, path, 12)
    before = tree(path)
    other = SIZES | {"shard": "8KB", "codec": "zstd"}
    with pytest.raises(
        DatasetError, match=r"options\.codec: 'lz4' there, 'zstd' here.*shard: 4000 there, 8000"
    ) as caught:
        streamtrain.ingest(source, path, resume=True, **other)
    assert caught.value.exit_code == 4
    os.utime(files / "x.npy", ns=(1, 1))
    with pytest.raises(DatasetError, match=r"sources\[0\]\.mtime_ns: \d+ there, 1 here"):
        streamtrain.ingest(source, path, resume=True, **SIZES)
    np.save(files / "x.npy", X[:1500])
    with pytest.raises(DatasetError, match=r"samples: 2000 there, 1500 here.*bytes"):
        streamtrain.ingest(source, path, resume=True, **SIZES)
    assert tree(path) == before


def test_arrays_have_no_fingerprint_so_their_rows_are_compared(tmp_path: Path) -> None:
    for source in ({"x": X}, {"x": da.from_array(X, chunks=(300, 24))}):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        interrupt(source, path, 12)
        before = tree(path)
        changed = X.copy()
        changed[:, 5] += 1
        other = {"x": changed if source["x"] is X else da.from_array(changed, chunks=(300, 24))}
        with pytest.raises(DatasetError, match="not the one that was being ingested: field x differs in its samples"):
            streamtrain.ingest(other, path, resume=True, **SIZES)
        assert tree(path).keys() >= {key for key in before if key.startswith("x/")}
        streamtrain.ingest(source, path, resume=True, **SIZES)
        np.testing.assert_array_equal(streamtrain.open(path)[:]["x"], X)


def test_other_dask_arrays_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    def source(rows: Any) -> dict[str, Any]:
        return {"x": da.from_array(rows, chunks=(300, 24))}

    whole = streamtrain.ingest(source(X), tmp_path / "whole.zarr", **SIZES)
    path = tmp_path / "d.zarr"
    interrupt(source(X), path, 20)
    kept = sorted(path.glob("x/c/*/0"), key=lambda file: int(file.parent.name))
    n_rows = whole.layout.block_rows * whole.layout.shard_blocks
    # One is gone and is to be made again, one is damaged, and only in the last the sources differ.
    kept[1].unlink()
    data = bytearray(kept[3].read_bytes())
    data[100] ^= 1
    kept[3].write_bytes(data)
    changed = X.copy()
    changed[(len(kept) - 2) * n_rows] += 1
    before = tree(path / "x" / "c")
    with pytest.raises(DatasetError, match="not the one that was being ingested: field x differs in its samples"):
        streamtrain.ingest(source(changed), path, resume=True, **SIZES)
    assert tree(path / "x" / "c") == before, "no shard of another source may come among them"
    streamtrain.ingest(source(X), path, resume=True, **SIZES)
    assert tree(path) == tree(whole.path)


def test_an_iterator_cannot_be_resumed_and_leaves_nothing(tmp_path: Path) -> None:
    def items() -> Iterator[dict[str, Any]]:
        return ({"x": X[a : a + 100]} for a in range(0, 2000, 100))

    with pytest.raises(UsageError, match="an ingest from an iterator cannot be resumed") as caught:
        streamtrain.ingest(items(), tmp_path / "d.zarr", resume=True)
    assert caught.value.exit_code == 2
    request = IngestRequest(
        memory=10**8, block_bytes=1000, shard_bytes=4000, codec="lz4", n_workers=2, progress=False,
        options=SourceOptions(),
    )  # fmt: skip
    with pytest.raises(ResourceError, match="free some space"):
        run_ingest(open_source(items()), tmp_path / "d.zarr", request, files=Files(system=Full(12)))
    assert not list(tmp_path.iterdir())


def test_resuming_nothing_begins_and_resuming_what_is_done_does_nothing(files: Path) -> None:
    said: list[str] = []
    path = files / "d.zarr"
    for _ in range(2):
        streamtrain.ingest(str(files / "x.npy"), path, resume=True, say=said.append, **SIZES)
    assert [text.partition(": ")[2] for text in said] == [
        "nothing to resume; starts afresh",
        "already complete; nothing was done",
    ]
    with pytest.raises(DatasetError, match=r"the dataset there was made differently: options\.block"):
        streamtrain.ingest(str(files / "x.npy"), path, resume=True, **SIZES | {"block": "2KB"})
    with pytest.raises(UsageError, match="nothing tells whether it is of these arrays"):
        streamtrain.ingest({"x": X}, path, resume=True, **SIZES)


def test_bad_rows_leave_nothing_to_resume(tmp_path: Path) -> None:
    bad = F.copy()
    bad[1999, 0] = np.nan
    with pytest.raises(InputError, match="1 NaN value"):
        streamtrain.ingest({"x": bad}, tmp_path / "d.zarr", **SIZES)
    assert not list(tmp_path.iterdir())
