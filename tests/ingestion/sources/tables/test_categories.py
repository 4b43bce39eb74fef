"""Categories against a count in plain Python."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import BudgetError, InputError
from streamtrain.ingestion.sources.tables import categories
from streamtrain.ingestion.sources.tables.categories import CategoryCodes, CategoryMemory, CategorySurvey, hash_code
from streamtrain.store.schema.columns import CategoryColumn

texts = st.one_of(st.none(), st.sampled_from(["", " ", "a", "b", "B", " a", "NA", "é", "😀", "﷐"]), st.text(max_size=3))
runs_of_texts = st.lists(st.lists(texts, max_size=20), max_size=6)


def survey_of(*runs: pa.Array) -> CategorySurvey:
    survey = CategorySurvey("c", None, "t.csv")
    for run in runs:
        survey.add(run)
    return survey


def column_of(*runs: pa.Array, min_count: int = 1) -> CategoryColumn:
    return survey_of(*runs).finish(min_count, 1000)


def is_missing(text: str | None) -> bool:
    return text is None or not text.strip()


@given(runs_of_texts, st.integers(1, 3))
def test_they_are_numbered_by_falling_count_then_by_text(runs: list[list[str | None]], min_count: int) -> None:
    survey = survey_of(*(pa.array(run, pa.string()) for run in runs))
    seen = [text for run in runs for text in run]
    counts = Counter(text for text in seen if not is_missing(text))
    kept = sorted(
        (name for name, count in counts.items() if count >= min_count), key=lambda name: (-counts[name], name)
    )
    column = survey.finish(min_count, 1000)
    assert column.names == tuple(kept)
    assert column.counts == tuple(counts[name] for name in kept)
    assert column.size == 2 + len(kept)
    assert survey.n_missing == sum(map(is_missing, seen))
    codes = CategoryCodes(column)
    for run in runs:
        expected = [0 if is_missing(text) else kept.index(text) + 2 if text in kept else 1 for text in run]
        found = codes.of(pa.array(run, pa.string()))
        assert found.dtype == np.int32
        assert found.tolist() == expected


@pytest.mark.parametrize("names", [("b", "a", "é", " "), ("a", "\ud800"), ()])
def test_codes_are_the_same_looked_up_at_once_and_one_by_one(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    column = CategoryColumn(name="c", names=names, counts=(1,) * len(names))
    run = ["a", None, "", " ", "é", "c", "b", "a", "\t"]
    expected = [names.index(text) + 2 if text in names else 0 if is_missing(text) else 1 for text in run]
    for per_text, most in ((2, 1 << 16), (-1, 1 << 16), (2, -1)):
        monkeypatch.setattr(categories, "_NAMES_PER_TEXT", per_text)
        monkeypatch.setattr(categories, "_MOST_LOOKED_UP", most)
        codes = CategoryCodes(column)
        for values in (pa.array(run, pa.string()), pa.array(run, pa.large_string())):
            assert codes.of(values).tolist() == expected
            assert codes.of(values.dictionary_encode()).tolist() == expected
        assert codes.of(pa.array([], pa.string())).tolist() == []


@given(st.lists(texts, max_size=20), st.integers(1, 50))
def test_a_hashed_column_has_codes_of_its_texts_alone(run: list[str | None], size: int) -> None:
    column = CategoryColumn(name="c", hash_size=size)
    expected = [
        0
        if text is None or not text.strip()
        else 2 + int.from_bytes(hashlib.blake2b(text.encode()).digest()[:8], "little") % size
        for text in run
    ]
    assert CategoryCodes(column).of(pa.array(run, pa.string())).tolist() == expected
    assert column.size == size + 2


@given(runs_of_texts)
def test_a_dictionary_gives_what_its_texts_give(runs: list[list[str | None]]) -> None:
    plain = [pa.array(run, pa.string()) for run in runs]
    encoded = [run.dictionary_encode() for run in plain]
    assert column_of(*plain) == column_of(*encoded)
    codes = CategoryCodes(column_of(*plain))
    assert [codes.of(run).tolist() for run in plain] == [codes.of(run).tolist() for run in encoded]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([7, 7, -1, None], pa.int16()), ("7", "-1")),
        (pa.array([2**64 - 1], pa.uint64()), (str(2**64 - 1),)),
        (pa.array([True, True, False, None]), ("true", "false")),
        (pa.array([7.0, 7.0, -0.0, float("nan"), None]), ("7", "0")),
        (pa.array([7.0, 2.0**60], pa.float32()), (str(2**60), "7")),
        (pa.array(["b", "b", "a"], pa.large_string()), ("b", "a")),
        (pa.array([18262], pa.date32()), ("2020-01-01",)),
        (pa.nulls(3), ()),
        (pa.DictionaryArray.from_arrays(pa.array([1, None, 1]), pa.array(["unused", "used"])), ("used",)),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["x", None, "x"])), ("x",)),
    ],
)
def test_values_are_written_as_csv_shows_them(values: pa.Array, names: tuple[str, ...]) -> None:
    survey = survey_of(values, values)
    column = survey.finish(1, 1000)
    assert column.names == names
    assert sum(column.counts) + survey.n_missing == 2 * len(values)
    codes = CategoryCodes(column).of(values).tolist()
    assert [code == 0 for code in codes] == [value is None or value != value for value in values.to_pylist()]


def test_numbers_with_fractions_are_no_categories() -> None:
    with pytest.raises(InputError, match=r"t\.csv: column 'c' holds 1\.5, a number with a fraction"):
        survey_of(pa.array([1.0, 1.5]))
    with pytest.raises(InputError, match=r"holds 1\.5"):
        survey_of(pa.array(["1", "1.5", None])).finish(1, 10)
    assert column_of(pa.array(["1", "1.5", "x"])).names == ("1", "1.5", "x")
    assert column_of(pa.array(["1", "2.0"])).names == ("1", "2.0")


def test_other_types_are_no_categories() -> None:
    with pytest.raises(InputError, match="holds timestamp"):
        survey_of(pa.array([0], pa.timestamp("s")))


def test_too_many_are_refused_with_the_figure_and_the_hash() -> None:
    with pytest.raises(BudgetError, match="has 3 distinct values so far, over category_limit=2") as refused:
        survey_of(pa.array(["a", "b", "c"])).finish(1, 2)
    assert refused.value.fix is not None
    assert "hash={'c': 100000}" in refused.value.fix
    assert "category_limit=3" in refused.value.fix


def test_they_are_refused_before_they_outgrow_the_memory() -> None:
    survey = CategorySurvey("c", CategoryMemory(limit=10_000_000))
    n_added = 0
    with pytest.raises(BudgetError, match=r"distinct values so far, which take .*, of 10\.0 MB"):  # noqa: PT012
        for start in range(0, 10_000_000, 1000):
            survey.add(pa.array([f"value {number}" for number in range(start, start + 1000)]))
            n_added += 1000
    assert 16_000 < n_added < 100_000


def test_many_runs_give_what_one_gives() -> None:
    values = [f"v{number**2 % 40_009}" for number in range(60_000)]
    whole = survey_of(pa.array(values)).finish(2, 10**6)
    parts = survey_of(*(pa.array(values[start : start + 700]) for start in range(0, 60_000, 700))).finish(2, 10**6)
    assert whole == parts
    assert len(whole.names) > 15_000


def test_the_hash_is_pinned() -> None:
    assert hash_code("", 2**31 - 3) == 2 + int.from_bytes(hashlib.blake2b(b"").digest()[:8], "little") % (2**31 - 3)


def test_long_texts_wait_by_their_bytes_to_be_counted() -> None:
    memory = CategoryMemory(limit=10**9)
    survey = CategorySurvey("c", memory)
    for n_done in range(4):
        survey.add(pa.array([f"{n_done} {row} " + "x" * 300_000 for row in range(4)]))
        assert memory.n_bytes >= 300_000 * 4 * (n_done // 2 + 1)
    survey.add(pa.array(["0 0 " + "x" * 300_000]))
    assert survey.finish(1, 100).counts == (2, *(1,) * 15)
