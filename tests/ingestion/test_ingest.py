"""Ingest: the same bytes however it is run, and every refusal leaves nothing behind."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
import streamtrain as st
from streamtrain.errors import (
    BudgetError,
    DatasetError,
    InputError,
    StreamtrainError,
    UnknownArgument,
    UnknownName,
    UsageError,
)
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.registry import open_source

X = np.random.default_rng(0).integers(0, 50, (5000, 24), np.uint8)
Y = np.repeat(np.arange(10), 500)


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def _items(step: int = 333) -> Iterator[dict[str, Any]]:
    """Runs of rows out of one buffer that is used again and again, as careless readers do."""
    x = np.empty((step, 24), np.uint8)
    for start in range(0, len(X), step):
        n_rows = len(X[start : start + step])
        x[:n_rows] = X[start : start + step]
        yield {"x": x[:n_rows], "y": Y[start : start + step]}


@pytest.mark.parametrize("codec", ["none", "auto"])
def test_workers_and_budgets_do_not_change_a_byte(tmp_path: Path, codec: str) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    sources = {"arrays": {"x": X, "y": Y}, "npz": str(tmp_path / "d.npz")}
    for name, source in sources.items():
        trees = []
        for n_workers, memory in ((1, "64MB"), (4, "1GB"), (4, "64MB")):
            path = tmp_path / f"{name}-{n_workers}-{memory}.zarr"
            streamtrain.ingest(source, path, n_workers=n_workers, memory=memory, codec=codec, block="4KB", shard="20KB")
            trees.append(_tree(path))
        assert len(trees[0]) > 20
        assert all(tree == trees[0] for tree in trees)
        assert not [key for key in trees[0] if key.endswith(".tmp")]


def test_every_way_of_reading_gives_the_same_dataset(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    sources = ({"x": X, "y": Y}, str(tmp_path / "d.npz"), _items())
    datasets = [
        streamtrain.ingest(source, tmp_path / f"{i}.zarr", block="4KB", shard="20KB")
        for i, source in enumerate(sources)
    ]
    assert len({dataset.id for dataset in datasets}) == 1
    for name, values in (("x", X), ("y", Y)):
        for dataset in datasets:
            np.testing.assert_array_equal(dataset[:][name], values)
            assert dataset.stats(name).features.tobytes() == datasets[0].stats(name).features.tobytes()
            assert dataset.manifest.statistics[name].rho == datasets[0].manifest.statistics[name].rho


def test_an_iterator_longer_than_its_head(tmp_path: Path) -> None:
    rows = np.arange(1000 * 4000, dtype=np.int32).reshape(4000, 1000)
    items = ({"x": rows[a : a + 700]} for a in range(0, 4000, 700))
    dataset = streamtrain.ingest(items, tmp_path / "d.zarr", memory="40MB", codec="none")
    np.testing.assert_array_equal(dataset[:]["x"], rows)
    assert dataset.layout.block_bytes > 400_000


def test_short_iterators_get_small_blocks(tmp_path: Path) -> None:
    items = ({"x": X[a : a + 7]} for a in range(0, 5000, 7))
    assert streamtrain.ingest(items, tmp_path / "d.zarr").layout.block_bytes < 20_000


def test_samples_larger_than_a_block(tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(0, 256, (5, 4_000_000), np.uint8)
    for source in ({"x": x}, iter([{"x": x}])):
        path = tmp_path / type(source).__name__
        dataset = streamtrain.ingest(source, path)
        assert (dataset.layout.block_rows, dataset.layout.n_blocks) == (1, 5)
        np.testing.assert_array_equal(dataset[3]["x"], x[3])
        assert dataset.stats("x").mean.shape == ()
        assert dataset.stats("x").mean == pytest.approx(x.mean())


def test_string_classes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,kind\n1,2,cat\n3,4,ant\n5,6,cat\n")
    dataset = streamtrain.ingest(str(tmp_path / "t.csv"), tmp_path / "d.zarr", label_column="kind")
    assert dataset.classes == ("ant", "cat")
    assert dataset[:]["y"].tolist() == [1, 0, 1]
    assert dataset.n_classes == 2
    other = tmp_path / "u.csv"
    other.write_text("a,b,kind\n1,2,dog\n3,4,bee\n5,6,dog\n")
    assert streamtrain.ingest(str(other), tmp_path / "e.zarr", label_column="kind").id != dataset.id


def test_the_manifest_says_where_it_came_from(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    dataset = streamtrain.ingest(str(tmp_path / "x.npy"), tmp_path / "d.zarr", block="1KB")
    (source,) = dataset.manifest.sources
    assert source["path"] == str(tmp_path / "x.npy")
    assert source["bytes"] == (tmp_path / "x.npy").stat().st_size
    assert dataset.manifest.options == {"block": 1000, "shard": 64_000_000, "codec": "auto"}
    manifest = json.loads((dataset.path / "_streamtrain/manifest.json").read_bytes())
    assert set(manifest["files"]) | {"zarr.json", "_streamtrain/manifest.json"} == set(_tree(dataset.path))


def _refused(kind: type[StreamtrainError], code: int, match: str, source: object, path: Path, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        streamtrain.ingest(source, path, **options)
    assert caught.value.exit_code == code
    assert not path.exists()


def test_bad_arguments(tmp_path: Path) -> None:
    path, source = tmp_path / "d.zarr", {"x": X}
    _refused(UsageError, 2, "number and a unit", source, path, memory="512")
    _refused(UsageError, 2, "block is 0; it must be positive", source, path, block=0)
    _refused(UnknownName, 2, "unknown codec 'lz5'", source, path, codec="lz5")
    _refused(UnknownArgument, 2, "did you mean 'columns'", source, path, colums=("a",))
    _refused(UsageError, 2, "dtype='float32'", source, path, dtype="flot32")
    _refused(UsageError, 2, "positive integer", source, path, n_workers=0)


def test_bad_sources(tmp_path: Path) -> None:
    path = tmp_path / "d.zarr"
    _refused(InputError, 3, "no such file", str(tmp_path / "x.npy"), path)
    _refused(InputError, 3, "x 5,000, y 4,999", {"x": X, "y": Y[:-1]}, path)
    _refused(InputError, 3, "no ", {"x": X[:0]}, path)
    _refused(InputError, 3, "no samples", iter([{"x": X[:0]}]), path)


def test_nan_and_infinity(tmp_path: Path) -> None:
    x = np.ones((3000, 4), np.float32)
    x[7, 2] = x[2901, 0] = np.nan
    x[40, 1] = -np.inf
    np.save(tmp_path / "x.npy", x)
    match = r"x\.npy row 7: field x holds 2 NaN and 1 infinite values.*row 7.*, .*row 40.*, .*row 2901"
    _refused(InputError, 3, match, str(tmp_path / "x.npy"), tmp_path / "d.zarr", block="1KB", shard="4KB")
    _refused(
        InputError, 3, match.replace(r"x\.npy row 7", "row 7 of the iterator"), iter([{"x": x}]), tmp_path / "d.zarr"
    )
    labels = {"x": X[:3], "y": np.array([0.5, np.nan, 1.0])}
    _refused(InputError, 3, "field y holds 1 NaN value", labels, tmp_path / "d.zarr")


def test_a_source_that_changes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    source = open_source(str(tmp_path / "x.npy"))
    os.utime(tmp_path / "x.npy", ns=(1, 1))
    _refused(InputError, 3, "modification time changed", source, tmp_path / "d.zarr")


class Promising(Source):
    """A source that does not keep its word."""

    provenance = ({"format": "promise"},)
    seekable = False

    def __init__(self, n_samples: int, rows: dict[str, Any]) -> None:
        self.fields = open_source({"x": X}).fields
        self.n_samples = n_samples
        self._rows = rows

    def where(self, row: int) -> str:
        return f"row {row}"

    def iter_blocks(self, max_bytes: int) -> Iterator[dict[str, Any]]:
        yield {"x": X[:10]}
        yield self._rows


@pytest.mark.parametrize(
    ("n_samples", "rows", "match"),
    [
        (5000, {"x": X[:10]}, "promised 5000 rows and gave 20"),
        (15, {"x": X[:10]}, "promised 15 rows and gave 20"),
        (10, {"x": X[:10]}, "promised 10 rows and gave 20"),
        (20, {"x": X[:10].astype(float)}, "row 10: the source gave 10 rows of x float64"),
        (20, {"x": X[:10, :5]}, "row 10: the source gave"),
        (20, {"z": X[:10]}, "row 10: the source gave"),
    ],
)
def test_a_source_that_breaks_its_promise(tmp_path: Path, n_samples: int, rows: dict[str, Any], match: str) -> None:
    _refused(InputError, 3, match, Promising(n_samples, rows), tmp_path / "d.zarr")


def test_damage_that_shows_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x-idx2-ubyte.gz"
    data = bytearray(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 19, 136, 0, 0, 0, 24]) + X.tobytes()))
    path.write_bytes(data)
    assert len(streamtrain.ingest(str(path), tmp_path / "whole.zarr")) == 5000
    data[-7] ^= 1  # the checksum of the unpacked bytes
    path.write_bytes(data)
    _refused(InputError, 3, "damaged", str(path), tmp_path / "d.zarr")


def test_an_iterator_that_fails(tmp_path: Path) -> None:
    def items() -> Iterator[dict[str, Any]]:
        yield from itertools.islice(_items(), 3)
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        streamtrain.ingest(items(), tmp_path / "d.zarr", block="1KB", memory="40MB")
    assert not (tmp_path / "d.zarr").exists()


def test_a_destination_where_something_is(tmp_path: Path) -> None:
    streamtrain.ingest({"x": X}, tmp_path / "d.zarr")
    before = _tree(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "half" / "_streamtrain").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    cases = {
        "d.zarr": "a dataset exists there already",
        "dir": "something that is not a dataset",
        "link": "something that is not a dataset",
    }
    for name, match in cases.items():
        with pytest.raises(UsageError, match=match) as caught:
            streamtrain.ingest({"x": X}, tmp_path / name)
        assert caught.value.exit_code == 2
    with pytest.raises(DatasetError, match=r"an incomplete dataset.*resume=True, or streamtrain.repair") as incomplete:
        streamtrain.ingest({"x": X}, tmp_path / "half")
    assert incomplete.value.exit_code == 4
    assert _tree(tmp_path) == before


def test_missing_parents_are_made(tmp_path: Path) -> None:
    assert len(streamtrain.ingest({"x": X}, tmp_path / "a" / "b" / "d.zarr")) == 5000


def test_a_budget_that_is_too_small_names_one_that_works(tmp_path: Path) -> None:
    for make in (lambda: {"x": X, "y": Y}, _items):
        with pytest.raises(BudgetError, match=r"rows .* \+ .*threads .* = .* of 1\.0 MB") as caught:
            streamtrain.ingest(make(), tmp_path / "d.zarr", memory="1MB")
        assert caught.value.exit_code == 5
        assert isinstance(caught.value, MemoryError)
        assert caught.value.fix is not None
        smallest = caught.value.fix.split("'")[1]
        path = tmp_path / f"{make is _items}.zarr"
        assert len(streamtrain.ingest(make(), path, memory=smallest)) == 5000
    assert not (tmp_path / "d.zarr").exists()


def test_a_sample_larger_than_the_budget(tmp_path: Path) -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2, 10**9), (0, 0))
    _refused(BudgetError, 5, "the smallest that works is", {"x": huge}, tmp_path / "d.zarr", memory="100MB")


def test_what_auto_stands_for_is_told_at_the_line_that_asked(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + "1,x,2.5\n3,z,4.5\n" * 50)
    with pytest.warns(st.StreamtrainWarning, match="auto stands for") as told:
        st.ingest(tmp_path / "t.csv", tmp_path / "d", label_column="y", auto=True, progress=False)
    assert {each.filename for each in told} == {__file__}
