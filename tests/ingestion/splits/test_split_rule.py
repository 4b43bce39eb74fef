"""Rules of splits against plain Python, row by row and value by value."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import streamtrain as st
from streamtrain.ingestion.splits.rule import (
    boundaries,
    parse_split,
    read_cell,
    row_words,
    splits_in_order,
    splits_of_words,
    value_word,
    word_edges,
)
from streamtrain.store.split_root import SplitRule

SHARES = some.lists(some.integers(1, 300), min_size=1, max_size=3).map(
    lambda shares: tuple((f"s{place}", share / 1000) for place, share in enumerate(shares))
)


def mix64(z: int) -> int:
    """SplitMix64's finalizer in Python's own integers."""
    z %= 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def plain_split(word: int, shares: tuple[tuple[str, float], ...]) -> int:
    """The number of the split that holds a word; 0 is train."""
    cumulative = Fraction(0)
    for number, (_, share) in enumerate(shares, 1):
        cumulative += Fraction(str(share))
        if Fraction(word, 2**64) < cumulative:
            return number
    return 0


@given(shares=SHARES, seed=some.integers(0, 2**63 - 1), start=some.integers(0, 2**62))
def test_rows_are_drawn_as_plain_python_draws_them(
    shares: tuple[tuple[str, float], ...], seed: int, start: int
) -> None:
    rule = SplitRule(shares=shares, seed=seed)
    key = int(np.random.SeedSequence(seed, spawn_key=tuple(b"split")).generate_state(1, np.uint64)[0])
    found = splits_of_words(row_words(rule, start, start + 20), word_edges(rule))
    assert found.tolist() == [plain_split(mix64(key + row), shares) for row in range(start, start + 20)]


@given(value=some.integers(-(2**63), 2**64 - 1) | some.text(), seed=some.integers(0, 2**63 - 1))
def test_groups_are_drawn_by_the_digest_of_their_value(value: int | str, seed: int) -> None:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else (value % 2**64).to_bytes(8, "little")
    digest = hashlib.blake2b(data, key=seed.to_bytes(8, "little")).digest()
    assert value_word(value, seed) == int.from_bytes(digest[:8], "little")


@given(counts=some.lists(some.integers(1, 9), min_size=1, max_size=40), shares=SHARES)
def test_splits_in_order_cut_no_group(counts: list[int], shares: tuple[tuple[str, float], ...]) -> None:
    rule = SplitRule(shares=shares, how="last")
    firsts = boundaries(sum(counts), rule)
    expected, row = [], 0
    for count in counts:
        expected.append(sum(row >= first for first in firsts))
        row += count
    assert splits_in_order(counts, rule).tolist() == expected


def test_a_share_added_behind_moves_no_row_of_those_before() -> None:
    one, two = SplitRule(shares=(("val", 0.1),)), SplitRule(shares=(("val", 0.1), ("test", 0.2)))
    words = row_words(one, 0, 1000)
    in_val = splits_of_words(words, word_edges(one)) == 1
    assert (in_val == (splits_of_words(words, word_edges(two)) == 1)).all()


@pytest.mark.parametrize(
    ("cell", "value"),
    [("7", 7), (" 007 ", 7), ("-3", -3), ("1.0", 1), ("1e3", 1000), ("0.5", 0.5), ("p7", "p7"), (" a", " a"),
     ("18446744073709551616", "18446744073709551616"), ("1_0", "1_0"), ("inf", "inf"), ("٣", "٣")],
)  # fmt: skip
def test_cells_that_are_numbers_are_numbers_however_they_are_written(cell: str, value: Any) -> None:
    assert read_cell(cell) == value
    assert type(read_cell(cell)) is type(value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"val": 1.0}, "above 0 and below 1"),
        ({"val": 0}, "above 0 and below 1"),
        ({"val": -0.1}, "above 0 and below 1"),
        ({"val": float("nan")}, "above 0 and below 1"),
        ({"val": True}, "above 0 and below 1"),
        ({"val": 0.5, "test": 0.5}, "sum to 1"),
        ({"val": 0.7, "test": 0.1, "other": 0.2}, "sum to 1"),
        ({"train": 0.8, "val": 0.2}, "train has no share"),
        ({"../val": 0.2}, "cannot be named"),
        ({"_streamtrain": 0.2}, "cannot be named"),
        ({"": 0.2}, "cannot be named"),
        ({3: 0.2}, "cannot be named"),
        ({"val": 0.1, "VAL": 0.1}, "names must differ"),
        ({}, "maps the name"),
        ("val=0.1", "maps the name"),
        (0.1, "maps the name"),
    ],
)
def test_shares_that_cannot_be_are_refused(given: Any, said: str) -> None:
    with pytest.raises(st.UsageError, match=said):
        parse_split(given)


@pytest.mark.parametrize(
    "given", [{"by": 3}, {"how": "first"}, {"how": 1}, {"seed": -1}, {"seed": 1.5}, {"seed": True}, {"seed": 2**64}]
)
def test_other_options_of_splits_are_checked(given: Any) -> None:
    with pytest.raises(st.StreamtrainError):
        parse_split({"val": 0.1}, **given)


@pytest.mark.parametrize("given", [{"by": "x"}, {"how": "hash"}, {"seed": 0}])
def test_options_of_splits_take_a_split(given: Any) -> None:
    with pytest.raises(st.UsageError, match="nothing is split"):
        parse_split(None, **given)
    assert parse_split(None) is None
