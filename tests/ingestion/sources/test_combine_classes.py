"""Classes that were named: other labels are refused with their row, the same ones are stored as int64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain.errors import DatasetError, InputError, UsageError
from streamtrain.ingestion.sources.combine import ClassCheckedSource, Classes
from streamtrain.ingestion.sources.registry import open_source

X = np.arange(60, dtype=np.float32).reshape(20, 3)


@given(
    labels=st.lists(st.sampled_from([0.0, 1.0, 2.0, 6.0, 7.0, -1.0, 1.5, np.nan, np.inf]), min_size=1, max_size=9),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
    streamed=st.booleans(),
    max_bytes=st.integers(1, 200),
)
def test_the_first_label_that_is_no_class(
    read_all: Callable[..., Any], labels: list[float], dtype: str, streamed: bool, max_bytes: int
) -> None:
    y = np.array(labels, dtype)
    source = ClassCheckedSource(open_source(iter([{"y": y}]) if streamed else {"y": y}), 7)
    assert source.seekable != streamed
    bad = [row for row, label in enumerate(labels) if label not in range(7)]
    if bad:
        with pytest.raises(InputError, match=rf"row {bad[0]} of the .*: label {y[bad[0]]} is not one of the 7 classes"):
            read_all(source, max_bytes)
    else:
        np.testing.assert_array_equal(read_all(source, max_bytes)["y"], np.array(labels, "i8"), strict=True)


def test_a_label_far_down_is_named_by_its_file_and_row(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((200_000, 1), "u1"))
    np.save(tmp_path / "y.npy", np.where(np.arange(200_000) == 150_001, 2.5, 0.0))
    source = ClassCheckedSource(open_source(tmp_path / "x.npy", labels=tmp_path / "y.npy"), 3)
    assert source.seekable
    assert source.read(0, 150_000)["y"].dtype == np.int64
    with pytest.raises(InputError, match=r"y\.npy row 150001: label 2\.5 is not one of the 3 classes 0 to 2"):
        source.read(100_000, 200_000)


@pytest.mark.parametrize("labels", [np.array([0, 1, -100]), np.array([0, 1, -7], "i1")])
def test_a_negative_label_is_stored_as_it_comes(labels: Any, tmp_path: Path) -> None:
    dataset = streamtrain.ingest({"x": X[:3], "y": labels}, tmp_path / "d.zarr")
    assert dataset[:]["y"].tolist() == labels.tolist()
    with pytest.raises(InputError, match=rf"row 2 of the arrays: label {labels[2]} is not one of the 2 classes 0 to 1"):
        streamtrain.ingest({"x": X[:3], "y": labels}, tmp_path / "e.zarr", classes=2)


def table(folder: Path, name: str, kinds: str) -> str:
    rows = [f"{number},{kind}" for number, kind in enumerate(kinds.split())]
    (folder / name).write_text("\n".join(["v,kind", *rows]) + "\n")
    return str(folder / name)


def test_names_have_the_order_they_were_given(tmp_path: Path) -> None:
    source, more = table(tmp_path, "a.csv", "cat ant cat"), table(tmp_path, "b.csv", "dog ant")
    named: dict[str, Any] = {"label_column": "kind", "classes": ["dog", "cat", "ant"]}
    dataset = streamtrain.ingest(source, tmp_path / "d.zarr", **named)
    assert (dataset.classes, dataset.n_classes, dataset[:]["y"].tolist()) == (("dog", "cat", "ant"), 3, [1, 2, 1])
    # What is appended is held against the same classes, named again or not.
    dataset = streamtrain.ingest(more, dataset.path, append=True, label_column="kind")
    assert dataset[:]["y"].tolist() == [1, 2, 1, 0, 2]
    with pytest.warns(streamtrain.StreamtrainWarning, match="is among the sources of .* already"):
        assert len(streamtrain.ingest(more, dataset.path, append=True, **named)) == 7
    numbers = streamtrain.ingest({"x": X, "y": np.arange(20) % 2}, tmp_path / "n.zarr", classes=("no", "yes", "maybe"))
    assert (numbers.classes, numbers.n_classes) == (("no", "yes", "maybe"), 3)


def test_a_number_of_classes_is_that_of_the_dataset(tmp_path: Path) -> None:
    dataset = streamtrain.ingest({"x": X, "y": np.arange(20.0) % 4}, tmp_path / "d.zarr", classes=10)
    assert (dataset.classes, dataset.n_classes, dataset.fields[1].dtype) == (None, 10, np.dtype("int64"))
    with pytest.raises(InputError, match=r"row 1 of the arrays: label 12\.0 is not one of the 10 classes"):
        streamtrain.ingest({"x": X[:2], "y": np.array([9.0, 12.0])}, dataset.path, append=True)
    appended = streamtrain.ingest({"x": X[:2], "y": np.array([9.0, 0.0])}, dataset.path, append=True)
    assert (len(appended), appended.n_classes) == (22, 10)
    with pytest.raises(InputError, match="the dataset has x"):
        streamtrain.ingest({"x": X[:2]}, dataset.path, append=True)
    source = table(tmp_path, "a.csv", "cat ant cat")
    streamtrain.ingest(source, tmp_path / "e.zarr", label_column="kind", classes=2)
    with pytest.raises(DatasetError, match=r"options\.classes: 2 there, 3 here"):
        streamtrain.ingest(source, tmp_path / "e.zarr", label_column="kind", classes=3, resume=True)
    with pytest.raises(InputError, match=r"a\.csv: 2 classes were found, 1 were named: 'ant', 'cat'"):
        streamtrain.ingest(source, tmp_path / "f.zarr", label_column="kind", classes=1)


def test_classes_without_labels(tmp_path: Path) -> None:
    for rows in ({"x": X}, {"y": X}):
        with pytest.raises(UsageError, match="classes are of field y, one per sample, and there is none"):
            streamtrain.ingest(rows, tmp_path / "d.zarr", classes=3)


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        (0, "classes are 0; they can be 1 to 65,536"),
        (2**16 + 1, "classes are 65,537"),
        ([], "classes are 0"),
        (True, "classes is True"),
        (2.0, r"classes is 2\.0"),
        ("cat", "classes is 'cat'"),
        (["cat", ""], "a list of their names"),
        (["cat", "dog", "cat"], "two classes have the same name"),
    ],
)
def test_what_is_no_classes(classes: Classes, match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        streamtrain.ingest({"x": X, "y": np.zeros(20, "i8")}, tmp_path / "d.zarr", classes=classes)
