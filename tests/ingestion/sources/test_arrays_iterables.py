"""Iterators and iterables of dicts of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.registry import open_source


def items(lengths: list[int]) -> Iterator[dict[str, Any]]:
    start = 0
    for length in lengths:
        rows = np.arange(start, start + length)
        yield {"x": np.stack([rows, rows], axis=1).astype("f4"), "y": rows.astype("u2")}
        start += length


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8), max_bytes=st.integers(1, 400))
def test_blocks_are_the_items(read_all: Callable[..., Any], lengths: list[int], max_bytes: int) -> None:
    source = open_source(items([*lengths, 3]))
    assert source.n_samples is None
    assert not source.seekable
    rows = read_all(source, max_bytes)
    np.testing.assert_array_equal(rows["y"], np.arange(sum(lengths) + 3), strict=True)
    np.testing.assert_array_equal(rows["x"][:, 1], rows["y"].astype("f4"), strict=True)


def test_an_iterator_runs_once(read_all: Callable[..., Any]) -> None:
    source = open_source(items([3]))
    read_all(source)
    with pytest.raises(UsageError, match="read already") as caught:
        source.iter_blocks(100)
    assert caught.value.exit_code == 2


def test_an_iterable_runs_again(read_all: Callable[..., Any]) -> None:
    source = open_source(list(items([3, 4])))
    assert len(read_all(source)["y"]) == len(read_all(source)["y"]) == 7
    assert source.where(5) == "row 5 of the iterator"


def test_only_the_first_item_is_taken_before_reading() -> None:
    taken = []

    def noting() -> Iterator[dict[str, Any]]:
        for number in range(5):
            taken.append(number)
            yield {"x": np.zeros(2)}

    assert open_source(noting()).fields[0].shape == ()
    assert taken == [0]


GOOD = {"x": np.zeros((2, 3), "f4"), "y": np.zeros(2, "i8")}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": GOOD["x"]}, "its fields are x; the first item's are x, y"),
        ({**GOOD, "z": np.zeros(2)}, "its fields are x, y, z"),
        ({**GOOD, "x": np.zeros((2, 3))}, r"x is float64 \(3,\); in the first item it is float32 \(3,\)"),
        ({**GOOD, "x": np.zeros((2, 4), "f4")}, r"x is float32 \(4,\); in the first item it is float32 \(3,\)"),
        ({**GOOD, "y": np.zeros(2)}, r"y is float64 \(\)"),
        ({**GOOD, "y": np.zeros(3, "i8")}, "differ in rows: x 2, y 3"),
        ({**GOOD, "y": np.int64(3)}, "'y' is 0-d"),
        ((GOOD["x"], GOOD["y"]), "a tuple is not a dict of arrays"),
        ({}, "an empty dict"),
        ({**GOOD, "y": np.array([None, None])}, "Python objects"),
    ],
)
def test_a_later_item_that_differs(bad: Any, message: str) -> None:
    source = open_source(iter([GOOD, GOOD, bad]))
    with pytest.raises(InputError, match=f"item 2 of the iterator.*{message}") as caught:
        list(source.iter_blocks(1000))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("bad", [{"x": np.float32(1)}, {}, np.zeros(3), (GOOD,), {"x": np.array(["a"])}])
def test_a_bad_first_item(bad: Any) -> None:
    with pytest.raises(InputError, match="item 0 of the iterator"):
        open_source(iter([bad]))


def test_no_samples() -> None:
    with pytest.raises(InputError, match="holds no samples"):
        open_source(iter([]))
    with pytest.raises(InputError, match="every item is empty"):
        list(open_source(iter([{"x": np.zeros((0, 3))}])).iter_blocks(100))


def test_an_error_of_the_iterator_is_its_own() -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield GOOD
        raise RuntimeError("the camera is off")

    with pytest.raises(RuntimeError, match="the camera is off"):
        list(open_source(failing()).iter_blocks(1000))
