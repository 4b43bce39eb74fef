"""The rule of the task: each row of its table, and what it never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import streamtrain as st
from streamtrain.cli.output import as_command_line, label_text
from streamtrain.errors import UnknownName, UsageError
from streamtrain.store.schema.task import Labels, check_told, task_by_rule, task_of, undecided

N = 4_000


def whole(values: Any, *, n: int = N, column: bool = True, kind: str = "i") -> Labels:
    values = sorted(values)
    return Labels(
        kind=kind, shape=(), n_samples=n, values=values, min=values[0], max=values[-1], is_column=column, is_whole=True
    )


def matrix(kind: str, *shape: int, **facts: bool) -> Labels:
    return Labels(kind=kind, shape=shape, n_samples=N, min=0, max=1, **facts)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (Labels(kind="i", shape=(), n_samples=N, is_named=True), "classification"),
        (Labels(kind="b", shape=(), n_samples=N), "classification"),
        (Labels(kind="f", shape=(), n_samples=N, min=0, max=3, is_whole=False), "regression"),
        (Labels(kind="f", shape=(), n_samples=N, min=0.5, max=3), "regression"),
        (Labels(kind="f", shape=(), n_samples=N, min=0, max=3), None),
        (matrix("b", 3, is_binary=True, is_one_hot=False), "multilabel"),
        (matrix("f", 3, is_binary=True, is_one_hot=False), "multilabel"),
        (matrix("b", 3, is_binary=True, is_one_hot=True), None),
        (matrix("f", 3, is_binary=False, is_one_hot=False), "regression"),
        (matrix("i", 3, is_binary=False, is_one_hot=False), None),
        (matrix("i", 28, 28), "classification"),
        (matrix("f", 28, 28), "regression"),
        (matrix("f", 3), None),
        (whole([7]), "classification"),
        (whole([-1, 1]), "classification"),
        (whole([0, 5_000]), "classification"),
        (whole(range(10)), "classification"),
        (whole(range(1, 6)), "classification"),
        (whole(range(20)), "classification"),
        (whole(range(21)), None),
        (whole(range(21), column=False), "classification"),
        (whole(range(1_000), column=False), "classification"),
        (whole(range(1_001), column=False), None),
        (whole([*range(9), 9]), "classification"),
        (whole([*range(8), 9]), "classification"),
        (whole([*range(7), 9]), None),
        (whole(range(3, 10)), None),
        (whole(range(2, 5)), None),
        (whole(range(-10, 11)), "regression"),
        (whole(range(17, 4_984, 23)), "regression"),
        (whole(range(17, 4_984, 23), n=10**9), "regression"),
        (whole(range(100), n=1_999), "regression"),
        (whole(range(100), n=2_000), None),
        (whole(range(17, 4_984, 23), column=False), None),
        (whole([0.0, 1.0], kind="f"), "classification"),
        (whole([0.0, 1.0, 2.0], kind="f"), None),
        (Labels(kind="i", shape=(), n_samples=10**6, min=0, max=10**6, is_column=True), "regression"),
        (Labels(kind="i", shape=(), n_samples=10**8, min=0, max=10**5, is_column=True), None),
        (Labels(kind="i", shape=(), n_samples=10**8, min=0, max=10**5), None),
    ],
)
def test_each_row_of_the_table(labels: Labels, expected: str | None) -> None:
    assert task_by_rule(labels) == expected


@given(some.sets(some.integers(-(10**6), 10**6), min_size=21, max_size=200), some.integers(1, 10**9))
def test_many_whole_numbers_of_a_column_are_never_classes(values: set[int], n: int) -> None:
    assert task_by_rule(whole(values, n=n)) != "classification"


@given(some.integers(3, 20), some.sampled_from([0, 1]), some.integers(1, 10**9))
def test_few_numbered_from_the_start_always_are(n_values: int, first: int, n: int) -> None:
    assert task_by_rule(whole(range(first, first + n_values), n=n)) == "classification"


@pytest.mark.parametrize(
    ("labels", "task", "why"),
    [
        (Labels(kind="i", shape=(), n_samples=N, is_named=True), "regression", "Classes are not quantities"),
        (Labels(kind="f", shape=(), n_samples=N, min=0.5, max=3), "classification", "whole numbers"),
        (whole(range(3)), "multilabel", "matrix of 0 and 1"),
        (matrix("i", 3, is_binary=True, is_one_hot=True), "classification", "argmax"),
        (Labels(kind="i", shape=(), n_samples=10**6, min=0, max=10**6, is_column=True), "classification", "65,536"),
        (whole([0, 65_536], column=False), "classification", "from 0 to 65,535"),
    ],
)
def test_a_task_that_labels_cannot_be_of_is_refused(labels: Labels, task: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_told(labels, task, "d.zarr")


def test_what_is_undecided_names_both_ways() -> None:
    error = undecided(task_of(whole(range(3, 10))), "d.zarr")
    assert as_command_line(error.fix or "") == "--task classification, or --task regression"
    assert "7 whole numbers from 3 to 9: classes or a quantity" in error.what


def column(folder: Path, values: Any, **given: Any) -> st.Dataset:
    lines = [f"{number / 7:.4f},{value}" for number, value in enumerate(values)]
    (folder / "t.csv").write_text("\n".join(["a,quality", *lines]) + "\n")
    return st.ingest(folder / "t.csv", folder / "d.zarr", label_column="quality", progress=False, **given)


ROWS = np.arange(N)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            ROWS % 1_359 - 86,
            "1,359 whole numbers from -86 to 1272: a quantity, so regression "
            "(--task classification makes each a class)",
        ),
        (ROWS % 10, "10 classes, 0 to 9 (--task regression if they are quantities)"),
        (ROWS % 7 + 3, "7 whole numbers from 3 to 9: classes or a quantity? Undecided; train asks for --task"),
        (ROWS / 3, "numbers with fractions from 0 to 1333: a quantity, so regression"),
    ],
)
def test_the_sentence(values: Any, text: str, tmp_path: Path) -> None:
    assert label_text(column(tmp_path, values)) == f"quality: {text}"


def test_a_column_of_other_numbers_has_classes_of_their_names(tmp_path: Path) -> None:
    dataset = column(tmp_path, ROWS % 5 + 1)
    assert (dataset.task, dataset.n_classes, dataset.classes) == ("classification", 5, ("1", "2", "3", "4", "5"))
    assert dataset[:5]["y"].tolist() == [1, 2, 3, 4, 5], "stored as they come"


def test_a_told_task_is_kept(tmp_path: Path) -> None:
    told = column(tmp_path, ROWS % 7 + 3, task="classification")
    assert (told.task, told.classes) == ("classification", tuple("3456789"))
    found = told.label_task()
    assert found is not None
    assert found.named() == {"name": "classification", "by": "told", "values": 7, "min": 3, "max": 9}
    with pytest.raises(UsageError, match="that of the dataset 'classification'"):
        column(tmp_path, ROWS % 7, task="regression", append=True)
    with pytest.raises(UnknownName, match="unknown task"):
        column(tmp_path, ROWS, task="quantity")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (np.array([-1, 2, 3] * 8), None),
        (np.array([0.0, 1.0] * 12), "classification"),
        (np.array([0.0, 1.0, 2.0] * 8), None),
        (np.array([0.0, 1.5] * 12), "regression"),
        (np.eye(3)[np.arange(24) % 3], None),
        (np.ones((24, 3), bool), "multilabel"),
        (np.arange(48.0).reshape(24, 2), "regression"),
        (np.arange(48).reshape(24, 2), None),
    ],
)
def test_arrays(labels: Any, task: str | None, tmp_path: Path) -> None:
    dataset = st.ingest({"x": np.zeros((24, 2)), "y": labels}, tmp_path / "d.zarr", progress=False)
    assert dataset.task == task
    assert st.open(dataset.path).task == task
    assert np.array_equal(dataset[:]["y"], labels)


def test_an_append_after_which_the_rule_says_otherwise_warns(tmp_path: Path) -> None:
    rows = {"x": np.zeros((24, 2)), "y": np.arange(24) % 3}
    st.ingest(rows, tmp_path / "d.zarr", progress=False)
    with pytest.warns(st.StreamtrainWarning, match="read as classification, now as undecided"):
        st.ingest(rows | {"y": rows["y"] + 7}, tmp_path / "d.zarr", append=True, progress=False)


def test_classes_auto_takes_arrays_as_a_column(tmp_path: Path) -> None:
    rows = {"x": np.zeros((24, 2)), "y": np.arange(24) % 3 - 1}
    dataset = st.ingest(rows, tmp_path / "d.zarr", classes="auto", progress=False)
    assert (dataset.task, dataset.classes) == ("classification", ("-1", "0", "1"))
    assert len(st.ingest(rows, tmp_path / "d.zarr", append=True, progress=False)) == 48
