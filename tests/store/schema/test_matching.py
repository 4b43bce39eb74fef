"""The comparison of two schemas: put beside a plain account of what may and may not differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import UsageError
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import Schema
from streamtrain.store.schema.matching import check_same_meaning

NAMES = ("age", "height", "income", "weight", "width")


def check(ours: Schema, theirs: Schema) -> str | None:
    return check_same_meaning(ours, theirs, fields=("x", "y"), of="the training data", where="d.zarr")


def schema(
    columns: Any = None, classes: Any = None, *, target: str | None = None, x: str = "float32", shape: Any = (2,)
) -> Schema:
    """A schema of a field x with these columns, and of a target."""
    y = "int64" if classes else "float32"
    named = {"x": columns and tuple(columns), "y": (target,) if target else None}
    return Schema(
        fields=(
            Field(name="x", dtype=np.dtype(x), shape=(len(columns),) if columns else shape),
            Field(name="y", dtype=np.dtype(y), shape=()),
        ),
        columns={name: names for name, names in named.items() if names},
        classes=classes and tuple(classes),
    )


@given(st.permutations(NAMES), st.permutations(NAMES), st.integers(1, 5), st.integers(1, 5))
def test_columns_agree_when_names_and_order_do(one: list[str], other: list[str], n_one: int, n_other: int) -> None:
    ours, theirs = one[:n_one], other[:n_other]
    if ours == theirs:
        assert check(schema(ours), schema(theirs)) is None
        return
    with pytest.raises(UsageError, match="the columns of x are ") as caught:
        check(schema(ours), schema(theirs))
    message = str(caught.value)
    assert ", ".join(map(repr, ours)) in message
    assert ", ".join(map(repr, theirs)) in message
    if set(ours) == set(theirs):
        assert f"columns={list(ours)}" in message
    else:
        differing = [name for name in ours if name not in theirs] or [name for name in theirs if name not in ours]
        listed = f"column{'s' * (len(differing) > 1)} {', '.join(map(repr, differing))}"
        assert f"{listed}, which the training data" in message


@given(st.permutations(NAMES), st.permutations(NAMES), st.integers(1, 5), st.integers(1, 5))
def test_classes_agree_when_each_number_has_one_name(one: list[str], other: list[str], n_one: int, n_two: int) -> None:
    ours, theirs = one[:n_one], other[:n_two]
    if ours[: len(theirs)] == theirs:
        assert check(schema(classes=ours), schema(classes=theirs)) is None
        return
    with pytest.raises(UsageError, match=r"its labels 0, 1, \.\.\. are ") as caught:
        check(schema(classes=ours), schema(classes=theirs))
    assert "The first difference: label " in str(caught.value)
    assert (f"classes={list(ours)}" in str(caught.value)) == (set(theirs) <= set(ours))


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (schema(target="income"), schema(target="age"), "the columns of y are 'age'; in the training data they are"),
        (schema(), schema(x="uint8"), r"field x is uint8 \(2,\); in the training data float32 \(2,\)"),
        (schema(), schema(shape=(3,)), r"field x is float32 \(3,\); in the training data float32 \(2,\)"),
        (schema(x="uint8"), schema(x="uint16"), "field x is uint16"),
        (schema(classes="ab"), schema(), r"field y is float32 \(\); in the training data int64 \(\)"),
        (schema(["a"], target="t"), schema(["a"], target="u"), "'u'; in the training data they are 't'"),
    ],
)
def test_what_differs_is_refused(ours: Schema, theirs: Schema, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schema(), schema(x="float64")),
        # A table's dtype is what its values happened to be, and a target of named classes has any column's name.
        (schema(["a", "b"]), schema(["a", "b"], x="int64")),
        (schema(classes="ab", target="kind"), schema(classes="ab", target="label")),
        (Schema(), schema()),
        (Schema(), Schema()),
    ],
)
def test_what_means_the_same_is_taken_in_silence(ours: Schema, theirs: Schema) -> None:
    assert check(ours, theirs) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "without"),
    [
        (schema(), schema(["a", "b"]), "the training data has no names for the columns of x"),
        (schema(["a", "b"]), schema(), "d.zarr has no names for the columns of x"),
        (
            Schema(),
            schema(["a"], "ab", target="k"),
            "no names for the columns of x and the classes",
        ),
        (schema(["a", "b"], target="t"), schema(), "d.zarr has no names for the columns of x"),
    ],
)
def test_absent_names_are_matched_by_position_and_said_once(ours: Schema, theirs: Schema, without: str) -> None:
    told = check(ours, theirs)
    assert told is not None
    assert told.startswith("d.zarr and the training data are matched by position: ")
    assert without in told


def test_long_lists_are_cut() -> None:
    ours = [f"c{n}" for n in range(2000)]
    theirs = [*ours[:1500], *ours[1501:], ours[1500]]
    with pytest.raises(UsageError) as caught:
        check(schema(ours), schema(theirs))
    assert "column 1500 is 'c1501' here and 'c1500' there" in str(caught.value)
    assert len(str(caught.value)) < 700
